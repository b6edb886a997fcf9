"""What the contrast of patches is for: no patch is pushed from its own class. Its loops are in test_streaming.py."""

import math

import pytest
import torch

from nnunet_semicon.losses.pairs import pairs_by_label
from nnunet_semicon.losses.patch_contrast import patch_contrast
from tests.losses.reference import embeddings

TAU = 0.2


def test_closed_form_of_two_classes_at_right_angles():
    f = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    loss = patch_contrast(f, pairs_by_label(torch.tensor([0, 0, 1, 1])), 2, TAU)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / TAU)), rel=1e-5)


def test_patches_of_the_own_class_are_no_negatives():
    """A third patch of the class, however far away, changes no term of the other two."""
    two = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    first = patch_contrast(two, pairs_by_label(torch.tensor([0, 0, 1])), 2, TAU)
    third = torch.cat([two, torch.tensor([[0.0, 0.0, 1.0]])])
    own = math.log(1 + math.exp(-1 / TAU))  # terms of a pair that agrees
    far = math.log(1 + 1)  # of a pair at right angles, as far away as the negative
    assert first.item() == pytest.approx(own, rel=1e-5)
    value = patch_contrast(third, pairs_by_label(torch.tensor([0, 0, 1, 0])), 2, TAU)
    assert value.item() == pytest.approx(((own + far) / 2 * 2 + far) / 3, rel=1e-5)


def test_a_queue_has_candidates_and_no_anchors():
    f, queue = embeddings(5, 4), embeddings(12, 4)[5:]
    labels, of_queue = torch.tensor([0, 1, 1, -1, 2]), torch.tensor([0, 0, 2, -1, 1, 0, 2])
    f.requires_grad_()
    queue.requires_grad_()
    loss = patch_contrast(torch.cat([f, queue]), pairs_by_label(labels, of_queue), 3, TAU)
    expected = []
    unit = [list(torch.nn.functional.normalize(v, dim=0).detach()) for v in [*f, *queue]]
    every = [*labels.tolist(), *of_queue.tolist()]

    def e(i, j):
        return math.exp(sum(float(a * b) for a, b in zip(unit[i], unit[j], strict=True)) / TAU)

    for i in (0, 1, 2, 4):
        below = sum(e(i, j) for j in range(12) if every[j] not in (-1, every[i]))
        positives = [j for j in range(12) if j != i and every[j] == every[i]]
        expected.append(sum(-math.log(e(i, j) / (e(i, j) + below)) for j in positives) / len(positives))
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-10)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [-1, -1, -1], []])
def test_one_class_or_single_patches_teach_nothing(labels):
    f = embeddings(len(labels), 4).requires_grad_()
    loss = patch_contrast(f, pairs_by_label(torch.tensor(labels, dtype=torch.int64)), 3, TAU)
    loss.backward()
    assert loss == 0
    assert (f.grad == 0).all()
