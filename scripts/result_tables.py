"""Tables of docs/results.md: runs of the same protocol, what they cost, whether they beat the controls."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hippocampus_rows import CONTROLS, LABELED_ONLY, SEEDS, SWIN, Cell, Row
from performance_page import BENCHMARK_COMMAND
from tables import NOT_RUN, PAGES_COMMAND, markdown_table, number

from nnunet_semicon.errors import UserError
from nnunet_semicon.evaluation.compare import compare
from nnunet_semicon.evaluation.comparison import Method
from nnunet_semicon.evaluation.comparison_tables import describe, differences_markdown, how, means_markdown
from nnunet_semicon.evaluation.runs import run_of


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
    words = (f", {row.words}" if row.words else "") + (f", from {row.start.words}" if row.start else "")
    if row.second:
        words += ", Transformer" if row.second == SWIN else ", second network"
    return words


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
        if run["trainer"] in LABELED_ONLY:
            del facts["unlabeled"]
        for key, value in facts.items():
            first, first_file = seen.setdefault(key, (value, file))
            if value != first:
                raise UserError(
                    f"{folder} holds runs that cannot stand in one table: '{key}' is {value} in {file} and {first} in "
                    f"{first_file}; run one of them again"
                )


def runs_made(rows: Sequence[Measured], benchmark: dict[str, Any] | None) -> str:
    """Return the table of what was run and what it costs."""
    header = ["", "labeled per step", "seeds run", "mean Dice", "spread", "step time", "memory"]
    lines = [
        [
            title(measured.row),
            str(measured.row.labeled),
            f"{len(measured.runs)} of {len(SEEDS)}" if measured.runs else NOT_RUN,
            number(mean(measured.dice)) if measured.runs else NOT_RUN,
            _spread(measured),
            *relative_cost(measured.row, benchmark),
        ]
        for measured in rows
    ]
    return markdown_table(header, lines)


def _spread(measured: Measured) -> str:
    """Return the spread over the seeds, as far as there is one."""
    if measured.spread is not None:
        return number(measured.spread)
    return "one seed" if measured.runs else NOT_RUN


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
    """The measurement of a row's trainer, with as many of its settings as are measured apart and with no other."""
    entries = [
        (settings, entry)
        for entry in (benchmark["rows"] if benchmark else [])
        if (entry["trainer"], entry["labeled_rows"]) == (row.trainer, row.labeled)
        and (settings := {f"{k}={v}" for k, v in entry.get("changes", {}).items()}) <= set(row.changes)
    ]
    return max(entries, key=lambda found: len(found[0]), default=(None, None))[1]


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


def what_is_missing(rows: Sequence[Measured], benchmark: dict[str, Any] | None, command: str) -> str:
    """Say which cells are not run, and with which commands they are filled."""
    absences: dict[Row, int] = {}  # a training counts once, both its networks are measured
    for measured in rows:
        training = measured.row.trained
        absences[training] = max(absences.get(training, 0), len(SEEDS) - len(measured.runs))
    absent, total = sum(absences.values()), len(absences) * len(SEEDS)
    unmeasured = any(_benchmarked(measured.row, benchmark) is None for measured in rows)
    if not absent and not unmeasured:
        return f"All {total} runs of this table are made."
    commands = [command] if absent else []
    if unmeasured:
        commands.append(BENCHMARK_COMMAND)
    missing = f"{absent} of {total} runs of this table have not been run." if absent else f"All {total} runs are made."
    block = "\n".join([*commands, PAGES_COMMAND])
    return f"{missing} What is missing is filled by:\n\n```bash\n{block}\n```"


def other_processors(rows: Sequence[Measured]) -> list[str]:
    """Say which trainings were made on another processor than most: what sets them apart may be that."""
    runs = [(entry.row, run) for entry in rows if not entry.row.second for run in entry.runs]
    names = [run["device_name"] for _, run in runs]
    usual = max(names, key=names.count, default="")
    others = [
        f"{title(row)}, seed {run['seed']} ({name})" for row, run in runs if (name := run["device_name"]) != usual
    ]
    if not others:
        return []
    return [
        f"All on {usual}, except {'; '.join(others)}. What sets these runs apart from the others may be the processor: "
        "see [the same training again](#the-same-training-again)."
    ]


def section(folder: Path, rows: Sequence[Row], command: str, benchmark: dict[str, Any] | None) -> list[str]:
    """Return everything about the runs of one fold: what is run, what is missing, who beats the controls, by how much.

    Args:
        folder: where the runs' JSON files are.
        rows: the controls among them.
        command: runs what is missing.
        benchmark: times and memory of a step.
    """
    measured = read_rows(folder, rows)
    run = [entry.row for entry in measured if entry.runs and entry.row not in CONTROLS]
    return [
        runs_made(measured, benchmark),
        what_is_missing(measured, benchmark, command),
        *other_processors(measured),
        *([verdicts(measured, run)] if run else []),
        *quality(measured, CONTROLS),
    ]
