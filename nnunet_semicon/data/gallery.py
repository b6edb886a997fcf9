"""A few fixed images, looked at again and again in the course of a training."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor

from nnunet_semicon.data.loader import CasePool
from nnunet_semicon.meta_labels.table import PATIENT, MetaColumn


class Gallery(NamedTuple):
    """N images, neither augmented nor drawn by chance.

    Attributes:
        image: (N, C, *S) float32.
        bbox: (N, 3, 2) int64, the crop in preprocessed voxels.
        case: N case ids.
    """

    image: Tensor
    bbox: Tensor
    case: list[str]


def evenly_spaced(pool: CasePool, cases: Sequence[str], per_case: int, patch_size: Sequence[int]) -> Gallery:
    """Return up to ``per_case`` images of each case, evenly spaced along axis 0 and centered in the other axes.

    A single one is in the middle.

    Args:
        pool: reads the cases.
        cases: in the order of the images.
        per_case: at least 1; fewer where a scan has fewer slices or positions of a patch.
        patch_size: voxels of an image (2 or 3 entries).
    """
    size = np.array([*[1] * (3 - len(patch_size)), *patch_size])
    images, boxes, names = [], [], []
    for case in cases:
        data, _ = pool.load(case)
        shape = np.array(data.shape[1:])
        last = max(shape[0] - size[0], 0)
        first = min(shape[0] - size[0], 0) // 2  # a patch that is longer than the scan is centered on it
        places = np.linspace(0, last, per_case) if per_case > 1 else np.array([last / 2])
        starts = np.unique(places.round().astype(int)) + first
        for start in starts:
            lower = (shape - size) // 2
            lower[0] = start
            box = np.stack([lower, lower + size], axis=1)
            image = torch.from_numpy(crop_and_pad_nd(data, box.tolist(), 0)).float()
            images.append(image[:, 0] if len(patch_size) == 2 else image)
            boxes.append(torch.from_numpy(box.astype(np.int64)))
            names.append(case)
    return Gallery(torch.stack(images), torch.stack(boxes), names)


def different_patients(cases: Sequence[str], columns: Mapping[str, MetaColumn], count: int) -> list[str]:
    """Return the first cases of as many different patients, then others where there are too few patients.

    Args:
        cases: in the order in which they are taken.
        columns: of the meta table.
        count: fewer where there are not as many cases.
    """
    patient = columns.get(PATIENT)
    first: dict[int | str, str] = {}
    for case in cases:
        first.setdefault(case if patient is None else patient.code(case), case)
    chosen = list(first.values())
    return [*chosen, *(case for case in cases if case not in chosen)][:count]
