"""The labeled cases of a raw dataset.

nnU-Net's own listing of ``imagesTr`` forks twelve processes. In a process with threads (PyTorch, tqdm) or handlers of
signals this can wait forever, so the folder is listed here, in one pass and in this process.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_semicon.data.images_un import channels_of_cases
from nnunet_semicon.files import read_object

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class RawCase:
    """Files of a case: its channels in their order, and its label."""

    images: tuple[Path, ...]
    label: Path


def raw_cases(raw: Path) -> dict[str, RawCase]:
    """Return case -> files, of the folder ``imagesTr`` or of the list in ``dataset.json``: nnU-Net's own answer.

    Files without a channel suffix, which nnU-Net lists as cases without images, are ignored. No process is started.

    Raises:
        UserError: ``dataset.json`` cannot be read.
        OSError: there is no ``imagesTr``.
    """
    description = read_object(raw / DESCRIPTION)
    if "dataset" in description:
        listed = get_filenames_of_train_images_and_targets(str(raw), description)
        return {c: RawCase(tuple(map(Path, files["images"])), Path(files["label"])) for c, files in listed.items()}
    ending, images, labels = description["file_ending"], raw / "imagesTr", raw / "labelsTr"
    return {
        case: RawCase(tuple(images / f"{case}_{channel}{ending}" for channel in channels), labels / f"{case}{ending}")
        for case, channels in channels_of_cases(os.listdir(images), ending).items()
    }
