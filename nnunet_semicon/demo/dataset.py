"""Writes phantoms as a raw nnU-Net dataset: few labeled scans, many unlabeled ones, and scans to test on."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK
from numpy.typing import NDArray

from nnunet_semicon.demo.phantom import LABELS, PHASES, SPACING_ZYX, make_scan

NAME = "Dataset500_CinePhantom"
ENDING = ".nii.gz"

# (patient, phase)
TRAIN = ((1, "ED"), (2, "ES"), (3, "ED"))
VALIDATION = ((4, "ED"), (4, "ES"))
# the other phase of the labeled patients, and patients without any label
UNLABELED = ((1, "ES"), (2, "ED"), (3, "ES"), *((patient, phase) for patient in range(5, 24) for phase in PHASES))
TEST = tuple((patient, phase) for patient in range(24, 29) for phase in PHASES)

Scans = Iterable[tuple[int, str]]


def case_name(patient: int, phase: str) -> str:
    """Return the name of a case, e.g. ``patient001_ED``."""
    return f"patient{patient:03d}_{phase}"


def write_dataset(raw: Path, name: str = NAME, train: Scans = TRAIN, unlabeled: Scans = UNLABELED) -> Path:
    """Write the dataset below ``raw`` (the folder nnUNet_raw) and return its folder.

    ``imagesTr`` and ``labelsTr`` hold ``train`` and ``VALIDATION``, ``imagesUn`` holds ``unlabeled`` without labels,
    ``imagesTs`` and ``labelsTs`` hold ``TEST``. Fold 0 of ``splits_final.json`` is the only one.
    """
    folder = raw / name
    train = list(train)
    for scans, images, labels in (
        ([*train, *VALIDATION], "imagesTr", "labelsTr"),
        (unlabeled, "imagesUn", None),
        (TEST, "imagesTs", "labelsTs"),
    ):
        for patient, phase in scans:
            scan, case = make_scan(patient, phase), case_name(patient, phase)
            _write(scan.image, folder / images / f"{case}_0000{ENDING}")
            if labels is not None:
                _write(scan.labels, folder / labels / f"{case}{ENDING}")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": len(train) + len(VALIDATION),
        "file_ending": ENDING,
    }
    split = {"train": [case_name(*scan) for scan in train], "val": [case_name(*scan) for scan in VALIDATION]}
    (folder / "dataset.json").write_text(json.dumps(description, indent=4))
    (folder / "splits_final.json").write_text(json.dumps([split], indent=4))
    return folder


def _write(array: NDArray[np.int16] | NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING_ZYX[::-1])
    SimpleITK.WriteImage(image, str(path), useCompression=True)
