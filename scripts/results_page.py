"""docs/results.md, from the runs in docs/results."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hippocampus_rows import (
    BATCH_SIZE,
    CONTROLS,
    FINE_TUNED,
    FOLD,
    JOINT,
    LABELED_PER_STEP,
    METHODS,
    OTHERS_FINE_TUNED,
    PRETRAININGS,
    ROWS,
    SEEDS,
    SP_CON,
    SP_CON_PRETRAIN,
    VARIANTS,
    Cell,
    Row,
)
from performance_page import BENCHMARK, BENCHMARK_COMMAND
from run_acdc_labels import FILE as ACDC_LABELS
from tables import NOT_RUN, NOTICE, PAGES_COMMAND, markdown_table, number

from nnunet_semicon.configuration.rules import GAMMA_START
from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.compare import Method, compare
from nnunet_semicon.evaluation.comparison_tables import describe, differences_markdown, how, means_markdown
from nnunet_semicon.evaluation.runs import run_of

VISIBLE = 0.01  # a difference of pair losses that is more than the noise of an epoch
CELLS = f"hippocampus_fold{FOLD}"
CELLS_COMMAND = f"python scripts/run_hippocampus.py -d 004 -c 2d --fold {FOLD}"
ONE_LABEL, ALL_LABELS = 0, 6  # folds
DRAW = """semicon split -d 004 --labeled 4 --seed 1 --force    # seeds 1, 2 and 3; a backup of the present split is kept
python scripts/run_hippocampus.py -d 004 -c 2d --fold 0 --out docs/results/hippocampus_draw1"""


@dataclass(frozen=True)
class Measured:
    """The runs of one row of the table, in the order of their seeds."""

    row: Row
    runs: list[dict[str, Any]]

    @property
    def dice(self) -> list[float]:
        """Mean Dice of each run, as ``nnUNetv2_evaluate_folder`` gives it for the predictions."""
        return [run["foreground_mean"]["Dice"] for run in self.runs]

    @property
    def method(self) -> Method:
        """The runs as ``semicon compare`` takes them."""
        return Method(
            plain_title(self.row), tuple(run_of({"": r}, r["configuration"], r["trainer"]) for r in self.runs)
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None with fewer than two."""
        return stdev(self.dice) if len(self.runs) > 1 else None


def title(row: Row) -> str:
    """Name of a row in the table; both controls are marked."""
    if row in CONTROLS:
        return f"**{plain_title(row)}** (`{row.trainer}`)"
    return f"`{row.trainer}`{_particulars(row)}"


def plain_title(row: Row) -> str:
    """Name of a row in a comparison."""
    is_control = row.trainer == CONTROLS[0].trainer
    name = f"control, {row.labeled} labeled rows" if is_control else row.trainer.removeprefix("nnUNetTrainer")
    return name + _particulars(row)


def _particulars(row: Row) -> str:
    return (f", {row.words}" if row.words else "") + (f", from {row.start.words}" if row.start else "")


def read_rows(folder: Path, rows: Sequence[Row]) -> list[Measured]:
    """Return the runs of the given rows.

    Raises:
        UserError: two runs were not made under the same protocol.
    """
    found = []
    for row in rows:
        files = [folder / f"{Cell(row, '2d', seed).name}.json" for seed in SEEDS]
        found.append(Measured(row, [json.loads(file.read_text()) for file in files if file.is_file()]))
    _check_same_protocol([run for measured in found for run in measured.runs], folder)
    return found


def _check_same_protocol(runs: Sequence[dict[str, Any]], folder: Path) -> None:
    seen: dict[str, tuple[Any, str]] = {}
    for run in runs:
        file = f"{run['trainer']}__{run['configuration']}.json"
        facts = {key: run[key] for key in ("dataset", "fold", "iterations", "device")} | run["cases"]
        if run["trainer"] == CONTROLS[0].trainer:
            del facts["unlabeled"]  # it uses none
        for key, value in facts.items():
            first, first_file = seen.setdefault(key, (value, file))
            if value != first:
                raise UserError(
                    f"{folder} holds runs that cannot stand in one table: '{key}' is {value} in {file} and {first} in "
                    f"{first_file}; run one of them again"
                )


