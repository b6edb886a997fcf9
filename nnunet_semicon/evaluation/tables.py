"""An evaluation as text: one line per case and class for spreadsheets, two short tables for the terminal."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from nnunet_semicon.evaluation.evaluate import CONVENTIONS, NSD, OVERLAP, VOLUME, mean_of_classes

NONE = "-"
PENALIZED = "pen."
HEADINGS = {
    "mm": "in mm: spacing of the header; ASSD counts both directions; VE, the volume error, is prediction - reference",
    "voxel": "in voxels: no spacing; ASD counts from the prediction to the reference only",
}


def to_csv(content: Mapping[str, Any]) -> str:
    """Return one line per case and class, with all of our metrics; an empty cell: missing."""
    names = content["semicon"]["class_names"]
    metrics = list(next(iter(content["semicon"]["summary"].values()))["mean"])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "label", "class", "missing_in", *metrics])
    for entry in content["metric_per_case"]:
        for key, values in entry["metrics"].items():
            cells = ["" if values[metric] is None else values[metric] for metric in metrics]
            writer.writerow([entry["case"], key, names[key], entry["missing"].get(key, ""), *cells])
    return text.getvalue()


def rows(content: Mapping[str, Any], convention: str) -> list[list[str]]:
    """Return the lines of the table of one convention, its header first.

    A metric has the mean over the cases in which the class is in both files; and the penalized mean beside it, where a
    class is missing somewhere (otherwise the two are equal).
    """
    summary = content["semicon"]["summary"]
    names = content["semicon"]["class_names"]
    metrics = [*CONVENTIONS[convention]]
    if convention == "mm":
        metrics += [metric for metric in next(iter(summary.values()))["mean"] if metric.startswith(NSD)]
    columns = [(metric, which) for metric in metrics for which in _means(metric, is_missing(content))]
    lines = [["class", "cases", "missing", *(_heading(metric, which, convention) for metric, which in columns)]]
    for key, of_class in summary.items():
        counts = [str(of_class["cases"] - of_class["absent_in_both"]), str(_count_missing(of_class))]
        cells = [_number(metric, of_class[which][metric]) for metric, which in columns]
        lines.append([names[key], *counts, *cells])
    if len(summary) > 1:
        cells = [_number(metric, mean_of_classes(summary, which, metric)) for metric, which in columns]
        lines.append(["mean", "", "", *cells])
    return lines


def is_missing(content: Mapping[str, Any]) -> bool:
    """Return whether a class is missing in the prediction or in the reference of a case."""
    return any(_count_missing(of_class) for of_class in content["semicon"]["summary"].values())


def _count_missing(of_class: Mapping[str, Any]) -> int:
    return len(of_class["missing_in_prediction"]) + len(of_class["missing_in_reference"])


def _means(metric: str, missing: bool) -> tuple[str, ...]:
    return ("mean", "penalized_mean") if missing and metric not in VOLUME else ("mean",)


def _heading(metric: str, which: str, convention: str) -> str:
    return PENALIZED if which == "penalized_mean" else metric.removesuffix(f"_{convention}")


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if metric in OVERLAP or metric.startswith(NSD) else f"{value:.2f}"
