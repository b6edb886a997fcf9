"""Contrast of patches: those of one class are drawn together, and pushed from those of all other classes alone.

    L = 1/|U| sum_{u in U} 1/|P(u)| sum_{v in P(u)} -log[ e^{f_u f_v / tau} / ( e^{f_u f_v / tau} + N_u ) ]
    N_u = sum_{k' != k(u)} sum_{n of class k'} e^{f_u f_n / tau}

(PLGCL, Basak and Yin, CVPR 2023, step 3.) f: embeddings on the unit sphere, k(u): class of patch u, P(u): the other
patches of its class, U: patches with a positive and a negative. A positive stands in its own denominator alone and no
patch of the class is a negative: there is no class collision.

Deviations: the poster's expectation over positives and negatives is the mean over what was drawn; the Gaussian closed
form of the authors' code is not used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.contrastive import log_sum, mean_over_anchors, scaled_unit_vectors
from nnunet_semicon.losses.pairs import Pairs, positive_counts
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import binary_objective, group_logsumexp


def patch_contrast(embeddings: Tensor, pairs: Pairs, n_classes: int, temperature: float) -> Tensor:
    """L over the anchors of ``pairs``.

    Args:
        embeddings: (N, D), or (K, N, D), of any scale: patches of this step, then those of a queue.
        pairs: of the classes of the patches, in [0, n_classes), -1 = no patch.
        n_classes: their number.
        temperature: tau >= 0.005.

    Returns:
        0-dim float32 (float64 for float64 input) >= 0; a zero connected to the graph where no class has two patches,
        or there is only one class.
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature)
        sums = group_logsumexp(z, pairs.labels, n_classes, pairs.n_anchors)
        own = F.one_hot(pairs.labels[:, : pairs.n_anchors].clamp_min(0), n_classes).bool()
        log_negatives = log_sum(sums.masked_fill(own, -torch.inf))
        n_positives = positive_counts(pairs)
        n_negatives = pairs.known.sum(dim=1, keepdim=True) - 1 - n_positives
        per_anchor = binary_objective(z, log_negatives, pairs.labels) / n_positives.clamp_min(1)
        loss = mean_over_anchors(per_anchor, pairs.is_anchor & (n_positives > 0) & (n_negatives > 0))
        return loss.to(at_least_float32(embeddings).dtype)
