"""Runs the standard small budget: every trainer, three seeds, with nnU-Net's own commands.

For each cell (trainer, configuration, seed): ``nnUNetv2_train``, ``nnUNetv2_predict`` on the validation images of the
fold, ``nnUNetv2_evaluate_folder``, and ``semicon evaluate`` for the distances that nnU-Net lacks; then one JSON file,
which ``semicon compare`` reads. A cell whose file exists is skipped, so the same command goes on
where it was stopped. ``scripts/make_results.py`` makes the table. The dataset must be preprocessed, and the fold must
list unlabeled cases (``semicon split``).
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from provenance import REPOSITORY, provenance, write_json

from nnunet_semicon.errors import UserError

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"  # nnU-Net's variables
PLANS = "nnUNetPlans"
CONTROL = "nnUNetTrainerSupervisedControl"
SEEDS = (0, 1, 2)
FOLD = 2
BATCH_SIZE = 32
LABELED_PER_STEP = 16
LENGTH = ("num_epochs=6", "num_val_iterations_per_epoch=5")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        trainer: name for ``-tr``.
        labeled: labeled images per step.
        variant: what it changes, as part of the configuration's name; empty: nothing.
        changes: what it changes, for ``semicon configure --set``.
    """

    trainer: str
    labeled: int
    variant: str = ""
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the configuration after that of its parent, without the seed."""
        return "_".join(["short", *["full"] * (self.labeled == BATCH_SIZE), *[self.variant] * bool(self.variant)])

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``semicon configure --set`` gets; without ``labeled_per_step`` the control takes all rows."""
        share = () if self.labeled == BATCH_SIZE else (f"labeled_per_step={self.labeled}",)
        return (f"batch_size={BATCH_SIZE}", *share, *LENGTH, *self.changes)


# what the user would have run, and the same number of labeled images as the methods get
CONTROLS = (Row(CONTROL, BATCH_SIZE), Row(CONTROL, LABELED_PER_STEP))
METHODS = (Row("nnUNetTrainerMeanTeacher", LABELED_PER_STEP), Row("nnUNetTrainerSPCon", LABELED_PER_STEP))
SP_CON = METHODS[-1]
# which meta-label does it? ``SP_CON`` has both
VARIANTS = (
    Row(SP_CON.trainer, LABELED_PER_STEP, "position", ("lambda.patient=0",)),
    Row(SP_CON.trainer, LABELED_PER_STEP, "patient", ("lambda.position=0",)),
)
ROWS = (*CONTROLS, *METHODS)


@dataclass(frozen=True)
class Cell:
    """One run: a row of the table with one seed, in a configuration that inherits from ``parent``."""

    row: Row
    parent: str
    seed: int

    @property
    def configuration(self) -> str:
        """The configuration it trains in: nnU-Net's result folder knows no seed."""
        return f"{self.parent}_{self.row.name}_s{self.seed}"

    @property
    def name(self) -> str:
        """Name of its JSON file, without ending."""
        return f"{self.row.trainer}__{self.configuration}"


@dataclass(frozen=True)
class Task:
    """What is run on: dataset as typed by the user and in full, parent configuration, fold, device."""

    d: str
    dataset: str
    parent: str
    fold: int
    device: str

    @property
    def preprocessed(self) -> Path:
        """The dataset's preprocessed folder."""
        return Path(os.environ[PREPROCESSED]) / self.dataset

    def results(self, cell: Cell) -> Path:
        """The fold folder that nnU-Net writes."""
        model = f"{cell.row.trainer}__{PLANS}__{cell.configuration}"
        return Path(os.environ[RESULTS]) / self.dataset / model / f"fold_{self.fold}"


@dataclass(frozen=True)
class Finished:
    """A command that ended well: wall time in s, largest resident set of one of its processes in bytes, its output."""

    seconds: float
    peak_bytes: int
    output: str


# --- commands ------------------------------------------------------------------------------------------------------


def configure_commands(task: Task, rows: Sequence[Row], seeds: Sequence[int]) -> list[list[str]]:
    """Return one ``semicon configure`` per kind of configuration."""
    kinds = {row.name: row.settings for row in rows}
    words = ["semicon", "configure", "-d", task.d, "-c", task.parent]
    all_seeds = ",".join(map(str, seeds))
    return [
        [*words, "--name", f"{task.parent}_{name}", "--set", *settings, "--seeds", all_seeds]
        for name, settings in kinds.items()
    ]


