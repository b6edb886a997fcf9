import itertools

import pytest
import torch

from nnunet_semicon.losses.local_contrast import local_contrast, pixel_sets
from tests.losses import reference
from tests.losses.reference import embeddings

TAU = 0.1


def maps(batch, *size, dim=3):
    """Feature maps with classes; -1 somewhere."""
    generator = torch.Generator().manual_seed(len(size))
    features = embeddings(batch * dim * torch.Size(size).numel(), 1).view(batch, dim, *size)
    labels = torch.randint(0, 3, (batch, *size), generator=generator)
    labels[(0,) * labels.dim()] = -1
    return features, labels


def sets_by_loop(features, labels, sampling, size):
    """Each set as a list of (vector, label), pixel by pixel."""
    sets = {}
    for b, *place in itertools.product(*map(range, labels.shape)):
        if sampling == "stride" and any(p % size for p in place):
            continue
        block = tuple(p // size for p in place) if sampling == "block" else ()
        pixel = (tuple(features[(b, slice(None), *place)].tolist()), int(labels[(b, *place)]))
        sets.setdefault(block, []).append(pixel)
    return [sorted(pixels) for _, pixels in sorted(sets.items())]


@pytest.mark.parametrize("sampling", ["exact", "stride", "block"])
@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 5, 7), (1, 3, 3), (2, 4, 2, 4), (1, 5, 3, 3)])
def test_sets_of_pixels(shape, sampling):
    """Every pixel keeps its own label, 2D and 3D, also where blocks do not fit."""
    features, labels = maps(*shape)
    vectors, classes = pixel_sets(features, labels, sampling, 2)
    assert vectors.shape == (*classes.shape, 3)
    found = [
        sorted((tuple(v), c) for v, c in zip(own.tolist(), labels_.tolist(), strict=True) if any(v))
        for own, labels_ in zip(vectors, classes, strict=True)
    ]
    assert found == sets_by_loop(features, labels, sampling, 2)
    padding = (vectors == 0).all(dim=2)
    assert (classes[padding] == -1).all()


@pytest.mark.parametrize(("form", "loop"), [("supcon", reference.local_supcon), ("hu_eq2", reference.local_eq2)])
@pytest.mark.parametrize("sampling", ["exact", "stride", "block"])
def test_loss_of_maps_equals_the_loops(sampling, form, loop):
    features, labels = maps(2, 5, 6)
    vectors, classes = pixel_sets(features, labels, sampling, 3)
    expected = reference.mean_over_sets(loop, vectors, classes.tolist(), TAU)
    assert local_contrast(vectors, classes, 3, TAU, form).item() == pytest.approx(expected, abs=1e-9)


def test_one_block_is_exact():
    features, labels = maps(2, 4, 4)
    values = [local_contrast(*pixel_sets(features, labels, s, 4), 3, TAU).item() for s in ("block", "exact")]
    assert values[0] == pytest.approx(values[1])


def test_background_is_pushed_and_not_pulled():
    """Without background anchors, background pixels may lie anywhere but near the foreground."""
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, -1.0]])[None].requires_grad_()
    labels = torch.tensor([[1, 1, 0, 0]])
    (gradient,) = torch.autograd.grad(local_contrast(features, labels, 2, TAU), features)
    (pulled,) = torch.autograd.grad(local_contrast(features, labels, 2, TAU, background_anchors=True), features)
    assert gradient[0, :, 0].abs().sum() > 0
    step = features - 1e-3 * gradient
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(step[0, 0], step[0, 2], dim=0) <= cosine(features[0, 0], features[0, 2], dim=0)
    assert pulled[0, 2:].abs().sum() > gradient[0, 2:].abs().sum()
