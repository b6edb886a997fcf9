"""Strong views: intensities are changed, no voxel is moved.

A network with instance normalization undoes brightness and contrast, which are affine in the intensity. They are
therefore not among the changes here: each of these changes the logits of such a network.

Which rows are changed, and how, is drawn from torch's global CPU generator; so a run draws alike on a CPU and on CUDA.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.data.color import change_stains, draw_stains

INNER_KNOTS = 5
FIELD_KNOTS = 3  # per axis
FIELD_DEVIATION = 0.3
GAMMA = (0.6, 1.7)
BLUR_SIGMA = (0.5, 1.5)  # voxels
BLUR_RADIUS = 4  # voxels, as nnU-Net's blur has it for the largest sigma
LOW_RESOLUTION = (0.5, 1.0)  # part of a side
NOISE_DEVIATION = 0.2
LARGEST_CUTOUT = 0.5  # part of a side

FIELD_MODES = {2: "bicubic", 3: "trilinear"}  # torch has no cubic interpolation in 3D
LINEAR_MODES = {2: "bilinear", 3: "trilinear"}


class Change(NamedTuple):
    """One kind of change.

    Attributes:
        probability: part of the rows that are changed.
        draw: images (N, C, *S) -> parameters of the change, one entry per image; uses the shape and the device alone.
        apply: images (N, C, *S) float32 and their parameters -> changed images, a new tensor; a pure function.
    """

    probability: float
    draw: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


class StrongView:
    """Makes strong views of images on the device where the images are.

    Args:
        patch_size: voxels, 2 or 3 entries. No side is blurred that is not longer than the radius of the kernel.
        nonlinear: also the random monotone map and the smooth field.
        decreasing: half of the monotone maps decrease: they invert the contrast too.
        cutout: one box of up to half of each side is set to 0 in half of the images.
        masked: nnU-Net normalized inside the nonzero mask. Voxels that are 0 in all channels stay 0.
        color: the channels are red, green and blue. One monotone map and one gamma serve all three, each over the range
            of its channel, and the amounts of stains change: the colors of tissue stay plausible. Channels have mean 0
            and deviation 1 meanwhile, so that field, noise and cutout mean the same however nnU-Net normalized.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        nonlinear: bool = True,
        decreasing: bool = False,
        cutout: bool = False,
        masked: bool = False,
        color: bool = False,
    ) -> None:
        self.masked, self.color = masked, color
        self.changes: list[Change] = []
        for_channels = shared if color else lambda draw: draw
        if color:  # first: the densities of stains are those of unchanged colors
            self.changes.append(Change(0.8, draw_stains, change_stains))
        if nonlinear:
            knots = draw_decreasing_knots if decreasing else draw_knots
            self.changes.append(Change(0.8, for_channels(knots), monotone_map))
            self.changes.append(Change(0.4, draw_field, smooth_field))
        self.changes.append(Change(0.5, for_channels(draw_gamma), gamma))
        if max(patch_size) > BLUR_RADIUS:
            self.changes.append(Change(0.5, draw_sigma, blur))
        self.changes.append(Change(0.3, draw_scale, low_resolution))
        self.changes.append(Change(0.5, draw_noise, torch.add))
        if cutout:
            self.changes.append(Change(0.5, draw_box, cut_out))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return strong views of images, a new tensor of the same shape and dtype, without gradient.

        Args:
            images: (B, C, *S) of any floating dtype; the changes are computed in float32.
        """
        with torch.autocast(images.device.type, enabled=False):
            views = images.to(torch.float32, copy=True)
            if self.color:
                mean, deviation = _statistics(views)
                views.sub_(mean).div_(deviation)
            for change in self.changes:
                rows = torch.nonzero(torch.rand(len(views)) < change.probability).flatten()
                if len(rows):
                    rows = rows.to(views.device)
                    chosen = views.index_select(0, rows)
                    views.index_copy_(0, rows, change.apply(chosen, change.draw(chosen)))
            if self.color:
                views.mul_(deviation).add_(mean)
            if self.masked:
                views.masked_fill_((images == 0).all(dim=1, keepdim=True), 0)
            return views.to(images.dtype)


def shared(draw: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return what draws the parameters (N, C, ...) of one channel and repeats them for the others."""

    def draw_once(images: Tensor) -> Tensor:
        return draw(images[:, :1]).repeat_interleave(images.shape[1], dim=1)

    return draw_once


