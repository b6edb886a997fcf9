"""Brings what docs shows of measurements in step with the JSON files in docs/results.

docs/results.md and the pages of the methods are written by hand. This script fills the tables between the marks of
docs/results.md, draws its figure, and writes the statistics that it links to, and docs/performance.md. What makes a row
of a table stands in docs/results/tables.yaml. A number in a sentence names its source in a comment behind it:

    0.789 ± 0.006<!-- hippocampus_fold2 | MCSC -->               mean Dice and spread over the seeds
    6.834 mm<!-- hippocampus_fold0 | MCSC | mean | HD95_mm -->   of a class and a metric
    0.774<!-- hip2 | Semicon | teacher -->                       of one network, in a table of a sweep
    72 %<!-- hip2 | Semicon | gap -->                            of the gap that is closed, in such a table

Such a number is checked and never rewritten: its sentence has to fit it.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from losses_page import draw_losses
from measured import Column, Run, comparisons, dice, mean_and_spread, processor, usual_processor
from performance_page import performance_page
from provenance import REPOSITORY
from results_figure import draw
from sweep_tables import Known, known_of_sweep, read_sweep_tables, sweep_table_of
from tables import NOT_RUN, NOTICE, markdown_table, number

from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.evaluation.comparison import MEAN
from nnunet_semicon.evaluation.comparison_tables import describe, differences_markdown, how, means_markdown
from nnunet_semicon.evaluation.runs import SEED

BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
DECIMALS = re.compile(r"\d+\.\d+")
SOURCE = re.compile(
    r"(?P<value>-?\d+(?:\.\d+)?)(?:\s+±\s+(?P<spread>\d+\.\d+))?(?:\s+(?:mm|%))?"
    r"<!-- (?P<source>[^|>]+\|[^>]+?) -->"
)
DEFAULT_METRIC = "DSC"
PROTOCOL = ("dataset", "fold", "iterations", "device")


@dataclass(frozen=True)
class Row:
    """A row of a table; docs/results/tables.yaml says what the fields are."""

    trainer: str
    configuration: str
    network: str = "student"
    compared_with: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    drawn: bool = True


@dataclass(frozen=True)
class Table:
    """A table of docs/results.md: rows by name, columns by folder, rows of the benchmark if it names one."""

    rows: Mapping[str, Row]
    baselines: Sequence[str]
    columns: Mapping[str, Column]
    benchmark: Sequence[Mapping[str, Any]] | None


# --- reading -------------------------------------------------------------------------------------------------------


def read_table(results: Path, entry: Mapping[str, Any]) -> Table:
    """Return a table of tables.yaml with its runs.

    Raises:
        UserError: a run belongs to no row, or two were not made under the same protocol.
    """
    rows = {name: Row(**fields) for name, fields in entry["rows"].items()}
    compared_with = {name: row.compared_with for name, row in rows.items() if row.compared_with}
    columns = {}
    for folder, title in entry["columns"].items():
        runs = read_runs(results / folder, rows)
        columns[folder] = Column(title, runs, comparisons(runs, entry["baselines"], compared_with))
    benchmark = json.loads((results / entry["benchmark"]).read_text())["rows"] if "benchmark" in entry else None
    return Table(rows, entry["baselines"], columns, benchmark)


def read_runs(folder: Path, rows: Mapping[str, Row]) -> dict[str, list[Run]]:
    """Return the runs of each row; files without metrics are pre-trainings."""
    names = {(row.trainer, row.configuration, row.network): name for name, row in rows.items()}
    runs: dict[str, list[Run]] = {name: [] for name in rows}
    seen: dict[str, tuple[Any, str]] = {}
    for file in sorted(folder.glob("*.json")):
        run = json.loads(file.read_text())
        if "metric_per_case" not in run:
            continue
        key = (run["trainer"], SEED.sub("", run["configuration"]), run.get("network", "student"))
        if key not in names:
            raise UserError(f"{file} belongs to no row: add {' '.join(key)} to tables.yaml, or move the file")
        runs[names[key]].append(run)
        facts = {key: run[key] for key in PROTOCOL} | run["cases"]
        if not facts["unlabeled"]:  # as in a control
            del facts["unlabeled"]
        for fact, value in facts.items():
            first, first_file = seen.setdefault(fact, (value, file.name))
            if value != first:
                raise UserError(
                    f"{folder} holds runs that cannot stand in one table: '{fact}' is {value} in {file.name} and "
                    f"{first} in {first_file}; run one of them again"
                )
    return {name: sorted(of_row, key=lambda run: int(run["seed"])) for name, of_row in runs.items() if of_row}


def cost(table: Table, name: str) -> tuple[float, float] | None:
    """Return seconds and MiB of a step: those of the benchmark, or the means of the trainings without one."""
    row = table.rows[name]
    runs = [run for column in table.columns.values() for run in column.runs.get(name, ())]
    if table.benchmark is None:
        measured = [(run["seconds_per_iteration"], run["peak_memory_mib"]) for run in runs if run["peak_memory_mib"]]
    else:
        wanted = {(row.trainer, run["labeled_per_step"], *row.settings.items()) for run in runs}
        measured = [
            (entry["step_seconds"]["median"], entry["peak_memory_mib"])
            for entry in table.benchmark
            if (entry["trainer"], entry["labeled_rows"], *entry.get("changes", {}).items()) in wanted
        ]
    return (mean(seconds for seconds, _ in measured), mean(mib for _, mib in measured)) if measured else None


# --- writing -------------------------------------------------------------------------------------------------------


def table_of(table: Table) -> str:
    """Return mean and spread of each row and column, and what a step costs relative to the first row."""
    header = ["", *(column.title for column in table.columns.values()), "step time", "memory"]
    unit = cost(table, next(iter(table.rows)))
    processors = [
        usual_processor([run for runs in column.runs.values() for run in runs]) for column in table.columns.values()
    ]
    lines = []
    for name in table.rows:
        own = cost(table, name)
        costs = [f"{o / u:.2f}x" for o, u in zip(own, unit, strict=True)] if own and unit else [NOT_RUN, NOT_RUN]
        cells = [
            mean_and_spread(column.runs.get(name, ()), usual)
            for column, usual in zip(table.columns.values(), processors, strict=True)
        ]
        lines.append([f"**{name}**" if name in table.baselines else name, *cells, *costs])
    return markdown_table(header, lines)


def statistics_page(column: Column, name: str) -> str:
    """Return every training of a column, all means, and the paired differences from each baseline."""
    header = ["row", "seed", "Dice", "iterations", "memory (MiB)", "processor", "date", "commit"]
    lines = [
        [
            row,
            *(str(run["seed"]), number(dice(run), 4), str(run["iterations"]), str(run["peak_memory_mib"] or NOT_RUN)),
            *(processor(run), run["date"][:10], run["commit"]),
        ]
        for row, runs in column.runs.items()
        for run in runs
    ]
    parts = [f"# {name}, {column.title}", NOTICE, "## Trainings", markdown_table(header, lines)]
    for comparison in column.comparisons:
        parts += [f"## Against {comparison.baseline}", describe(comparison), means_markdown(comparison)]
        parts += [differences_markdown(comparison), how(comparison)]
    return "\n\n".join(parts) + "\n"


def repeated_page(results: Path) -> str:
    """Return both outcomes of every training that was made again with its seed, a line for each repeat.

    Raises:
        UserError: the first run of one is not there.
    """
    header = ["trainer", "configuration", "fold", "Dice", "again", "processor", "again", "commit", "again"]
    lines = []
    for file in sorted((results / "repeated").glob("*/*.json")):
        again = json.loads(file.read_text())
        first_file = results / file.parent.name / f"{again['trainer']}__{again['configuration']}.json"
        if not first_file.is_file():
            raise UserError(f"{file} repeats a run whose file {first_file} does not exist: bring it, or remove this")
        both = (json.loads(first_file.read_text()), again)
        origin = [what for key in (processor, lambda run: run["commit"]) for what in map(key, both)]
        dices = [number(dice(run)) for run in both]
        lines.append([again["trainer"], again["configuration"], str(again["fold"]), *dices, *origin])
    return f"# The same training again\n\n{NOTICE}\n\n{markdown_table(header, lines)}\n"


def curves_page(results: Path, curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Return chosen values of every epoch of some trainings."""
    parts = ["# Epochs", NOTICE]
    for title, entry in curves.items():
        lines = [
            [file.stem, str(epoch["epoch"] + 1), *(number(epoch[key]) for key in entry["columns"])]
            for file in sorted(results.glob(entry["files"]))
            for epoch in json.loads(file.read_text())["epochs"]
        ]
        parts += [f"## {title}", markdown_table(["training", "epoch", *entry["columns"].values()], lines)]
    return "\n\n".join(parts) + "\n"


