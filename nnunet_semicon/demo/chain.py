"""The commands of ``semicon demo``: which they are, where they write, how one of them is run.

All rows have one configuration: equal steps, equal labeled images per step. The budget below was set with the
supervised control alone (seed 0, bfloat16): mean Dice 0.741 after 500 steps, 0.777 after 1000, 0.773 after 2000. It was
fixed at 1000, where the control no longer grows, before the other two rows were run on it for the first time.
"""

import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_semicon import commands as processes
from nnunet_semicon.demo.dataset import NAME
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.processor import has_bfloat16

ID = NAME[len("Dataset") : len("Dataset") + 3]
SPACING = ("10", "4.5", "4.5")  # mm; the scans have 3 mm in the slice: patches are 32 x 32, so that steps are cheap
CONFIGURATION = "2d_demo"
EPOCHS = 10
STEPS_PER_EPOCH = 100
ROWS_PER_STEP = 6  # labeled; Semicon has as many unlabeled ones on top
BUDGET = (
    f"batch_size={ROWS_PER_STEP}",
    f"labeled_per_step={ROWS_PER_STEP}",
    f"unlabeled_per_step={ROWS_PER_STEP}",
    f"num_epochs={EPOCHS}",
    f"num_iterations_per_epoch={STEPS_PER_EPOCH}",
    "num_val_iterations_per_epoch=1",
    "seed=0",
)


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        key: folder of its predictions.
        title: in the table and the figure.
        trainer: for ``-tr``.
    """

    key: str
    title: str
    trainer: str


CONTROL = Row("control", "labeled scans alone", "nnUNetTrainerSupervisedControl")
MIX = Row("supervised_mix", "labeled scans alone, mixed", "nnUNetTrainerSupervisedMix")
SEMICON = Row("semicon", "with unlabeled scans (Semicon)", "nnUNetTrainerSemicon")
ROWS = (CONTROL, MIX, SEMICON)


@dataclass(frozen=True)
class Folder:
    """Where everything lies."""

    root: Path

    @property
    def raw(self) -> Path:
        """The folder nnUNet_raw."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """The folder nnUNet_preprocessed."""
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        """The folder nnUNet_results."""
        return self.root / "results"

    @property
    def logs(self) -> Path:
        """The output of every command."""
        return self.root / "logs"

    @property
    def images(self) -> Path:
        """Test images."""
        return self.raw / NAME / "imagesTs"

    @property
    def labels(self) -> Path:
        """Labels of the test images."""
        return self.raw / NAME / "labelsTs"

    @property
    def table(self) -> Path:
        """The table."""
        return self.root / "table.md"

    @property
    def figure(self) -> Path:
        """The overlay figure."""
        return self.root / "overlay.png"

    @property
    def record(self) -> Path:
        """Numbers, commands and times; also what tells a demo's folder from others."""
        return self.root / "demo.json"

    def predictions(self, row: Row | None = None) -> Path:
        """Segmentations of the test images by one row, or the folder of all of them."""
        folder = self.root / "predictions"
        return folder if row is None else folder / row.key


@dataclass(frozen=True)
class Command:
    """A command as a user types it; ``epochs`` is 0 for all but training."""

    name: str
    words: tuple[str, ...]
    epochs: int = 0

    def __str__(self) -> str:
        return shlex.join(self.words)


def precision(device: str) -> str:
    """Return the number format of the trainings: bfloat16 where a processor that trains is made for it."""
    return "bfloat16" if device == "cpu" and has_bfloat16() else "float32"


def commands(folder: Folder, device: str) -> list[Command]:
    """Return all commands in their order; ``device`` is cpu, cuda or mps."""
    settings = (*BUDGET, f"precision={precision(device)}")
    few = ("-npfp", "1", "-np", "1")  # starting a further process takes longer than its share of the work
    plan = ("nnUNetv2_plan_and_preprocess", "-d", ID, "-c", "2d", "-overwrite_target_spacing", *SPACING, *few)
    configure = ("semicon", "configure", "-d", ID, "-c", "2d", "--name", CONFIGURATION, "--set", *settings)
    chain = [
        Command("plan", plan),
        Command("unlabeled", ("semicon", "preprocess", "-d", ID, "-c", "2d", "-np", "1")),
        Command("configure", configure),
    ]
    for row in ROWS:
        model, device_option = ("-tr", row.trainer), ("-device", device)
        out = folder.predictions(row)
        into = ("-i", str(folder.images), "-o", str(out))
        files = ("-djfile", str(out / "dataset.json"), "-pfile", str(out / "plans.json"))
        train = ("nnUNetv2_train", ID, CONFIGURATION, "0", *model, *device_option)
        # without further processes: starting one takes as long as all of these predictions
        how = (*into, *device_option, "-npp", "0", "-nps", "0")
        predict = ("nnUNetv2_predict", "-d", ID, "-c", CONFIGURATION, "-f", "0", *model, *how)
        evaluate = ("nnUNetv2_evaluate_folder", str(folder.labels), str(out), *files, "-np", "1")
        chain += [
            Command(f"train_{row.key}", train, EPOCHS),
            Command(f"predict_{row.key}", predict),
            Command(f"evaluate_{row.key}", evaluate),
        ]
    return chain