def monotone_map(images: Tensor, knots: Tensor) -> Tensor:
    """Map the intensities of each channel by a monotone, piecewise linear function of its range onto itself.

    Mean and standard deviation are restored then. A constant channel stays.

    Args:
        images: (N, C, *S) float32.
        knots: (N, C, K >= 2) monotone values in [0, 1] at K intensities, evenly spaced from minimum to maximum.
    """
    knots = knots.to(images.device).flatten(0, 1)
    segments = knots.shape[-1] - 1
    position = _scaled(images).flatten(0, 1).flatten(1) * segments
    segment = position.long().clamp_(max=segments - 1)
    slopes = knots.diff(dim=1)
    starts = knots[:, :-1] - slopes * torch.arange(segments, device=knots.device)  # of each segment, at intensity 0
    mapped = starts.gather(1, segment) + slopes.gather(1, segment) * position
    return _with_statistics_of(images, mapped.view_as(images))


def draw_knots(images: Tensor) -> Tensor:
    """Return increasing knots (N, C, 7): 0, five sorted uniform numbers and 1."""
    shape = images.shape[:2]
    inner = torch.rand(*shape, INNER_KNOTS).sort(dim=-1).values
    return torch.cat([torch.zeros(*shape, 1), inner, torch.ones(*shape, 1)], dim=-1)


def draw_decreasing_knots(images: Tensor) -> Tensor:
    """Return knots (N, C, 7) as :func:`draw_knots`, reversed in half of the channels."""
    knots = draw_knots(images)
    return torch.where(torch.rand(*knots.shape[:2], 1) < 0.5, knots.flip(-1), knots)


def smooth_field(images: Tensor, grid: Tensor) -> Tensor:
    """Multiply images by a smooth field: the exponential of an interpolated grid; one field for all channels.

    Args:
        images: (N, C, *S) float32.
        grid: (N, 1, 3, 3) or (N, 1, 3, 3, 3) logarithms; the outer ones lie on the borders of the patch.
    """
    size = images.shape[2:]
    logarithm = F.interpolate(grid.to(images.device), size=size, mode=FIELD_MODES[len(size)], align_corners=True)
    return images * logarithm.exp_()


def draw_field(images: Tensor) -> Tensor:
    """Return a normal grid of deviation 0.3, (N, 1, 3, 3) or (N, 1, 3, 3, 3)."""
    return FIELD_DEVIATION * torch.randn(len(images), 1, *[FIELD_KNOTS] * (images.ndim - 2))


def gamma(images: Tensor, exponents: Tensor) -> Tensor:
    """Raise each channel, scaled to [0, 1], to a power; mean and standard deviation are restored then.

    Args:
        images: (N, C, *S) float32.
        exponents: (N, C) > 0.
    """
    exponents = _per_image(exponents.to(images.device), images)
    return _with_statistics_of(images, _scaled(images).pow_(exponents))


