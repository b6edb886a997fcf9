"""Where things lie: nnU-Net's folders, and the plans, the cases and the images of a dataset in them."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from os.path import basename, isdir, isfile, join
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_semicon.configuration.plans import read_plans
from nnunet_semicon.data.images_un import scan_images_un
from nnunet_semicon.data.meta import training_table
from nnunet_semicon.data.raw_cases import DESCRIPTION, raw_cases
from nnunet_semicon.data.splits import labeled_cases
from nnunet_semicon.data.unlabeled import MANIFEST, dataset_option, unlabeled_folder
from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.files import read_object, read_object_or_none

DEFAULT_PLANS = "nnUNetPlans"
DEFAULT_TRAINER = "nnUNetTrainerSemicon"  # in printed commands, where the user names none


# --- folders -----------------------------------------------------------------------------------------------------


def _folder(variable: str) -> str:
    folder = os.environ.get(variable)
    if not folder:
        raise UserError(f"the variable {variable} is not set: `export {variable}=/your/folder` (nnU-Net needs it too)")
    if not isdir(folder):
        raise UserError(f"the folder {folder} (variable {variable}) does not exist: create it or correct the variable")
    return folder


def raw_folder() -> str:
    """Return ``nnUNet_raw``."""
    return _folder("nnUNet_raw")


def preprocessed_folder() -> str:
    """Return ``nnUNet_preprocessed``."""
    return _folder("nnUNet_preprocessed")


def results_folder() -> str:
    """Return ``nnUNet_results``."""
    return _folder("nnUNet_results")


def dataset_name(name_or_id: str) -> str:
    """Return ``DatasetXXX_Name`` for an id or a name, looked up in all of nnU-Net's folders.

    Raises:
        UserError: no such dataset, or several.
    """
    try:
        return str(maybe_convert_to_dataset_name(int(name_or_id) if name_or_id.isdigit() else name_or_id))
    except (RuntimeError, ValueError) as error:
        what = "is the number of several datasets" if "More than one" in str(error) else "does not exist"
        raise UserError(
            f"dataset '{name_or_id}' {what} below nnUNet_raw, nnUNet_preprocessed and nnUNet_results; expected an id "
            "such as 027 or a name such as Dataset027_ACDC (`semicon doctor` shows the folders)"
        ) from None


def find_folders(name_or_id: str) -> tuple[str, str]:
    """Return the raw and the preprocessed folder of a dataset; at least one of them exists.

    The raw one is an empty path where ``nnUNet_raw`` is not set: a machine may hold the preprocessed data alone.

    Raises:
        UserError: There is no such dataset, or ``nnUNet_preprocessed`` is not set.
    """
    name, root = dataset_name(name_or_id), preprocessed_folder()
    raw_root = nnUNet_raw.get()
    raw, preprocessed = join(raw_root, name) if raw_root else "", join(root, name)
    if not isdir(raw) and not isdir(preprocessed):
        roots = [folder for folder in (root, raw_root) if folder and isdir(folder)]
        known = sorted({entry for folder in roots for entry in os.listdir(folder)})
        raise UserError(f"there is no dataset {name} in {' or '.join(roots)}{nearest(name, known)}")
    return raw, preprocessed


# --- plans -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """A plans file and where the rest of the dataset lies.

    Attributes:
        raw: folder of the raw dataset; empty where ``nnUNet_raw`` is not set.
        preprocessed: folder of the preprocessed dataset.
        path: the plans file.
        plans: its content.
    """

    raw: str
    preprocessed: str
    path: str
    plans: dict[str, Any]

    @property
    def dataset(self) -> str:
        """``DatasetXXX_Name``."""
        return basename(self.preprocessed)

    @property
    def configurations(self) -> dict[str, Any]:
        """The configurations of the plans."""
        return dict(self.plans["configurations"])


def find_plans(dataset: str, identifier: str, configurations: str = "2d", option: str = "-p") -> Place:
    """Read a plans file.

    Args:
        dataset: id or name, as for nnU-Net.
        identifier: name of the plans.
        configurations: what to plan for where there are no plans yet.
        option: where the user named the plans, for messages.

    Raises:
        UserError: it does not exist or is not a plans file.
    """
    raw, preprocessed = find_folders(dataset)
    path = join(preprocessed, f"{identifier}.json")
    if not isfile(path):
        raise UserError(no_such_plans(path, configurations, option))
    return Place(raw, preprocessed, path, read_plans(path))


def find_any_plans(preprocessed: str, name: str | None) -> dict[str, Any] | None:
    """Return the plans of a name; without one nnU-Net's default plans, or the only ones; None if nothing is planned.

    Raises:
        UserError: There are none of that name, several to choose from, or they cannot be read.
    """
    path = join(preprocessed, f"{name or DEFAULT_PLANS}.json")
    if name is None and not isfile(path):
        there = plans_in(preprocessed)
        if not there:
            return None
        if len(there) == 1:
            path = join(preprocessed, f"{there[0]}.json")
    if not isfile(path):
        raise UserError(no_such_plans(path))
    return read_plans(path)


def plans_in(preprocessed: str) -> list[str]:
    """Return the names of the plans in a preprocessed folder, sorted; none where there is no such folder."""
    names = sorted(os.listdir(preprocessed)) if isdir(preprocessed) else []
    files = [name for name in names if name.endswith(".json")]
    contents = {name: read_object_or_none(join(preprocessed, name)) for name in files}
    return [name.removesuffix(".json") for name in files if "configurations" in (contents[name] or {})]


def no_such_plans(path: str, configurations: str = "2d", option: str = "-p") -> str:
    """Return that a plans file does not exist and what to do: where there are others, not to plan again."""
    folder = os.path.dirname(path)
    others = plans_in(folder)
    if not others:
        command = f"nnUNetv2_plan_and_preprocess {dataset_option(folder)} -c {configurations}"
        return f"{path} does not exist; run first: {command}"
    return f"{path} does not exist, but other plans do; name one of them with {option}: {listing(others)}"


def result_folders(place: Place, names: Collection[str]) -> list[str]:
    """Return the folders that hold results of configurations, of any trainer."""
    root = os.environ.get("nnUNet_results", "")
    base = join(root, place.dataset)
    if not root or not isdir(base):
        return []
    wanted = {(place.plans["plans_name"], name) for name in names}
    return [join(base, entry) for entry in sorted(os.listdir(base)) if tuple(entry.split("__")[1:]) in wanted]


# --- cases -------------------------------------------------------------------------------------------------------


def unlabeled_cases(raw: str, preprocessed: str) -> list[str]:
    """Return the cases of ``imagesUn``, sorted; without a raw dataset those that were preprocessed.

    Raises:
        UserError: ``imagesUn`` holds something that is no case.
    """
    if isdir(raw):
        return list(scan_images_un(raw, read_object(join(raw, "dataset.json"))))
    suffix = basename(unlabeled_folder(preprocessed, ""))
    folders = [name for name in os.listdir(preprocessed) if name.endswith(suffix)]
    manifests = [join(preprocessed, name, MANIFEST) for name in folders]
    return sorted({case for path in manifests if isfile(path) for case in read_object(path)["cases"]})


def all_cases(place: Place) -> list[str]:
    """Return every scan that a run could see: those with a label and those of ``imagesUn``, sorted."""
    labeled = labeled_cases(place.raw, place.preprocessed)  # after this, dataset.json is known to be readable
    return sorted({*labeled, *unlabeled_cases(place.raw, place.preprocessed)})


def label_columns(place: Place) -> dict[str, str | None]:
    """Return column of the meta table -> why it cannot be a label, or None if it can."""
    return training_table(place.raw, place.preprocessed, all_cases(place)).label_columns()


def image_files(raw: str) -> dict[str, list[str]]:
    """Return the channel files of every case of ``imagesTr`` and ``imagesUn``; empty without a raw dataset."""
    if not isdir(raw):
        return {}
    dataset_json = read_object(join(raw, DESCRIPTION))
    unlabeled = scan_images_un(raw, dataset_json)
    if "dataset" not in dataset_json and not isdir(join(raw, "imagesTr")):
        return unlabeled
    return {case: list(map(str, files.images)) for case, files in raw_cases(Path(raw)).items()} | unlabeled
