"""nnU-Net's learning-rate schedule for any number of optimizers."""

from collections.abc import Sequence

from torch.optim import Optimizer


class FractionPolyLR:
    """``lr = base_lr * (1 - epoch / epochs) ** 0.9`` for every group, from the group's own base learning rate.

    nnU-Net's scheduler gives all groups the same rate. The arithmetic is nnU-Net's, so that the rates are equal bit by
    bit.

    Args:
        optimizers: their groups' present learning rates are the base rates.
        epochs: length of the run.
        exponent: of the polynomial.
    """

    def __init__(self, optimizers: Sequence[Optimizer], epochs: int, exponent: float = 0.9) -> None:
        self.optimizers = optimizers
        self.epochs = epochs
        self.exponent = exponent
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, epoch: int) -> None:
        """Set the learning rates of ``epoch``."""
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * (1 - epoch / self.epochs) ** self.exponent
