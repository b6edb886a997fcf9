"""What several commands need: nnU-Net's folders, names and files, with one sentence where something is missing."""

import json
import os
from typing import Any

from nnunet_semicon.errors import UserError, nearest


def _folder(variable: str) -> str:
    folder = os.environ.get(variable)
    if not folder:
        raise UserError(f"the variable {variable} is not set: `export {variable}=/your/folder` (nnU-Net needs it too)")
    if not os.path.isdir(folder):
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
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

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
    from nnunetv2.paths import nnUNet_raw

    name, root = dataset_name(name_or_id), preprocessed_folder()
    raw_root = nnUNet_raw.get()
    raw, preprocessed = os.path.join(raw_root, name) if raw_root else "", os.path.join(root, name)
    if not os.path.isdir(raw) and not os.path.isdir(preprocessed):
        roots = [folder for folder in (root, raw_root) if folder and os.path.isdir(folder)]
        known = sorted({entry for folder in roots for entry in os.listdir(folder)})
        raise UserError(f"there is no dataset {name} in {' or '.join(roots)}{nearest(name, known)}")
    return raw, preprocessed


def read_object(path: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): repair it, or copy it again") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): repair it, or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: repair it, or copy it again")
    return content
