"""What predictions are worth: nnU-Net's own metrics and the distances that it lacks, per case and class.

Overlap, regions and the ignore label are nnU-Net's (its ``compute_metrics`` is called). Two conventions stand side by
side: ``mm`` (spacing of the header; ASSD counts both directions) and ``voxel`` (no spacing; ASD counts from the
prediction to the reference only), which is what the community's benchmark of semi-supervised methods reports.

A class that is missing in the prediction or in the reference has no distance. It is counted, left out of ``mean``, and
enters ``penalized_mean`` with Dice 0 and the diagonal of the image. A class absent in both is neither.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.evaluation.surface import Mask, boundary, distances, joint_box
from nnunet_semicon.evaluation.surface_dice import nsd

Metrics = dict[str, float | None]
Target = int | tuple[int, ...]

OVERLAP = ("DSC", "Jaccard")
VOLUME = ("VE_percent", "VE_ml")
NSD = "NSD"
CONVENTIONS = {
    "mm": (*OVERLAP, "HD95_mm", "HD_mm", "ASSD_mm", *VOLUME),
    "voxel": (*OVERLAP, "HD95_voxel", "HD_voxel", "ASD_voxel"),
}
DISTANCES = ("HD95", "HD", "ASD", "ASSD")
UNITS = ("mm", "voxel")


class UnreadableError(UserError):
    """A segmentation that cannot be read; it may still be being written."""


@dataclass(frozen=True)
class Protocol:
    """What is measured, from ``dataset.json``.

    Attributes:
        targets: the labels, or the regions (tuples of labels), without background.
        names: name of each target, by its key in nnU-Net's ``summary.json``.
        known: every label value that a file may hold.
        ignore: value of the ignore label.
        reader: nnU-Net's reader for these files.
        tolerance: of the NSD, mm; None: no NSD.
    """

    targets: tuple[Target, ...]
    names: Mapping[str, str]
    known: frozenset[int]
    ignore: int | None
    reader: Any
    tolerance: float | None = None

    @classmethod
    def from_dataset(cls, dataset: Mapping[str, Any], example: Path, tolerance: float | None = None) -> "Protocol":
        """Return the protocol of a dataset.

        Args:
            dataset: content of its ``dataset.json``.
            example: one of the files to read; nnU-Net chooses the reader that can.
            tolerance: see the class.

        Raises:
            UserError: the labels are not nnU-Net's.
            UnreadableError: no reader can read the example.
        """
        try:
            labels = LabelManager(dataset["labels"], dataset.get("regions_class_order"))
        except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"dataset.json has no labels that nnU-Net understands ({error}): expected its own format"
            ) from None
        try:
            reader = determine_reader_writer_from_dataset_json(dict(dataset), str(example), verbose=False)()
        except Exception as error:  # each reader has its own
            raise _unreadable(str(example), error) from None
        targets = tuple(labels.foreground_regions if labels.has_regions else map(int, labels.foreground_labels))
        known = {0, *map(int, labels.all_labels)} | ({labels.ignore_label} if labels.has_ignore_label else set())
        values = {_as_target(value): name for name, value in dataset["labels"].items()}
        return cls(
            targets,
            {str(target): values[_as_target(target)] for target in targets},
            frozenset(known),
            labels.ignore_label,
            reader,
            tolerance,
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of our metrics, in the order of the file."""
        with_unit = tuple(f"{metric}_{unit}" for unit in UNITS for metric in DISTANCES)
        return (*OVERLAP, *with_unit, *VOLUME, *(() if self.tolerance is None else (nsd_key(self.tolerance),)))


def nsd_key(tolerance: float) -> str:
    """Return e.g. ``NSD_1.5mm``."""
    return f"{NSD}_{tolerance:g}mm"


def _as_target(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, list | tuple) else (int(value),)


# --- two masks ------------------------------------------------------------------------------------------------------