# --- checking ------------------------------------------------------------------------------------------------------


def known_of(columns: Mapping[str, Column]) -> Known:
    """Return what a sentence may say of the rows that are compared: a metric of a class, by default the mean Dice."""
    known: Known = {}
    for folder, column in columns.items():
        for comparison in column.comparisons:
            for row in comparison.means:
                source = (folder, row.method, comparison.class_names[row.label])
                known[(*source, row.metric)] = value = (row.mean, row.over_seeds)
                if row.metric == DEFAULT_METRIC:
                    known[source] = value
                    if row.label == MEAN:
                        known[source[:2]] = value
    return known


def wrong_numbers(page: Path, known: Known) -> list[str]:
    """Return a sentence for every number of a page that differs from what is measured."""
    wrong = []
    for match in SOURCE.finditer(page.read_text()):
        source = tuple(part.strip() for part in match["source"].split("|"))
        where = f"{page.name} says {match[0]}"
        if source not in known:
            near = nearest(match["source"], (" | ".join(other) for other in known if len(other) <= len(source)))
            wrong.append(f"{where}: nothing like that is measured{near}")
            continue
        for word, measured in zip(("value", "spread"), known[source], strict=True):
            if match[word]:
                digits = len(match[word].partition(".")[2])
                right = "unknown" if measured is None else number(measured, digits)
                wrong += [f"{where}: the measured {word} is {right}"] if right != match[word] else []
    return wrong


