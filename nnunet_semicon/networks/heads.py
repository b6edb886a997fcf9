"""Heads on tapped features; used in training only, never part of the saved network."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from nnunet_semicon.networks.precision import in_float32


class Projector(nn.Module):
    """Average pool, then a two-layer perceptron (SP-Con supplement, section 3.2).

    The paper pools globally, after batch normalization. nnU-Net normalizes every channel of every *image* to mean 0, so
    its global averages are the same for all images but for a few percent; averages over parts of the image are not.

    Args:
        in_channels: channels of the tapped features.
        spatial_dims: 2 or 3.
        grid: parts per axis; 1 is the paper's global average.
        hidden: width of the hidden layer.
        out: dimension of the embedding.
    """

    def __init__(self, in_channels: int, spatial_dims: int, grid: int, hidden: int = 256, out: int = 256) -> None:
        super().__init__()
        self.grid = grid
        pooled = in_channels * grid**spatial_dims
        self.mlp = nn.Sequential(nn.Linear(pooled, hidden), nn.LeakyReLU(0.01), nn.Linear(hidden, out))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, *S) to (B, out), not normalized."""
        pool = adaptive_avg_pool2d if features.dim() == 4 else adaptive_avg_pool3d
        embedding: Tensor = in_float32(self.mlp(pool(features, self.grid).flatten(1)))
        return embedding


class Projectors(nn.Module):
    """One independent projector per meta-label, or one for all.

    Args:
        names: of the meta-labels; none is allowed.
        in_channels: channels of the tapped features.
        spatial_dims: 2 or 3.
        grid: parts per axis that features are averaged over.
        out: dimension of an embedding.
        shared: all meta-labels share one projector.

    Attributes:
        groups: the names, grouped by projector.
    """

    def __init__(
        self,
        names: Sequence[str],
        in_channels: int,
        spatial_dims: int,
        grid: int,
        out: int,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.groups = ([self.names] if names else []) if shared else [(name,) for name in names]
        # a list: the keys of a ModuleDict may be neither "type" nor hold a dot, names of columns may
        self.projectors = nn.ModuleList(Projector(in_channels, spatial_dims, grid, out=out) for _ in self.groups)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Map (B, C, *S) to meta-label -> (B, out)."""
        embeddings = [projector(features) for projector in self.projectors]
        return {name: own for names, own in zip(self.groups, embeddings, strict=True) for name in names}


class PixelProjectors(nn.Module):
    """Perceptrons for the pixels of two networks: a first layer for each, one last layer for both (MCSC).

    Args:
        channels: of the map of each network.
        out: dimension of a pixel's embedding.
        normalize: whether the map of each network passes a layer normalization first (tokens of a Transformer do).
        hidden: width between the layers.
    """

    def __init__(self, channels: Sequence[int], out: int, normalize: Sequence[bool], hidden: int = 256) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, hidden), nn.ReLU(inplace=True)
            )
            for width, norm in zip(channels, normalize, strict=True)
        )
        self.shared = nn.Linear(hidden, out)

    def forward(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Map one (..., C) of each network to (..., out), not normalized."""
        return [in_float32(self.shared(layer(own))) for layer, own in zip(self.first, pixels, strict=True)]