def measure(prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float | None = None) -> Metrics:
    """Return our metrics of one class.

    Args:
        prediction: bool, 2d or 3d, not empty.
        reference: the same shape, not empty.
        spacing: voxel size along each axis, mm.
        tolerance: of the NSD, mm; None: no NSD.

    Returns:
        DSC, Jaccard and NSD in [0, 1]; HD95, HD, ASD (from the prediction to the reference) and ASSD in mm and in
        voxels; volume error (prediction - reference) in ml and in percent of the reference.
    """
    box = joint_box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    volumes = [int(np.count_nonzero(mask)) for mask in (prediction, reference)]
    both = int(np.count_nonzero(prediction & reference))
    metrics: Metrics = {"DSC": 2 * both / sum(volumes), "Jaccard": both / (sum(volumes) - both)}
    surfaces = [boundary(mask) for mask in (prediction, reference)]
    for unit, size in zip(UNITS, (np.asarray(spacing, np.float64), np.ones(len(spacing))), strict=True):
        between = distances(*(surface * size for surface in surfaces))
        metrics |= {f"{name}_{unit}": getattr(between, name.lower()) for name in DISTANCES}
    error = volumes[0] - volumes[1]
    metrics["VE_percent"] = 100 * error / volumes[1]
    metrics["VE_ml"] = error * float(np.prod(spacing)) / 1000
    if tolerance is not None:
        metrics[nsd_key(tolerance)] = nsd(prediction, reference, spacing, tolerance)
    return metrics


def penalty(key: str, diagonal: Mapping[str, float]) -> float | None:
    """Return what a missing class counts in ``penalized_mean``: 0, or the image's diagonal; None: it has no penalty."""
    if key in VOLUME:
        return None
    return next((diagonal[unit] for unit in UNITS if key.startswith(DISTANCES) and key.endswith(f"_{unit}")), 0.0)


# --- one case -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A case and its two files."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class _Loaded:
    """A reader for nnU-Net's ``compute_metrics`` that hands out what is in memory already."""

    arrays: Mapping[str, NDArray[np.int32]]

    def read_seg(self, file: str) -> tuple[NDArray[np.int32], dict[str, Any]]:
        return self.arrays[file], {}


def evaluate_case(pair: Pair, protocol: Protocol) -> dict[str, Any]:
    """Return one entry of ``metric_per_case``.

    Raises:
        UnreadableError: a file cannot be read.
        UserError: it holds an unknown label, or the two have different geometries.
    """
    files = [str(pair.reference), str(pair.prediction)]
    (reference, header), (prediction, other_header) = (_read(file, protocol) for file in files)
    _check_geometry(pair, (reference, header), (prediction, other_header))
    loaded = _Loaded(dict(zip(files, (reference, prediction), strict=True)))
    entry = compute_metrics(*files, loaded, list(protocol.targets), protocol.ignore)
    recursive_fix_for_json_export(entry)  # numpy's numbers become python's

    # an axis with a single voxel, as nnU-Net gives to 2d images, has no surface
    axes = [axis for axis, size in enumerate(reference.shape[1:]) if size > 1] or [0, 1]
    shape = [reference.shape[1:][axis] for axis in axes]
    spacing = [float(header["spacing"][axis]) for axis in axes]
    counted = np.ones_like(reference, dtype=bool) if protocol.ignore is None else reference != protocol.ignore
    entry |= {
        "case": pair.case,
        "diagonal": {"mm": float(np.linalg.norm(np.multiply(shape, spacing))), "voxel": float(np.linalg.norm(shape))},
        "missing": {},
        "metrics": {str(target): metrics for target, metrics in entry["metrics"].items()},
    }
    for target in protocol.targets:
        masks = [(region_or_label_to_mask(array, target) & counted).reshape(shape) for array in (prediction, reference)]
        absent = [which for which, mask in zip(("prediction", "reference"), masks, strict=True) if not mask.any()]
        if absent:
            entry["missing"][str(target)] = absent[0] if len(absent) == 1 else "both"
        ours = dict.fromkeys(protocol.keys) if absent else measure(masks[0], masks[1], spacing, protocol.tolerance)
        entry["metrics"][str(target)] |= ours
    return entry


def _read(file: str, protocol: Protocol) -> tuple[NDArray[np.int32], dict[str, Any]]:
    try:
        array, header = protocol.reader.read_seg(file)
    except Exception as error:  # each reader has its own
        raise _unreadable(file, error) from None
    labels = array.astype(np.int32)
    unknown = sorted(_values(labels) - protocol.known)
    if unknown or not np.array_equal(labels, array):
        what = f"the label {listing(map(str, unknown))}" if unknown else "values that are no integers"
        raise UserError(
            f"{file} holds {what}: expected {listing(map(str, sorted(protocol.known)), 20)}, the labels of "
            "dataset.json; evaluate with the dataset.json that belongs to these files (--dataset)"
        )
    return labels, header


def _unreadable(file: str, error: Exception) -> UnreadableError:
    return UnreadableError(
        f"{file} cannot be read ({type(error).__name__}): it is damaged or still being written; make it again"
    )


def _values(labels: NDArray[np.int32]) -> set[int]:
    """Return the values that occur; marking them in a table takes a tenth of the time that sorting takes."""
    lowest = int(labels.min())
    seen = np.zeros(int(labels.max()) - lowest + 1, bool)
    seen[labels - lowest] = True
    return {int(value) + lowest for value in np.flatnonzero(seen)}


