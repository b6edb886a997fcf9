"""docs/results.md, from the runs in docs/results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hippocampus_rows import (
    BATCH_SIZE,
    CONTROLS,
    FINE_TUNED,
    FOLD,
    JOINT,
    LABELED_PER_STEP,
    LOCAL_FOLDS,
    LOCAL_ROWS,
    MCSC_BASELINES,
    MCSC_FOLDS,
    MCSC_ROWS,
    MCSC_VARIANTS,
    METHODS,
    OTHERS_FINE_TUNED,
    PLGCL_FOLDS,
    PLGCL_ROW,
    PLGCL_VARIANTS,
    PRETRAININGS,
    ROWS,
    SEEDS,
    SP_CON,
    SP_CON_PRETRAIN,
    VARIANTS,
    Cell,
    Row,
)
from performance_page import BENCHMARK
from result_tables import quality, read_rows, runs_made, section, verdicts, what_is_missing
from run_acdc_labels import FILE as ACDC_LABELS
from tables import NOT_RUN, NOTICE, PAGES_COMMAND, markdown_table, number

from nnunet_semicon.configuration.rules import GAMMA_START
from nnunet_semicon.errors import UserError

VISIBLE = 0.01  # a difference of pair losses that is more than the noise of an epoch
CELLS = f"hippocampus_fold{FOLD}"
RUN = "python scripts/run_hippocampus.py -d 004 -c 2d"
CELLS_COMMAND = f"{RUN} --fold {FOLD}"
REPEATED = "repeated"  # runs that were made again, in folders named like those of the first
OTHER_LABELS = {0: "One labeled scan", 6: "All 175 labeled scans"}  # fold -> words
PRETRAINED = (*OTHERS_FINE_TUNED, FINE_TUNED, JOINT[0], SP_CON, JOINT[1])
DRAW = f"""semicon split -d 004 --labeled 4 --seed 1 --force  # seeds 1, 2 and 3; a backup of the present split is kept
{RUN} --fold 0 --out docs/results/hippocampus_draw1"""


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
        what_is_missing(rows, benchmark, CELLS_COMMAND),
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
        what_is_missing(labels, benchmark, CELLS_COMMAND),
        *quality(labels, (SP_CON,)),
        *pretraining(results / CELLS, benchmark),
        *other_labels(results, benchmark),
        "## Three draws of the 4 labeled scans (SP-Con's Table 3)",
        f"{NOT_RUN}; one draw is made by:\n\n```bash\n{DRAW}\n```",
        "## Position, patient and phase: SP-Con's pre-training on ACDC at half resolution",
        acdc_labels(results / ACDC_LABELS),
        *local_contrast(results, benchmark),
        *patch_contrast(results, benchmark),
        *two_networks(results, benchmark),
        "## The same training again",
        repeated(results),
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


def pretraining(folder: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return what pre-training brings, the paper's variants of it, and what the embeddings looked like."""
    rows = read_rows(folder, (*CONTROLS, *PRETRAINED))
    return [
        f"## Pre-training without labels, then fine-tuning: Hippocampus, fold {FOLD}",
        "The protocol of the first table, and its controls. A row from a pre-training starts with the weights of its "
        "encoder, trained without labels on the labeled and unlabeled scans for as many iterations, with the same "
        "seed; step time and memory are those of the fine-tuning. Rows of `nnUNetTrainerSPCon` train both "
        "losses jointly.",
        runs_made(rows, benchmark),
        what_is_missing(rows, benchmark, CELLS_COMMAND),
        "### Does pre-training beat the controls?",
        verdicts(rows, [measured.row for measured in rows if measured.runs and measured.row in PRETRAINED]),
        *quality(rows, CONTROLS),
        "### What the pre-training learned",
        embeddings(folder),
    ]


