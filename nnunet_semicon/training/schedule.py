"""Learning-rate schedules for any number of optimizers; each group keeps its own base learning rate."""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer

EXPONENT = 0.9  # of the polynomial, nnU-Net's


def poly(done: float, base: float) -> float:
    """``base (1 - done)^0.9``; the arithmetic is nnU-Net's, so that the rates are equal bit by bit."""
    return float(base * (1 - done) ** EXPONENT)


def warmup_poly(done: float, base: float, warmup: float) -> float:
    """Linear warm-up from 1/1000 of ``base``, then :func:`poly` (MCSC, authors' code); ``warmup`` in [0, 1]."""
    return base * _growth(1e-3, done, warmup) if done < warmup else poly(done, base)


def warmup_cosine(done: float, base: float, warmup: float) -> float:
    """Linear warm-up from 1/400 of ``base``, then cosine to 1e-7 (SP-Con supplement, Fig. 5); ``warmup`` in [0, 1]."""
    if done < warmup:
        return base * _growth(1 / 400, done, warmup)
    end = 1e-7
    after = (done - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return end + (base - end) * (1 + math.cos(math.pi * min(after, 1.0))) / 2


def _growth(start: float, done: float, warmup: float) -> float:
    return start + (1 - start) * done / warmup


class LearningRates:
    """Sets the learning rate of every group; nnU-Net's own scheduler gives all groups the same one.

    Args:
        optimizers: their groups' present learning rates are the base rates.
        epochs: length of the run.
        rate: finished part of the run in [0, 1], base rate -> rate.
        every_step: rates change within an epoch, too; otherwise at its start, as nnU-Net's. A group that warms up has a
            key ``warmup``, part of the run, and follows :func:`warmup_poly` in every step; the others stay as they
            would be without it, so that a network is trained alike with and without another one beside it.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        epochs: int,
        rate: Callable[[float, float], float] = poly,
        every_step: bool = False,
    ) -> None:
        self.epochs = epochs
        self.rate = rate
        self.optimizers = optimizers
        self.every_step = every_step
        self.changes_within_epochs = every_step or any("warmup" in g for o in optimizers for g in o.param_groups)
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, epoch: float) -> None:
        """Set the learning rates of ``epoch``; a fraction is a moment within it."""
        done = (epoch if self.every_step else math.floor(epoch)) / self.epochs
        for optimizer, of_groups in zip(self.optimizers, self.base, strict=True):
            for group, base in zip(optimizer.param_groups, of_groups, strict=True):
                if "warmup" in group:
                    group["lr"] = warmup_poly(epoch / self.epochs, base, group["warmup"])
                else:
                    group["lr"] = self.rate(done, base)
