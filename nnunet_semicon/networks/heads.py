"""Heads on tapped features; used in training only, never part of the saved network."""

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
        return self.mlp(features.flatten(2).mean(dim=2))
