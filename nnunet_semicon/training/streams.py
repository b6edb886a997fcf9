"""The loaders of one fold, from nnU-Net's datasets and the resolved hyper-parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_semicon.configuration.resolved import Resolved
from nnunet_semicon.configuration.rules import RowPlan
from nnunet_semicon.data.gallery import Gallery, different_patients, evenly_spaced
from nnunet_semicon.data.loader import CasePool, MetaLabeler, TwoStreamLoader, UnlabeledLoader
from nnunet_semicon.data.views import ViewPipeline
from nnunet_semicon.methods.base import Show


@dataclass(frozen=True)
class Augmentation:
    """nnU-Net's crops and transforms.

    Attributes:
        initial_patch_size: voxels of the crop before the spatial transforms.
        patch_size: voxels that the network sees.
        training: transforms of labeled training images; views reuse the spatial ones.
        validation: transforms of validation images.
    """

    initial_patch_size: Sequence[int]
    patch_size: Sequence[int]
    training: ComposeTransforms
    validation: Any


def without_timing(transforms: ComposeTransforms) -> ComposeTransforms:
    """Let nnU-Net's blur take the direct way always: it times two ways in every process, and their last bits differ."""
    for entry in transforms.transforms:
        transform = entry.transform if isinstance(entry, RandomTransform) else entry
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False
    return transforms


def cases_to_draw(train: Any, unlabeled: Sequence[Any], draw_all: bool) -> list[str]:
    """Return the cases of the unlabeled stream.

    Args:
        train: nnU-Net's dataset of the labeled training cases.
        unlabeled: datasets of unlabeled cases.
        draw_all: draw from the training cases too; without any unlabeled case the training cases alone are drawn.
    """
    cases = [case for dataset in unlabeled for case in dataset.identifiers]
    if draw_all:
        return sorted({*train.identifiers, *cases})
    return cases or list(train.identifiers)


def two_streams(
    datasets: Sequence[Any],
    cases: Sequence[str],
    rows: RowPlan,
    labeled: nnUNetDataLoader | None,
    resolved: Resolved,
    augmentation: Augmentation,
) -> TwoStreamLoader:
    """Return a loader of the labeled stream, if there is one, and of views of ``cases``.

    Args:
        datasets: nnU-Net datasets that all cases of both streams come from.
        cases: cases of the unlabeled stream.
        rows: images per step of the unlabeled stream.
        labeled: the labeled stream.
        resolved: the hyper-parameters.
        augmentation: crops and transforms.
    """
    needs, partitions = resolved.needs, resolved.facts.partitions
    pool = CasePool(datasets, resolved.settings["slice_axis"].value)
    meta = MetaLabeler(resolved.columns, partitions if needs.meta else None, pool)
    if needs.views == 0:
        return TwoStreamLoader(labeled, None, meta)
    unlabeled = UnlabeledLoader(
        pool,
        cases,
        rows.images,
        rows.scans,
        partitions,
        augmentation.initial_patch_size,
        augmentation.patch_size,
        ViewPipeline(augmentation.training, needs.views),
    )
    return TwoStreamLoader(labeled, unlabeled, meta)


def gallery_of(stream: TwoStreamLoader, show: Show, patch_size: Sequence[int]) -> tuple[Gallery, dict[str, Tensor]]:
    """Return fixed images of a few scans of the unlabeled stream, and their meta-labels."""
    unlabeled = stream.unlabeled
    assert unlabeled is not None
    cases = different_patients(unlabeled.cases, stream.meta.columns, show.cases)
    gallery = evenly_spaced(unlabeled.pool, cases, show.per_case, patch_size)
    return gallery, stream.meta.codes(gallery.case, gallery.bbox)


def scan_numbers(cases: Sequence[str]) -> Tensor:
    """Return the number of the scan of each image, counted in the order of appearance, (N,) int64."""
    order = {case: number for number, case in enumerate(dict.fromkeys(cases))}
    return torch.tensor([order[case] for case in cases], dtype=torch.int64)