def cell_commands(task: Task, cell: Cell, folder: Path) -> list[list[str]]:
    """Return training, prediction, evaluations; ``folder`` has the linked validation ``images`` and ``labels``."""
    fold, trainer, predicted = str(task.fold), cell.row.trainer, folder / cell.name
    train = ["nnUNetv2_train", task.d, cell.configuration, fold, "-tr", trainer, "-device", task.device]
    predict = ["nnUNetv2_predict", "-d", task.d, "-c", cell.configuration, "-f", fold, "-tr", trainer]
    predict += ["-i", f"{folder / 'images'}", "-o", f"{predicted}", "-device", task.device, "-npp", "1", "-nps", "1"]
    evaluate = ["nnUNetv2_evaluate_folder", f"{folder / 'labels'}", f"{predicted}"]
    evaluate += ["-djfile", f"{predicted / 'dataset.json'}", "-pfile", f"{predicted / 'plans.json'}", "-np", "1"]
    measure = ["semicon", "evaluate", f"{predicted}", f"{folder / 'labels'}"]
    return [train, predict, evaluate, measure]


def show(words: Sequence[str]) -> None:
    """Print a command as it would be typed."""
    print(f"$ {shlex.join(words)}", flush=True)


def run(words: Sequence[str]) -> Finished:
    """Print and run a command of this Python environment, passing its output on.

    Raises:
        UserError: it failed.
    """
    show(words)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    start = time.monotonic()
    process = subprocess.Popen(
        words,
        env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise UserError(
            f"`{shlex.join(words)}` ended with exit code {process.returncode}, see its output above: repair what it "
            "names and run this script again, finished cells are kept"
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(time.monotonic() - start, usage.ru_maxrss * unit, "".join(lines))


# --- what must be there --------------------------------------------------------------------------------------------


def find_task(args: argparse.Namespace) -> Task:
    """Return what to run on, after checking that the dataset is preprocessed.

    Raises:
        UserError: a variable, the plans or the preprocessed data are missing.
    """
    from nnunet_semicon.cli.common import dataset_name, preprocessed_folder, raw_folder

    raw_folder()
    base = Path(preprocessed_folder())
    if not os.environ.get(RESULTS):
        raise UserError(f"the variable {RESULTS} is not set: `export {RESULTS}=/your/folder`")
    task = Task(args.d, dataset_name(args.d), args.c, args.fold, args.device)
    plans_file = base / task.dataset / f"{PLANS}.json"
    plans = json.loads(plans_file.read_text()) if plans_file.is_file() else {"configurations": {}}
    identifier = plans["configurations"].get(args.c, {}).get("data_identifier", f"{PLANS}_{args.c}")
    if args.c not in plans["configurations"] or not (base / task.dataset / identifier).is_dir():
        raise UserError(
            f"{base / task.dataset} has no plans or no preprocessed data of configuration '{args.c}': run "
            f"`nnUNetv2_plan_and_preprocess -d {args.d} -c {args.c}` and, if the dataset has a folder imagesUn, "
            f"`semicon preprocess -d {args.d} -c {args.c}`"
        )
    return task


def validation_cases(task: Task) -> list[str]:
    """Return the validation cases of the fold.

    Raises:
        UserError: no such fold, or it lists no unlabeled cases.
    """
    from nnunet_semicon.data.splits import FILE, UNLABELED, read_splits

    path = task.preprocessed / FILE
    remedy = f"`semicon split -d {task.d} --labeled 4` writes such folds (or copy the dataset's own {FILE} there)"
    if not path.is_file():
        raise UserError(f"{path} does not exist, expected folds that list unlabeled cases: {remedy}")
    folds = read_splits(str(path))
    if not 0 <= task.fold < len(folds):
        raise UserError(f"{path} has no fold {task.fold}, only 0 to {len(folds) - 1}: choose another --fold")
    if not folds[task.fold].get(UNLABELED):
        raise UserError(f"fold {task.fold} of {path} lists no unlabeled cases: {remedy}")
    return list(folds[task.fold]["val"])


def link_validation(task: Task, cases: Sequence[str], folder: Path) -> None:
    """Link the images and labels of ``cases`` into ``folder / images`` and ``folder / labels``."""
    raw = Path(os.environ[RAW]) / task.dataset
    ending = json.loads((raw / "dataset.json").read_text())["file_ending"]
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for case in cases:
        label = raw / "labelsTr" / f"{case}{ending}"
        (folder / "labels" / label.name).symlink_to(label.resolve())
        for image in sorted((raw / "imagesTr").glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}")):
            (folder / "images" / image.name).symlink_to(image.resolve())


# --- one cell ------------------------------------------------------------------------------------------------------


def run_cell(task: Task, cell: Cell, folder: Path) -> dict[str, Any]:
    """Train, predict and evaluate; return what goes into the JSON file."""
    origin = provenance(task.device)
    train, *others = cell_commands(task, cell, folder)
    trained = run(train)
    for words in others:
        run(words)

    config = json.loads((task.results(cell) / "semicon_config.json").read_text())
    settings = {key: entry["value"] for key, entry in config["settings"].items()}
    validation = json.loads((task.results(cell) / "validation" / "summary.json").read_text())
    epochs = epoch_seconds(trained.output)
    return {
        "trainer": cell.row.trainer,
        "configuration": cell.configuration,
        "dataset": task.dataset,
        "fold": task.fold,
        "seed": cell.seed,
        "labeled_per_step": settings["labeled_per_step"],
        "iterations": settings["num_epochs"] * settings["num_iterations_per_epoch"],
        "cases": case_counts(trained.output),
        "validation_dice": validation["foreground_mean"]["Dice"],
        "train_command_seconds": round(trained.seconds, 1),
        "epoch_seconds": epochs,
        "mean_epoch_seconds": round(mean(epochs), 2),
        "peak_memory_mib": round(trained.peak_bytes / 2**20),
        **origin,
        "semicon_config": config,
        **evaluation(folder / cell.name),
    }


def evaluation(predicted: Path) -> dict[str, Any]:
    """Return what ``semicon evaluate`` wrote, without the folders of this machine.

    Raises:
        UserError: it disagrees with ``nnUNetv2_evaluate_folder``.
    """
    content: dict[str, Any] = json.loads((predicted / "evaluation.json").read_text())
    stock = json.loads((predicted / "summary.json").read_text())
    if content["foreground_mean"]["Dice"] != stock["foreground_mean"]["Dice"]:
        raise UserError(
            f"{predicted}: semicon evaluate and nnUNetv2_evaluate_folder differ in Dice; please report this"
        )
    for entry in content["metric_per_case"]:
        for key in ("reference_file", "prediction_file"):
            entry[key] = Path(entry[key]).name
    return content


def case_counts(output: str) -> dict[str, int]:
    """Return how many cases the trainer said it uses; the control uses no unlabeled ones."""
    match = re.search(r"labeled (\d+), unlabeled (\d+) .*validation (\d+)", output)
    if match is None:
        raise UserError("the trainer did not print its numbers of cases (labeled n, unlabeled n, ..., validation n)")
    return dict(zip(("labeled", "unlabeled", "validation"), map(int, match.groups()), strict=True))


def epoch_seconds(output: str) -> list[float]:
    """Return the duration of every epoch as nnU-Net prints it: training and validation batches, waiting included."""
    return [float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", output)]


# --- command line --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", default="004", metavar="DATASET", help="dataset id or name (default: %(default)s)")
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="parent configuration (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=FOLD, help="fold with unlabeled cases (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default: %(default)s")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="only cells whose name contains one of these, e.g. nnUNetTrainerSPCon, _s0 or SPCon__2d_short_s0",
    )
    parser.add_argument("--budget-minutes", type=float, metavar="M", help="start no further cell after M minutes")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: docs/results/<dataset>_fold<F>)")
    return parser.parse_args(argv)


def selected(parent: str, seeds: Sequence[int], only: Sequence[str]) -> list[Cell]:
    """Return the wanted cells, all rows of the first seed first, then the variants."""
    cells = [Cell(row, parent, seed) for rows in (ROWS, VARIANTS) for seed in seeds for row in rows]
    for text in only:
        if not any(text in cell.name for cell in cells):
            raise UserError(f"--only {text} fits no cell; cells are {', '.join(cell.name for cell in cells)}")
    return [cell for cell in cells if any(text in cell.name for text in only)]


def results_folder(dataset: str, fold: int) -> str:
    """Return the folder of a table's cells below docs/results, e.g. ``hippocampus_fold2``."""
    return f"{dataset.partition('_')[2].lower()}_fold{fold}"


def execute(args: argparse.Namespace) -> None:
    """Run (or print) everything that is still missing."""
    from nnunet_semicon.cli.configure import parse_seeds

    seeds = parse_seeds(args.seeds)
    task = find_task(args)
    cases = validation_cases(task)
    out = args.out or REPOSITORY / "docs" / "results" / results_folder(task.dataset, task.fold)
    wanted = selected(task.parent, seeds, args.only)
    missing = [cell for cell in wanted if not (out / f"{cell.name}.json").exists()]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them in {out} already")
    if not missing:
        return
    configure = configure_commands(task, [cell.row for cell in missing], seeds)
    if args.dry_run:
        folder = Path("TEMPORARY")  # links to the validation cases, removed at the end
        for words in [*configure, *(w for cell in missing for w in cell_commands(task, cell, folder))]:
            show(words)
        return

    start = time.monotonic()
    for words in configure:
        run(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_validation(task, cases, folder)
        for cell in missing:
            if args.budget_minutes is not None and time.monotonic() - start > 60 * args.budget_minutes:
                print(f"{args.budget_minutes:g} minutes are over: {cell.name} and later cells are not run")
                break
            write_json(run_cell(task, cell, folder), out / f"{cell.name}.json")
            print(f"wrote {out / cell.name}.json")
    print("now `python scripts/make_results.py` brings docs/results.md up to date")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    try:
        execute(parse(argv))
    except UserError as error:
        print(f"run_hippocampus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
