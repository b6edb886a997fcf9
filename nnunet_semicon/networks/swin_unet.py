"""A compact U-Net of shifted-window attention, in 2d and 3d, for any patch size.

    z' = z + (S)W-MSA(LN(z)),    z'' = z' + MLP(LN(z'))                                    (Swin Transformer, eq. 3)

(Liu et al., ICCV 2021. Swin-Unet: Cao et al., ECCV-W 2022: patch merging down, patch expanding up, skip connections,
two blocks per stage.) Windows of every other block are shifted by half a window; attention has a learned bias by
relative position. Encoder and decoder have stages as nnU-Net's U-Nets do, so features are tapped, and deep supervision
is set (off), as there.

Deviations: widths, strides and the number of stages follow the planned network instead of being those of Swin-T;
initialization is random instead of ImageNet's, and Xavier's instead of the deviation of 0.02 that suits wider layers;
maps are padded to whole windows, and what pads is masked out of attention; the last map has the width of the planned
network's, which costs less memory than 96 channels.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torchvision, which timm imports
    from timm.layers import DropPath, Mlp, trunc_normal_

WINDOW = {2: 7, 3: 4}  # tokens along each axis of a window; 7 in the papers
HEAD_DIM = 32  # channels of an attention head
EMBED_DIM = 96  # width of the first stage, at most
BLOCKS = 2  # of each stage
TOKEN_SIDE = 4  # voxels along each axis of a token, at most
DROP_PATH = 0.1  # probability of the last block; grows linearly from 0


@dataclass(frozen=True)
class SwinPlan:
    """Sizes of the network.

    Attributes:
        token: voxels of a token along each axis.
        strides: from one stage of the encoder to the next, along each axis.
        widths: channels of each stage of the encoder.
        out_width: channels of the last map of the decoder, at full resolution.
        level: stage of the planned network whose resolution the first stage has.
    """

    token: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    out_width: int
    level: int


def plan_swin(features_per_stage: Sequence[int], strides: Sequence[Sequence[int]]) -> SwinPlan:
    """Derive a network from a planned one.

    Tokens take the place of the first stages, as long as no side of a token exceeds 4 voxels; every further stage of
    the plan is a stage here, with the plan's strides and at most the plan's width there.

    Args:
        features_per_stage: channels of the planned stages.
        strides: of the planned stages.
    """
    dims = len(strides[0])
    token, first = [1] * dims, 0
    while first < len(strides) - 1:
        wanted = [t * s for t, s in zip(token, strides[first], strict=True)]
        if max(wanted) > TOKEN_SIDE:
            break
        token, first = wanted, first + 1
    level = max(first, 1) - 1
    planned = features_per_stage[level:]
    widths = []
    for stage, at_most in enumerate(planned):
        width = min(EMBED_DIM * 2**stage, at_most)
        widths.append(max(HEAD_DIM, width // HEAD_DIM * HEAD_DIM) if at_most >= HEAD_DIM else at_most)
    further = tuple(tuple(s) for s in strides[level + 1 :])
    return SwinPlan(tuple(token), further, tuple(widths), features_per_stage[0], level)


class WindowAttention(nn.Module):
    """Attention of the tokens of each window to one another, with a bias by relative position.

    Args:
        width: channels.
        window: tokens of a window along each axis.
    """

    index: Tensor

    def __init__(self, width: int, window: Sequence[int]) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_DIM)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(prod(2 * w - 1 for w in window), self.heads))
        trunc_normal_(self.bias, std=0.02)
        places = torch.stack(torch.meshgrid(*(torch.arange(w) for w in window), indexing="ij")).flatten(1)
        distance = places[:, :, None] - places[:, None]  # (dims, T, T)
        index = torch.zeros_like(distance[0])
        for along, w in zip(distance, window, strict=True):
            index = index * (2 * w - 1) + along + w - 1
        self.register_buffer("index", index, persistent=False)

    def forward(self, tokens: Tensor, may_see: Tensor) -> Tensor:
        """Map (B, W, T, C) to the same shape; ``may_see`` (W, T, T) bool."""
        b, n_windows, n_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(b, n_windows, n_tokens, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
        # (B, W heads, T, C / heads); tensors of their own, so that one is freed while another is kept
        query, key, value = (own.flatten(1, 2) for own in qkv)
        bias = self.bias[self.index].permute(2, 0, 1)  # (heads, T, T)
        hidden = torch.zeros_like(may_see, dtype=bias.dtype).masked_fill_(~may_see, torch.finfo(torch.float16).min)
        mask = (bias + hidden[:, None]).flatten(0, 1).to(query.dtype)  # (W heads, T, T), the same for all images
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).unflatten(1, (n_windows, self.heads))
        result: Tensor = self.project(out.transpose(2, 3).reshape(b, n_windows, n_tokens, width))
        return result


class SwinBlock(nn.Module):
    """Window attention and a perceptron, each with a skip connection, on maps (B, *S, C).

    Args:
        width: channels C.
        window: tokens of a window along each axis.
        shift: whether windows are shifted by half their size.
        drop_path: probability that a sample skips a branch in training.
    """

    def __init__(self, width: int, window: Sequence[int], shift: bool, drop_path: float) -> None:
        super().__init__()
        self.window = tuple(window)
        self.shift = tuple(w // 2 if shift else 0 for w in window)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, window)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, *S, C) to the same shape."""
        x = x + self.drop_path(self._attend(self.norm1(x)))
        # computed again in the backward pass: half of what the block would keep, for a ninth of its time
        out: Tensor = x + self.drop_path(checkpoint(self._perceptron, x, use_reentrant=False))
        return out

    def _perceptron(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm2(x))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        size = x.shape[1:-1]
        axes = tuple(range(1, len(size) + 1))
        padding = [0, 0] + [p for n, w in zip(reversed(size), reversed(self.window), strict=True) for p in (0, -n % w)]
        padded = torch.roll(F.pad(x, padding), [-s for s in self.shift], axes)
        windows = _windows(padded, self.window)
        out = self.attention(windows, self._may_see(size, padded.shape[1:-1], x.device))
        joined = torch.roll(_joined(out, padded.shape, self.window), self.shift, axes)
        for axis, n in zip(axes, size, strict=True):
            joined = joined.narrow(axis, 0, n)
        return joined

    def _may_see(self, size: Sequence[int], padded: Sequence[int], device: torch.device) -> Tensor:
        """(W, T, T): two tokens of a window that neither the shift nor the padding brought together."""
        part = torch.zeros(tuple(padded), dtype=torch.int64, device=device)
        for axis, (n, n_padded, shift) in enumerate(zip(size, padded, self.shift, strict=True)):
            place = torch.roll(torch.arange(n_padded, device=device), -shift)
            own = (place < shift).long() + 2 * (place >= n).long()  # came around the border; is not there at all
            part = 4 * part + own.view([-1 if a == axis else 1 for a in range(len(size))])
        of_windows = _windows(part[None, ..., None], self.window)[0, :, :, 0]
        return of_windows[:, :, None] == of_windows[:, None]


