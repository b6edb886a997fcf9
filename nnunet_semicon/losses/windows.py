"""Windows of an image: how sure a network is of each, which of them are drawn, and what they show.

    Ent_kj  = mean over window j of F(A_k)                                                  (PLGCL poster, step 1)
    draw windows of class k with probability proportional to max(1 - Ent_kj, 0.001)         (authors' code, P2)

(PLGCL, Basak and Yin, CVPR 2023.) A_k: probability of class k at every pixel. An image is cut into a grid of cells;
windows are boxes of whole cells. Means over windows are sums over cells, so nothing is looped over windows, and a map
of any resolution has the same windows.

Deviations: listed in docs/methods/plgcl.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.entropy import binary_entropy
from nnunet_semicon.losses.precision import at_least_float32, full_precision

CELLS = 8  # along each axis, at most
LEAST_PIXELS = 10  # of a class in a window that is drawn for it (authors' code: boxes of more than 10 pixels)
LEAST_WEIGHT = 1e-3  # of a window, before normalization (authors' code)
Guidance = Literal["entropy", "confidence", "cosine", "none"]


@dataclass(frozen=True)
class WindowGrid:
    """Where the windows of an image are.

    Attributes:
        cells: along each axis; a cell is at least one pixel of the coarsest map that is pooled.
        window: cells of a window along each axis.
    """

    cells: tuple[int, ...]
    window: tuple[int, ...]

    @classmethod
    def of(cls, shape: Sequence[int], part: float) -> "WindowGrid":
        """Return the grid of a map of ``shape`` with windows of ``part`` of each side."""
        cells = tuple(min(CELLS, size) for size in shape)
        return cls(cells, tuple(max(1, round(part * count)) for count in cells))

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of a window along each axis."""
        return tuple(c - w + 1 for c, w in zip(self.cells, self.window, strict=True))

    def window_sums(self, maps: Tensor) -> Tensor:
        """Sum of each channel in each window, (B, C, *S) -> (B, C, W); differentiable."""
        with full_precision(maps.device):  # half precision does not count beyond 2048
            maps = at_least_float32(maps)
            for count in self.cells:  # takes the first spatial axis away and adds its cells at the end
                size = maps.shape[2]
                cell = torch.arange(size, device=maps.device) * count // size
                maps = torch.tensordot(maps, F.one_hot(cell, count).to(maps.dtype), dims=([2], [0]))
            pool = F.avg_pool2d if len(self.cells) == 2 else F.avg_pool3d
            return prod(self.window) * pool(maps, self.window, stride=1).flatten(2)

    def origins(self, windows: Tensor) -> Tensor:
        """First cell of each window along each axis; (R,) int64 -> (R, dim)."""
        found = []
        for count in reversed(self.positions):
            found.append(windows % count)
            windows = windows // count
        return torch.stack(found[::-1], dim=1)


@dataclass(frozen=True)
class Drawn:
    """R windows.

    Attributes:
        image: (R,) int64, row of the batch.
        window: (R,) int64, position in the grid.
        classes: (R,) int64 class it was drawn for; -1: the class has no window in this batch.
    """

    image: Tensor
    window: Tensor
    classes: Tensor


def pixels_in_windows(classes: Tensor, n_classes: int, grid: WindowGrid) -> Tensor:
    """Pixels of each class in each window; (B, *S) int64, -1 = ignored -> (B, K, W) float32."""
    return grid.window_sums(_memberships(classes, n_classes).float())


def guidance_weights(probabilities: Tensor, grid: WindowGrid, guidance: str, bits: bool = True) -> Tensor:
    """How much each window is wanted for each class, from the probabilities of its pixels.

    Args:
        probabilities: (B, K, *S) A_k.
        grid: of the windows.
        guidance: ``entropy``: 1 - Ent; ``confidence``: mean of A_k; anything else: the same for all.
        bits: entropy to base 2, otherwise natural.

    Returns:
        (B, K, W) at least 0.001.
    """
    if guidance not in ("entropy", "confidence"):
        return torch.ones(*probabilities.shape[:2], prod(grid.positions), device=probabilities.device)
    ones = torch.ones_like(probabilities[:1, :1])
    maps = binary_entropy(probabilities, bits) if guidance == "entropy" else probabilities
    means = grid.window_sums(maps) / grid.window_sums(ones)
    return (1 - means if guidance == "entropy" else means).clamp_min(LEAST_WEIGHT)


