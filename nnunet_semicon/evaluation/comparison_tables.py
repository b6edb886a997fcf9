"""A comparison as rows of text, Markdown, CSV and JSON."""

import csv
import io
import json
from dataclasses import asdict

from nnunet_semicon import __version__
from nnunet_semicon.evaluation.compare import is_higher_better, shown_metric
from nnunet_semicon.evaluation.comparison import Comparison, Mean
from nnunet_semicon.evaluation.statistics import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES
from nnunet_semicon.tables import markdown

Rows = list[list[str]]


def describe(comparison: Comparison) -> str:
    """Say on how many cases, seeds and folds the tables stand, and which direction is better."""
    folds = sorted({fold for method in comparison.methods for run in method.runs for fold in run.folds.values()} - {""})
    where = f" of fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}" if folds else ""
    seeds = ", ".join(f"{method.name} {len(method.runs)}" for method in comparison.methods)
    up = [shown_metric(metric) for metric in comparison.metrics if is_higher_better(metric)]
    down = [shown_metric(metric) for metric in comparison.metrics if not is_higher_better(metric)]
    directions = [f"{words} is better: {', '.join(of)}" for words, of in (("higher", up), ("lower", down)) if of]
    return f"{len(comparison.cases)} cases{where}; seeds: {seeds}; {'; '.join(directions)}."


def means_title(comparison: Comparison) -> str:
    """Say what the cells of :func:`means_rows` are."""
    folds = "; in brackets the standard deviation over the folds" if _has_folds(comparison) else ""
    return f"Mean over the cases ± standard deviation over the seeds' means{folds}"


def means_rows(comparison: Comparison) -> Rows:
    """Return header and one line per method and class."""
    by_key = {(row.method, row.label, row.metric): row for row in comparison.means}
    rows = [["method", "class", *map(shown_metric, comparison.metrics)]]
    for method in comparison.methods:
        for label, name in comparison.class_names.items():
            cells = [_mean_cell(by_key[method.name, label, metric]) for metric in comparison.metrics]
            rows.append([method.name, name, *cells])
    return rows


def differences_title(comparison: Comparison, method: str) -> str:
    """Say what :func:`differences_rows` shows."""
    return f"{method} minus {comparison.baseline}, paired by case"


def differences_rows(comparison: Comparison, method: str) -> Rows:
    """Return header and one line per class and metric of a method against the baseline."""
    rows = [["class", "metric", "difference", "95 % interval", "p", "p (Holm)", "effect"]]
    rows += [
        [
            comparison.class_names[row.label],
            shown_metric(row.metric),
            _signed(row.difference),
            "-" if row.low is None else f"{_signed(row.low)} to {_signed(row.high)}",
            _p(row.p),
            _p(row.p_holm),
            row.effect,
        ]
        for row in comparison.differences
        if row.method == method
    ]
    return rows


def means_markdown(comparison: Comparison) -> str:
    """Return the table of means, its title as a paragraph before it."""
    return f"{means_title(comparison)}:\n\n{markdown(means_rows(comparison))}"


def differences_markdown(comparison: Comparison) -> str:
    """Return a table per method other than the baseline, each with its title, and the notes as a list."""
    parts = []
    for method in comparison.methods[1:]:
        title = differences_title(comparison, method.name)
        parts.append(f"{title}:\n\n{markdown(differences_rows(comparison, method.name))}")
    if comparison.notes:
        parts.append("\n".join(f"- {note}" for note in comparison.notes))
    return "\n\n".join(parts)


def how(comparison: Comparison) -> str:
    """Say how the differences were tested."""
    tests = sum(row.p is not None for row in comparison.differences)
    return (
        f"Every case is averaged over the seeds, then paired. Interval: bootstrap over cases, {RESAMPLES} resamples, "
        f"percentiles. p: signed-rank test of Wilcoxon; Holm: corrected for all {tests} tests shown. Seeds' spread: "
        "the larger standard deviation over the seeds of the two."
    )


def as_markdown(comparison: Comparison) -> str:
    """Return the whole comparison as a page."""
    parts = ["# Comparison", describe(comparison), means_markdown(comparison)]
    parts += [differences_markdown(comparison), how(comparison)]
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return one line per method, class and metric; a value that is missing, or the baseline's difference, is empty."""
    differences = {(row.method, row.label, row.metric): row for row in comparison.differences}
    text = io.StringIO(newline="")
    header = ["method", "seeds", "class", "class_name", "metric", "cases", "missing", "mean", "sd_seeds", "sd_folds"]
    header += ["baseline", "pairs", "difference", "low", "high", "p", "p_holm", "better", "equal", "worse", "effect"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    seeds = {method.name: len(method.runs) for method in comparison.methods}
    for row in comparison.means:
        line = [row.method, seeds[row.method], row.label, comparison.class_names[row.label], row.metric]
        line += [row.cases, len(row.missing), row.mean, row.over_seeds, row.over_folds]
        difference = differences.get((row.method, row.label, row.metric))
        if difference is not None:
            line += [comparison.baseline, difference.cases, difference.difference, difference.low, difference.high]
            line += [difference.p, difference.p_holm, difference.better, difference.equal, difference.worse]
            line += [difference.effect]
        writer.writerow([*line, *[None] * (len(header) - len(line))])
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Return everything of the comparison but the cases' values; what is missing is null."""
    content = {
        "semicon": {"version": __version__, "command": "compare"},
        "baseline": comparison.baseline,
        "methods": [
            {
                "name": method.name,
                "runs": [{"name": run.name, "folds": sorted(set(run.folds.values()))} for run in method.runs],
            }
            for method in comparison.methods
        ],
        "metrics": comparison.metrics,
        "class_names": comparison.class_names,
        "cases": comparison.cases,
        "bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": BOOTSTRAP_SEED},
        "means": [asdict(row) for row in comparison.means],
        "differences": [
            {**asdict(row), "inside_spread": row.inside_spread, "effect": row.effect} for row in comparison.differences
        ],
        "notes": comparison.notes,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _mean_cell(row: Mean) -> str:
    text = "missing" if row.mean is None else f"{row.mean:.3f} ± {_spread(row.over_seeds)}"
    text += "" if row.over_folds is None else f" [{_spread(row.over_folds)}]"
    return text + (f" ({len(row.missing)} missing)" if row.missing and row.mean is not None else "")


def _has_folds(comparison: Comparison) -> bool:
    return any(row.over_folds is not None for row in comparison.means)


def _spread(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    # adding 0 turns the -0.0 of a rounded tiny difference into 0.0
    return "-" if value is None else f"{round(value, 3) + 0.0:+.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
