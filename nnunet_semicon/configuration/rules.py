"""Rows, partitions and slice axis, derived from what nnU-Net already knows; each with its reason.

Pure functions from plans and sizes to :class:`Derived`; nothing here reads files or touches torch. The rules of a
method stand in that method's file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.configuration.needs import Stage

BYTES_PER_VALUE = 8  # nnU-Net's planner: 8 GB for 1.02e9 (2d) or 1.12e9 (3d) values of feature maps


class SliceExtent(NamedTuple):
    """Median number of slices of the training cases, and median extent in mm, along the slice axis."""

    slices: float
    mm: float


def slice_axis(transpose_forward: Sequence[int]) -> Derived:
    """Axis of the stored scans along which a slice has a position.

    Args:
        transpose_forward: of the plans.
    """
    axis = int(transpose_forward[0])
    return Derived(axis, f"nnU-Net puts the coarsest axis first: transpose_forward = {list(transpose_forward)}")


def slice_extent(plans: Mapping[str, Any], fingerprint: Mapping[str, Any] | None) -> SliceExtent:
    """Slices and extent of a median training case along the slice axis.

    Args:
        plans: content of the plans file.
        fingerprint: content of ``dataset_fingerprint.json``; without it the medians of the plans are multiplied.
    """
    if fingerprint is None:
        slices = float(plans["original_median_shape_after_transp"][0])
        return SliceExtent(slices, slices * float(plans["original_median_spacing_after_transp"][0]))
    axis = plans["transpose_forward"][0]
    slices_per_case = [float(shape[axis]) for shape in fingerprint["shapes_after_crop"]]
    mm_per_case = [
        n * float(spacing[axis]) for n, spacing in zip(slices_per_case, fingerprint["spacings"], strict=True)
    ]
    return SliceExtent(median(slices_per_case), median(mm_per_case))


def partitions(extent: SliceExtent, covered_by_patch: float = 0.0) -> Derived:
    """Number of slice-position groups S along axis 0; ``value`` is None where there is no slice axis.

    Args:
        extent: of a median training case.
        covered_by_patch: part of axis 0 that one patch covers (0 in 2d). Patch centers reach only the rest.

    Gives the published 3 for ACDC and Hippocampus, 5 for PROMISE12, 7 for MMWHS (SP-Con supplement, section 2).
    """
    slices, extent_mm = extent
    if slices < 3:
        return Derived(None, f"no slice axis: {slices:g} slices along axis 0")
    value = round(min(max(min(slices / 5, extent_mm / 12), 3), 7))
    if (1 - covered_by_patch) * value < 1:
        return Derived(
            None, f"a patch covers {min(covered_by_patch, 1):.0%} of axis 0: every center lies at one position"
        )
    return Derived(value, f"clamp(min({slices:g} slices / 5, {extent_mm:.0f} mm / 12 mm), 3, 7), rounded")


@dataclass(frozen=True)
class RowPlan:
    """How the rows of one training step are spent (one rank).

    Attributes:
        labeled: labeled rows.
        images: unlabeled images; with the sampler ``scans * partitions_per_scan``.
        scans: scans per step for the meta-label sampler, 0 without it.
        partitions_per_scan: images drawn from each scan, each from another partition.
        student_rows: rows of the student's forward pass.
        extra_rows: rows beyond the planned batch size, because the method's minimum does not fit.
        reason: in words.
    """

    labeled: int
    images: int
    scans: int
    partitions_per_scan: int
    student_rows: int
    extra_rows: int
    reason: str


def plan_rows(
    batch_size: int,
    labeled_per_step: int | None,
    student_views: int,
    partition_count: int | None,
    sample_scans: bool,
    stage: Stage = "joint",
    labeled_views: int = 1,
) -> RowPlan:
    """Spend ``batch_size`` rows on views of labeled images and of unlabeled ones.

    Args:
        batch_size: planned rows of this rank, so that memory stays what nnU-Net planned.
        labeled_per_step: labeled rows of this rank; None: all of them (``student_views`` 0) or half.
        student_views: rows of the student per unlabeled image; 0: the method uses none.
        partition_count: S, or None without a slice axis.
        sample_scans: draw scans x partitions instead of single images.
        stage: ``pretrain`` with unlabeled images has no labeled row, whatever ``labeled_per_step`` says.
        labeled_views: rows of the student per labeled image.
    """
    if student_views == 0:
        labeled = labeled_per_step or max(1, batch_size // labeled_views)
        rows = labeled * labeled_views
        reason = "labeled rows only"
        if labeled_views > 1:
            reason = f"{labeled} labeled images x {labeled_views} views = {rows} of {batch_size} planned rows"
        return RowPlan(labeled, 0, 0, 0, rows, max(0, rows - batch_size), reason)
    labeled = 0 if stage == "pretrain" else labeled_per_step or max(1, batch_size // 2)
    images = max(1, (batch_size - labeled) // student_views)
    scans, per_scan = 0, 0
    if sample_scans:
        per_scan = min(partition_count or 1, images)
        scans = images // per_scan
        images = scans * per_scan
    rows = labeled + images * student_views
    what = f"{images} unlabeled images" + (f" ({scans} scans x {per_scan} partitions)" if sample_scans else "")
    reason = f"{labeled} labeled rows + {what} x {student_views} views = {rows} of {batch_size} planned rows"
    return RowPlan(labeled, images, scans, per_scan, rows, max(0, rows - batch_size), reason)


def fitting_rows(batch_size: int, network: NetworkCost, second: NetworkCost | None, memory: float | None) -> Derived:
    """Rows of a step: the planned ones, or as many as keep the maps of two networks within what was planned for one.

    Args:
        batch_size: planned for one network.
        network: cost and sizes of the planned network, one row.
        second: of the network that trains beside it on every row; None: there is none.
        memory: of the device in bytes; None: not known, or not scarce (CPU).
    """
    if second is None or memory is None:
        return Derived(batch_size, "as planned")
    both = network.values + second.values
    needed = batch_size * both * BYTES_PER_VALUE
    if needed <= memory:
        return Derived(batch_size, "as planned")
    words = f"they would need about {needed / 1e9:.0f} GB of {memory / 1e9:.0f} GB"
    rows = max(1, int(batch_size * network.values / both))
    return Derived(rows, f"{batch_size} planned rows shared by 2 networks: {words}")
