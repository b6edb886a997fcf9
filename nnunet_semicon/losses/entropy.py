"""Entropy of class probabilities: how sure a network is of a pixel, and of a window.

    F(x) = -x log x - (1 - x) log(1 - x)                                                   (PLGCL poster, step 1)

x: probability that a pixel belongs to one class. In bits, F lies in [0, 1].

Deviations: the poster prints the natural logarithm; the authors' code takes the binary one, without which 1 - F is not
in [0, 1]. Either is possible.
"""

import math

import torch
from torch import Tensor

from nnunet_semicon.losses.precision import at_least_float32


def binary_entropy(probability: Tensor, bits: bool = True) -> Tensor:
    """F(x), elementwise.

    Args:
        probability: any shape, floating dtype, in [0, 1].
        bits: logarithm to base 2, otherwise natural.

    Returns:
        Same shape, at least float32, in [0, 1] (bits) or [0, log 2]; 0 at 0 and at 1.
    """
    x = at_least_float32(probability)
    entropy = -torch.xlogy(x, x) - torch.xlogy(1 - x, 1 - x)
    return entropy / math.log(2) if bits else entropy
