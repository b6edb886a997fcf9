"""``semicon split``: few labeled and many unlabeled cases per fold, where nnU-Net reads its split."""

import argparse
from collections.abc import Mapping
from os.path import isdir

from nnunet_semicon.data.meta import patients
from nnunet_semicon.data.splits import UNLABELED, count, labeled_cases, make_splits, split_files, write_splits
from nnunet_semicon.errors import UserError
from nnunet_semicon.tables import render
from nnunet_semicon.workspace import DEFAULT_TRAINER, find_folders

NOTES = """example:
  semicon split -d 027 --labeled 4 --by patient

Every label in labelsTr stays where it is; the split decides which of them are used. Validation sets never share a
patient with the rest of their fold; the patient is the case name before _frameNN, _ED, _ES, -tNN, _visitN, _ses-X
unless a meta table says otherwise (`semicon meta`).

Without --by patient, labeled cases are drawn one by one: another scan of the same patient may then be among the
unlabeled ones, so --labeled 4 can show the network labels of up to 4 patients. With it, all scans of 4 patients are
labeled. A smaller --labeled with the same --seed is a subset of a larger one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = NOTES
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset: 4, 004 or Dataset004_Name")
    parser.add_argument("--labeled", required=True, type=int, metavar="N", help="labeled cases (or patients) per fold")
    parser.add_argument("--seed", type=int, default=0, help="decides folds and labeled cases (default: %(default)s)")
    parser.add_argument("--by", choices=["patient"], help="count and draw patients instead of single cases")
    parser.add_argument("--folds", type=int, default=5, metavar="K", help="number of folds (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an existing split; a backup is kept")


def run(args: argparse.Namespace) -> int:
    """Write ``splits_final.json`` and print what each fold holds."""
    raw, preprocessed = find_folders(args.d)
    if not isdir(preprocessed):
        raise UserError(
            f"there is no folder {preprocessed}, where nnU-Net reads the split: run "
            f"`nnUNetv2_plan_and_preprocess -d {args.d} -c 2d` first"
        )
    cases = labeled_cases(raw, preprocessed)
    patient_of = patients(raw, preprocessed, cases)
    splits = make_splits(cases, args.labeled, args.seed, args.by == "patient", args.folds, patient_of)
    paths = split_files(raw, preprocessed)
    for path in write_splits(splits, paths, args.force):
        print(f"backup: {path}")
    for path in paths:
        print(f"written: {path}")
    print(_table(splits, patient_of))
    print(f"next: nnUNetv2_train {args.d} 2d 0 -tr {DEFAULT_TRAINER}    (check first: semicon doctor -d {args.d})")
    return 0


def _table(splits: list[dict[str, list[str]]], patient_of: Mapping[str, str]) -> str:
    """Return one line per fold: how many cases, and of how many patients where that differs."""
    rows = [["fold", "labeled", "unlabeled", "validation"]]
    for number, fold in enumerate(splits):
        rows.append([str(number), *(count(fold[key], patient_of) for key in ("train", UNLABELED, "val"))])
    return render(rows)
