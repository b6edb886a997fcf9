"""Masks that say where a mixed image shows the other image, and the mixing itself.

    mixed = mask * other + (1 - mask) * base                                    (CutMix, Yun et al., ICCV 2019, eq. 1)

Boxes of a random area are those of CutMix with proportions drawn as in random erasing; boxes of a fixed part of each
side are those of BCP (Bai et al., CVPR 2023); masks of classes are those of ClassMix (Olsson et al., WACV 2021).

Random numbers come from torch's generator of the CPU, so that one seed gives the same masks on every device.
"""

from collections.abc import Sequence
from math import log, prod

import torch
from torch import Tensor


def random_boxes(
    count: int, size: Sequence[int], area: tuple[float, float], ratio: float = 2.0, inverted: float = 0.0
) -> Tensor:
    """Return one box of random area, proportions and place per row.

    Args:
        count: rows.
        size: voxels of the image along each axis, two axes or three.
        area: smallest and largest part of the image that a box covers, in (0, 1]; drawn uniformly.
        ratio: of the longest to the shortest side of a box, each in parts of the image's side; at least 1. The ratio
            is drawn log-uniformly from 1 to here, and the axes that are long and short are drawn too. A box that would
            not fit is shortened along one axis and lengthened along the others.
        inverted: probability that the mask of a row is everything but its box, in [0, 1].

    Returns:
        (count, *size) bool on the CPU. The area is exact to half a voxel of the longest axis; at least one voxel.
    """
    wanted = torch.empty(count, dtype=torch.float64).uniform_(*area)
    sides = _sides(wanted, _proportions(count, len(size), ratio), size)
    boxes = _boxes(_places(sides, size), sides, size)
    return boxes ^ _for_pixels(chosen_rows(count, inverted), boxes)


def side_boxes(count: int, size: Sequence[int], side: float) -> Tensor:
    """Return one box at a random place per row.

    Args:
        count: rows.
        size: voxels of the image along each axis.
        side: part of each side of the image that the box covers, in (0, 1]; at least one voxel.

    Returns:
        (count, *size) bool on the CPU.
    """
    sides = torch.tensor([max(1, round(side * n)) for n in size]).expand(count, -1)
    return _boxes(_places(sides, size), sides, size)


def halves(count: int, size: Sequence[int]) -> Tensor:
    """Return one half of the image per row, on a random side of a random axis that has more than one voxel.

    Args:
        count: rows.
        size: voxels of the image along each axis. Of an odd number, the half may be the larger or the smaller part.

    Returns:
        (count, *size) bool on the CPU. An image of one voxel is taken as a whole or not at all.
    """
    axes = torch.tensor([axis for axis, n in enumerate(size) if n > 1] or [0])
    axis = axes[torch.randint(len(axes), (count,))]
    is_cut = torch.arange(len(size)) == axis[:, None]
    is_upper = chosen_rows(count, 0.5)[:, None]
    whole = torch.tensor(size).expand(count, -1)
    lower = whole // 2
    first = torch.where(is_cut & is_upper, lower, 0)
    sides = torch.where(is_cut, torch.where(is_upper, whole - lower, lower), whole)
    return _boxes(first, sides, size)


def class_masks(classes: Tensor) -> Tensor:
    """Return the pixels of half of the classes that each row shows, rounded up.

    Args:
        classes: (B, *S) integers; the background counts as a class. A row with one class is taken as a whole.

    Returns:
        (B, *S) bool on the device of ``classes``. Waits for that device.
    """
    masks = torch.zeros_like(classes, dtype=torch.bool)
    for row, mask in zip(classes, masks, strict=True):
        present = row.unique()
        order = torch.randperm(len(present)).to(classes.device)
        mask.copy_(torch.isin(row, present[order[: (len(present) + 1) // 2]]))
    return masks


def chosen_rows(count: int, probability: float) -> Tensor:
    """Return (count,) bool on the CPU: each row is True with ``probability``, independently."""
    return torch.rand(count) < probability


def only_rows(masks: Tensor, chosen: Tensor) -> Tensor:
    """Empty the masks (B, *S) of all rows that are not ``chosen`` (B,)."""
    return masks & _for_pixels(chosen.to(masks.device), masks)


def mix(base: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return ``other`` where ``mask`` is True and ``base`` elsewhere.

    Args:
        base: (B, C, *S) or (B, *S), any dtype.
        other: of the same shape and dtype.
        mask: (B, *S) bool, on any device.
    """
    mask = mask.to(base.device)
    return torch.where(mask if mask.dim() == base.dim() else mask[:, None], other, base)


def _proportions(count: int, dim: int, ratio: float) -> Tensor:
    """Draw relative lengths (count, dim) >= 1; the longest is 1 to ``ratio`` times the shortest, log-uniformly."""
    lengths = torch.rand(count, dim, dtype=torch.float64)
    shortest, longest = lengths.amin(dim=1, keepdim=True), lengths.amax(dim=1, keepdim=True)
    spread = torch.empty(count, 1, dtype=torch.float64).uniform_(0, log(ratio))
    return torch.exp(spread * (lengths - shortest) / (longest - shortest).clamp_min(1e-12))


def _sides(area: Tensor, proportions: Tensor, size: Sequence[int]) -> Tensor:
    """Round the sides of boxes to voxels, the shortest axis of the image first: longer ones make up for its rounding.

    Args:
        area: (B,) part of the image.
        proportions: (B, dim) of the sides, in parts of the image's sides.
        size: voxels of the image along each axis.

    Returns:
        (B, dim) int64, each from 1 to the image's side.
    """
    relative = proportions * torch.tensor(size)
    sides = torch.ones_like(proportions, dtype=torch.int64)
    voxels = area * prod(size)  # of the axes that are still to be rounded
    *shorter, longest = sorted(range(len(size)), key=lambda axis: size[axis])
    for index, axis in enumerate(shorter):
        longer = [*shorter[index + 1 :], longest]
        scale = (voxels / relative[:, [axis, *longer]].prod(dim=1)) ** (1 / (1 + len(longer)))
        # less, and the longer axes could not hold the rest; the small number keeps an exact fit from growing
        least = torch.ceil(voxels / prod(size[other] for other in longer) - 1e-6)
        sides[:, axis] = torch.maximum((scale * relative[:, axis]).round(), least).clamp(1, size[axis]).long()
        voxels = voxels / sides[:, axis]
    sides[:, longest] = voxels.round().clamp(1, size[longest]).long()
    return sides


def _places(sides: Tensor, size: Sequence[int]) -> Tensor:
    """Draw the first voxel (B, dim) of boxes with ``sides`` (B, dim), uniformly among all places inside."""
    positions = torch.tensor(size) - sides + 1
    return (torch.rand(sides.shape, dtype=torch.float64) * positions).long()


def _boxes(first: Tensor, sides: Tensor, size: Sequence[int]) -> Tensor:
    """Return the boxes (B, *size) bool with the given first voxels and sides (B, dim)."""
    boxes = torch.ones(len(sides), dtype=torch.bool)
    for axis, n in enumerate(size):  # each adds its axis at the end
        place = torch.arange(n)
        start = first[:, axis, None]
        inside = (place >= start) & (place < start + sides[:, axis, None])
        boxes = boxes[..., None] & inside.view(-1, *[1] * axis, n)
    return boxes


def _for_pixels(rows: Tensor, masks: Tensor) -> Tensor:
    """Give values of rows (B,) as many axes as ``masks`` (B, *S) has."""
    return rows.view(-1, *[1] * (masks.dim() - 1))
