"""What the tables of docs/results.md share: measured trainings, their Dice, and how rows of them compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from tables import NOT_RUN, number

from nnunet_semicon.evaluation.compare import compare
from nnunet_semicon.evaluation.comparison import Comparison, Method
from nnunet_semicon.evaluation.runs import run_of

Run = dict[str, Any]  # a JSON file of `semicon sweep`, or of the scripts before it
OTHER_PROCESSOR = " †"


@dataclass(frozen=True)
class Column:
    """One network of some trainings: row -> its runs in the order of their seeds, for rows that have any."""

    title: str
    runs: Mapping[str, Sequence[Run]]
    comparisons: Sequence[Comparison]


def processor(run: Run) -> str:
    """Return the GPU of a training, or its processor."""
    return str(run.get("device_name") or run["processor"])


def usual_processor(runs: Sequence[Run]) -> str | None:
    """Return the processor of most of the runs; None without runs."""
    processors = [processor(run) for run in runs]
    return max(sorted(set(processors)), key=processors.count, default=None)


def dice(run: Run) -> float:
    """Return the mean over the classes of their mean Dice over the cases, without cases that have none."""
    cases = [entry["metrics"] for entry in run["metric_per_case"]]
    return mean(mean(case[key]["DSC"] for case in cases if case[key]["DSC"] is not None) for key in cases[0])


def mean_and_spread(runs: Sequence[Run], usual: str | None) -> str:
    """Return mean Dice and spread, the number of seeds if it is not three, a mark for another processor than usual."""
    if not runs:
        return NOT_RUN
    values = [dice(run) for run in runs]
    spread = f" ± {number(stdev(values))}" if len(values) > 1 else ""
    seeds = "" if len(values) == 3 else f" ({len(values)} seed{'s' * (len(values) > 1)})"
    elsewhere = any(processor(run) != usual for run in runs)
    return number(mean(values)) + spread + seeds + OTHER_PROCESSOR * elsewhere


def comparisons(
    runs: Mapping[str, Sequence[Run]], baselines: Sequence[str], compared_with: Mapping[str, str]
) -> list[Comparison]:
    """Return what ``semicon compare`` says of every row against the rows that it is compared with.

    Args:
        runs: row -> its runs, at least one.
        baselines: rows that the others are compared with; of two baselines, the second with the first.
        compared_with: row -> the row that it is compared with instead of the baselines.
    """
    methods, against = {}, {}
    for name, of_row in runs.items():
        methods[name] = Method(name, tuple(run_of({"": r}, r["configuration"], r["trainer"]) for r in of_row))
        before = baselines[: baselines.index(name)] if name in baselines else baselines
        against[name] = [compared_with[name]] if name in compared_with else before
    found = []
    for baseline in methods:
        others = [method for name, method in methods.items() if baseline in against[name]]
        found += [compare([methods[baseline], *others])] if others else []
    return found
