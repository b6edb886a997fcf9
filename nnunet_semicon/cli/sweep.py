"""``semicon sweep``: many trainings from one file, each a stock command; it goes on where it stopped."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nnunet_semicon.cli.key_values import parse_settings
from nnunet_semicon.errors import UserError, listing

if TYPE_CHECKING:
    from nnunet_semicon.experiments.file import Sweep
    from nnunet_semicon.experiments.local import Outcome
    from nnunet_semicon.experiments.plan import Plan
    from nnunet_semicon.experiments.trainings import Training

EXAMPLE = """example of a file:
  dataset: 27
  folds: [0]
  seeds: [0, 1, 2]
  measure: {networks: [student]}
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
  semicon sweep FILE --dry-run          # what would run; one line per training, fit for a job array
  semicon sweep FILE                    # here, one training after the other; the same command goes on
  semicon sweep FILE --jobs 2           # here, two trainings side by side, each with half of the threads
  semicon sweep FILE --launcher submitit --launcher-args timeout_min=600 gpus_per_node=1 slurm_partition=gpu
  semicon compare FILE                  # what was measured"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("file", metavar="FILE", help="the sweep, in YAML")
    parser.add_argument("--dry-run", action="store_true", help="print one command per training; start nothing")
    parser.add_argument("--training", metavar="NAME", help="run this training alone (its name or number in --dry-run)")
    parser.add_argument("--cell", dest="training", help=argparse.SUPPRESS)  # of job arrays printed by version 0.1
    parser.add_argument("--force", action="store_true", help="replace configurations of ours that have other values")
    parser.add_argument("--jobs", type=int, metavar="N", help="at most N trainings at the same time")
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


def run(args: argparse.Namespace) -> int:
    """Run, or print, the trainings; returns 1 if one of them is not finished at the end, 130 after an interrupt."""
    from nnunet_semicon.checks.sweep import prepare
    from nnunet_semicon.experiments.file import read_sweep

    launcher_args = _check_options(args)
    sweep = read_sweep(args.file)
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal or a cancelled job, too, ends what was started
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _interrupt)
    try:
        if sweep.plan is not None and not _plan_step(sweep, args.dry_run):
            return 0
        plan, names = prepare(sweep, args.training, args.force, write=not args.dry_run)
        if args.dry_run:
            dry_run(plan, [plan.trainings[name] for name in names])
            return 0
        if args.launcher == "submitit":
            return _on_a_cluster(args, plan, launcher_args)
        return _here(args, plan, names)
    except KeyboardInterrupt:
        print(
            "semicon sweep: interrupted; what is finished stays, and the same command goes on: "
            f"semicon sweep {args.file}",
            file=sys.stderr,
        )
        return 130


