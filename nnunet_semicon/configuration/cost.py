"""What the planned network costs and how large its feature maps are, from the plans alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

BACKWARD = 2  # a backward pass costs twice the forward pass: one product for the input, one for the weights


@dataclass(frozen=True)
class NetworkCost:
    """One of nnU-Net's U-Nets on one patch.

    Attributes:
        shapes: spatial size of the feature maps at each level of the decoder, full resolution first.
        flops: of one forward and backward pass of one patch; 0 where the plans do not say what the network is.
        values: of all feature maps of one patch; 0 where the plans do not say what the network is.
    """

    shapes: tuple[tuple[int, ...], ...]
    flops: float
    values: float = 0.0


def network_cost(configuration: Mapping[str, Any]) -> NetworkCost:
    """Count the multiplications and additions of the convolutions; the first one has a single input channel here.

    Args:
        configuration: one configuration of the plans, inheritance resolved.
    """
    patch = tuple(int(size) for size in configuration["patch_size"])
    kwargs = configuration.get("architecture", {}).get("arch_kwargs", {})
    if not {"strides", "features_per_stage", "kernel_sizes"} <= set(kwargs):
        return NetworkCost((patch,), 0.0)
    features, kernels = kwargs["features_per_stage"], [prod(kernel) for kernel in kwargs["kernel_sizes"]]
    shapes = _shapes(patch, kwargs["strides"])
    blocks = "n_blocks_per_stage" in kwargs  # a residual block is two convolutions
    per_stage = _per_stage(kwargs["n_blocks_per_stage" if blocks else "n_conv_per_stage"], len(features))
    convolutions = [count * (2 if blocks else 1) for count in per_stage]
    in_decoder = _per_stage(kwargs["n_conv_per_stage_decoder"], len(features) - 1)

    flops, values = 0.0, 0.0
    for level, (shape, width, kernel) in enumerate(zip(shapes, features, kernels, strict=True)):
        before = features[level - 1] if level else 1
        flops += prod(shape) * kernel * width * (before + (convolutions[level] - 1) * width)
        values += prod(shape) * width * convolutions[level]
        if level < len(in_decoder):  # a transposed convolution from below, then one over it and the skip connection
            count = in_decoder[len(in_decoder) - 1 - level]
            flops += prod(shape) * width * (features[level + 1] + kernel * width * (2 + count - 1))
            values += prod(shape) * width * (1 + count)
    return NetworkCost(shapes[: len(in_decoder)], 2 * flops * (1 + BACKWARD), values)


def _shapes(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    shapes, shape = [], tuple(patch)
    for stride in strides:
        shape = tuple(-(-size // step) for size, step in zip(shape, stride, strict=True))
        shapes.append(shape)
    return tuple(shapes)


def _per_stage(count: int | Sequence[int], stages: int) -> list[int]:
    return [count] * stages if isinstance(count, int) else list(count)
