"""Learning-rate schedules for any number of optimizers; each group keeps its own base learning rate."""

import math
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


class WarmupPoly:
    """Linear warm-up from 1/1000 of the base learning rate, then ``(1 - t)^0.9`` (MCSC, authors' code).

    Args:
        optimizers: their groups' present learning rates are the base rates.
        epochs: length of the run.
        warmup: part of the run over which the learning rate grows, in [0, 1].
    """

    START = 1e-3  # of the base rate
    EXPONENT = 0.9

    def __init__(self, optimizers: Sequence[Optimizer], epochs: int, warmup: float) -> None:
        self.optimizers = optimizers
        self.epochs = epochs
        self.warmup = warmup
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, epoch: float) -> None:
        """Set the learning rates of ``epoch``; a fraction is a moment within it."""
        done = epoch / self.epochs
        if done < self.warmup:
            factor = self.START + (1 - self.START) * done / self.warmup
        else:
            factor = (1 - done) ** self.EXPONENT
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = factor * lr


class WarmupCosine:
    """Linear warm-up from 1/400 of the base learning rate, then cosine to 1e-7 (SP-Con supplement, Fig. 5).

    Args:
        optimizers: their groups' present learning rates are the base rates.
        epochs: length of the run.
        warmup: part of the run over which the learning rate grows, in [0, 1].
    """

    START = 1 / 400  # of the base rate
    END = 1e-7

    def __init__(self, optimizers: Sequence[Optimizer], epochs: int, warmup: float) -> None:
        self.optimizers = optimizers
        self.epochs = epochs
        self.warmup = warmup
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, epoch: float) -> None:
        """Set the learning rates of ``epoch``; a fraction is a moment within it."""
        done = epoch / self.epochs
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = self._rate(done, lr)

    def _rate(self, done: float, base: float) -> float:
        if done < self.warmup:
            return base * (self.START + (1 - self.START) * done / self.warmup)
        after = (done - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 1.0
        return self.END + (base - self.END) * (1 + math.cos(math.pi * min(after, 1.0))) / 2
