"""Writes docs/results.md and docs/performance.md from the JSON files in docs/results.

Nothing in these pages is written by hand: a number comes from a measurement in the repository, a cell without one is
"not run", and whether a method beats a control is computed. The tables of quality are those of ``semicon compare``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from provenance import REPOSITORY
from run_acdc_labels import FILE as ACDC_LABELS
from run_hippocampus import (
    BATCH_SIZE,
    CONTROLS,
    FOLD,
    LABELED_PER_STEP,
    METHODS,
    ROWS,
    SEEDS,
    SP_CON,
    VARIANTS,
    Cell,
    Row,
)

from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.compare import Method, compare
from nnunet_semicon.evaluation.comparison_tables import describe, differences_markdown, how, means_markdown
from nnunet_semicon.evaluation.runs import run_of

NOT_RUN = "not run"
NOTICE = "<!-- written by scripts/make_results.py from docs/results/: change that, not this -->"
CELLS = f"hippocampus_fold{FOLD}"
BENCHMARK = "benchmark_step_hippocampus_2d_cpu.json"
BENCHMARK_COMMAND = (
    f"python scripts/benchmark_step.py -d 004 -c 2d_short_s0 --fold {FOLD} --device cpu --out docs/results/{BENCHMARK}"
)
METRICS = "benchmark_metrics_cpu.json"
METRICS_COMMAND = (
    "python scripts/benchmark_metrics.py --labels $nnUNet_raw/Dataset004_Hippocampus/labelsTr "
    f"--out docs/results/{METRICS}"
)
CELLS_COMMAND = f"python scripts/run_hippocampus.py -d 004 -c 2d --fold {FOLD}"
PAGES_COMMAND = "python scripts/make_results.py"


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
    return f"`{row.trainer}`" + (f", {row.variant} only" if row.variant else "")


def plain_title(row: Row) -> str:
    """Name of a row in a comparison."""
    if row in CONTROLS:
        return f"control, {row.labeled} labeled rows"
    return row.trainer.removeprefix("nnUNetTrainer") + (f", {row.variant} only" if row.variant else "")


# --- docs/results.md -----------------------------------------------------------------------------------------------


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
        verdicts(rows),
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
        "## Position, patient and phase: SP-Con on ACDC at half resolution",
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


def verdicts(rows: Sequence[Measured]) -> str:
    """Say for every method whether it beats each control by more than the spread."""
    by_row = {measured.row: measured for measured in rows}
    paragraphs = []
    for method in METHODS:
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


def what_is_missing(rows: Sequence[Measured], benchmark: dict[str, Any] | None) -> str:
    """Say which cells are not run, and with which commands they are filled."""
    absent = sum(len(SEEDS) - len(measured.runs) for measured in rows)
    total = len(rows) * len(SEEDS)
    unmeasured = any(_benchmarked(measured.row, benchmark) is None for measured in rows)
    if not absent and not unmeasured:
        return f"All {total} runs of this table are made."
    commands = [CELLS_COMMAND] if absent else []
    if unmeasured:
        commands.append(BENCHMARK_COMMAND)
    missing = f"{absent} of {total} runs of this table are not made." if absent else f"All {total} runs are made."
    block = "\n".join([*commands, PAGES_COMMAND])
    return f"{missing} What is missing is filled by:\n\n```bash\n{block}\n```"


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
    first, last = run["epochs"][0], run["epochs"][-1]
    fallen = [label for label in labels if last[f"pair_loss_{label}"] < first[f"pair_loss_{label}"]]
    says = f"The pair loss of {', '.join(fallen) or 'no label'} is lower in the last epoch than in the first."
    return (
        f"Means over the positive pairs of an epoch: loss l of a pair and its self-paced weight w. {says} A Dice of so "
        f"short a run would mean nothing; numbers need a GPU.\n\n{markdown_table(header, lines)}\n\n"
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


# --- docs/performance.md -------------------------------------------------------------------------------------------


def performance_page(results: Path) -> str:
    """Return docs/performance.md for the benchmarks in ``results``."""
    parts = [
        "# Performance",
        NOTICE,
        "What a training step of each trainer costs, relative to the stock `nnUNetTrainer` on the same configuration. "
        "Steps of all trainers are interleaved in one process; batches are drawn before the clock starts. Drawing is "
        "timed in a single process, while nnU-Net draws in several beside the training. Peak memory is that of a "
        "process per trainer.",
    ]
    files = sorted(results.glob("benchmark_step_*.json"))
    for file in files:
        content = json.loads(file.read_text())
        where = f"{content['dataset']}, {content['configuration']}, {content['device']}"
        parts += [f"## {where}", benchmark_table(content), _circumstances(content)]
    if not files:
        parts.append(f"No benchmark is run yet. The first one:\n\n```bash\n{BENCHMARK_COMMAND}\n{PAGES_COMMAND}\n```")
    parts += ["## `semicon evaluate`", evaluation_speed(results / METRICS)]
    return "\n\n".join(parts) + "\n"


def benchmark_table(content: dict[str, Any]) -> str:
    """Return the Markdown table of one ``benchmark_step`` file; its first row is the stock trainer."""
    stock = content["rows"][0]
    header = ["trainer", "labeled rows", "rows of the student", "step (ms)", "quartiles (ms)", "relative to stock"]
    header += ["drawing a batch (ms)", "peak memory (MiB)", "relative to stock"]
    lines = []
    for row in content["rows"]:
        step = row["step_seconds"]
        lines.append(
            [
                f"`{row['trainer']}`",
                str(row["labeled_rows"]),
                str(row["student_rows"]),
                milliseconds(step["median"]),
                f"{milliseconds(step['q1'])} to {milliseconds(step['q3'])}",
                f"{step['median'] / stock['step_seconds']['median']:.2f}x",
                milliseconds(row["draw_seconds"]["median"]),
                f"{row['peak_memory_mib']:.0f}",
                f"{row['peak_memory_mib'] / stock['peak_memory_mib']:.2f}x",
            ]
        )
    return markdown_table(header, lines)


def evaluation_speed(file: Path) -> str:
    """Return what ``semicon evaluate`` takes, and its distances against medpy's."""
    if not file.is_file():
        return f"{NOT_RUN}; it is made by:\n\n```bash\n{METRICS_COMMAND}\n{PAGES_COMMAND}\n```"
    content = json.loads(file.read_text())
    volume = content["volume"]
    shape = " x ".join(map(str, reversed(volume["shape"])))
    command = [
        ["the whole command", "time (s)", "peak memory (MiB)"],
        *(
            [what, f"{content[key]['seconds']:.1f}", f"{content[key]['peak_memory_mib']:.0f}"]
            for what, key in (
                (f"{content['cases']} cases of {content['dataset']}", "command_on_cases"),
                (f"one volume of {shape} voxels, {volume['classes']} classes", "command_on_volume"),
            )
        ),
    ]
    ratios = [
        ["HD95 and ASD of one mask", "ours (s)", "medpy (s)", "medpy / ours", "largest difference (mm)"],
        *(
            [
                what,
                *(f"{content[key][name]:.3g}" for name in ("nnunet_semicon", "medpy")),
                f"{content[key]['ratio']:.1f}",
                f"{content[key]['largest_difference_mm']:.0e}",
            ]
            for what, key in (("median over the cases", "masks"), ("the largest class of the volume", "volume"))
        ),
    ]
    tables = "\n\n".join(markdown_table(header, lines) for header, *lines in (command, ratios))
    return (
        f"{tables}\n\nBoth packages on the same masks in turn, in one process. {content['device_name']}, "
        f"{content['cpu_count']} processors; {content['date'][:10]}, commit {content['commit']}, load average "
        f"{content['load_average']} before it started; made by `{METRICS_COMMAND}`."
    )


