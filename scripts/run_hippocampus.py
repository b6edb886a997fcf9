"""Runs the standard small budget: every trainer, three seeds, with nnU-Net's own commands.

For each cell (trainer, configuration, seed): ``nnUNetv2_train``, ``nnUNetv2_predict`` on the validation images of the
fold, ``nnUNetv2_evaluate_folder``, and ``semicon evaluate`` for the distances that nnU-Net lacks; then one JSON file,
which ``semicon compare`` reads. A cell that starts from a pre-training trains that first, unless another cell did. A
cell whose file exists is skipped, so the same command goes on where it was stopped. ``scripts/make_results.py`` makes
the tables. The dataset must be preprocessed, and the fold must list unlabeled cases (``semicon split``).
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from hippocampus_rows import FOLD, SEEDS, TABLES, Cell, Pretraining, Row
from provenance import REPOSITORY, provenance, write_json

from nnunet_semicon.errors import UserError
from nnunet_semicon.pictures.self_pacing import labels_of, mean_weights
from nnunet_semicon.training.snapshots import FOLDER as SNAPSHOTS

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"  # nnU-Net's variables
PLANS = "nnUNetPlans"
FINAL, LATEST = "checkpoint_final.pth", "checkpoint_latest.pth"


@dataclass(frozen=True)
class Task:
    """What is run on: dataset as typed by the user and in full, parent configuration, folds, device."""

    d: str
    dataset: str
    parent: str
    fold: int
    pretraining_fold: int
    device: str

    @property
    def preprocessed(self) -> Path:
        """The dataset's preprocessed folder."""
        return Path(os.environ[PREPROCESSED]) / self.dataset

    def fold_of(self, cell: Cell) -> int:
        """The fold that a cell trains in."""
        sees_all = isinstance(cell.row, Pretraining) and not cell.row.labeled
        return self.pretraining_fold if sees_all else self.fold

    def results(self, cell: Cell, exported: Path | None = None) -> Path:
        """The fold folder that nnU-Net writes, or its copy in the folder to which a second network is exported."""
        base, trainer = (exported, cell.built_by) if exported else (Path(os.environ[RESULTS]), cell.row.trainer)
        return base / self.dataset / f"{trainer}__{PLANS}__{cell.configuration}" / f"fold_{self.fold_of(cell)}"


@dataclass(frozen=True)
class Finished:
    """A command that ended well: largest resident set of one of its processes in bytes, its output."""

    peak_bytes: int
    output: str


# --- commands ------------------------------------------------------------------------------------------------------


def configure_commands(task: Task, rows: Sequence[Row | Pretraining], seeds: Sequence[int]) -> list[list[str]]:
    """Return one ``semicon configure`` per kind of configuration."""
    kinds = {row.name: row.settings for row in rows}
    words = ["semicon", "configure", "-d", task.d, "-c", task.parent]
    all_seeds = ",".join(map(str, seeds))
    return [
        [*words, "--name", f"{task.parent}_{name}", "--set", *settings, "--seeds", all_seeds]
        for name, settings in kinds.items()
    ]


def train_command(task: Task, cell: Cell) -> list[str]:
    """Return the training of a cell or of a pre-training; one that was interrupted is continued."""
    words = ["nnUNetv2_train", task.d, cell.configuration, str(task.fold_of(cell)), "-tr", cell.row.trainer]
    words += ["-device", task.device]
    folder = task.results(cell)
    if (folder / LATEST).is_file() and not (folder / FINAL).is_file():
        words += ["--c"]  # nnU-Net refuses weights to start from beside it
    elif cell.start is not None:
        words += ["-pretrained_weights", str(task.results(cell.start) / FINAL)]
    return words


def measure_commands(task: Task, cell: Cell, folder: Path) -> list[list[str]]:
    """Return prediction and evaluations; ``folder`` has the linked validation ``images`` and ``labels``."""
    predicted = folder / cell.name
    model = ["-d", task.d, "-c", cell.configuration, "-f", str(task.fold), "-tr"]
    export: list[list[str]] = []
    predict = ["nnUNetv2_predict", *model, cell.built_by, "-i", f"{folder / 'images'}", "-o", f"{predicted}"]
    predict += ["-device", task.device, "-npp", "1", "-nps", "1"]
    if cell.is_second:
        model_folder = f"{exported_to(cell, folder)}"
        export = [["semicon", "export", *model, cell.row.trainer, "-o", model_folder, "--network", "second"]]
        predict = ["env", f"{RESULTS}={model_folder}", *predict]
    evaluate = ["nnUNetv2_evaluate_folder", f"{folder / 'labels'}", f"{predicted}"]
    evaluate += ["-djfile", f"{predicted / 'dataset.json'}", "-pfile", f"{predicted / 'plans.json'}", "-np", "1"]
    return [*export, predict, evaluate, ["semicon", "evaluate", f"{predicted}", f"{folder / 'labels'}"]]