def _check_geometry(
    pair: Pair,
    reference: tuple[NDArray[np.int32], Mapping[str, Any]],
    prediction: tuple[NDArray[np.int32], Mapping[str, Any]],
) -> None:
    """Refuse two files that do not lie on the same voxels; origin and direction where the reader knows them."""
    facts = []
    for array, header in (reference, prediction):
        stuff = header.get("sitk_stuff", {})
        fact = {"shape": array.shape[1:], "spacing": header["spacing"]}
        facts.append(fact | {key: stuff[key] for key in ("origin", "direction") if key in stuff})
    for key, expected in facts[0].items():
        found = facts[1].get(key, ())
        if len(found) != len(expected) or not np.allclose(found, expected, rtol=1e-4, atol=1e-3):
            shown = [", ".join(f"{float(value):g}" for value in values) for values in (found, expected)]
            raise UserError(
                f"case {pair.case}: the {key} of {pair.prediction} is ({shown[0]}), that of {pair.reference} is "
                f"({shown[1]}): expected both on the same voxels; predict from the image that this reference belongs to"
            )


# --- all cases ------------------------------------------------------------------------------------------------------


def summarize(
    cases: Iterable[Mapping[str, Any]], protocol: Protocol, version: str, complete: bool = True
) -> dict[str, Any]:
    """Return the content of the file: nnU-Net's ``summary.json``, our metrics, and the key ``semicon``.

    Args:
        cases: of :func:`evaluate_case`; at least one.
        protocol: the one they were measured with.
        version: of this package.
        complete: False while nnU-Net still validates; ``semicon compare`` waits for the rest.
    """
    cases = sorted(cases, key=lambda entry: str(entry["case"]))
    keys = [str(target) for target in protocol.targets]
    stock = [key for key in cases[0]["metrics"][keys[0]] if key not in protocol.keys]
    mean: dict[str, dict[str, Any]] = {
        key: {name: _nanmean([entry["metrics"][key][name] for entry in cases]) for name in stock} for key in keys
    }
    foreground: Metrics = {name: float(np.mean([mean[key][name] for key in keys])) for name in stock}
    summary = {key: _summary_of_class(key, cases, protocol.keys) for key in keys}
    for name in protocol.keys:
        for key in keys:
            mean[key][name] = summary[key]["mean"][name]
        foreground[name] = mean_of_classes(summary, "mean", name)
    return {
        "metric_per_case": cases,
        "mean": mean,
        "foreground_mean": foreground,
        "semicon": {
            "version": version,
            "complete": complete,
            "class_names": dict(protocol.names),
            "tolerance_mm": protocol.tolerance,
            "summary": summary,
        },
    }


def _summary_of_class(key: str, cases: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    missing = {
        where: [e["case"] for e in cases if e["missing"].get(key) == where] for where in ("prediction", "reference")
    }
    measured = [entry for entry in cases if key not in entry["missing"]]
    penalized = [entry for entry in cases if entry["missing"].get(key) in missing]
    mean: Metrics = {}
    penalized_mean: Metrics = {}
    for name in names:
        values = [entry["metrics"][key][name] for entry in measured]
        penalties = [penalty(name, entry["diagonal"]) for entry in penalized]
        mean[name] = float(np.mean(values)) if values else None
        with_penalty = None if None in penalties or name in VOLUME else [*values, *penalties]
        penalized_mean[name] = float(np.mean(with_penalty)) if with_penalty else None
    return {
        "cases": len(cases),
        "measured": len(measured),
        "missing_in_prediction": missing["prediction"],
        "missing_in_reference": missing["reference"],
        "absent_in_both": len(cases) - len(measured) - len(penalized),
        "mean": mean,
        "penalized_mean": penalized_mean,
    }


def mean_of_classes(summary: Mapping[str, Mapping[str, Any]], which: str, name: str) -> float | None:
    """Return the mean of a metric over the classes that have one; None: none has.

    Args:
        summary: of each class, as in the file.
        which: ``mean`` or ``penalized_mean``.
        name: of the metric.
    """
    values = [of_class[which][name] for of_class in summary.values() if of_class[which][name] is not None]
    return float(np.mean(values)) if values else None


def _nanmean(values: Sequence[float]) -> float:
    """Return what nnU-Net writes, without numpy's warning where a class is nowhere."""
    present = [value for value in values if not np.isnan(value)]
    return float(np.mean(present)) if present else float("nan")
