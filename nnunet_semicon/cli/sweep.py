"""``semicon sweep``: many trainings from one file, each a stock command; it goes on where it stopped."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from nnunet_semicon.cli.check_sweep import named, prepare
from nnunet_semicon.errors import UserError, listing

if TYPE_CHECKING:
    from nnunet_semicon.sweep.cells import Cell
    from nnunet_semicon.sweep.local import Outcome
    from nnunet_semicon.sweep.plan import Plan

EXAMPLE = """example of a file:
  dataset: 27
  folds: [0]
  seeds: [0, 1, 2]
  stages:
    pretrained:
      trainer: nnUNetTrainerSPConPretrain
      configuration: 2d
    finetuned:
      trainer: nnUNetTrainerSupervisedControl
      configuration: 2d
      set: {num_epochs: 100}
      from: pretrained

examples of commands:
  semicon sweep FILE --dry-run          # what would run; one line per cell, fit for a job array
  semicon sweep FILE                    # here, one cell after the other; the same command goes on
  semicon sweep FILE --launcher submitit --launcher-args timeout_min=600 gpus_per_node=1 slurm_partition=gpu"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("file", metavar="FILE", help="the sweep, in YAML")
    parser.add_argument("--dry-run", action="store_true", help="print one command per cell; write and start nothing")
    parser.add_argument("--cell", metavar="NAME", help="run this cell alone (its name or number in --dry-run)")
    parser.add_argument("--force", action="store_true", help="replace configurations of ours that have other values")
    parser.add_argument("--launcher", choices=("local", "submitit"), default="local", help="default: %(default)s")
    group = parser.add_argument_group("with --launcher submitit")
    group.add_argument(
        "--executor",
        choices=("auto", "slurm", "local"),
        help="auto (default): SLURM if it is there; local: processes on this machine, to try it out",
    )
    group.add_argument(
        "--launcher-args",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="submitit's parameters, e.g. timeout_min=600 gpus_per_node=1 slurm_partition=gpu",
    )
    group.add_argument("--jobs", type=int, metavar="N", help="at most N jobs at the same time")


def run(args: argparse.Namespace) -> int:
    """Run, or print, the cells; returns 1 if one of them is not finished at the end, 130 after an interrupt."""
    launcher_args = _check_options(args)
    plan, names = prepare(args)
    if args.dry_run:
        dry_run(plan, [plan.cells[name] for name in names])
        return 0
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal or a cancelled job, too, ends what was started
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    if args.launcher == "submitit":
        return _on_a_cluster(args, plan, launcher_args)
    return _here(args, plan)


def _check_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return submitit's parameters.

    Raises:
        UserError: options that do not go together, or wrong ones.
    """
    from nnunet_semicon.cli.key_values import assignments, parse_settings

    if args.launcher == "local":
        for option, value in {
            "--executor": args.executor,
            "--launcher-args": args.launcher_args,
            "--jobs": args.jobs,
        }.items():
            if value:
                raise UserError(f"{option} is for --launcher submitit: add that, or leave {option} out")
    elif args.cell is not None:
        raise UserError("--cell runs a cell here: leave out --launcher submitit")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}, expected at least 1")
    assignments(args.launcher_args, "--launcher-args")  # refuses them in words of its own
    return parse_settings(args.launcher_args)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- running -----------------------------------------------------------------------------------------------------


def _here(args: argparse.Namespace, plan: "Plan") -> int:
    from nnunet_semicon.sweep.local import run_all, run_cell

    try:
        if args.cell is not None:
            name = named(plan.cells, args.cell)
            return 0 if run_cell(plan, plan.cells[name], _say, name).finished else 1
        return _report(plan, run_all(plan, _say))
    except KeyboardInterrupt:
        print(
            "semicon sweep: interrupted; what is finished stays, and the same command goes on: "
            f"semicon sweep {args.file}",
            file=sys.stderr,
        )
        return 130


def _on_a_cluster(args: argparse.Namespace, plan: "Plan", launcher_args: Mapping[str, Any]) -> int:
    from tqdm import tqdm

    from nnunet_semicon.sweep.cluster import Cluster, make_executor

    folder = plan.sweep.path.with_name(f"{plan.sweep.path.stem}_jobs")
    executor = make_executor(folder, args.executor or "auto", launcher_args)
    cluster = Cluster(plan, executor, lambda cell: _own_words(plan, cell), args.jobs, tqdm.write)
    try:
        return _report(plan, cluster.run_all())
    except KeyboardInterrupt:
        jobs = cluster.running()
        print(
            f"semicon sweep: interrupted; {len(jobs)} jobs go on ({listing(jobs.values(), at_most=99) or 'none'}), no "
            f"further ones are submitted, and the same command goes on: semicon sweep {args.file} --launcher submitit",
            file=sys.stderr,
        )
        return 130


def _say(line: str) -> None:
    print(line, flush=True)  # at once, also into a file


def _report(plan: "Plan", outcomes: "Mapping[str, Outcome]") -> int:
    """Print the table, what is not finished, and how to compare; return the exit code."""
    from nnunet_semicon.tables import render

    rows = [["cell", "state", "minutes"]]
    for name, outcome in outcomes.items():
        record = plan.record(plan.cells[name])
        rows.append([name, outcome.state.value, "-" if record is None else f"{record.minutes:.1f}"])
    print(f"\n{render(rows)}")
    finished = [plan.cells[name] for name, outcome in outcomes.items() if outcome.finished]
    runs = list(dict.fromkeys(plan.model_folder(cell).name for cell in finished if plan.segments(cell)))
    if runs:
        print("\nMeasure and compare what is finished:")
        print(f"  cd {shlex.quote(str(plan.results))}")
        print(f'  for run in {shlex.join(runs)}; do semicon evaluate "$run"; done')
        print(f"  semicon compare {shlex.join(runs)}")
    left = [name for name, outcome in outcomes.items() if not outcome.finished]
    if left:
        print(f"\n{len(left)} of {len(outcomes)} cells are not finished: {', '.join(left)}")
        print("The same command tries them again.")
    return 1 if left else 0


def dry_run(plan: "Plan", cells: "list[Cell]") -> None:
    """Print one line per cell that works in any shell, after a comment that says what it does."""
    numbers = {name: number for number, name in enumerate(plan.cells, start=1)}
    for cell in cells:
        standing = plan.standing(cell)
        after = f", after {numbers[cell.parent]} {cell.parent}" if cell.parent is not None else ""
        print(f"# {numbers[cell.name]} {cell.name}, {standing.value}{after}: {shlex.join(plan.words(cell, standing))}")
        variables = [f"{key}={value}" for key, value in _variables().items()]
        print(shlex.join(["env", *variables, *_own_words(plan, cell)]))


def _own_words(plan: "Plan", cell: "Cell") -> list[str]:
    """Return the command that runs one cell, from any folder."""
    return [sys.executable, "-m", "nnunet_semicon", "sweep", str(plan.sweep.path), "--cell", cell.name]


def _variables() -> dict[str, str]:
    """Return nnU-Net's variables as they are set, with absolute paths for the folders."""
    from nnunet_semicon import autoload

    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    variables = {key: value for key, value in sorted(os.environ.items()) if key.startswith("nnUNet_") and value}
    if variables.get(autoload.VARIABLE) == autoload.trainer_folder():
        del variables[autoload.VARIABLE]  # set by ourselves, in every process anew
    return {key: os.path.abspath(value) if key in folders else value for key, value in variables.items()}
