"""``semicon preprocess``: the unlabeled scans in imagesUn/, with the plans of the labeled ones."""

import argparse
import os
import sys
from os.path import isdir, join
from typing import TYPE_CHECKING

from nnunet_semicon.data.images_un import FOLDER, scan_images_un
from nnunet_semicon.data.unlabeled import dataset_option, plans_option
from nnunet_semicon.errors import UserError, nearest
from nnunet_semicon.files import read_object
from nnunet_semicon.workspace import DEFAULT_PLANS, DEFAULT_TRAINER, Place, find_plans, raw_folder

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; they are called as in nnU-Net."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset: 4, 004 or Dataset004_Name")
    parser.add_argument("-c", required=True, nargs="+", metavar="CONFIGURATION", help="for example 2d 3d_fullres")
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument(
        "-np", type=int, metavar="N", help="worker processes (default: 8 for 2d and 3d_lowres, otherwise 4)"
    )
    parser.add_argument("--force", action="store_true", help="redo all cases, also those that are up to date")


def run(args: argparse.Namespace) -> int:
    """Preprocess; returns 1 if a case failed (the others are finished)."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semicon.data.preprocess_unlabeled import preprocess_unlabeled

    if args.np is not None and args.np < 1:
        raise UserError(f"-np {args.np}: expected a number of processes >= 1")
    place = find_plans(args.d, args.p, " ".join(args.c))
    _require_raw(place)
    raw, base = place.raw, place.preprocessed
    plans_manager = PlansManager(place.plans)
    dataset_json = read_object(join(base, "dataset.json"))
    _require_images_un(raw, dataset_json)
    for name in args.c:
        _check_configuration(base, plans_manager, name, args.p)

    failed = False
    for name in args.c:
        n_processes = args.np or min({"2d": 8, "3d_lowres": 8}.get(name, 4), os.cpu_count() or 1)
        result = preprocess_unlabeled(raw, base, plans_manager, name, dataset_json, n_processes, args.force)
        for sentence in result.failures.values():
            print(f"semicon preprocess: {sentence}", file=sys.stderr)
        failed = failed or bool(result.failures)
        n_ready = result.n_cases - len(result.failures)
        print(
            f"{name}: {n_ready} of {result.n_cases} unlabeled cases are preprocessed in {result.folder} "
            f"({result.n_up_to_date} were up to date)"
        )
    if failed:
        print("semicon preprocess: repair or remove these files, then run the command again", file=sys.stderr)
        return 1
    dataset = dataset_option(base).removeprefix("-d ")
    print(f"next: nnUNetv2_train {dataset} {args.c[0]} 0 -tr {DEFAULT_TRAINER}{plans_option(plans_manager)}")
    return 0


def _require_raw(place: Place) -> None:
    root = raw_folder()
    if not isdir(place.raw):
        known = [entry for entry in os.listdir(root) if entry.startswith("Dataset")]
        raise UserError(
            f"there is no dataset {place.dataset} in {root}{nearest(place.dataset, known)}; expected its raw images "
            "there"
        )


def _require_images_un(raw: str, dataset_json: dict) -> None:
    folder = join(raw, FOLDER)
    images = scan_images_un(raw, dataset_json)  # first: a folder with a similar name is the likelier mistake
    if not isdir(folder):
        raise UserError(
            f"there is no folder {folder}: it is optional and holds images without labels, named like "
            "those in imagesTr; put them there, or train without this command"
        )
    if not images:
        # what was preprocessed from it would be removed, and more likely a disk is not mounted or a copy failed
        raise UserError(
            f"{folder} is empty: expected images without labels; copy them there (is a disk not mounted?), or remove "
            "the folder if there are none"
        )


def _check_configuration(base: str, plans_manager: "PlansManager", name: str, plans: str) -> None:
    known = plans_manager.available_configurations
    if name not in known:
        raise UserError(
            f"{join(base, plans)}.json has no configuration '{name}'{nearest(name, known)}; it has {', '.join(known)}"
        )
    labeled = join(base, plans_manager.get_configuration(name).data_identifier)
    if not isdir(labeled):
        # not nnUNetv2_plan_and_preprocess: the plans are there, and other data may have been made with them
        raise UserError(
            f"the labeled cases are not preprocessed for configuration '{name}' (no folder {labeled}); run first: "
            f"nnUNetv2_preprocess {dataset_option(base)} -plans_name {plans} -c {name}"
        )
