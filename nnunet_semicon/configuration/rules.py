"""Rows, partitions and slice axis, derived from what nnU-Net already knows; each with its reason.

Pure functions from plans and sizes to :class:`Derived`; nothing here reads files or touches torch. The rules of a
method stand in that method's file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.configuration.needs import Needs

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
    """How the rows of one training step are spent.

    Attributes:
        labeled: labeled images.
        images: unlabeled images; with the sampler ``scans * partitions_per_scan``.
        scans: scans per step for the meta-label sampler, 0 without it.
        partitions_per_scan: images drawn from each scan, each from another partition.
        student_rows: rows of the student's forward pass.
        extra_rows: rows beyond the planned batch size; memory grows with them.
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
    unlabeled_per_step: int | None,
    needs: Needs,
    partition_count: int | None,
    fits: bool = True,
) -> RowPlan:
    """Spend the rows of a step on views of labeled images and of unlabeled ones.

    Args:
        batch_size: planned by nnU-Net, at most 5 % of the *labeled* voxels: few rows where few scans are labeled.
        labeled_per_step: labeled images; None: as many as planned rows.
        unlabeled_per_step: unlabeled images; None: as many as the labeled ones.
        needs: of the method. A pre-training sees no more rows than planned, unless more are asked for; one with
            unlabeled images has no labeled row.
        partition_count: S, or None without a slice axis.
        fits: whether rows beyond ``batch_size`` fit into memory; if not, unlabeled images and further views take a part
            of the planned rows, unless the number of images is asked for.
    """
    views = needs.student_views
    if views == 0:
        in_plan = max(1, batch_size // needs.labeled_views)
        labeled = labeled_per_step or (batch_size if fits and needs.stage == "joint" else in_plan)
        rows = labeled * needs.labeled_views
        reason = "labeled rows only"
        if needs.labeled_views > 1:
            reason = f"{labeled} labeled images x {needs.labeled_views} views = {rows} rows, {batch_size} planned"
        return RowPlan(labeled, 0, 0, 0, rows, max(0, rows - batch_size), reason)
    if needs.stage == "pretrain":
        labeled = 0
        images = unlabeled_per_step or max(1, batch_size // views)
    elif needs.paired:
        share = batch_size if fits else max(1, batch_size // (1 + views))
        labeled = images = labeled_per_step or unlabeled_per_step or share
    else:
        asked = fits or unlabeled_per_step is not None
        labeled = labeled_per_step or (batch_size if asked else max(1, batch_size // 2))
        left = max(1, (batch_size - labeled) // views)
        images = unlabeled_per_step or (labeled if fits else left if labeled_per_step is None else min(labeled, left))
    scans, per_scan = 0, 0
    if needs.sample_scans:
        per_scan = min(partition_count or 1, images)
        scans = images // per_scan
        images = scans * per_scan
    rows = labeled + images * views
    what = f"{images} unlabeled images" + (f" ({scans} scans x {per_scan} partitions)" if needs.sample_scans else "")
    reason = f"{labeled} labeled rows + {what} x {views} views = {rows} rows, {batch_size} planned"
    return RowPlan(labeled, images, scans, per_scan, rows, max(0, rows - batch_size), reason)


def share_of(rows: RowPlan, share: int, batch_size: int, needs: Needs, partition_count: int | None) -> RowPlan:
    """Return the part of a step's rows that belongs to some of the planned rows, such as those of one rank.

    Args:
        rows: of the whole batch.
        share: planned rows that count.
        batch_size: all planned rows.
        needs: of the method.
        partition_count: S, or None without a slice axis.
    """

    def part(images: int) -> int | None:
        return max(1, ceil(images * share / batch_size - 0.5)) if images else None  # halves are rounded down

    return plan_rows(share, part(rows.labeled), part(rows.images), needs, partition_count)


def too_large(rows: int, network: NetworkCost, second: NetworkCost | None, memory: float | None) -> str | None:
    """Say why rows do not fit into memory, by nnU-Net's own estimate; None: they fit.

    Args:
        rows: of the student's forward pass.
        network: cost and sizes of the planned network, one row.
        second: of the network that trains beside it on every row; None: there is none.
        memory: of the device in bytes; None: not known, or not scarce (CPU).
    """
    if memory is None:
        return None
    if network.values == 0:
        return "the plans do not say how much memory the network needs"
    needed = rows * (network.values + (0 if second is None else second.values)) * BYTES_PER_VALUE
    if needed <= memory:
        return None
    return f"{rows} rows would need about {needed / 1e9:.1f} GB of {memory / 1e9:.1f} GB"


def fitting_rows(
    batch_size: int, rows: int, network: NetworkCost, second: NetworkCost | None, memory: float | None
) -> Derived:
    """Planned rows that count: all, or as many as keep the maps of two networks within what was planned for one.

    Args:
        batch_size: planned for one network.
        rows: of the student's forward pass, where all planned rows count.
        network: as for :func:`too_large`, like the arguments that follow.
        second: see there.
        memory: see there.
    """
    why = None if second is None else too_large(rows, network, second, memory)
    if second is None or why is None or network.values == 0:
        return Derived(batch_size, "as planned")
    share = max(1, int(batch_size * network.values / (network.values + second.values)))
    return Derived(share, f"{batch_size} planned rows shared by 2 networks: {why}")