def exported_to(cell: Cell, folder: Path) -> Path:
    """Return where the second network of a cell is exported to."""
    return folder / f"{cell.name}__model"


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
    return Finished(usage.ru_maxrss * unit, "".join(lines))


# --- what must be there --------------------------------------------------------------------------------------------


def find_task(args: argparse.Namespace) -> Task:
    """Return what to run on, after checking that the dataset is preprocessed.

    Raises:
        UserError: a variable, the plans or the preprocessed data are missing.
    """
    from nnunet_semicon.workspace import dataset_name, preprocessed_folder, raw_folder

    raw_folder()
    base = Path(preprocessed_folder())
    if not os.environ.get(RESULTS):
        raise UserError(f"the variable {RESULTS} is not set: `export {RESULTS}=/your/folder`")
    pretraining_fold = args.fold if args.pretraining_fold is None else args.pretraining_fold
    task = Task(args.d, dataset_name(args.d), args.c, args.fold, pretraining_fold, args.device)
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
        UserError: no such fold, or neither it nor another one for the pre-training lists unlabeled cases.
    """
    from nnunet_semicon.data.splits import FILE, UNLABELED, read_splits

    path = task.preprocessed / FILE
    remedy = f"`semicon split -d {task.d} --labeled 4` writes such folds (or copy the dataset's own {FILE} there)"
    if not path.is_file():
        raise UserError(f"{path} does not exist, expected folds that list unlabeled cases: {remedy}")
    folds = read_splits(str(path))
    if not 0 <= task.fold < len(folds):
        raise UserError(f"{path} has no fold {task.fold}, only 0 to {len(folds) - 1}: choose another --fold")
    if not folds[task.fold].get(UNLABELED) and task.pretraining_fold == task.fold:
        raise UserError(
            f"fold {task.fold} of {path} lists no unlabeled cases: {remedy}, or name the fold of the pre-training with "
            "--pretraining-fold"
        )
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


def run_cell(task: Task, cell: Cell, folder: Path, out: Path) -> dict[str, Any]:
    """Do what a cell asks for; return what goes into its JSON file."""
    if isinstance(cell.row, Pretraining):
        return run_pretraining(task, cell)
    if cell.is_second:
        return run_second(task, cell, folder, out)
    start = None if cell.start is None else cell.start.name
    return {**trained(task, cell), "start": start, **measured(task, cell, folder)}


def run_second(task: Task, cell: Cell, folder: Path, out: Path) -> dict[str, Any]:
    """Export the second network of a training, predict and evaluate; return what goes into the JSON file."""
    assert cell.needs is not None
    training = json.loads(json_file(task, cell.needs, out).read_text())
    return {**training, "network": "second", **measured(task, cell, folder)}


def measured(task: Task, cell: Cell, folder: Path) -> dict[str, Any]:
    """Predict and evaluate; return what is recorded of it."""
    for words in measure_commands(task, cell, folder):
        run(words)
    results = task.results(cell, exported_to(cell, folder) if cell.is_second else None)
    validation = json.loads((results / "validation" / "summary.json").read_text())
    return {"validation_dice": validation["foreground_mean"]["Dice"], **evaluation(folder / cell.name)}


def run_pretraining(task: Task, cell: Cell) -> dict[str, Any]:
    """Train; return what goes into the JSON file: the curves, and the self-paced weights of two scans over time."""
    content = trained(task, cell)
    folder = task.results(cell)
    return {**content, "epochs": curves(folder), "pacing": pacing(folder)}


def trained(task: Task, cell: Cell) -> dict[str, Any]:
    """Train a cell or a pre-training; return what is recorded of both."""
    origin = provenance(task.device)
    finished = run(train_command(task, cell))
    config = json.loads((task.results(cell) / "semicon_config.json").read_text())
    settings = {key: entry["value"] for key, entry in config["settings"].items()}
    epochs = epoch_seconds(task.results(cell), settings["num_epochs"])
    return {
        "trainer": cell.row.trainer,
        "configuration": cell.configuration,
        "dataset": task.dataset,
        "fold": task.fold_of(cell),
        "seed": cell.seed,
        "labeled_per_step": settings["labeled_per_step"],
        "iterations": settings["num_epochs"] * settings["num_iterations_per_epoch"],
        "cases": case_counts(finished.output),
        "epoch_seconds": epochs,
        "mean_epoch_seconds": round(mean(epochs), 2),
        "peak_memory_mib": round(finished.peak_bytes / 2**20),
        **origin,
        "semicon_config": config,
    }


def curves(fold_folder: Path) -> list[dict[str, Any]]:
    """Return the lines of ``scalars.jsonl``, rounded."""
    lines = (fold_folder / "scalars.jsonl").read_text().splitlines()
    return [{key: round(value, 5) for key, value in json.loads(line).items()} for line in lines]


def pacing(fold_folder: Path) -> list[dict[str, Any]]:
    """Return the mean weights of positive and of negative pairs at each snapshot, per meta-label."""
    found = []
    for path in sorted((fold_folder / SNAPSHOTS).glob("self_pacing_epoch*.npz")):
        with np.load(path) as arrays:
            for label in labels_of(arrays):
                positive, negative = mean_weights(arrays, label)
                epoch = int(path.stem.rpartition("epoch")[2])
                entry = {"epoch": epoch, "gamma": float(arrays["gamma"]), "label": label}
                found.append({**entry, "positive": positive, "negative": negative})
    return found


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


def epoch_seconds(folder: Path, n_epochs: int) -> list[float]:
    """Return the duration of every epoch as nnU-Net logs it: training and validation batches, waiting included.

    A training that was interrupted has several logs; of an epoch that was begun again, the last time counts.
    """
    seconds = {}
    for log in sorted(folder.glob("training_log_*.txt"), key=lambda path: path.stat().st_mtime):
        for epoch, time_of_epoch in re.findall(
            r": Epoch (\d+) *$.*?: Epoch time: ([\d.]+) s", log.read_text(), re.DOTALL | re.MULTILINE
        ):
            seconds[int(epoch)] = float(time_of_epoch)
    return [seconds[epoch] for epoch in range(n_epochs)]


# --- command line --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", default="004", metavar="DATASET", help="dataset id or name (default: %(default)s)")
    parser.add_argument("-c", default="2d", metavar="CONFIGURATION", help="parent configuration (default: %(default)s)")
    parser.add_argument("--fold", type=int, default=FOLD, help="fold with unlabeled cases (default: %(default)s)")
    parser.add_argument(
        "--pretraining-fold",
        type=int,
        metavar="F",
        help="fold of the pre-training, where another one has the same images (default: that of --fold)",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="default: %(default)s")
    parser.add_argument(
        "--table", default=next(iter(TABLES)), choices=TABLES, help="whose rows are run (default: %(default)s)"
    )
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


def selected(parent: str, table: str, seeds: Sequence[int], only: Sequence[str]) -> list[Cell]:
    """Return the wanted cells, group by group, all rows of the first seed first."""
    cells = [Cell(row, parent, seed) for rows in TABLES[table] for seed in seeds for row in rows]
    for text in only:
        if not any(text in cell.name for cell in cells):
            raise UserError(f"--only {text} fits no cell; cells are {', '.join(cell.name for cell in cells)}")
    return [cell for cell in cells if any(text in cell.name for text in only)]


def results_folder(dataset: str, fold: int) -> str:
    """Return the folder of a table's cells below docs/results, e.g. ``hippocampus_fold2``."""
    return f"{dataset.partition('_')[2].lower()}_fold{fold}"


