"""Values derived from what nnU-Net already knows; each comes with its reason.

Pure functions from plans and sizes to :class:`Derived`; nothing here reads files or touches torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, NamedTuple

from nnunet_semicon.configuration.cost import NetworkCost
from nnunet_semicon.meta_labels.table import OTHERS, SELF

Stage = Literal["pretrain", "joint"]

# fewer embeddings than this in a step leave too few negatives: contrast is then against a queue as well
FEW_EMBEDDINGS = 16
PUBLISHED_STRIDE = 4  # of Hu et al.
GAMMA_START = 0.49  # times the pair loss of embeddings that are all alike
BYTES_PER_VALUE = 8  # nnU-Net's planner: 8 GB for 1.02e9 (2d) or 1.12e9 (3d) values of feature maps
SET = "set in the plans"  # the reason of a value that the user chose


class Derived(NamedTuple):
    """A value and the reason for it, as printed and written to ``semicon_config.json``."""

    value: Any
    reason: str


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


def label_weights(weights: Mapping[str, float], labels: Sequence[str], unusable: Mapping[str, str]) -> Derived:
    """Weight of every meta-label that the data carries; those with weight 0 are left out.

    Args:
        weights: meta-label -> weight, as configured; ``others`` is the weight of every label that is not named.
        labels: meta-labels of the data; ``self`` needs none.
        unusable: meta-label -> why the data does not carry it.
    """
    value = {name: weights.get(name, weights[OTHERS]) for name in (*labels, SELF)}
    others = [name for name in labels if name not in weights]
    notes = [f"no {name}: {unusable[name]}" for name, weight in weights.items() if name in unusable and weight > 0]
    if others and weights[OTHERS] > 0:
        notes.append(f"{', '.join(others)} from the meta table with {weights[OTHERS]:g} each")
    return Derived({name: weight for name, weight in value.items() if weight > 0}, "; ".join(notes) or "all there")


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


def scale_contrast(
    rows: int, levels: Mapping[str, int], dimension: int, network: NetworkCost, published: int
) -> dict[str, Derived]:
    """Side of the blocks whose pixels are contrasted in the maps of two networks at each scale; 0: all, exactly.

    Blocks at one place of each of M maps of P pixels cost 6 M^2 P side^d D operations, all pixels 6 (M P)^2 D. All
    scales together may cost what both networks do; coarse scales come first. Where all pixels cost more than is left,
    the largest block up to the published one that fits.

    Args:
        rows: of each network.
        levels: scale -> level of the decoder, 0 is full resolution.
        dimension: D of an embedding.
        network: cost and sizes of one network, one row.
        published: side of the paper's block in pixels.
    """
    if network.flops == 0:
        reason = f"blocks of {published}, as published: the plans do not say what the network costs"
        return dict.fromkeys(levels, Derived(published, reason))
    maps = 2 * rows
    budget = left = maps * network.flops
    derived = {}
    for scale, level in sorted(levels.items(), key=lambda item: -item[1]):
        shape = network.shapes[min(level, len(network.shapes) - 1)]
        of_a_block = 6 * maps**2 * math.prod(shape) * dimension  # times its number of pixels
        exact = of_a_block * math.prod(shape)
        fits = (side for side in range(published, 1, -1) if of_a_block * side ** len(shape) <= left)
        side = 0 if exact <= left else next(fits, 1)
        left -= of_a_block * side ** len(shape) if side else exact
        what = f"blocks of {side}" if side else "all pixels"
        words = f"{'more' if side else 'no more'} than is left of the networks' own {budget:.2g} operations"
        reason = f"{what}; 6 N^2 D for N = {maps * math.prod(shape)} pixels, D = {dimension}: {words}"
        derived[scale] = Derived(side, reason)
    return derived


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


@dataclass(frozen=True)
class Facts:
    """What a method's own rules may look at.

    Attributes:
        partitions: S, or None where there is no position label.
        labels: meta-labels that the data carries, position first.
        unusable: meta-label -> why the data does not carry it.
        rows: how the rows of a step are spent, all ranks together: no rule may depend on the number of ranks.
        network: cost and sizes of the planned network, one row.
    """

    partitions: int | None
    labels: tuple[str, ...]
    unusable: Mapping[str, str]
    rows: RowPlan
    network: NetworkCost


def queue_size(embeddings_per_step: int, partition_count: int | None) -> Derived:
    """Entries of the FIFO queue of teacher embeddings; 0 where a step has embeddings enough."""
    if embeddings_per_step >= FEW_EMBEDDINGS:
        return Derived(0, f"{embeddings_per_step} embeddings in a step are enough (>= {FEW_EMBEDDINGS})")
    size = 32 * (partition_count or 3)
    return Derived(size, f"only {embeddings_per_step} embeddings in a step (< {FEW_EMBEDDINGS}): 32 per partition")


def gamma_range(candidates: int, temperature: float, mode: str) -> Mapping[str, Derived]:
    """Start and end of the self-paced threshold gamma.

    Args:
        candidates: entries in the denominator of one anchor, |A(i)| = 2N - 1 + queue.
        temperature: tau.
        mode: ``linear`` or ``hard``.

    The pair loss lies in (0, log(2N) + 2/tau] (SP-Con supplement, section 4.5). The factors reproduce the paper's best
    values, 2 and 50 at N = 30, tau = 0.07; hard weights end below the bound, or they would all be 1.
    """
    bound = math.log(candidates + 1) + 2 / temperature
    end = 1.53 if mode == "linear" else 0.9
    return {
        "gamma_start": Derived(
            GAMMA_START * math.log(candidates),
            f"{GAMMA_START} log({candidates}): scales with the loss of an untrained embedding",
        ),
        "gamma_end": Derived(
            end * bound, f"{end} (log {candidates + 1} + 2 / {temperature}): the bound of the pair loss"
        ),
    }


def pixel_contrast(
    images: int, level: int, dimension: int, network: NetworkCost, sampling: str | None, stride: int | None
) -> Mapping[str, Derived]:
    """Which pixels are contrasted with one another: all of them, or every ``stride``-th along each axis.

    Exact contrast of N pixels costs 6 N^2 D operations, forward and backward. It is taken where that is at most what
    the network itself costs; above, the published sampling with the largest set that fits.

    Args:
        images: rows of the student whose pixels meet.
        level: of the decoder, 0 is full resolution.
        dimension: D of an embedding.
        network: cost and sizes, one row.
        sampling: what the user chose, or None.
        stride: what the user chose, or None.
    """
    shape = network.shapes[min(level, len(network.shapes) - 1)]

    def pixels(step: int) -> int:
        return images * math.prod(-(-size // step) for size in shape)

    def fits(step: int) -> bool:
        return 6 * pixels(step) ** 2 * dimension <= images * network.flops

    fitting = next((step for step in range(1, max(shape)) if fits(step)), max(shape))
    if network.flops == 0:
        fitting = PUBLISHED_STRIDE
    cost = f"6 N^2 D for N = {pixels(1)} pixels, D = {dimension}"
    if network.flops == 0:
        reason = f"stride {PUBLISHED_STRIDE}, as published: the plans do not say what the network costs"
    elif fitting == 1:
        reason = f"{cost}: at most the network's own {images * network.flops:.2g} operations"
    else:
        reason = f"{cost}: more than the network's own {images * network.flops:.2g} operations"
    chosen = Derived("exact" if fitting == 1 else "stride", reason)
    step = Derived(fitting, f"the smallest that leaves a set that fits: N = {pixels(fitting)}")
    return {
        "sampling": chosen if sampling is None else Derived(sampling, SET),
        "stride": step if stride is None else Derived(stride, SET),
    }