class PatchEmbedding(nn.Module):
    """Voxels of a box become a token (Swin Transformer, section 3.1): (B, *S, C) -> (B, *(S / stride), C')."""

    def __init__(self, width: int, out_width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        convolution: Any = nn.Conv2d if len(stride) == 2 else nn.Conv3d
        self.project = convolution(width, out_width, self.stride, self.stride)
        self.norm = nn.LayerNorm(out_width)  # never of the voxels: intensity would be lost

    def forward(self, x: Tensor) -> Tensor:
        """Sizes that are no multiple of the stride are padded."""
        out: Tensor = self.norm(self.project(_padded(x, self.stride).movedim(-1, 1)).movedim(1, -1))
        return out


class PatchMerging(nn.Module):
    """Tokens of a box become one: (B, *S, C) -> (B, *(S / stride), C')."""

    def __init__(self, width: int, out_width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.norm = nn.LayerNorm(width * prod(stride))
        self.reduce = nn.Linear(width * prod(stride), out_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Sizes that are no multiple of the stride are padded."""
        x = _padded(x, self.stride)
        coarse = [n // s for n, s in zip(x.shape[1:-1], self.stride, strict=True)]
        boxes = _windows(x, self.stride).flatten(2)  # (B, W, T C)
        out: Tensor = self.reduce(self.norm(boxes)).view(len(x), *coarse, -1)
        return out


class PatchExpanding(nn.Module):
    """One token becomes a box of them: (B, *S, C) -> (B, *(S stride), C')."""

    def __init__(self, width: int, out_width: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.out_width = out_width
        self.expand = nn.Linear(width, out_width * prod(stride), bias=False)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """``size``: what is kept of the result along each axis."""
        fine = [n * s for n, s in zip(x.shape[1:-1], self.stride, strict=True)]
        boxes = self.expand(x).view(len(x), prod(x.shape[1:-1]), prod(self.stride), self.out_width)
        joined = _joined(boxes, (len(x), *fine, self.out_width), self.stride)
        for axis, n in enumerate(size, start=1):
            joined = joined.narrow(axis, 0, n)
        out: Tensor = self.norm(joined)
        return out


class EncoderStage(nn.Module):
    """Tokens or merged tokens, then blocks; (B, C, *S) -> (B, C', *S')."""

    def __init__(self, merge: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        self.merge = merge
        self.blocks = blocks

    def forward(self, x: Tensor) -> Tensor:
        """One stage down."""
        out: Tensor = self.blocks(self.merge(x.movedim(1, -1))).movedim(-1, 1)
        return out


class DecoderStage(nn.Module):
    """Expanded tokens joined with the skip connection, then blocks; the last stage has neither."""

    def __init__(self, width: int, out_width: int, stride: Sequence[int], blocks: nn.Module | None) -> None:
        super().__init__()
        self.expand = PatchExpanding(width, out_width, stride)
        self.fuse = nn.Identity() if blocks is None else nn.Linear(2 * out_width, out_width)
        self.blocks = nn.Identity() if blocks is None else blocks

    def forward(self, x: Tensor, skip: Tensor | None, size: Sequence[int]) -> Tensor:
        """One stage up; ``skip`` (B, C', *size)."""
        up = self.expand(x.movedim(1, -1), size)
        if skip is not None:
            up = torch.cat([up, skip.movedim(1, -1)], dim=-1)
        out: Tensor = self.blocks(self.fuse(up)).movedim(-1, 1)
        return out


class SwinEncoder(nn.Module):
    """The stages down.

    Attributes:
        stages: each returns its map, (B, C, *S).
        output_channels: of each stage.
    """

    def __init__(self, in_channels: int, plan: SwinPlan, rates: Sequence[float]) -> None:
        super().__init__()
        self.output_channels = list(plan.widths)
        merges = [
            PatchEmbedding(in_channels, plan.widths[0], plan.token),
            *map(PatchMerging, plan.widths, plan.widths[1:], plan.strides),
        ]
        self.stages = nn.ModuleList(
            EncoderStage(merge, _blocks(width, len(plan.token), rates[i : i + 2]))
            for i, (merge, width) in enumerate(zip(merges, plan.widths, strict=True))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, the finest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class SwinDecoder(nn.Module):
    """The stages up, then a pointwise convolution.

    Attributes:
        stages: each returns its map; the last one at full resolution.
        output_channels: of each stage.
        levels: of each stage: the stage of the planned network whose resolution it has, 0 = full resolution.
        deep_supervision: nnU-Net sets it; there is none here.
    """

    def __init__(self, out_channels: int, plan: SwinPlan, rates: Sequence[float]) -> None:
        super().__init__()
        self.deep_supervision = False
        widths = [*plan.widths[::-1][1:], plan.out_width]
        steps = [*plan.strides[::-1], plan.token]
        self.output_channels = widths
        last = len(widths) - 1
        self.levels = [*(plan.level + i for i in reversed(range(last))), 0]
        self.stages = nn.ModuleList(
            DecoderStage(
                plan.widths[-1] if i == 0 else widths[i - 1],
                width,
                steps[i],
                None if i == last else _blocks(width, len(plan.token), rates[last - i - 1 : last - i + 1]),
            )
            for i, width in enumerate(widths)
        )
        convolution = nn.Conv2d if len(plan.token) == 2 else nn.Conv3d
        self.seg_layers = nn.ModuleList([convolution(plan.out_width, out_channels, 1)])

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return logits (B, K, *size) from the encoder's maps."""
        x = maps[-1]
        for index, stage in enumerate(self.stages):
            skip = maps[-2 - index] if index < len(maps) - 1 else None
            x = stage(x, skip, size if skip is None else skip.shape[2:])
        logits: Tensor = self.seg_layers[0](x)
        return logits


class SwinUNet(nn.Module):
    """Shifted-window U-Net.

    Args:
        in_channels: of the image.
        out_channels: classes, background included, or regions.
        plan: its sizes.
    """

    def __init__(self, in_channels: int, out_channels: int, plan: SwinPlan) -> None:
        super().__init__()
        rates = torch.linspace(0, DROP_PATH, len(plan.widths) + 1).tolist()
        self.encoder = SwinEncoder(in_channels, plan, rates)
        self.decoder = SwinDecoder(out_channels, plan, rates)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, *S) of any size to logits (B, out_channels, *S)."""
        logits: Tensor = self.decoder(self.encoder(x), x.shape[2:])
        return logits


def _blocks(width: int, dims: int, rates: Sequence[float]) -> nn.Sequential:
    """A stage's blocks: without a shift and with one, in turn."""
    window = [WINDOW[dims]] * dims
    return nn.Sequential(*(SwinBlock(width, window, i % 2 == 1, rates[i % len(rates)]) for i in range(BLOCKS)))


def _padded(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(B, *S, C) with zeros behind each axis, up to a multiple of the stride."""
    padding = [0, 0]
    for n, s in zip(reversed(x.shape[1:-1]), reversed(stride), strict=True):
        padding += [0, -n % s]
    return F.pad(x, padding)


def _windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, *S, C) with sides that are multiples of the window -> (B, windows, tokens, C)."""
    dims = len(window)
    for axis, w in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (-1, w))
    outer, inner = [1 + 2 * a for a in range(dims)], [2 + 2 * a for a in range(dims)]
    return x.permute(0, *outer, *inner, -1).flatten(1 + dims, 2 * dims).flatten(1, dims)


def _joined(windows: Tensor, shape: Sequence[int], window: Sequence[int]) -> Tensor:
    """The inverse of :func:`_windows`; ``shape`` (B, *S, C)."""
    dims = len(window)
    counts = [n // w for n, w in zip(shape[1:-1], window, strict=True)]
    x = windows.view(shape[0], *counts, *window, shape[-1])
    order = [axis for a in range(dims) for axis in (1 + a, 1 + dims + a)]
    return x.permute(0, *order, -1).reshape(tuple(shape))


def _initialize(module: Any) -> None:
    """Xavier's weights, as timm has them in its JAX-like initialization of Transformers."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