def execute(args: argparse.Namespace) -> None:
    """Run (or print) everything that is still missing."""
    from nnunet_semicon.cli.key_values import parse_seeds

    seeds = parse_seeds(args.seeds)
    task = find_task(args)
    cases = validation_cases(task)
    out = args.out or REPOSITORY / "docs" / "results" / results_folder(task.dataset, task.fold)
    wanted = selected(task.parent, args.table, seeds, args.only)
    missing = [cell for cell in wanted if not (out / f"{cell.name}.json").exists()]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} of them in {out} already")
    if not missing:
        return
    cells = in_order(missing, lambda needed: _is_recorded(task, needed, out))
    configure = configure_commands(task, [cell.row for cell in cells], seeds)
    if args.dry_run:
        folder = Path("TEMPORARY")  # links to the validation cases, removed at the end
        for words in configure:
            show(words)
        for cell in cells:
            if not cell.is_second:
                show(train_command(task, cell))
            for words in measure_commands(task, cell, folder) if isinstance(cell.row, Row) else []:
                show(words)
        return

    start = time.monotonic()
    for words in configure:
        run(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        link_validation(task, cases, folder)
        for cell in cells:
            if args.budget_minutes is not None and time.monotonic() - start > 60 * args.budget_minutes:
                print(f"{args.budget_minutes:g} minutes are over: {cell.name} and later cells are not run")
                break
            write_json(run_cell(task, cell, folder, out), json_file(task, cell, out))
            print(f"written: {json_file(task, cell, out)}")
    print("now `python scripts/make_results.py` brings docs/results.md up to date")


def json_file(task: Task, cell: Cell, out: Path) -> Path:
    """Return the file of a cell; that of a pre-training lies with the fold it was made in."""
    same_fold = task.fold_of(cell) == task.fold
    folder = out if same_fold else out.with_name(results_folder(task.dataset, task.pretraining_fold))
    return folder / f"{cell.name}.json"


def _is_recorded(task: Task, needed: Cell, out: Path) -> bool:
    """Return whether a training is there, with the file that says how it was made."""
    return (task.results(needed) / FINAL).is_file() and json_file(task, needed, out).is_file()


def in_order(cells: Sequence[Cell], is_recorded: Callable[[Cell], bool]) -> list[Cell]:
    """Return the cells, each training that is needed and not there before the first cell that needs it."""
    order: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        if cell.needs is not None and not is_recorded(cell.needs):
            add(cell.needs)
        order[cell] = None

    for cell in cells:
        add(cell)
    return list(order)


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
