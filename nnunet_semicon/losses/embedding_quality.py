"""How good embeddings are, without any label of a pixel: two numbers to watch, not to minimize.

    alignment  = E_{(i,j) positive} || z_i - z_j ||^2                        (Wang & Isola, ICML 2020, eq. 2, alpha = 2)
    uniformity = log E_{i != j} exp(-2 || z_i - z_j ||^2)                    (eq. 3, t = 2)

z: embeddings on the unit sphere. Low alignment: images that share a label lie together. Low uniformity: the embeddings
use the whole sphere; a collapsed embedding has alignment 0 and uniformity 0.

Deviations: positive are the pairs of a meta-label, averaged per anchor as in the loss; in the paper two views of an
image. Pairs with an unknown label do not count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.contrastive import at_least_float32, full_precision, mean_over_positives
from nnunet_semicon.losses.pairs import Pairs


def alignment(embeddings: Tensor, pairs: Pairs) -> Tensor:
    """Mean squared distance of positive pairs.

    Args:
        embeddings: (M, D) of any scale and floating dtype.
        pairs: masks (M, M).

    Returns:
        0-dim float32 (float64 for float64 input) in [0, 4]; 0 without a positive pair.
    """
    return mean_over_positives(_squared_distances(embeddings), pairs.positive)


def uniformity(embeddings: Tensor, pairs: Pairs) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs.

    Args:
        embeddings: (M, D) of any scale and floating dtype.
        pairs: masks (M, M).

    Returns:
        0-dim float32 (float64 for float64 input) in [-8, 0]; 0 without a pair.
    """
    potential = torch.exp(-2 * _squared_distances(embeddings)).masked_fill(~pairs.candidate, 0.0)
    count = pairs.candidate.sum()
    return torch.where(count > 0, potential.sum() / count.clamp_min(1), 1.0).log()


def _squared_distances(embeddings: Tensor) -> Tensor:
    """||z_i - z_j||^2 = 2 - 2 z_i . z_j on the unit sphere; (M, D) -> (M, M)."""
    with full_precision(embeddings.device):
        z = F.normalize(at_least_float32(embeddings), dim=1)
        return (2 - 2 * z @ z.T).clamp_min(0)