def cosine_weights(features: Tensor, classes: Tensor, n_classes: int, grid: WindowGrid) -> Tensor:
    """How much each window looks like its class in the whole batch: (1 + cosine) / 2 of the mean features.

    Args:
        features: (B, D, *s).
        classes: (B, *s) int64, -1 = ignored.
        n_classes: K.
        grid: of the windows.

    Returns:
        (B, K, W) at least 0.001.
    """
    features = at_least_float32(features)
    member = _memberships(classes, n_classes).to(features.dtype)
    with full_precision(features.device):  # autocast would sum all pixels of a class in half precision
        of_class = torch.einsum("bks,bds->kd", member.flatten(2), features.flatten(2))
    sums = torch.stack([grid.window_sums(features * member[:, k : k + 1]) for k in range(n_classes)], dim=1)
    cosine = F.cosine_similarity(sums, of_class[None, :, :, None], dim=2)
    return ((1 + cosine) / 2).clamp_min(LEAST_WEIGHT)


def draw_windows(weights: Tensor, pixels: Tensor, slots: Tensor) -> Drawn:
    """Draw one window per slot, with replacement, among those that show enough pixels of the slot's class.

    Args:
        weights: (B, K, W) > 0.
        pixels: (B, K, W) of :func:`pixels_in_windows`.
        slots: (R,) int64 class wanted in each slot.
    """
    wanted = torch.where(pixels >= LEAST_PIXELS, weights, 0.0).transpose(0, 1).flatten(1)[slots]
    exists = wanted.sum(dim=1) > 0
    place = torch.multinomial(torch.where(exists[:, None], wanted, 1.0), 1)[:, 0]
    n_windows = weights.shape[2]
    return Drawn(place // n_windows, place % n_windows, torch.where(exists, slots, -1))


def pooled(features: Tensor, classes: Tensor, n_classes: int, grid: WindowGrid, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Mean feature of the pixels of its class in each drawn window.

    Args:
        features: (B, D, *s).
        classes: (B, *s) int64 at the same resolution, -1 = ignored.
        n_classes: K.
        grid: of the windows.
        drawn: R windows.

    Returns:
        (R, D); and (R,) classes, -1 also where a coarse map shows no pixel of the class.
    """
    features = at_least_float32(features)
    member = _memberships(classes, n_classes).to(features.dtype)
    own = drawn.classes.clamp_min(0)
    counts = grid.window_sums(member)[drawn.image, own, drawn.window]
    sums = features.new_zeros(len(own), features.shape[1])
    for k in range(n_classes):  # K maps, not R
        of_class = grid.window_sums(features * member[:, k : k + 1])[drawn.image, :, drawn.window]
        sums = torch.where((own == k)[:, None], of_class, sums)
    return sums / counts.clamp_min(1)[:, None], torch.where(counts > 0, drawn.classes, -1)


def cut_out(images: Tensor, classes: Tensor, grid: WindowGrid, drawn: Drawn) -> Tensor:
    """Drawn windows as images, scaled up to the whole size; pixels of other classes are 0.

    Args:
        images: (B, C, *S).
        classes: (B, *S) int64, -1 = ignored.
        grid: of the windows.
        drawn: R windows.

    Returns:
        (R, C, *S).
    """
    own = (classes[drawn.image] == drawn.classes.view(-1, *[1] * (classes.dim() - 1)))[:, None]
    cells = torch.tensor(grid.cells, device=images.device)
    window = torch.tensor(grid.window, device=images.device)
    # axes of an affine grid come in reverse order, coordinates reach from -1 to 1
    center = (2 * grid.origins(drawn.window) + window) / cells - 1
    theta = torch.cat([torch.diag((window / cells).flip(0)).expand(len(center), -1, -1), center.flip(1)[..., None]], 2)
    place = F.affine_grid(theta, [len(center), *images.shape[1:]], align_corners=False)
    return F.grid_sample(images[drawn.image] * own, place.to(images.dtype), align_corners=False, padding_mode="border")


def _memberships(classes: Tensor, n_classes: int) -> Tensor:
    """(B, *S) int64, -1 = ignored -> (B, K, *S) bool."""
    return torch.stack([classes == k for k in range(n_classes)], dim=1)