def _circumstances(content: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    if content["device"] == "cpu":
        libraries = mean(row["libraries_mib"] for row in content["rows"])
        memory = f"memory is the resident set of the process, {libraries:.0f} MiB of it before the trainer is built"
    else:
        memory = "memory is what torch allocated on the device"
    compiled = "compiled networks" if all(row["compiled"] for row in content["rows"]) else "networks not compiled"
    return (
        f"{content['device_name']}, {content['cpu_count']} processors, {content['threads']} torch thread(s); "
        f"{compiled}; fold {content['fold']}, seed {content['seed']}; "
        f"{content['steps']} steps after {content['warmup']} to warm up; {memory}; {versions}; "
        f"{content['date'][:10]}, commit {content['commit']}, load average {content['load_average']} before it started."
    )


# --- formatting ----------------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    ruler = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ruler, *lines])


def number(value: float, digits: int = 3) -> str:
    """Return a Dice value or a spread as text."""
    return f"{value:.{digits}f}"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, with three digits where they are few."""
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


# --- command line --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Write both pages; return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=REPOSITORY / "docs" / "results", help="folder of the JSON files"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="folder of the pages")
    args = parser.parse_args(argv)
    try:
        pages = {"results.md": results_page(args.results), "performance.md": performance_page(args.results)}
    except UserError as error:
        print(f"make_results: {error}", file=sys.stderr)
        return 1
    for name, text in pages.items():
        (args.out / name).write_text(text)
        print(f"wrote {args.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
