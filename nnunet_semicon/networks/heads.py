"""Heads on tapped features; used in training only, never part of the saved network."""

from collections.abc import Sequence

from torch import Tensor, nn


class Projector(nn.Module):
    """Global average pool, then a two-layer perceptron (SP-Con supplement, section 3.2).

    Args:
        in_channels: channels of the tapped features.
        hidden: width of the hidden layer.
        out: dimension of the embedding.
    """

    def __init__(self, in_channels: int, hidden: int = 256, out: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_channels, hidden), nn.LeakyReLU(0.01), nn.Linear(hidden, out))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, *S) to (B, out), not normalized."""
        embedding: Tensor = self.mlp(features.flatten(2).mean(dim=2))
        return embedding


class Projectors(nn.Module):
    """One independent projector per meta-label.

    Args:
        names: of the meta-labels; none is allowed.
        in_channels: channels of the tapped features.
        out: dimension of an embedding.
    """

    def __init__(self, names: Sequence[str], in_channels: int, out: int) -> None:
        super().__init__()
        self.projectors = nn.ModuleDict({name: Projector(in_channels, out=out) for name in names})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Map (B, C, *S) to meta-label -> (B, out)."""
        return {name: projector(features) for name, projector in self.projectors.items()}