def draw_gamma(images: Tensor) -> Tensor:
    """Return exponents (N, C): half of them uniform in [0.6, 1], half in [1, 1.7]."""
    lowest, highest = GAMMA
    below, value = torch.rand(2, *images.shape[:2])
    return torch.where(below < 0.5, lowest + (1 - lowest) * value, 1 + (highest - 1) * value)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images with a Gaussian kernel of nine voxels along every side that is longer than its radius.

    Args:
        images: (N, C, *S) float32; reflected at the borders.
        sigma: (N,) > 0, voxels.
    """
    offsets = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernels = torch.softmax(-0.5 * (offsets / sigma[:, None]) ** 2, dim=1).to(images.device)
    for axis in range(2, images.ndim):
        side = images.shape[axis]
        if side > BLUR_RADIUS:
            # a sum of nine shifted images: in 3D faster than a convolution with one kernel per image
            padded = images.index_select(axis, _reflected(side).to(images.device))
            images = torch.zeros_like(images)
            for shift, weight in enumerate(kernels.unbind(1)):
                images.addcmul_(padded.narrow(axis, shift, side), _per_image(weight, images))
    return images


def draw_sigma(images: Tensor) -> Tensor:
    """Return standard deviations of the blur, (N,) voxels, uniform in [0.5, 1.5]."""
    return torch.empty(len(images)).uniform_(*BLUR_SIGMA)


def low_resolution(images: Tensor, scale: Tensor) -> Tensor:
    """Sample images down (nearest neighbor) and up again (linear interpolation).

    Args:
        images: (N, C, *S) float32.
        scale: (N,) in (0, 1], part of each side that is left between the two.
    """
    size = images.shape[2:]
    coarse = [[max(1, round(side * factor)) for side in size] for factor in scale.tolist()]
    rows = [
        F.interpolate(F.interpolate(row, size=shape, mode="nearest-exact"), size=size, mode=LINEAR_MODES[len(size)])
        for row, shape in zip(images.split(1), coarse, strict=True)
    ]
    return torch.cat(rows)


def draw_scale(images: Tensor) -> Tensor:
    """Return scales (N,), uniform in [0.5, 1]."""
    return torch.empty(len(images)).uniform_(*LOW_RESOLUTION)


def draw_noise(images: Tensor) -> Tensor:
    """Return Gaussian noise (N, C, *S) on the images' device; its deviation is uniform in [0, 0.2] in each image.

    nnU-Net's parameter of that range is called a variance and used as a deviation.
    """
    deviations = NOISE_DEVIATION * torch.rand(len(images))
    # a generator of the device with a seed of the CPU: the CPU's own one is at the same place after it on any device
    generator = torch.Generator(images.device).manual_seed(int(torch.randint(2**31, ())))
    noise = torch.empty_like(images).normal_(generator=generator)
    return noise.mul_(_per_image(deviations.to(images.device), images))


def cut_out(images: Tensor, boxes: Tensor) -> Tensor:
    """Set a box of each image to 0 in all channels.

    Args:
        images: (N, C, *S) float32.
        boxes: (N, D, 2) int64, first voxel and the one after the last along each of the D axes.
    """
    boxes = boxes.to(images.device)
    inside = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis, side in enumerate(images.shape[2:]):
        voxels = torch.arange(side, device=images.device)
        along = (voxels >= boxes[:, axis, :1]) & (voxels < boxes[:, axis, 1:])
        inside &= along.view(len(images), 1, *[side if other == axis else 1 for other in range(boxes.shape[1])])
    return images.masked_fill(inside, 0)


def draw_box(images: Tensor) -> Tensor:
    """Return boxes (N, D, 2) int64 with sides of one voxel to half of the patch, anywhere inside it."""
    sides = torch.tensor(images.shape[2:])
    largest = (sides * LARGEST_CUTOUT).long().clamp_(min=1)
    size, place = torch.rand(2, len(images), len(sides))
    sizes = 1 + (size * largest).long()
    lower = (place * (sides - sizes + 1)).long()
    return torch.stack([lower, lower + sizes], dim=-1)


def _scaled(images: Tensor) -> Tensor:
    """Return each channel scaled to [0, 1], a new tensor; a constant channel is 0."""
    axes = tuple(range(2, images.ndim))
    lowest, highest = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    extent = highest - lowest
    return (images - lowest).div_(extent.masked_fill(extent == 0, 1))


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, (N, C, 1, ...); the deviation of a constant channel is 1."""
    axes = tuple(range(2, images.ndim))
    mean = images.mean(axes, keepdim=True)
    deviation = (images - mean).square_().mean(axes, keepdim=True).sqrt_()
    return mean, deviation.masked_fill_(deviation == 0, 1)


def _with_statistics_of(images: Tensor, changed: Tensor) -> Tensor:
    """Return ``changed`` (N, C, *S) with mean and standard deviation of ``images``; a constant channel stays."""
    axes = tuple(range(2, images.ndim))
    mean = images.mean(axes, keepdim=True)
    centered = changed - changed.mean(axes, keepdim=True)
    # far faster than torch.var_mean on a CPU
    variance = (images - mean).square_().mean(axes, keepdim=True)
    variance_now = centered.square().mean(axes, keepdim=True)
    constant = variance_now == 0
    factor = torch.sqrt(variance / variance_now.masked_fill(constant, 1))
    return torch.where(constant, images, centered.mul_(factor).add_(mean))


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Return values (N,) or (N, C) with as many axes as the images."""
    return values.view(*values.shape, *[1] * (images.ndim - values.ndim))


def _reflected(side: int) -> Tensor:
    """Return the voxels of a side and of the kernel's radius around it, reflected (the border voxel once)."""
    voxels = torch.arange(-BLUR_RADIUS, side + BLUR_RADIUS).abs()
    return torch.where(voxels < side, voxels, 2 * (side - 1) - voxels)
