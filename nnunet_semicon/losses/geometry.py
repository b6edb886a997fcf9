"""Flips, and rotations by 90 degrees, that move an image and its labels alike; no value is interpolated.

A map exchanges axes of equal length and flips axes: these are the ways to put a box back into its own place, 8 for a
square and 48 for a cube. Each rotation by a multiple of 90 degrees is one of them.

Random numbers come from torch's generator of the CPU, so that one seed gives the same maps on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor


@dataclass(frozen=True)
class AxisMap:
    """One way to put a box back into its own place.

    Attributes:
        order: spatial axis that becomes axis 0, 1, ...
        flipped: spatial axes, after the exchange, whose direction is reversed.
    """

    order: tuple[int, ...]
    flipped: tuple[int, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """Return the moved image or labels (C, *S), any dtype."""
        exchanged = image.permute(0, *(1 + axis for axis in self.order))
        return exchanged.flip([1 + axis for axis in self.flipped])


def axis_maps(size: Sequence[int]) -> list[AxisMap]:
    """Return all maps of an image onto itself, the identity first; no two of them are equal.

    Args:
        size: voxels along each spatial axis. An axis of one voxel is left as it is.
    """
    axes = range(len(size))
    orders = [
        order
        for order in permutations(axes)
        if all(size[new] == size[old] and (size[old] > 1 or new == old) for new, old in enumerate(order))
    ]
    reversals = product(*[(False, True) if n > 1 else (False,) for n in size])
    flips = [tuple(axis for axis in axes if is_reversed[axis]) for is_reversed in reversals]
    return [AxisMap(order, flipped) for order in orders for flipped in flips]


def random_maps(count: int, size: Sequence[int]) -> list[AxisMap]:
    """Return one map for each of ``count`` images, uniformly among all but the identity.

    Args:
        count: images.
        size: voxels along each spatial axis. An image of one voxel has no other map than the identity.
    """
    maps = axis_maps(size)
    first = min(1, len(maps) - 1)  # behind the identity
    return [maps[number] for number in torch.randint(first, len(maps), (count,)).tolist()]


def moved(images: Tensor, maps: Sequence[AxisMap]) -> Tensor:
    """Return every row of (B, C, *S), images or labels, moved by its own map."""
    return torch.stack([move(image) for image, move in zip(images, maps, strict=True)])
