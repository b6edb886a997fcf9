"""``semicon demo``: the whole chain on synthetic scans, with the commands that a user types."""

import argparse
import shlex
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from nnunet_semicon import __version__
from nnunet_semicon.errors import UserError
from nnunet_semicon.files import write_json, write_text
from nnunet_semicon.tables import markdown, render

DEVICES = ("cpu", "cuda", "mps")
CAVEAT = (
    "A phantom proves nothing about patients, and one seed proves nothing either: the runs only show that the chain "
    "works here."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Writes synthetic cine-MRI scans as an nnU-Net dataset, plans, preprocesses, and trains three times: on the\n"
        "labeled scans alone, on these scans mixed with each other, and with the unlabeled ones (Semicon). Predicts,\n"
        f"evaluates, and prints every command.\n{CAVEAT}"
    )
    parser.add_argument("--out", type=Path, default=Path("semicon_demo"), help="folder (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an earlier demo in that folder")
    parser.add_argument("--keep", action="store_true", help="keep preprocessed data and checkpoints")
    parser.add_argument("--device", choices=DEVICES, help="default: cuda or mps if there is one, otherwise cpu")


def run(args: argparse.Namespace) -> int:
    """Run the chain; returns 0 if all of it worked, whatever came out."""
    from nnunet_semicon.demo import chain, outcome
    from nnunet_semicon.demo.dataset import NAME, TEST, TRAIN, UNLABELED, write_dataset

    device = choose_device(args.device)
    folder = chain.claim(args.out, args.force)
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal, too, ends what was started (but nohup is respected)
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)

    start = time.monotonic()
    print(
        f"Synthetic cine-MRI scans: {len(TRAIN)} labeled, {len(UNLABELED)} unlabeled, {len(TEST)} to test on; "
        f"{chain.EPOCHS * chain.STEPS_PER_EPOCH} steps per training on {device}, {chain.precision(device)}.\n{CAVEAT}\n"
    )
    write_dataset(folder.raw)
    print(f"wrote {folder.raw / NAME}\n")
    added = chain.variables(folder, device)
    for key, value in added.items():
        print(f"export {key}={shlex.quote(value)}")
    seconds = run_all(chain.commands(folder, device), folder.logs, added)
    rows, dice = outcome.measure(folder)
    write_text(folder.table, f"{markdown(rows)}\n\n{CAVEAT}\n")
    outcome.draw_figure(folder)
    precision = chain.precision(device)
    record = {"version": __version__, "device": device, "precision": precision, "dice": dice, "seconds": seconds}
    write_json(folder.record, record, indent=4)
    if not args.keep:
        chain.remove_intermediate(folder)
    minutes = (time.monotonic() - start) / 60
    print(f"\nMean Dice over {len(TEST)} test scans, {minutes:.1f} minutes in all:\n\n{render(rows)}\n\n{CAVEAT}")
    print(where_it_lies(folder, args.keep))
    return 0


def choose_device(wanted: str | None) -> str:
    """Return the device for ``-device``.

    Raises:
        UserError: the wanted one is not there.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted is not None and not there[wanted]:
        raise UserError(
            f"--device {wanted}: torch finds no such device, only {', '.join(k for k, ok in there.items() if ok)}; "
            "leave the option out to use what there is"
        )
    return wanted or next(name for name, ok in there.items() if ok)


def run_all(commands: list[Any], logs: Path, added: dict[str, str]) -> dict[str, float]:
    """Print and run the commands one after the other; return name -> seconds."""
    from nnunet_semicon.demo import chain

    seconds = {}
    for number, command in enumerate(commands, start=1):
        print(f"\n$ {command}", flush=True)
        log = logs / f"{number:02d}_{command.name}.log"
        with tqdm(total=command.epochs, desc="  epoch", disable=None if command.epochs else True, leave=False) as bar:

            def show(epochs: int, bar: Any = bar) -> None:
                bar.update(epochs - bar.n)

            seconds[command.name] = round(chain.run(command, log, added, show), 1)
        print(f"  {seconds[command.name]:.0f} s, output in {log}", flush=True)
    return seconds


def where_it_lies(folder: Any, keep: bool) -> str:
    """Return the last line of the output."""
    rest = (
        f"preprocessed data and models in {folder.preprocessed} and {folder.results}"
        if keep
        else "preprocessed data and models are removed (--keep keeps them)"
    )
    return (
        f"Table {folder.table}, figure {folder.figure}, segmentations {folder.predictions()}, scans {folder.raw}, "
        f"output of the commands {folder.logs}; {rest}."
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