def _check_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return submitit's parameters.

    Raises:
        UserError: options that do not go together, or wrong ones.
    """
    if args.launcher == "local":
        for option, value in {"--executor": args.executor, "--launcher-args": args.launcher_args}.items():
            if value:
                raise UserError(f"{option} is for --launcher submitit: add that, or leave {option} out")
    elif args.training is not None:
        raise UserError("--training runs a training here: leave out --launcher submitit")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}, expected at least 1")
    return parse_settings(args.launcher_args, option="--launcher-args")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# --- running -----------------------------------------------------------------------------------------------------


def _plan_step(sweep: "Sweep", dry: bool) -> bool:
    """Plan and preprocess, or print the commands; return whether the trainings can be looked at."""
    from nnunet_semicon.experiments.planning import Planner
    from nnunet_semicon.experiments.run import Runner
    from nnunet_semicon.workspace import dataset_name, preprocessed_folder, raw_folder

    assert sweep.plan is not None
    raw, preprocessed = Path(raw_folder()).absolute(), Path(preprocessed_folder()).absolute()
    name = dataset_name(sweep.dataset)
    planner = Planner(sweep.plan, raw / name, preprocessed / name, f"'plan' of {sweep.path}")
    is_done = planner.run(_say, Runner(), dry)
    if not is_done:
        print("The trainings are listed once these commands have run: start the sweep, or run them.")
    return is_done


def _here(args: argparse.Namespace, plan: "Plan", names: Sequence[str]) -> int:
    from nnunet_semicon.cli.sweep_display import Display
    from nnunet_semicon.experiments.local import run_all, run_training
    from nnunet_semicon.experiments.run import Runner

    if args.training is not None:
        (name,) = names
        return 0 if run_training(plan, plan.trainings[name], _say, name, Runner()).finished else 1
    with Display(plan) as display:
        outcomes = run_all(plan, display.say, args.jobs or 1, display.watch)
    return _report(plan, outcomes)


def _on_a_cluster(args: argparse.Namespace, plan: "Plan", launcher_args: Mapping[str, Any]) -> int:
    from tqdm import tqdm

    from nnunet_semicon.experiments.cluster import Cluster, make_executor

    folder = plan.sweep.path.with_name(f"{plan.sweep.path.stem}_jobs")
    executor = make_executor(folder, args.executor or "auto", launcher_args)
    cluster = Cluster(plan, executor, lambda training: _own_words(plan, training), args.jobs, tqdm.write)
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

    rows = [["training", "state", "minutes"]]
    for name, outcome in outcomes.items():
        record = plan.record(plan.trainings[name])
        rows.append([name, outcome.state.value, "-" if record is None else f"{record.minutes:.1f}"])
    print(f"\n{render(rows)}")
    finished = [plan.trainings[name] for name, outcome in outcomes.items() if outcome.finished]
    compared = [training for training in finished if plan.segments(training)]
    if any(training.stage.measure is not None for training in compared):
        print(f"\nWhat was measured is in {plan.sweep.results}. Compare it:")
        print(f"  semicon compare {shlex.quote(str(plan.sweep.path))}")
    elif compared:
        runs = list(dict.fromkeys(plan.model_folder(training).name for training in compared))
        print("\nMeasure and compare what is finished:")
        print(f"  cd {shlex.quote(str(plan.results))}")
        print(f'  for run in {shlex.join(runs)}; do semicon evaluate "$run"; done')
        print(f"  semicon compare {shlex.join(runs)}")
    left = [name for name, outcome in outcomes.items() if not outcome.finished]
    if left:
        print(f"\n{len(left)} of {len(outcomes)} trainings are not finished: {', '.join(left)}")
        print("The same command tries them again.")
    return 1 if left else 0


def dry_run(plan: "Plan", trainings: "list[Training]") -> None:
    """Print one line per training that works in any shell, after a comment that says what it does."""
    from nnunet_semicon.experiments.plan import Standing

    numbers = {name: number for number, name in enumerate(plan.trainings, start=1)}
    for training in trainings:
        standing = plan.standing(training)
        after = f", after {numbers[training.parent]} {training.parent}" if training.parent is not None else ""
        state, words = standing.value, shlex.join(plan.words(training, standing))
        if standing is Standing.FINISHED and (networks := plan.unmeasured(training)):
            state = f"{state}, {' and '.join(networks)} to be measured"
        print(f"# {numbers[training.name]} {training.name}, {state}{after}: {words}")
        variables = [f"{key}={value}" for key, value in _variables().items()]
        print(shlex.join(["env", *variables, *_own_words(plan, training)]))


def _own_words(plan: "Plan", training: "Training") -> list[str]:
    """Return the command that runs one training, from any folder."""
    return [sys.executable, "-m", "nnunet_semicon", "sweep", str(plan.sweep.path), "--training", training.name]


def _variables() -> dict[str, str]:
    """Return nnU-Net's variables as they are set, with absolute paths for the folders."""
    from nnunet_semicon import autoload

    folders = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    variables = {key: value for key, value in sorted(os.environ.items()) if key.startswith("nnUNet_") and value}
    if variables.get(autoload.VARIABLE) == autoload.trainer_folder():
        del variables[autoload.VARIABLE]  # set by ourselves, in every process anew
    return {key: os.path.abspath(value) if key in folders else value for key, value in variables.items()}
