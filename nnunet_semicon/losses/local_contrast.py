"""Supervised local contrast: pixels of one class are drawn together in the decoder's feature space.

    L_l = 1/|Omega| sum_{i in Omega} l_i                                                                       (eq. 3)

    supcon:  l_i = -1/|P(i)| sum_{p in P(i)} log [ exp(f_i . f_p / tau) / sum_{a != i} exp(f_i . f_a / tau) ]
    hu_eq2:  l_i = -1/|P(i)| log [ sum_{p in P(i)} exp(f_i . f_p / tau) / sum_{n in N(i)} exp(f_i . f_n / tau) ]

(Hu et al., MICCAI 2021. The paper prints the second, its eq. 2; its code computes the first.) Omega: pixels that are
not background; P(i): other pixels of i's class; N(i): pixels of all other classes, background included; over all images
and views of the batch. In code: f ``features``, tau ``temperature``.

Samplings: ``exact`` takes every pixel (memory grows with their number, not with its square:
:mod:`nnunet_semicon.losses.streaming`); ``stride`` every s-th along each axis; ``block`` contrasts within blocks at the
same place of all images, and averages over the blocks.

Deviations: pixels without a positive and, in eq. 2, without a negative do not count. The paper's blocks tile the image;
here those at the border may be smaller. Pixels to be ignored take part in nothing.
"""

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_semicon.losses.contrastive import log_sum, mean_over_anchors, scaled_unit_vectors, supervised_contrast
from nnunet_semicon.losses.pairs import UNKNOWN, Pairs, anchors_first, positive_counts
from nnunet_semicon.losses.precision import at_least_float32, full_precision
from nnunet_semicon.losses.streaming import group_logsumexp

Form: TypeAlias = Literal["supcon", "hu_eq2"]
Sampling: TypeAlias = Literal["exact", "stride", "block"]


def local_contrast(
    features: Tensor,
    labels: Tensor,
    n_classes: int,
    temperature: float,
    form: Form = "supcon",
    *,
    background_anchors: bool = False,
) -> Tensor:
    """Contrast all pixels of each set.

    Args:
        features: (K, N, D) from :func:`pixel_sets`, any scale and floating dtype.
        labels: (K, N) int64 classes in [0, n_classes), 0 = background, -1 = to be ignored.
        n_classes: background included.
        temperature: tau >= 0.005.
        form: ``supcon`` or ``hu_eq2``.
        background_anchors: whether pixels of the background are drawn together too.

    Returns:
        0-dim float32 (float64 for float64 input); a zero connected to the graph without any pair to contrast.
    """
    is_anchor = labels >= (0 if background_anchors else 1)
    vectors, pairs = anchors_first(features, labels, is_anchor)
    if form == "supcon":
        return supervised_contrast(vectors, pairs, temperature)
    return log_of_sums_contrast(vectors, pairs, n_classes, temperature)


def log_of_sums_contrast(embeddings: Tensor, pairs: Pairs, n_classes: int, temperature: float) -> Tensor:
    """Eq. 2: the logarithm of a quotient of sums, with nothing but negatives below.

    Args:
        embeddings: (N, D), or (K, N, D), of any scale: possible anchors, then the other candidates.
        pairs: labels of the embeddings, in [0, n_classes) where they are known.
        n_classes: their number.
        temperature: tau >= 0.005.

    Returns:
        0-dim float32 (float64 for float64 input), of either sign.
    """
    with full_precision(embeddings.device):
        z = scaled_unit_vectors(embeddings, pairs, temperature)
        sums = group_logsumexp(z, pairs.labels, n_classes, pairs.n_anchors)
        is_own = F.one_hot(pairs.labels[:, : pairs.n_anchors].clamp_min(0), n_classes).bool()
        negatives = log_sum(sums.masked_fill(is_own, -torch.inf))
        positives = log_sum(sums.masked_fill(~is_own, -torch.inf))
        n_positives = positive_counts(pairs)
        n_negatives = pairs.known.sum(dim=1, keepdim=True) - 1 - n_positives
        per_anchor = (negatives - positives) / n_positives.clamp_min(1)
        loss = mean_over_anchors(per_anchor, pairs.is_anchor & (n_positives > 0) & (n_negatives > 0))
        return loss.to(at_least_float32(embeddings).dtype)


def pixel_sets(features: Tensor, labels: Tensor, sampling: Sampling, size: int) -> tuple[Tensor, Tensor]:
    """Turn feature maps into sets of pixels that are contrasted with one another.

    Args:
        features: (B, D, *S), 2 or 3 spatial axes; images and views along B.
        labels: (B, *S) int64 at the same resolution.
        sampling: ``exact``: one set of all pixels; ``stride``: one set of every ``size``-th pixel along each axis;
            ``block``: one set for each block of ``size`` pixels along each axis, with the pixels of all images there.
        size: stride, or side of a block; of no meaning for ``exact``.

    Returns:
        (K, N, D) vectors and (K, N) labels; what pads a block beyond the border has the label -1.
    """
    if sampling == "stride":
        for axis in range(1, labels.dim()):
            every = torch.arange(0, labels.shape[axis], size, device=labels.device)
            features, labels = features.index_select(axis + 1, every), labels.index_select(axis, every)
    if sampling == "block":
        padding = [p for extent in reversed(labels.shape[1:]) for p in (0, -extent % size)]
        features, labels = F.pad(features, padding), F.pad(labels, padding, value=UNKNOWN)
        return _blocks(features.movedim(1, -1), size), _blocks(labels[..., None], size)[..., 0]
    return features.movedim(1, -1).flatten(0, -2)[None], labels.flatten()[None]


def _blocks(maps: Tensor, size: int) -> Tensor:
    """(B, *S, D) to (blocks, B x pixels of a block, D)."""
    spatial = maps.dim() - 2
    for axis in range(spatial):
        maps = maps.unflatten(1 + 2 * axis, (-1, size))
    blocks = [1 + 2 * axis for axis in range(spatial)]
    within = [2 + 2 * axis for axis in range(spatial)]
    return maps.permute(*blocks, 0, *within, -1).flatten(spatial, -2).flatten(0, spatial - 1)
