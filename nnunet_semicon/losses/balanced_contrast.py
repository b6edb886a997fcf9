"""Class-balanced contrast of pixels: in the denominator every class counts as one, however many pixels it has.

    L_bcl = -1/|A| sum_{i in A} 1/(|A_y(i)| - 1) sum_{p in A_y(i) without i}
                log [ exp(a_i.a_p/tau) / sum_y 1/n_iy sum_{k in A_y without i} exp(a_i.a_k/tau) ]
    n_iy  = |A_y| - 1[y = y(i)]

(MCSC, Liu et al., BMVC 2023.) A: the pixels of a set; A_y: those of class y. In code: a ``embeddings``, tau
``temperature``.

Sampling: :func:`shuffled_blocks` cuts every map into blocks, shuffles the blocks of each map, and contrasts the k-th
blocks of all maps with one another.

Deviations: n_iy leaves the anchor itself out, as in the paper's code; the poster prints 1/|A_y|. Anchors without a
positive do not count. The authors' code mixes up labels and pixels within a block and leaves out the last blocks of a
map; here every pixel keeps its label, and blocks cover the map (those at the border may be smaller).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.contrastive import log_sum, mean_over_anchors, scaled_unit_vectors
from nnunet_semicon.losses.local_contrast import pixel_sets
from nnunet_semicon.losses.pairs import Pairs
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import group_logsumexp, positive_similarity


def balanced_contrast(embeddings: Tensor, pairs: Pairs, n_classes: int, temperature: float) -> Tensor:
    """L_bcl of every set, averaged over the sets that have an anchor.

    Args:
        embeddings: (N, D), or (K, N, D), of any scale: possible anchors, then the other candidates.
        pairs: labels of the embeddings, in [0, n_classes) where they are known.
        n_classes: their number.
        temperature: tau >= 0.005.

    Returns:
        0-dim float32 (float64 for float64 input).
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature)
        sums = group_logsumexp(z, pairs.labels, n_classes, pairs.n_anchors)
        own = F.one_hot(pairs.labels[:, : pairs.n_anchors].clamp_min(0), n_classes)
        sizes = torch.stack([(pairs.labels == y).sum(dim=1) for y in range(n_classes)], dim=1)
        log_denominator = log_sum(sums - (sizes[:, None] - own).clamp_min(1).to(z.dtype).log())
        similarity, n_positives = positive_similarity(z, pairs.labels, pairs.n_anchors)
        loss = mean_over_anchors(log_denominator - similarity, pairs.is_anchor & (n_positives > 0))
        return loss.to(at_least_float32(embeddings).dtype)


def shuffled_blocks(features: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return sets of pixels: one block of every map, each at a place of its own.

    Args:
        features: (M, D, *S), 2 or 3 spatial axes.
        labels: (M, *S) int64 at the same resolution.
        size: pixels along each side of a block.

    Returns:
        (K, M size^dim, D) vectors and (K, M size^dim) labels for the K blocks of a map; what pads a block beyond the
        border has the label -1.
    """
    sets = pixel_sets(features, labels, "block", size)
    vectors, classes = (own.unflatten(1, (len(labels), -1)) for own in sets)  # (K, M, size^dim, D) and (K, M, size^dim)
    order = torch.rand(classes.shape[:2], device=labels.device).argsort(dim=0)  # another one for each map
    blocks = (order * len(labels) + torch.arange(len(labels), device=labels.device)).flatten()
    shuffled = (own.flatten(0, 1).index_select(0, blocks).view_as(own) for own in (vectors, classes))
    vectors, classes = (own.flatten(1, 2) for own in shuffled)
    return vectors, classes
