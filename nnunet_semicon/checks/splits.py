"""Checks of the split: what every fold holds, and what nnU-Net would draw where there is none."""

from collections import Counter
from collections.abc import Iterable, Iterator
from os.path import isdir, isfile, join

from nnunet_semicon.checks.dataset_facts import Dataset
from nnunet_semicon.checks.findings import Finding, note, ok, problem
from nnunet_semicon.data.splits import (
    FILE,
    FOLDS_DRAWN,
    FoldCases,
    check_fold,
    count,
    disagreement,
    lists_unlabeled,
    read_splits,
    refuse_too_few_to_draw,
)
from nnunet_semicon.errors import UserError, listing


def check_splits(dataset: Dataset) -> Iterator[Finding]:
    """Check every fold, that the two files agree, and say where stock trainers would use labels they should not."""
    command = f"semicon split -d {dataset.option} --labeled N"
    path, raw_path = join(dataset.preprocessed, FILE), join(dataset.raw, FILE)
    in_raw = isdir(dataset.raw) and isfile(raw_path)
    if not isfile(path):
        if in_raw:
            yield problem(f"{raw_path} is not in {dataset.preprocessed}", f"run: cp {raw_path} {path}")
        elif dataset.known:
            yield check_draw(dataset)
        return
    try:
        splits = read_splits(path)
        difference = disagreement(read_splits(raw_path), splits) if in_raw else None
    except UserError as error:
        yield problem(str(error), f"or write new ones: {command} --force")
        return
    if difference:
        yield problem(
            f"{raw_path} and {path} disagree ({difference}): nnU-Net will stop when it plans again",
            f"training reads the second; keep one: cp {path} {raw_path}, or the other way around",
        )
    patient_of = dataset.patient_of
    for number in range(len(splits)):
        try:
            cases = check_fold(splits, number, dataset.known, path)
        except UserError as error:
            yield problem(str(error), f"or write a new split: {command} --force")
            continue
        assert cases is not None  # only for a fold that is not in the file
        yield ok(
            f"fold {number}: labeled {count(cases.train, patient_of)}, unlabeled {count(cases.unlabeled, patient_of)}, "
            f"validation {count(cases.val, patient_of)}"
        )
        yield from check_patients(dataset, number, cases)
    if lists_unlabeled(splits):
        yield note(
            f"nnU-Net's own trainers use labels that the split calls unlabeled with fold all, and with a fold above "
            f"{len(splits) - 1} (a random 80 % of all cases); ours use all labels with fold all and refuse the latter",
            f"compare trainers only on the folds 0 to {len(splits) - 1}",
        )
        yield note("nnU-Net's planning has seen every label in labelsTr, as always")


def check_draw(dataset: Dataset) -> Finding:
    """Say which folds nnU-Net would draw by itself, if it can."""
    cases = dataset.known
    scans = Counter(dataset.patient_of[case] for case in cases)
    command = f"semicon split -d {dataset.option} --labeled"
    folds = f" --folds {len(scans)}" if len(scans) < FOLDS_DRAWN else ""
    one_patient = "train with fold all, or name the patients with `semicon meta`" if len(scans) == 1 else None
    try:
        refuse_too_few_to_draw(cases, dataset.preprocessed)
    except UserError as error:
        others = len(cases) - max(scans.values())  # left where the patient with most cases is held out
        return problem(str(error), one_patient or f"run: {command} {others}{folds}")
    drawn = f"no split: nnU-Net will draw {FOLDS_DRAWN} folds with all labels"
    if len(scans) == len(cases):
        return note(drawn, f"for few labels, run: {command} N")
    return note(
        f"{drawn}, and not keep the {len(cases)} cases of {len(scans)} patients together: scans of one patient in "
        "training and in validation flatter the result",
        one_patient or f"run: {command} N{folds}",
    )


def check_patients(dataset: Dataset, number: int, cases: FoldCases) -> Iterator[Finding]:
    """Say if a patient is on both sides of a fold."""

    def patients(of: Iterable[str]) -> set[str]:
        return {dataset.patient_of[case] for case in of}

    torn = sorted(patients(cases.val) & patients([*cases.train, *cases.unlabeled]))
    if torn:
        yield note(f"fold {number}: patients in training and in validation, which flatters the result: {listing(torn)}")
    in_images_un = set(dataset.all_cases) - set(dataset.known)
    seen = sorted(patients(cases.val) & patients(in_images_un))
    if seen:
        yield note(
            f"fold {number}: patients in validation with scans in imagesUn, which are trained on as unlabeled data; it "
            f"flatters the result: {listing(seen)}"
        )
