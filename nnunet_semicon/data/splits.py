"""``splits_final.json`` with an extra key: the cases of ``imagesTr`` that a fold uses without their labels.

nnU-Net reads a list of folds, each ``{"train": [case, ...], "val": [case, ...]}``, and ignores further keys. Ours is
``"unlabeled"``: cases whose images are trained on while their labels are not. Stock trainers never touch them, so
the stock ``nnUNetTrainer`` on the same fold is the supervised baseline.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import isdir, isfile, join
from typing import Any

import numpy as np

from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.files import explain_unwritable, replacing
from nnunet_semicon.meta_labels.extract import patients_from_names

FILE = "splits_final.json"
UNLABELED = "unlabeled"
ALL = "all"
FOLDS_DRAWN = 5  # by nnU-Net where there is no such file


@dataclass(frozen=True)
class FoldCases:
    """The cases of one fold.

    Attributes:
        train: cases used with their labels.
        val: cases that the trainer validates on.
        unlabeled: cases of ``imagesTr`` used without their labels; empty if the fold lists none.
    """

    train: list[str]
    val: list[str]
    unlabeled: list[str]


# --- reading -----------------------------------------------------------------------------------------------------


def read_splits(path: str) -> list[dict[str, Any]]:
    """Return the folds of a ``splits_final.json``.

    Raises:
        UserError: The file cannot be read, or is not a list of folds with lists of case names.
    """
    try:
        with open(path) as file:
            splits = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): repair or remove it") from None
    expected = 'expected a list of folds such as {"train": ["case_1"], "val": ["case_2"], "unlabeled": ["case_3"]}'
    if not isinstance(splits, list) or not all(isinstance(fold, dict) for fold in splits):
        raise UserError(f"{path} is not a list of folds: {expected}")
    for number, fold in enumerate(splits):
        for key in ("train", "val", UNLABELED):
            cases = fold.get(key, [] if key == UNLABELED else None)
            if not isinstance(cases, list) or not all(isinstance(case, str) for case in cases):
                raise UserError(f"fold {number} of {path} has no list of case names under '{key}': {expected}")
    return splits


def check_fold(
    splits: list[dict[str, Any]], fold: int | str, known_cases: Collection[str], where: str
) -> FoldCases | None:
    """Return the cases of a fold after making sure that no label is used where it must not be.

    Args:
        splits: Content of ``splits_final.json``, see :func:`read_splits`.
        fold: Index into ``splits``, or ``'all'``.
        known_cases: Cases that are preprocessed.
        where: Path of the file, for messages.

    Returns:
        The fold's cases, or None where the file does not say which cases train: for fold ``'all'`` (every case of
        ``imagesTr`` trains with its label), and for a fold that the file lacks while no fold lists unlabeled cases
        (nnU-Net draws 80 % of the cases). Then no case of ``imagesTr`` is unlabeled, only those of ``imagesUn``.

    Raises:
        UserError: A case is unknown, is both unlabeled and labeled, or both unlabeled and for validation; or the
            file lacks the fold while others list unlabeled cases (nnU-Net would train on labels drawn at random).
    """
    if fold == ALL:
        return None
    try:
        number = int(fold)
    except ValueError:
        raise UserError(f"fold '{fold}' is neither a number nor '{ALL}': expected 0 to {len(splits) - 1}") from None
    if not 0 <= number < len(splits):
        if not lists_unlabeled(splits):
            return None
        raise UserError(
            f"{where} has no fold {number}, only 0 to {len(splits) - 1}, and lists unlabeled cases: nnU-Net would "
            "train on the labels of a random 80 % of all cases; use one of these folds or add this one"
        )
    entry = splits[number]
    cases = FoldCases(list(entry["train"]), list(entry["val"]), list(entry.get(UNLABELED, [])))
    _refuse_unknown(cases, number, known_cases, where)
    for key, others, what in (
        ("val", cases.val, "a validation case, which is never used as unlabeled data"),
        ("train", cases.train, "a labeled case"),
    ):
        both = sorted(set(others) & set(cases.unlabeled))
        if both:
            raise UserError(
                f"fold {number} of {where} lists {listing(both)} under '{UNLABELED}' and under '{key}' ({what}): "
                "remove it from one of the two lists"
            )
    return cases


def refuse_too_few_to_draw(cases: Collection[str], preprocessed_dataset: str) -> None:
    """Refuse to let nnU-Net draw its folds from fewer cases than folds, which ends in a traceback.

    Args:
        cases: labeled cases of a dataset without a split.
        preprocessed_dataset: ``<nnUNet_preprocessed>/<Dataset>``.

    Raises:
        UserError: there are fewer than five.
    """
    n = len(cases)
    if n >= FOLDS_DRAWN:
        return
    number = int(os.path.basename(os.path.normpath(preprocessed_dataset))[7:10])
    own = f"`semicon split -d {number} --labeled {n - 1} --folds {n}` holds out one at a time"
    raise UserError(
        f"{join(preprocessed_dataset, FILE)} does not exist, and nnU-Net cannot draw its {FOLDS_DRAWN} folds from {n} "
        f"labeled case{'s' * (n != 1)} ({listing(sorted(cases))}): "
        f"{f'{own}; or ' if n > 1 else ''}train on all of them, without validation cases, with fold '{ALL}'"
    )


def _refuse_unknown(cases: FoldCases, number: int, known_cases: Collection[str], where: str) -> None:
    known = set(known_cases)
    for key, names in (("train", cases.train), ("val", cases.val), (UNLABELED, cases.unlabeled)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"fold {number} of {where} lists under '{key}' a case that is not among the {len(known)} preprocessed "
                f"ones: {listing(unknown)}; correct the name, remove it from the list or preprocess the case"
                f"{nearest(unknown[0], known)}"
            )


def lists_unlabeled(splits: Iterable[dict[str, Any]]) -> bool:
    """Return whether any fold names a case whose label is not to be used."""
    return any(fold.get(UNLABELED) for fold in splits)


def disagreement(raw: list[dict[str, Any]], preprocessed: list[dict[str, Any]]) -> str | None:
    """Say where the splits of the raw folder differ from those that training reads, or return None.

    nnU-Net compares ``train`` and ``val`` of every raw fold when it plans, and stops with a bare assertion; it lets
    the preprocessed file have more folds.
    """
    if len(raw) > len(preprocessed):
        return f"{len(raw)} folds against {len(preprocessed)}"
    for number, (ours, theirs) in enumerate(zip(raw, preprocessed, strict=False)):
        for key in ("train", "val", UNLABELED):
            if set(ours.get(key, [])) != set(theirs.get(key, [])):
                return f"fold {number}, '{key}'"
    return None


# --- making ------------------------------------------------------------------------------------------------------


def make_splits(
    cases: Iterable[str],
    labeled: int,
    seed: int,
    by_patient: bool,
    folds: int,
    patient_of: Mapping[str, str] | None = None,
) -> list[dict[str, list[str]]]:
    """Divide cases into K folds with few labeled and many unlabeled cases each.

    Validation sets are disjoint, cover all cases and never share a patient with the rest of their fold. With one
    seed, the labeled cases for a smaller number are among those for a larger one.

    Args:
        cases: All cases with a label.
        labeled: Labeled cases (or patients, with ``by_patient``) per fold, >= 1.
        seed: Decides both the folds and the labeled cases; >= 0 and < 2^32.
        by_patient: Draw patients, and all scans of each, instead of single cases.
        folds: K, >= 2.
        patient_of: case -> patient; None: as the names tell.

    Returns:
        K folds with sorted lists under ``train``, ``val`` and ``unlabeled``.

    Raises:
        UserError: A number is out of range, or there are too few cases or patients.
    """
    cases = sorted(cases)
    if patient_of is None:
        patient_of, _ = patients_from_names(cases)
    patients: dict[str, list[str]] = {}
    for case in cases:
        patients.setdefault(patient_of[case], []).append(case)
    if labeled < 1:
        raise UserError(f"--labeled {labeled}: expected at least 1")
    if folds < 2:
        raise UserError(f"--folds {folds}: expected at least 2, since each fold validates on 1/folds of the patients")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected a number from 0 to 2^32 - 1")
    if len(patients) < 2:
        raise UserError(
            f"there is only one patient ({listing(patients)}), so nothing is left for validation: add cases, "
            "or say which patient a case belongs to with `semicon meta --patient-pattern` or meta_labels.csv"
        )
    if folds > len(patients):
        raise UserError(
            f"--folds {folds}: there are only {len(patients)} patients ({listing(patients)}) and each fold "
            f"validates on one at least: use --folds {len(patients)} or fewer"
        )
    # RandomState: numpy guarantees that its stream never changes
    order = np.random.RandomState(seed).permutation(sorted(patients))
    return [
        _make_fold(number, [str(patient) for patient in held_out], patients, labeled, seed, by_patient)
        for number, held_out in enumerate(np.array_split(order, folds))
    ]


def _make_fold(
    number: int, held_out: Sequence[str], patients: dict[str, list[str]], labeled: int, seed: int, by_patient: bool
) -> dict[str, list[str]]:
    rest = [patient for patient in patients if patient not in set(held_out)]
    units = [patients[patient] for patient in rest] if by_patient else [[c] for p in rest for c in patients[p]]
    if labeled > len(units):
        what = "patients" if by_patient else "cases"
        raise UserError(
            f"--labeled {labeled}: fold {number} has only {len(units)} {what} that are not held out for validation: "
            "use a smaller number"
        )
    order = np.random.RandomState([seed, number]).permutation(len(units))
    return {
        "train": sorted(case for i in order[:labeled] for case in units[i]),
        "val": sorted(case for patient in held_out for case in patients[patient]),
        UNLABELED: sorted(case for i in order[labeled:] for case in units[i]),
    }


# --- the cases of a dataset --------------------------------------------------------------------------------------


def labeled_cases(raw_dataset: str, preprocessed_dataset: str) -> list[str]:
    """Return the cases that have a label, sorted.

    They come from the raw dataset (the ``dataset`` entry of ``dataset.json``, or ``labelsTr``); on a machine without
    it (an empty path) from ``gt_segmentations``, the copies that nnU-Net makes when it preprocesses.

    Raises:
        UserError: There is no ``dataset.json``, or no label.
    """
    base, folder = (raw_dataset, "labelsTr") if isdir(raw_dataset) else (preprocessed_dataset, "gt_segmentations")
    description = join(base, "dataset.json")
    try:
        with open(description) as file:
            dataset_json = json.load(file)
        ending = dataset_json["file_ending"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{description} cannot be read ({type(error).__name__}: {error}): expected nnU-Net's description of the "
            "dataset with a 'file_ending'"
        ) from None
    if "dataset" in dataset_json and base == raw_dataset:
        return sorted(dataset_json["dataset"])
    labels = join(base, folder)
    names = sorted(
        name.removesuffix(ending)
        for name in (os.listdir(labels) if isdir(labels) else [])
        if name.endswith(ending) and not name.startswith(".")
    )
    if not names:
        raise UserError(f"there is no label in {labels}: expected files that end with '{ending}', one per case")
    return names


def count(cases: Sequence[str], patient_of: Mapping[str, str]) -> str:
    """Return ``'8 (4 patients)'``, or ``'8'`` where every case is a patient of its own."""
    patients = len({patient_of[case] for case in cases})
    return str(len(cases)) if patients == len(cases) else f"{len(cases)} ({patients} patient{'s' * (patients != 1)})"


# --- writing -----------------------------------------------------------------------------------------------------


def split_files(raw_dataset: str, preprocessed_dataset: str) -> list[str]:
    """Return the files that have to hold the split: where nnU-Net reads it, and the raw one if there is one.

    nnU-Net copies a raw file only if there is no other, and stops with a bare assertion if the two disagree.
    """
    raw_file = join(raw_dataset, FILE)
    in_raw = isdir(raw_dataset) and isfile(raw_file)  # without a raw dataset its path is empty
    return [join(preprocessed_dataset, FILE), *([raw_file] if in_raw else [])]


def write_splits(splits: list[dict[str, list[str]]], paths: Sequence[str], force: bool) -> list[str]:
    """Write the split to all files, each at once; return the backups of those that were replaced.

    Raises:
        UserError: A file exists and ``force`` is not given, or cannot be written; then no file is changed.
    """
    existing = [path for path in paths if isfile(path)]
    if existing and not force:
        raise UserError(f"there is already {' and '.join(existing)}: add --force to replace it (a backup is kept)")
    backups: list[str] = []
    with explain_unwritable(paths[0], "check the folder"), replacing(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text(json.dumps(splits, indent=4))
        for path in existing:
            backups.append(_backup_name(path))
            shutil.copy2(path, backups[-1])
    return backups


def _backup_name(path: str) -> str:
    stem = f"{path.removesuffix('.json')}_backup_{datetime.now():%Y%m%d-%H%M%S}"
    return next(name for name in _numbered(stem) if not os.path.exists(name))


def _numbered(stem: str) -> Iterator[str]:
    yield f"{stem}.json"
    number = 1
    while True:
        number += 1
        yield f"{stem}_{number}.json"