def results_page(results: Path) -> str:
    """Return docs/results.md for the JSON files below ``results``."""
    rows = read_rows(results / CELLS, ROWS)
    labels = read_rows(results / CELLS, (SP_CON, *VARIANTS))
    benchmark_file = results / BENCHMARK
    benchmark = json.loads(benchmark_file.read_text()) if benchmark_file.is_file() else None
    runs = [run for measured in rows for run in measured.runs]
    parts = [
        "# Results",
        NOTICE,
        f"## Hippocampus, fold {FOLD}, 2d, standard small budget",
        protocol(runs),
        runs_made(rows, benchmark),
        what_is_missing(rows, benchmark),
        "### Does it beat the controls?",
        verdicts(rows, METHODS),
        *quality(rows, CONTROLS),
    ]
    if runs:
        parts += ["### Every run", runs_table(runs)]
    parts += [
        "## Which meta-label does it? SP-Con, Hippocampus, fold 2",
        "The protocol of the table above; the first row is its last one, with position and patient.",
        runs_made(labels, benchmark),
        what_is_missing(labels, benchmark),
        *quality(labels, (SP_CON,)),
        *pretraining(results / CELLS, benchmark),
        *other_labels(results, ONE_LABEL, "One labeled scan", benchmark),
        *other_labels(results, ALL_LABELS, "All 175 labeled scans", benchmark),
        "## Three draws of the 4 labeled scans (SP-Con's Table 3)",
        f"{NOT_RUN}; one draw is made by:\n\n```bash\n{DRAW}\n```",
        "## Position, patient and phase: SP-Con's pre-training on ACDC at half resolution",
        acdc_labels(results / ACDC_LABELS),
    ]
    return "\n\n".join(parts) + "\n"


def protocol(runs: Sequence[dict[str, Any]]) -> str:
    """Say how the numbers were made; counts come from the runs."""
    counts = "The numbers of cases and iterations appear here with the first run."
    if runs:
        cases = runs[0]["cases"]
        unlabeled = max(run["cases"]["unlabeled"] for run in runs)  # the controls use none
        counts = (
            f"{cases['labeled']} labeled, {unlabeled} unlabeled, {cases['validation']} validation scans; "
            f"{runs[0]['iterations']} iterations."
        )
    return f"""Same split, same plans, same number of iterations for every row. {counts} The data is nnU-Net's
`Dataset004_Hippocampus` (Medical Segmentation Decathlon); {len(SEEDS)} seeds, each its own configuration; the final
checkpoint, never the best one. Everything is done with nnU-Net's own commands: `nnUNetv2_train`, `nnUNetv2_predict` on
the validation images, `nnUNetv2_evaluate_folder`; distances are those of [`semicon evaluate`](evaluation.md), and the
comparison is that of [`semicon compare`](compare.md). Dice: per class the mean over the scans, and their mean.

Two controls train on the labeled scans alone: one with {BATCH_SIZE} labeled rows per step (what the user would have
run), one with {LABELED_PER_STEP} (as many as the methods get beside the unlabeled ones). The spread is the standard
deviation over the seeds. A method beats a control if its mean Dice is higher by more than the larger of the two
spreads. Step time and peak memory are those of [performance.md](performance.md), relative to the control with
{BATCH_SIZE} labeled rows."""


def runs_made(rows: Sequence[Measured], benchmark: dict[str, Any] | None) -> str:
    """Return the table of what was run and what it costs."""
    header = ["", "labeled per step", "seeds run", "mean Dice", "spread", "step time", "memory"]
    lines = [
        [
            title(measured.row),
            str(measured.row.labeled),
            f"{len(measured.runs)} of {len(SEEDS)}" if measured.runs else NOT_RUN,
            number(mean(measured.dice)) if measured.runs else NOT_RUN,
            NOT_RUN if measured.spread is None else number(measured.spread),
            *relative_cost(measured.row, benchmark),
        ]
        for measured in rows
    ]
    return markdown_table(header, lines)


def quality(rows: Sequence[Measured], baselines: Sequence[Row]) -> list[str]:
    """Return what ``semicon compare`` says: all means, and everything else against each of the baselines."""
    methods = [measured.method for measured in rows if measured.runs]
    known = [measured.method for measured in rows if measured.runs and measured.row in baselines]
    if not known or len(methods) < 2:
        return []
    comparisons = []
    for baseline in known:
        others = [m for m in methods if m.name != baseline.name and (m not in known or baseline is known[0])]
        if others:
            comparisons.append(compare([baseline, *others]))
    parts = [describe(comparisons[0]), means_markdown(comparisons[0])]
    for comparison in comparisons:
        parts += [differences_markdown(comparison), how(comparison)]
    return parts


def relative_cost(row: Row, benchmark: dict[str, Any] | None) -> tuple[str, str]:
    """Return step time and peak memory relative to the control that has all rows."""
    own, control = (_benchmarked(r, benchmark) for r in (row, CONTROLS[0]))
    if own is None or control is None:
        return NOT_RUN, NOT_RUN
    return (
        f"{own['step_seconds']['median'] / control['step_seconds']['median']:.2f}x",
        f"{own['peak_memory_mib'] / control['peak_memory_mib']:.2f}x",
    )