# --- command line --------------------------------------------------------------------------------------------------


def update(results: Path, docs: Path) -> None:
    """Write everything that is in ``docs``, from the JSON files and tables.yaml in ``results``.

    Raises:
        UserError: a number in a sentence is wrong, or a file does not belong there; nothing is written then.
    """
    content = yaml.safe_load((results / "tables.yaml").read_text())
    tables = {name: read_table(results, entry) for name, entry in content["tables"].items()}
    sweeps = read_sweep_tables(results, content.get("sweeps", {}))
    columns = {folder: column for table in tables.values() for folder, column in table.columns.items()}
    columns |= {name: table.column() for name, table in sweeps.items()}
    known = known_of(columns)
    for name, sweep in sweeps.items():
        known |= known_of_sweep(name, sweep)
    blocks = {name: table_of(table) for name, table in tables.items()}
    blocks |= {name: sweep_table_of(table) for name, table in sweeps.items()}
    page = docs / "results.md"
    readme = [path for path in [docs.parent / "README.md"] if path.is_file()]
    wrong = [
        sentence
        for path in [page, *readme, *sorted(docs.glob("methods/*.md"))]
        for sentence in wrong_numbers(path, known)
    ]
    text = page.read_text()
    marks = [name for _, name, _ in BLOCK.findall(text)]
    if wrong:
        raise UserError("; ".join(wrong))
    if sorted(marks) != sorted(blocks):
        raise UserError(f"{page} has marks for the tables {listing(marks)}: expected {listing(blocks)}")
    if unnamed := DECIMALS.findall(SOURCE.sub("", BLOCK.sub("", text))):
        raise UserError(f"{page} names no source of {listing(unnamed)}: write <!-- folder | row --> behind each")
    pages = {"results.md": BLOCK.sub(lambda mark: f"{mark[1]}\n{blocks[mark[2]]}\n\n{mark[3]}", text)}
    for name, table in tables.items():
        pages |= {f"results/{f}.md": statistics_page(column, name) for f, column in table.columns.items()}
    pages |= {f"results/{name}.md": statistics_page(columns[name], name) for name in sweeps}
    pages |= {f"results/{name}.md": curves_page(results, curves) for name, curves in content["curves"].items()}
    pages["results/repeated.md"] = repeated_page(results)
    pages["performance.md"] = performance_page(results)
    for name, text in pages.items():
        (docs / name).parent.mkdir(exist_ok=True)
        (docs / name).write_text(text)
    draw_losses(results, docs / "figures")
    for name, table in tables.items():
        drawn = [row for row, fields in table.rows.items() if fields.drawn]
        dices = {
            column.title: {row: [dice(run) for run in column.runs.get(row, ())] for row in drawn}
            for column in table.columns.values()
        }
        draw(dices, table.baselines, docs / "figures" / f"results_{name}.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = REPOSITORY / "docs"
    parser.add_argument("--results", type=Path, default=docs / "results", help="folder of the JSON files")
    parser.add_argument("--out", type=Path, default=docs, help="folder of the pages")
    args = parser.parse_args(argv)
    try:
        update(args.results, args.out)
    except UserError as error:
        print(f"make_results: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