def other_labels(results: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return the rows of the pre-training's table with other labeled scans, from the same pre-trainings."""
    parts = []
    for fold, words in OTHER_LABELS.items():
        command = f"{RUN} --fold {fold} --pretraining-fold {FOLD}"
        parts += [
            f"## {words}: Hippocampus, fold {fold}",
            "The protocol of the first table with other labeled scans; the pre-trainings are those made there.",
            *section(results / f"hippocampus_fold{fold}", (*CONTROLS, *PRETRAINED), command, benchmark),
        ]
    return parts


def local_contrast(results: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return the tables of the supervised local contrast."""
    command = f"{RUN} --table supervised_local --pretraining-fold {FOLD}"
    return [
        "## Supervised local contrast: Hippocampus",
        "The stages of [its page](methods/supervised_local.md), fine-tuned by the second control, and the trainer that "
        "joins the contrast to the segmentation loss. Protocol and controls are those of the first table. Global: the "
        "encoder sees all images, without labels. Local: encoder and decoder see the labeled ones, 4 per step in two "
        "views, as in the authors' code, and for as many iterations.",
        *by_labeled_scans(results, LOCAL_FOLDS, LOCAL_ROWS, command, benchmark),
    ]


def patch_contrast(results: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return the tables of the pseudo-label guided patch contrast."""
    rows = (*CONTROLS, PLGCL_ROW, *PLGCL_VARIANTS)
    return [
        "## PLGCL: Hippocampus",
        "A re-implementation of the poster ([what is known, what is our choice](methods/plgcl.md)). Protocol and "
        "controls are those of the first table. The method's first row has warm-up, contrast and guidance by entropy.",
        *by_labeled_scans(results, PLGCL_FOLDS, rows, f"{RUN} --table plgcl", benchmark),
    ]


def two_networks(results: Path, benchmark: dict[str, Any] | None) -> list[str]:
    """Return the tables of the methods that train two networks."""
    rows = (*CONTROLS, *MCSC_BASELINES, *MCSC_ROWS, *MCSC_VARIANTS)
    return [
        "## Two networks that teach each other: Hippocampus",
        "[CPS and cross teaching](methods/cross_supervision.md), and [MCSC](methods/mcsc.md) with the rows of its "
        "ablation. Protocol and controls are those of the first table. A training has a line for each of its networks: "
        "the planned one, with which `nnUNetv2_predict` works at once, and the second one, exported by "
        "`semicon export --network second`. The planned network has no map at 1/8 here: that scale is taken at 1/4.",
        *by_labeled_scans(results, MCSC_FOLDS, rows, f"{RUN} --table mcsc", benchmark),
    ]


def by_labeled_scans(
    results: Path, folds: Mapping[int, int], rows: Sequence[Row], command: str, benchmark: dict[str, Any] | None
) -> list[str]:
    """Return a table of ``rows`` for each fold; ``folds``: fold -> labeled scans."""
    parts = []
    for fold, labeled in folds.items():
        parts += [
            f"### {labeled} of 175 scans labeled: fold {fold}",
            *section(results / f"hippocampus_fold{fold}", rows, f"{command} --fold {fold}", benchmark),
        ]
    return parts


def repeated(results: Path) -> str:
    """Return both outcomes of every training that was made again with its seed, a line for each repeat.

    Raises:
        UserError: the first run of one is not there.
    """
    command = f"{RUN} --fold 0 --only SupervisedControl__2d_short_s2 --out docs/results/{REPEATED}/hippocampus_fold0"
    files = sorted((results / REPEATED).glob("*/*.json"))
    if not files:
        return f"{NOT_RUN}; one is made by:\n\n```bash\n{command}\n{PAGES_COMMAND}\n```"
    header = ["trainer", "configuration", "fold", "mean Dice", "again", "processor", "again", "commit", "again"]
    lines = []
    for file in files:
        again = json.loads(file.read_text())
        first_file = results / file.parent.name / f"{again['trainer']}__{again['configuration']}.json"
        if not first_file.is_file():
            raise UserError(
                f"{file} repeats a run whose file {first_file} does not exist: bring it, or remove the repeat"
            )
        both = (json.loads(first_file.read_text()), again)
        dice = (number(run["foreground_mean"]["Dice"]) for run in both)
        origin = (run[key] for key in ("device_name", "commit") for run in both)
        lines.append([f"`{again['trainer']}`", f"`{again['configuration']}`", str(again["fold"]), *dice, *origin])
    return (
        "A seed repeats a training to the last bit only where one process loads the data, with the same packages on "
        "one kind of processor. Otherwise batches come in another order and sums are rounded otherwise, so that the "
        "same seed gives another run. How much two of them differ belongs beside the spread over seeds; how much of it "
        "is chance and how much the machine, a few repeats do not tell. The tables above hold the first one; others "
        f"are made by commands like `{command}`.\n\n{markdown_table(header, lines)}"
    )


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