def _benchmarked(row: Row, benchmark: dict[str, Any] | None) -> dict[str, Any] | None:
    for entry in benchmark["rows"] if benchmark else []:
        if (entry["trainer"], entry["labeled_rows"]) == (row.trainer, row.labeled):
            return entry
    return None


def verdicts(rows: Sequence[Measured], methods: Sequence[Row]) -> str:
    """Say for every method whether it beats each control by more than the spread."""
    by_row = {measured.row: measured for measured in rows}
    paragraphs = []
    for method in methods:
        sentences, wins = [], []
        for control in CONTROLS:
            sentence, wins_here = verdict(by_row[method], by_row[control])
            sentences.append(sentence)
            wins.append(wins_here)
        closing = " It beats only the second control." if wins == [False, True] else ""
        paragraphs.append(f"- {title(method)} {'; it '.join(sentences)}.{closing}")
    return "\n".join(paragraphs)


def verdict(method: Measured, control: Measured) -> tuple[str, bool]:
    """Return what the difference in mean Dice amounts to, in words, and whether it is a win."""
    against = f"the control with {control.row.labeled} labeled rows"
    if method.spread is None or control.spread is None:
        return f"cannot be compared with {against} yet (fewer than two seeds of one of them are run)", False
    difference = mean(method.dice) - mean(control.dice)
    spread = max(method.spread, control.spread)
    seeds = f"n = {len(method.runs)} and {len(control.runs)}"
    numbers = f"{difference:+.3f}, spread {number(spread)}, {seeds}"
    if difference > spread:
        return f"beats {against} by more than the spread ({numbers})", True
    if difference < -spread:
        return f"is worse than {against} by more than the spread ({numbers})", False
    return f"does not differ from {against} by more than the spread ({numbers})", False


def what_is_missing(rows: Sequence[Measured], benchmark: dict[str, Any] | None, command: str = CELLS_COMMAND) -> str:
    """Say which cells are not run, and with which commands they are filled."""
    absent = sum(len(SEEDS) - len(measured.runs) for measured in rows)
    total = len(rows) * len(SEEDS)
    unmeasured = any(_benchmarked(measured.row, benchmark) is None for measured in rows)
    if not absent and not unmeasured:
        return f"All {total} runs of this table are made."
    commands = [command] if absent else []
    if unmeasured:
        commands.append(BENCHMARK_COMMAND)
    missing = f"{absent} of {total} runs of this table are not made." if absent else f"All {total} runs are made."
    block = "\n".join([*commands, PAGES_COMMAND])
    return f"{missing} What is missing is filled by:\n\n```bash\n{block}\n```"


