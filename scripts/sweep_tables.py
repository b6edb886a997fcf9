"""Tables of sweeps in docs/results.md: Dice of student and teacher, the closed part of a gap, the time of a step.

The gap is that between a control with few labels and the same control with all labels, which is trained on another fold
with the same validation scans. The network that the trainer predicts with counts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from measured import Column, Run, comparisons, dice, mean_and_spread, usual_processor
from tables import NOT_RUN, markdown_table, number

from nnunet_semicon.errors import UserError, nearest
from nnunet_semicon.experiments.file import read_sweep
from nnunet_semicon.experiments.trainings import make_trainings

STUDENT, TEACHER = "student", "teacher"
NONE = "-"
DISTURBED = " ‡"
SLOWEST_EPOCH = 2  # times the fastest one: then something else took the processor
PROTOCOL = ("dataset", "plans", "iterations", "labeled_per_step", "device")
PROTOCOL_OF_ROW = ("trainer", "fold")

# exact source in a comment behind a number -> mean and spread
Known = dict[tuple[str, ...], tuple[float | None, float | None]]


@dataclass(frozen=True)
class SweepTable:
    """What is measured of the trainings of one or more sweeps.

    Attributes:
        title: of its page of statistics.
        control: the row at 0 % of the gap.
        all_labels: the row at 100 %.
        baselines: rows that the others are compared with, case by case.
        rows: row -> network -> its runs in the order of their seeds; networks that are measured.
    """

    title: str
    control: str
    all_labels: str
    baselines: Sequence[str]
    rows: Mapping[str, Mapping[str, Sequence[Run]]]

    def predicted(self, row: str) -> Sequence[Run]:
        """Return the runs of a row with the network that its trainer predicts with."""
        networks = self.rows[row]
        return next((runs for network, runs in networks.items() if network == predicts_with(runs[0])), ())

    def gap_closed(self, row: str) -> float | None:
        """Return how far a row lies between control and all labels, in percent; None where that is unknown."""
        ends = self.predicted(self.control), self.predicted(self.all_labels)
        if not (all(ends) and self.predicted(row)):
            return None
        low, high, own = (mean(map(dice, runs)) for runs in (*ends, self.predicted(row)))
        return 100 * (own - low) / (high - low) if high != low else None

    def column(self) -> Column:
        """Return what the page of statistics shows: of each training the network that predicts."""
        runs = {row: self.predicted(row) for row in self.rows if self.predicted(row)}
        return Column(self.title, runs, comparisons(runs, self.baselines, {}))


# --- reading -------------------------------------------------------------------------------------------------------


def read_sweep_tables(results: Path, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, SweepTable]:
    """Return the tables of the ``sweeps`` of tables.yaml.

    Raises:
        UserError: a file belongs to no row, a row to no stage, or two runs were not made under the same protocol.
    """
    tables, shown = {}, set()
    for name, entry in entries.items():
        table, files = _read(results, entry, f"table '{name}' of tables.yaml")
        tables[name] = table
        shown |= files
    folders = {results / folder for entry in entries.values() for folder in entry["sweeps"].values()}
    for file in sorted(file for folder in folders for file in folder.glob("*.json")):
        if file not in shown:
            raise UserError(f"{file} belongs to no row: add its stage to tables.yaml, or move the file")
    return tables


def _read(results: Path, entry: Mapping[str, Any], where: str) -> tuple[SweepTable, set[Path]]:
    """Return a table, and the files that it shows."""
    titles, folds = entry["rows"], entry.get("folds")
    rows: dict[str, dict[str, list[Run]]] = {title: {} for title in titles.values()}
    seen: dict[tuple[str, ...], tuple[Any, str]] = {}
    stages: set[str] = set()
    files = set()
    for sweep_file, folder in entry["sweeps"].items():
        for training in make_trainings(read_sweep(results / sweep_file)).values():
            stages.add(training.method)
            measure = training.stage.measure
            shown = training.method in titles and (folds is None or training.fold in folds)
            for network in measure.networks if measure and shown else ():
                file = results / folder / f"{training.name}__{network}.json"
                if file.is_file():
                    files.add(file)
                    run = json.loads(file.read_text())
                    _require_same_protocol(run, file, titles[training.method], seen)
                    rows[titles[training.method]].setdefault(network, []).append(run)
    for stage in titles:
        if stage not in stages:
            raise UserError(f"{where} has a row of '{stage}', which is no stage of its sweeps{nearest(stage, stages)}")
    ends = [titles[entry[key]] for key in ("control", "all_labels")]
    return SweepTable(entry["title"], *ends, [titles[stage] for stage in entry["baselines"]], rows), files


def _require_same_protocol(run: Run, file: Path, row: str, seen: dict[tuple[str, ...], tuple[Any, str]]) -> None:
    """Compare a run with those before it: all of a table validate on the same cases, all of a row have one fold."""
    facts: dict[tuple[str, ...], Any] = {(fact,): run[fact] for fact in PROTOCOL}
    facts["validation cases",] = sorted(case["case"] for case in run["metric_per_case"])
    if precision := _setting(run, "precision"):
        facts["precision",] = precision
    facts |= {(fact, row): run[fact] for fact in PROTOCOL_OF_ROW}
    facts["labeled scans", row] = run["cases"]["labeled"]
    facts["predict_with", row] = predicts_with(run)
    for fact, value in facts.items():
        first, first_file = seen.setdefault(fact, (value, file.name))
        if value != first:
            raise UserError(
                f"{file} and {first_file} cannot stand in one {'row' if fact[1:] else 'table'}: '{fact[0]}' is {value} "
                f"in the former and {first} in the latter; run one of them again"
            )


def predicts_with(run: Run) -> str:
    """Return the network that the training of a run predicts with, whichever the run is of."""
    return _setting(run, "predict_with") or STUDENT


def _setting(run: Run, key: str) -> Any:
    """Return a setting of the training; None where it has none like that."""
    settings = (run["semicon_config"] or {}).get("settings", {})  # null for a stock trainer
    return settings.get(key, {}).get("value")


# --- writing -------------------------------------------------------------------------------------------------------


def sweep_table_of(table: SweepTable) -> str:
    """Return a line per row: Dice of both networks, the closed part of the gap, the time of a step."""
    header = ["", STUDENT, TEACHER, "gap closed", "seconds per step"]
    usual = usual_processor([run for row in table.rows.values() for runs in row.values() for run in runs])
    lines = []
    for row, networks in table.rows.items():
        without = NONE if networks else NOT_RUN  # a network that the method lacks
        cells = [mean_and_spread(networks[key], usual) if key in networks else without for key in (STUDENT, TEACHER)]
        closed = table.gap_closed(row)
        cells += [(NONE if networks else NOT_RUN) if closed is None else f"{number(closed, 0)} %"]
        lines.append([f"**{row}**" if row in table.baselines else row, *cells, _seconds(table.predicted(row))])
    return markdown_table(header, lines)


def _seconds(runs: Sequence[Run]) -> str:
    """Return the median over the undisturbed trainings; of all of them, with a mark, if there are none."""
    if not runs:
        return NOT_RUN
    quiet = [run for run in runs if not _is_disturbed(run)]
    return number(median(run["seconds_per_iteration"] for run in quiet or runs), 2) + DISTURBED * (not quiet)


def _is_disturbed(run: Run) -> bool:
    """Return whether the machine had more to do than a training and its processes."""
    epochs = run["epoch_seconds"]
    return run["load_average"] > run["cpu_count"] or max(epochs) > SLOWEST_EPOCH * min(epochs)


def known_of_sweep(name: str, table: SweepTable) -> Known:
    """Return what a sentence may say of the rows: the Dice of a network, and the closed part of the gap in percent."""
    known: Known = {}
    for row, networks in table.rows.items():
        for source, runs in [((name, row), table.predicted(row)), *(((name, row, n), networks[n]) for n in networks)]:
            values = [dice(run) for run in runs]
            if values:
                known[source] = (mean(values), stdev(values) if len(values) > 1 else None)
        known[name, row, "gap"] = (table.gap_closed(row), None)
    return known