def variables(folder: Folder, device: str) -> dict[str, str]:
    """Return the variables that the commands need: nnU-Net's three folders, and few processes for a short run."""
    loaders = max(1, min(4, (os.cpu_count() or 1) // 2))
    chosen = {
        "nnUNet_raw": str(folder.raw.absolute()),
        "nnUNet_preprocessed": str(folder.preprocessed.absolute()),
        "nnUNet_results": str(folder.results.absolute()),
        "nnUNet_n_proc_DA": str(loaders),
        "nnUNet_def_n_proc": "1",
    }
    # compiling takes longer than these trainings
    return chosen | {"nnUNet_compile": "false"} if device == "cuda" else chosen


# --- the folder ----------------------------------------------------------------------------------------------------


def claim(root: Path, force: bool) -> Folder:
    """Return the demo's folder with empty subfolders; with ``force``, what an earlier demo left there is removed first.

    Raises:
        UserError: ``root`` holds something else, or an earlier demo and not ``force``, or cannot be written.
    """
    folder = Folder(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in root.iterdir())
        if found and not folder.record.is_file():
            raise UserError(
                f"{root} is not empty and no earlier demo ({listing(found)}), and nothing in it is touched: give "
                "--out a new or an empty folder"
            )
        if found and not force:
            raise UserError(f"{root} holds an earlier demo: add --force to replace it, or give --out another folder")
        for part in (folder.raw, folder.preprocessed, folder.results, folder.predictions(), folder.logs):
            if part.exists():
                shutil.rmtree(part)
        for file in (folder.table, folder.figure, folder.record):
            file.unlink(missing_ok=True)
        folder.record.write_text("{}")
        for part in (folder.raw, folder.preprocessed, folder.results, folder.predictions(), folder.logs):
            part.mkdir()
    except FileExistsError:
        raise UserError(f"{root} is a file: give --out a new or an empty folder") from None
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be written ({error.strerror}): give --out a folder that you may write to"
        ) from None
    return folder


def remove_intermediate(folder: Folder) -> None:
    """Remove the preprocessed data and the trained models (about 0.1 GB); everything else stays."""
    shutil.rmtree(folder.preprocessed)
    shutil.rmtree(folder.results)


# --- one command ---------------------------------------------------------------------------------------------------


def run(command: Command, log: Path, added: dict[str, str], on_epochs: Callable[[int], None]) -> float:
    """Run a command of this Python environment with its output in ``log``; return its time in seconds.

    Args:
        command: what to run.
        log: file for its output.
        added: variables, see :func:`variables`; the user's own nnUNet_* variables do not reach the command.
        on_epochs: gets the number of finished epochs about twice per second.

    Raises:
        UserError: it could not be started, or failed. Whatever it started is ended before.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet_", "NNUNET_SEMICON_"))}
    start = time.monotonic()
    with open(log, "wb") as output:
        process = processes.start(command.words, inherited | added, output)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if command.epochs:
                on_epochs(log.read_text(errors="replace").count("Epoch time:"))
    finally:
        if process.returncode != 0:
            processes.end(process)
    if process.returncode != 0:
        raise UserError(failure(command, process.returncode, log))
    return time.monotonic() - start


def failure(command: Command, code: int, log: Path) -> str:
    """Return the sentence about a failed command, with the last lines of its output."""
    how = processes.how_it_ended(code)
    return (
        f"`{command}` ended {how}; `semicon doctor` checks the installation, the whole output is in {log} and ends "
        f"with\n{processes.last_lines(log)}"
    )