def pretraining(folder: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return what pre-training brings, the paper's variants of it, and what the embeddings looked like."""
    methods = (*OTHERS_FINE_TUNED, FINE_TUNED, JOINT[0], SP_CON, JOINT[1])
    rows = read_rows(folder, (*CONTROLS, *methods))
    return [
        f"## Pre-training without labels, then fine-tuning: Hippocampus, fold {FOLD}",
        "The protocol of the first table, and its controls. A row from a pre-training starts with the weights of its "
        "encoder, trained without labels on the labeled and unlabeled scans for as many iterations, with the same "
        "seed; step time and memory are those of the fine-tuning. Rows of `nnUNetTrainerSPCon` train both "
        "losses jointly.",
        runs_made(rows, benchmark),
        what_is_missing(rows, benchmark),
        "### Does pre-training beat the controls?",
        verdicts(rows, [measured.row for measured in rows if measured.runs and measured.row in methods]),
        *quality(rows, CONTROLS),
        "### What the pre-training learned",
        embeddings(folder),
    ]


def other_labels(results: Path, fold: int, words: str, benchmark: dict[str, Any] | None) -> list[str]:
    """Return the rows of the pre-training's table with other labeled scans, from the same pre-trainings."""
    methods = (*OTHERS_FINE_TUNED, FINE_TUNED, JOINT[0], SP_CON, JOINT[1])
    rows = read_rows(results / f"hippocampus_fold{fold}", (*CONTROLS, *methods))
    run = [measured.row for measured in rows if measured.runs and measured.row in methods]
    command = f"python scripts/run_hippocampus.py -d 004 -c 2d --fold {fold} --pretraining-fold {FOLD}"
    return [
        f"## {words}: Hippocampus, fold {fold}",
        "The protocol of the first table with other labeled scans; the pre-trainings are those of the table before.",
        runs_made(rows, benchmark),
        what_is_missing(rows, benchmark, command),
        *([verdicts(rows, run)] if run else []),
        *quality(rows, CONTROLS),
    ]


def embeddings(folder: Path) -> str:
    """Return how loss and embedding change in each pre-training, on validation images, and how pairs are weighted."""
    header = ["pre-training", "seed", "epoch", "contrastive loss", "alignment, position", "uniformity, position"]
    header += ["w of positive pairs, position", "w of negative pairs, position"]
    lines = []
    for start in (*PRETRAININGS, SP_CON_PRETRAIN):
        for seed in SEEDS:
            file = folder / f"{Cell(start, '2d', seed).name}.json"
            if file.is_file():
                lines += _epochs_of(json.loads(file.read_text()), start.words)
    if not lines:
        return f"{NOT_RUN}; the command above makes it."
    return (
        "On the validation images, without their labels: loss; alignment, the mean squared distance of positive pairs; "
        "uniformity, the logarithm of the mean Gaussian potential of all pairs (lower is better in all three). w: mean "
        "self-paced weight of the pairs of two scans, at four moments. SimCLR has one label, the image itself.\n\n"
        + markdown_table(header, lines)
    )


def _epochs_of(run: dict[str, Any], words: str) -> list[list[str]]:
    lines = []
    label = "position" if "val_alignment_position" in run["epochs"][0] else "self"
    weights = {entry["epoch"]: entry for entry in run["pacing"] if entry["label"] == label}
    for row in run["epochs"]:
        finished = row["epoch"] + 1
        measured = (number(row[f"val_{what}"]) for what in ("loss", f"alignment_{label}", f"uniformity_{label}"))
        pair = weights.get(finished)
        lines.append([words, str(run["seed"]), str(finished), *measured, *_weights(pair)])
    return lines


def _weights(entry: dict[str, Any] | None) -> list[str]:
    return ["", ""] if entry is None else [number(entry[pairs]) for pairs in ("positive", "negative")]


def acdc_labels(file: Path) -> str:
    """Return what a short run shows of every meta-label: no Dice, only that its term is learned."""
    command = "python scripts/run_acdc_labels.py -d 027"
    if not file.is_file():
        return f"{NOT_RUN}; it is made by:\n\n```bash\n{command}\n{PAGES_COMMAND}\n```"
    run = json.loads(file.read_text())
    settings = {key: entry["value"] for key, entry in run["semicon_config"]["settings"].items()}
    labels = list(settings["lambda"])
    header = ["epoch", "gamma", *(f"{what}, {label}" for label in labels for what in ("pair loss", "weight"))]
    lines = []
    for row in run["epochs"]:
        of_labels = (number(row[f"{what}_{label}"]) for label in labels for what in ("pair_loss", "weight"))
        lines.append([str(row["epoch"]), f"{row['gamma']:.1f}", *of_labels])
    alike = settings["gamma_start"] / GAMMA_START
    last = run["epochs"][-1]
    below = {label: alike - last[f"pair_loss_{label}"] for label in labels}
    learned = [f"{label} ({difference:.3f} below)" for label, difference in below.items() if difference > VISIBLE]
    says = f"Embeddings that are all alike have l = {alike:.3f}. In the last epoch, it is lower for "
    says += f"{', '.join(learned) or 'no label'}."
    if len(learned) < len(labels):
        others = [label for label in labels if below[label] <= VISIBLE]
        says += f" Not yet for {', '.join(others)}: a run this short does not show whether it is learned."
    return (
        "Means over the positive pairs of an epoch: loss l of a pair and its self-paced weight w; every label has the "
        f"weight 1, the learning rate at most {settings['learning_rate']:g}. {says} "
        f"So short a run is not evaluated; numbers need a GPU.\n\n{markdown_table(header, lines)}\n\n"
        f"`{run['dataset']}`, fold {run['fold']}, batch size {settings['batch_size']}, "
        f"{settings['num_epochs']} epochs of {settings['num_iterations_per_epoch']} steps, seed {settings['seed']}; "
        f"{run['device_name']}, {run['date'][:10]}, commit {run['commit']}; made by `{command}`."
    )


def runs_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return one line per run, for who wants to see the spread."""
    header = ["trainer", "configuration", "mean Dice, predicted", "mean Dice, nnU-Net's validation"]
    header += ["epoch (s)", "peak memory of training (MiB)", "threads", "date", "commit"]
    lines = [
        [
            f"`{run['trainer']}`",
            f"`{run['configuration']}`",
            number(run["foreground_mean"]["Dice"], 4),
            number(run["validation_dice"], 4),
            f"{run['mean_epoch_seconds']:.0f}",
            f"{run['peak_memory_mib']:.0f}",
            str(run["threads"]),
            run["date"][:10],
            run["commit"],
        ]
        for run in runs
    ]
    note = (
        "Epochs and memory depend on what else the machine did; compare trainers by the interleaved steps above. "
        "Memory is the largest resident set of one process of `nnUNetv2_train`, its final validation included. All on "
        f"{', '.join(sorted({run['device_name'] for run in runs}))}."
    )
    return f"{markdown_table(header, lines)}\n\n{note}"
