"""How good embeddings are, without any label of a pixel: two numbers to watch, not to minimize.

    alignment  = E_{(i,j) positive} || z_i - z_j ||^2                        (Wang & Isola, ICML 2020, eq. 2, alpha = 2)
    uniformity = log E_{i != j} exp(-2 || z_i - z_j ||^2)                    (eq. 3, t = 2)

z: embeddings on the unit sphere, where || z_i - z_j ||^2 = 2 - 2 z_i . z_j. Low alignment: images that share a label
lie together. Low uniformity: the embeddings use the whole sphere; a collapsed embedding has alignment 0 and
uniformity 0.

Deviations: positive are the pairs of a meta-label, averaged per anchor as in the loss; in the paper two views of an
image. Pairs with an unknown label do not count.
"""

import torch
from torch import Tensor

from nnunet_semicon.losses.contrastive import log_denominators, mean_over_anchors, scaled_unit_vectors
from nnunet_semicon.losses.pairs import Pairs
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import positive_similarity


def alignment(embeddings: Tensor, pairs: Pairs) -> Tensor:
    """Mean squared distance of positive pairs.

    Args:
        embeddings: (N, D) of any scale and floating dtype.
        pairs: their labels, K = 1.

    Returns:
        0-dim float32 (float64 for float64 input) in [0, 4]; 0 without a positive pair.
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature=1.0)
        similarity, n_positives = positive_similarity(z, pairs.labels, pairs.n_anchors)
        return mean_over_anchors((2 - 2 * similarity).clamp_min(0), pairs.is_anchor & (n_positives > 0))


def uniformity(embeddings: Tensor, pairs: Pairs) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs.

    Args:
        embeddings: (N, D) of any scale and floating dtype.
        pairs: their labels, K = 1.

    Returns:
        0-dim float32 (float64 for float64 input) in [-8, 0]; 0 without a pair.
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature=1 / 4)  # -2 (2 - 2 z_i . z_j) = 4 z_i . z_j - 4
        (log_sums,) = log_denominators(z, [pairs])
        known = pairs.known.sum()
        count = pairs.is_anchor.sum() * (known - 1)
        total = log_sums.masked_fill(~pairs.is_anchor, -torch.inf).flatten().logsumexp(0)
        mean = total - 4 - count.clamp_min(1).to(z.dtype).log()
        return torch.where(count > 0, mean, 0.0).to(at_least_float32(embeddings).dtype)
