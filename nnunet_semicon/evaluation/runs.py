"""Finds and reads the runs of a comparison: folders and files in, methods out."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import abspath
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError, nearest
from nnunet_semicon.evaluation.comparison import Method, Run

EVALUATION = "evaluation.json"
SUMMARY = "summary.json"  # nnU-Net's own
VALIDATION = "validation"
FOLD = "fold_"
SEED = re.compile(r"(?<=.)_s\d+$")  # `semicon configure --seeds` writes one configuration per seed, 2d_s0, 2d_s1, ...


@dataclass(frozen=True)
class Source:
    """One file of a run.

    Attributes:
        file: where the evaluation is, or would be.
        run: model folder, prediction folder or file without its suffix: the same for all folds of a run.
        fold: ``"0"`` of ``fold_0``; empty where there is none.
    """

    file: Path
    run: Path
    fold: str


@dataclass(frozen=True)
class Damaged:
    """What is wrong with a file that cannot be used, as a sentence."""

    why: str


def read_methods(arguments: Sequence[str]) -> tuple[list[Method], list[str]]:
    """Return the methods in the order given, and notes on what was left out.

    A file that is damaged, or that a training has not written yet, does not stop the comparison where something can be
    shown without it: its run is left out if its method has a whole one, else its fold is left out of all runs.

    Args:
        arguments: each a file that ``semicon evaluate`` wrote, a prediction folder with one, a fold folder, or a model
            folder ``Trainer__plans__configuration``.

    Raises:
        UserError: There is nothing usable where an argument points to, or a case occurs twice in a run.
    """
    return methods_of([source for argument in arguments for source in find(argument)])


def methods_of(sources: Sequence[Source]) -> tuple[list[Method], list[str]]:
    """Return the methods in the order given, and notes on what was left out; see :func:`read_methods`.

    Args:
        sources: files with the run and the fold of each.

    Raises:
        UserError: as for :func:`read_methods`.
    """
    runs: dict[Path, dict[str, Any]] = {}  # run -> fold -> content
    for source in sources:
        if source.fold in runs.setdefault(source.run, {}):
            raise UserError(f"{source.file} is given twice: expected every run once; remove one of the arguments")
        runs[source.run][source.fold] = _read(source)
    methods: dict[Path, list[Path]] = {}  # method -> its runs
    for path in runs:
        methods.setdefault(path.with_name(SEED.sub("", path.name)), []).append(path)

    methods, runs, notes = _without_damaged(methods, runs)
    names = _names(list(methods))
    return [
        Method(names[method], tuple(run_of(runs[path], path.name, str(path)) for path in paths))
        for method, paths in methods.items()
    ], notes


def run_of(contents: Mapping[str, Mapping[str, Any]], name: str, path: str) -> Run:
    """Return the run of the evaluations of one training.

    Args:
        contents: fold -> what ``semicon evaluate`` wrote; the fold is empty where there is one evaluation only.
        name: of the run.
        path: where it was read, for messages.

    Raises:
        UserError: A case occurs twice, or a value is no number.
    """
    values: dict[str, dict[str, dict[str, float]]] = {}
    folds: dict[str, str] = {}
    for fold, content in contents.items():
        for entry in content["metric_per_case"]:
            case = str(entry["case"])
            if case in values:
                where = f"in fold {folds[case]} and in fold {fold}" if fold != folds[case] else "twice"
                raise UserError(
                    f"{path} has the case {case} {where}: expected every case once; the folds come from different "
                    "splits, give one of them alone"
                )
            folds[case] = fold
            values[case] = {
                key: {metric: _number(value, path, case) for metric, value in metrics.items()}
                for key, metrics in entry["metrics"].items()
            }
    class_names = next(iter(contents.values()))["semicon"].get("class_names", {})
    return Run(name, path, values, folds, class_names)


def find(argument: str) -> list[Source]:
    """Return the files that an argument of the command stands for, at least one; they need not exist.

    Raises:
        UserError: There is nothing like that.
    """
    path = Path(abspath(argument))
    if path.is_file():
        if path.suffix != ".json":
            raise UserError(f"{path} is no folder and no JSON file: expected what `semicon evaluate` wrote")
        if path.name != EVALUATION:
            return [Source(path, path.with_suffix(""), "")]
        path = path.parent
    if not path.is_dir():
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"{path} does not exist{nearest(path.name, siblings)}; expected a folder of results or predictions, or a "
            "file that `semicon evaluate` wrote"
        )
    if path.name == VALIDATION and path.parent.name.startswith(FOLD):
        path = path.parent
    if path.name.startswith(FOLD):
        return [_of_fold(path, path)]
    if (path / EVALUATION).is_file():
        if path.parent.name.startswith(FOLD):  # other predictions of a fold, e.g. its pseudo-labels
            return [Source(path / EVALUATION, path.parent.parent, path.parent.name.removeprefix(FOLD))]
        return [Source(path / EVALUATION, path, "")]
    if folds := sorted(entry for entry in path.glob(f"{FOLD}*") if entry.is_dir()):
        return [_of_fold(fold, path) for fold in folds]
    if (path / SUMMARY).is_file():
        raise _not_evaluated(path, f"semicon evaluate {path} REF")
    inside = [entry.name for entry in path.glob("*__*__*")]
    raise UserError(
        f"{path} holds no {EVALUATION}: expected a model folder, a fold folder or predictions that `semicon evaluate` "
        f"has measured{f'; give the model folders in it, e.g. {inside[0]}' if inside else ''}"
    )


def _of_fold(folder: Path, given: Path) -> Source:
    file = folder / VALIDATION / EVALUATION
    if not file.is_file() and (folder / VALIDATION / SUMMARY).is_file():
        raise _not_evaluated(folder, f"semicon evaluate {given}")
    return Source(file, folder.parent, folder.name.removeprefix(FOLD))


def _not_evaluated(folder: Path, command: str) -> UserError:
    """Return the error for a folder that only nnU-Net has evaluated, with the command that does it."""
    return UserError(
        f"{folder} holds nnU-Net's {SUMMARY} but no {EVALUATION}, which has the distances: run `{command}` first"
    )


# --- content -------------------------------------------------------------------------------------------------------


def _read(source: Source) -> Mapping[str, Any] | Damaged:
    """Return the content of a file, or why it cannot be used now.

    Raises:
        UserError: It is whole, but no evaluation.
    """
    file = source.file
    if not file.is_file():
        return Damaged(
            f"{file.parent.parent} has no {VALIDATION}/{EVALUATION} (a training that is not finished?): when it is, "
            f"run `semicon evaluate {file.parent.parent}`"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return Damaged(
            f"{file} cannot be read ({error}): it is damaged or being written; wait for the evaluation that is "
            "running, or run `semicon evaluate` again"
        )
    entries = content.get("metric_per_case") if isinstance(content, dict) else None
    if entries and not isinstance(content.get("semicon"), dict):
        raise UserError(
            f"{file} is nnU-Net's own summary and has no distances: run `semicon evaluate` on the folder of its "
            "predictions first, and give what that writes"
        )
    if not isinstance(entries, list) or not entries or not all(map(_is_entry, entries)):
        raise UserError(
            f"{file} holds no cases: expected the list 'metric_per_case' that `semicon evaluate` writes; run it again"
        )
    if content["semicon"].get("complete") is False:
        return Damaged(
            f"{file} was made while nnU-Net was still validating: run `semicon evaluate {file.parent.parent}` again "
            "when that is finished"
        )
    return dict(content)


def _is_entry(entry: Any) -> bool:
    """Return whether it is a case with its metrics per class."""
    classes = entry.get("metrics") if isinstance(entry, dict) and "case" in entry else None
    return bool(classes) and isinstance(classes, dict) and all(isinstance(m, dict) for m in classes.values())


def _number(value: Any, path: str, case: str) -> float:
    """Return a value of the file; null, NaN and infinity are missing."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path} holds {value!r} as a metric of {case}: expected a number or null; evaluate it again")
    return float(value) if math.isfinite(value) else math.nan


