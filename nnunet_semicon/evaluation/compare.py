"""Paired statistics of several methods on the same cases.

A method is one or more runs that differ in the seed alone; a run holds the metrics of every case and class. The first
method is the baseline, every other one is compared with it:

- the difference of a case is that of the method's and the baseline's values, each averaged over the seeds first;
- its uncertainty is a bootstrap over the cases;
- whether it is zero is asked by a signed-rank test, corrected for all tests of the table
  (:mod:`nnunet_semicon.evaluation.statistics`).

A value that is missing (NaN) is never replaced: the case is left out of that pair, counted and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.evaluation.comparison import MEAN, Comparison, Difference, Mean, Method, Run
from nnunet_semicon.evaluation.statistics import Array, bootstrap_interval, holm, signed_rank_p

DEFAULT_METRICS = {  # per convention
    "mm": ("DSC", "HD95_mm", "ASSD_mm"),
    "voxel": ("DSC", "Jaccard", "HD95_voxel", "ASD_voxel"),
}
FEWEST_CASES = 6  # with 5 pairs the smallest p of a two-sided signed-rank test is 2 / 2^5 = 0.0625
DECIMALS = 10  # of a difference: what is equal stays equal after averaging over seeds

HIGHER = ("DSC", "Jaccard", "Dice", "IoU", "NSD", "TP", "TN")
LOWER = ("HD95", "HD", "ASD", "ASSD", "FP", "FN")
SIGNED = ("VE",)  # errors with a sign: their magnitude is compared


def compare(methods: Sequence[Method], metrics: Sequence[str] = DEFAULT_METRICS["mm"]) -> Comparison:
    """Compare every method with the first one.

    Args:
        methods: at least two, with runs on the same cases, classes and references.
        metrics: keys of the runs' values.

    Raises:
        UserError: They cannot be compared, or a metric is unknown.
    """
    if len(methods) < 2:
        found = f"only {methods[0].name} ({len(methods[0].runs)} runs)" if methods else "nothing"
        raise UserError(
            f"there is nothing to compare: expected runs of two methods or more, found {found}; runs whose "
            "configurations differ only in a trailing _s<seed> are one method"
        )
    runs = [run for method in methods for run in method.runs]
    metrics = tuple(dict.fromkeys(metrics))
    _require_same_data(runs)
    _require_metrics(runs, metrics)

    cases = tuple(sorted(runs[0].values))
    classes = _classes(runs[0])
    class_names = {key: runs[0].class_names.get(key, key) for key in classes} | ({MEAN: MEAN} if classes[1:] else {})
    means, differences, absent = [], [], []
    for metric in metrics:
        values = [np.stack([_array(run, cases, classes, metric) for run in method.runs]) for method in methods]
        somewhere = np.any([~np.isnan(v).all(axis=(0, 1)) for v in values], axis=0)  # of each class
        absent += [(key, metric) for key, there in zip(classes, somewhere, strict=True) if not there]
        of_metric = [
            _means(method, v, somewhere, metric, cases, tuple(class_names))
            for method, v in zip(methods, values, strict=True)
        ]
        means += [mean for rows in of_metric for mean in rows]
        # each case averaged over the seeds first: NaN if it is missing in one of them
        averaged = [_with_mean_of_common(v.mean(axis=0), values[0].mean(axis=0)) for v in values]
        for i, method in enumerate(methods[1:], start=1):
            own, base = averaged[i]
            for j, label in enumerate(class_names):
                spreads = [of_metric[i][j].over_seeds, of_metric[0][j].over_seeds]
                known = [spread for spread in spreads if spread is not None]
                spread = max(known) if len(known) == 2 else None
                differences.append(_difference(method.name, label, metric, own[:, j], base[:, j], cases, spread))

    order = [(method.name, label) for method in methods for label in class_names]
    means.sort(key=lambda row: order.index((row.method, row.label)))
    differences.sort(key=lambda row: order.index((row.method, row.label)))
    corrected = iter(holm([row.p for row in differences if row.p is not None]))
    differences = [row if row.p is None else replace(row, p_holm=next(corrected)) for row in differences]
    notes = _notes(methods, class_names, metrics, means, absent, len(cases))
    return Comparison(tuple(methods), metrics, cases, class_names, tuple(means), tuple(differences), tuple(notes))


def is_higher_better(metric: str) -> bool:
    """Return the direction of a metric.

    Raises:
        UserError: It has none.
    """
    stem = metric.split("_")[0]
    if stem not in (*HIGHER, *LOWER, *SIGNED):
        raise UserError(
            f"metric '{metric}' cannot be compared: neither more of it nor less is better; expected one of "
            f"{', '.join((*HIGHER, *LOWER, *SIGNED))} with its unit, e.g. --metrics DSC HD95_mm"
        )
    return stem in HIGHER


def shown_metric(metric: str) -> str:
    """Return the metric as tables show it: an error with a sign as its magnitude, ``|VE_ml|``."""
    return f"|{metric}|" if metric.split("_")[0] in SIGNED else metric


# --- one metric ----------------------------------------------------------------------------------------------------


def _array(run: Run, cases: Sequence[str], classes: Sequence[str], metric: str) -> Array:
    """Return one metric of a run, float64, (cases, classes), NaN where it is missing."""
    values = np.array([[run.values[case][key].get(metric, np.nan) for key in classes] for case in cases], np.float64)
    return np.abs(values) if metric.split("_")[0] in SIGNED else values


def _means(
    method: Method,
    values: Array,
    somewhere: NDArray[np.bool_],
    metric: str,
    cases: Sequence[str],
    labels: Sequence[str],
) -> list[Mean]:
    """Return a row per label. ``values``: (seeds, cases, classes); ``somewhere``: classes that any method has."""
    per_seed = _means_of(values, somewhere, labels)  # (seeds, labels)
    folds = sorted(set(method.runs[0].folds.values()))
    per_fold = []
    for fold in folds if len(folds) > 1 else []:
        chosen = [np.array([run.folds[case] == fold for case in cases]) for run in method.runs]
        of_seeds = [_means_of(v[mask][None], somewhere, labels) for v, mask in zip(values, chosen, strict=True)]
        per_fold.append(np.concatenate(of_seeds).mean(axis=0))
    missing: NDArray[np.bool_] = np.any(np.isnan(values), axis=0)  # (cases, classes)
    if MEAN in labels:
        missing = np.concatenate([missing, missing[:, somewhere].any(axis=1, keepdims=True)], axis=1)
    rows = []
    for j, label in enumerate(labels):
        absent = tuple(case for case, is_missing in zip(cases, missing[:, j], strict=True) if is_missing)
        over_folds = _deviation(np.array([means[j] for means in per_fold]))
        mean, over_seeds = _number(per_seed[:, j].mean()), _deviation(per_seed[:, j])
        rows.append(Mean(method.name, label, metric, mean, over_seeds, over_folds, len(cases), absent))
    return rows


def _means_of(values: Array, somewhere: NDArray[np.bool_], labels: Sequence[str]) -> Array:
    """Return means over the cases that have a value, (seeds, labels), for values of (seeds, cases, classes).

    Their mean over the classes is NaN where a class that others have is missing in every case: a mean over fewer
    classes would be another quantity.
    """
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Array = np.where(present, values, 0).sum(axis=1) / present.sum(axis=1)
        if MEAN in labels:
            over_classes = means[:, somewhere].sum(axis=1, keepdims=True) / somewhere.sum()
            means = np.concatenate([means, over_classes], axis=1)
    return means


def _with_mean_of_common(own: Array, base: Array) -> tuple[Array, Array]:
    """Append to both (cases, classes) their mean over the classes that both have in a case, if there are several."""
    if own.shape[1] == 1:
        return own, base
    common = ~np.isnan(own) & ~np.isnan(base)
    with np.errstate(invalid="ignore"):
        of_both = [
            np.where(common, v, 0).sum(axis=1, keepdims=True) / common.sum(axis=1, keepdims=True) for v in (own, base)
        ]
    return np.concatenate([own, of_both[0]], axis=1), np.concatenate([base, of_both[1]], axis=1)


def _difference(
    method: str, label: str, metric: str, own: Array, base: Array, cases: Sequence[str], spread: float | None
) -> Difference:
    """Return the row of one test; ``own`` and ``base``: (cases,)."""
    all_differences: Array = np.round(own - base, DECIMALS)
    there = ~np.isnan(all_differences)
    differences = all_differences[there]
    left_out = tuple(case for case, is_there in zip(cases, there, strict=True) if not is_there)
    if not len(differences):
        return Difference(method, label, metric, None, None, None, None, None, 0, 0, 0, left_out, spread)
    gain = differences if is_higher_better(metric) else -differences
    return Difference(
        method,
        label,
        metric,
        float(differences.mean()),
        *bootstrap_interval(differences),
        signed_rank_p(differences),
        None,
        better=int((gain > 0).sum()),
        equal=int((gain == 0).sum()),
        worse=int((gain < 0).sum()),
        left_out=left_out,
        spread=spread,
    )


def _deviation(values: Array) -> float | None:
    return _number(float(np.std(values, ddof=1))) if len(values) > 1 else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# --- what must hold ------------------------------------------------------------------------------------------------


def _classes(run: Run) -> list[str]:
    """Return the classes of a run in the order of their labels (``json`` sorts "10" before "2")."""
    keys = dict.fromkeys(key for classes in run.values.values() for key in classes)
    return sorted(keys, key=lambda key: [int(n) for n in key.strip("()").split(",") if n.strip().isdigit()])


def _require_same_data(runs: Sequence[Run]) -> None:
    first = runs[0]
    classes = _classes(first)
    for run in runs:
        only_first, only_run = sorted(set(first.values) - set(run.values)), sorted(set(run.values) - set(first.values))
        if only_first or only_run:
            parts = [(first, only_first), (run, only_run)]
            where = "; ".join(f"only in {r.path}: {listing(only)}" for r, only in parts if only)
            raise UserError(
                f"{first.path} and {run.path} hold different cases ({where}): expected results on the same ones; give "
                "runs of the same folds, or evaluate the same cases"
            )
        for case, of_case in run.values.items():
            if set(of_case) != set(classes):
                raise UserError(
                    f"{run.path} has the classes {listing(of_case)} in {case}, but {first.path} has "
                    f"{listing(classes)}: expected the same ones; evaluate both with the same dataset.json"
                )
            for key in classes:
                sizes = [r.values[case][key].get("n_ref", np.nan) for r in (first, run)]
                if not np.isnan(sizes).any() and sizes[0] != sizes[1]:
                    raise UserError(
                        f"{first.path} and {run.path} were evaluated against different references: class {key} of "
                        f"{case} has {sizes[0]:.0f} voxels in one and {sizes[1]:.0f} in the other; evaluate both "
                        "against the same ones"
                    )


def _require_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> None:
    if not metrics:
        raise UserError("there is no metric to compare: expected e.g. --metrics DSC HD95_mm")
    for run in runs:
        known = dict.fromkeys(m for classes in run.values.values() for of_class in classes.values() for m in of_class)
        for metric in metrics:
            if metric not in known:
                raise UserError(
                    f"{run.path} has no metric '{metric}'{nearest(metric, known)}; it has {', '.join(known)}; "
                    "measure it with `semicon evaluate` first"
                )
            is_higher_better(metric)


# --- what is worth a note ------------------------------------------------------------------------------------------


def _notes(
    methods: Sequence[Method],
    class_names: Mapping[str, str],
    metrics: Sequence[str],
    means: Sequence[Mean],
    absent: Sequence[tuple[str, str]],
    n_cases: int,
) -> list[str]:
    notes = []
    for label in dict.fromkeys(label for label, _ in absent):
        of_label = [metric for other, metric in absent if other == label]
        notes.append(
            f"{class_names[label]} has no {_all_or_some(of_label, metrics)} in any run"
            + (" and is not part of the mean of the classes" if MEAN in class_names else "")
        )
    # one sentence per set of missing cases, for all metrics and methods that it is true of
    missing: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for row in means:
        if row.missing and row.label != MEAN and (row.label, row.metric) not in absent:
            of_set = missing.setdefault((row.label, row.missing), {})
            of_set.setdefault(row.method, []).append(row.metric)
    several = any(len(method.runs) > 1 for method in methods)
    for (label, names), by_method in missing.items():
        for of_method in dict.fromkeys(tuple(found) for found in by_method.values()):
            who = [name for name, found in by_method.items() if tuple(found) == of_method]
            notes.append(
                f"{class_names[label]} has no {_all_or_some(of_method, metrics)} in {len(names)} of {n_cases} cases of "
                f"{' and '.join(who)}{' (in at least one seed)' if several else ''}, left out of the pairs: "
                f"{listing(names)}"
            )
    named = [run.folds for method in methods for run in method.runs if set(run.folds.values()) - {""}]
    if any(folds != named[0] for folds in named):
        notes.append("the folds of the runs hold different cases: they were trained on different splits")
    if n_cases < FEWEST_CASES:
        notes.append(f"with {n_cases} cases no p can be below {2 / 2**n_cases:.2g}, whatever the methods do")
    if any(len(method.runs) == 1 for method in methods):
        single = [method.name for method in methods if len(method.runs) == 1]
        notes.append(
            f"a single seed of {' and '.join(single)}: how much a difference owes to the seed alone is unknown"
        )
    return notes


def _all_or_some(metrics: Sequence[str], of: Sequence[str]) -> str:
    return "value" if len(metrics) == len(of) else " and ".join(metrics)