def _without_damaged(
    methods: Mapping[Path, list[Path]], runs: Mapping[Path, Mapping[str, Any]]
) -> tuple[dict[Path, list[Path]], dict[Path, dict[str, Any]], list[str]]:
    """Return methods and runs with what can be used alone, and a note on everything that was left out."""
    damaged = {run: {f: c.why for f, c in folds.items() if isinstance(c, Damaged)} for run, folds in runs.items()}
    usable = {run: {f: c for f, c in folds.items() if f not in damaged[run]} for run, folds in runs.items()}
    needed = {fold for folds in usable.values() for fold in folds}
    # a fold that no run has, e.g. one that every training has begun, costs no run anything
    incomplete = {run for run, folds in usable.items() if not folds or needed & {*damaged[run]}}

    notes, kept, dropped_folds = [], {}, set()
    for method, paths in methods.items():
        whole = [run for run in paths if run not in incomplete]
        remaining = whole or [run for run in paths if usable[run]]
        if not remaining:
            raise UserError(next(why for run in paths for why in damaged[run].values()))
        kept[method] = remaining
        notes += [
            f"{run.name} is left out: {next(iter(damaged[run].values()))}" for run in paths if run not in remaining
        ]
        if not whole:
            dropped_folds |= {fold for run in remaining for fold in damaged[run]}
        for run in remaining:
            for fold, why in damaged[run].items():
                notes.append(f"fold {fold} of {run.name if whole else 'all runs'} is left out: {why}")
    left = {
        run: {fold: content for fold, content in usable[run].items() if fold not in dropped_folds}
        for remaining in kept.values()
        for run in remaining
    }
    empty = [run for run, folds in left.items() if not folds]
    if empty:
        raise UserError(f"{empty[0]} shares no whole fold with the other runs: {notes[-1]}")
    return kept, left, notes


# --- names ---------------------------------------------------------------------------------------------------------


def _names(methods: Iterable[Path]) -> dict[Path, str]:
    """Return the shortest name of each method that no other one has: trainer, with configuration, whole name, path."""
    candidates = {method: _candidates(method) for method in methods}
    names = {}
    for method, own in candidates.items():
        for level, name in enumerate(own):
            if sum(other[level] == name for other in candidates.values()) == 1:
                names[method] = name
                break
    return names


def _candidates(method: Path) -> tuple[str, str, str, str]:
    parts = method.name.split("__")
    short = parts[0] if len(parts) > 1 else method.name
    middle = f"{parts[0]} {parts[-1]}" if len(parts) > 1 else method.name
    return short, middle, method.name, str(method)
