import math

import pytest
import torch

from nnunet_semicon.losses.embedding_quality import alignment, uniformity
from nnunet_semicon.losses.pairs import pairs_by_label
from tests.losses import reference
from tests.losses.reference import DEGENERATE, LABEL_PATTERNS, VALUE_TOLERANCE, embeddings

WITHOUT_BANK = {name: rows for name, (rows, bank) in (LABEL_PATTERNS | DEGENERATE).items() if bank is None}


def pairs_of(rows):
    return pairs_by_label(torch.tensor(rows, dtype=torch.int64))


@pytest.mark.parametrize("rows", WITHOUT_BANK.values(), ids=WITHOUT_BANK)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equals_the_loops(rows, dtype):
    z = embeddings(len(rows), 5, dtype=dtype)
    tolerance = VALUE_TOLERANCE[dtype]
    assert float(alignment(z, pairs_of(rows))) == pytest.approx(reference.alignment(z, rows), abs=tolerance)
    assert float(uniformity(z, pairs_of(rows))) == pytest.approx(reference.uniformity(z, rows), abs=tolerance)


def test_a_collapsed_embedding_is_aligned_and_not_uniform():
    z = torch.ones(4, 3)
    assert float(alignment(z, pairs_of([0, 0, 1, 1]))) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(z, pairs_of([0, 0, 1, 1]))) == pytest.approx(0, abs=1e-6)


def test_opposite_points():
    z = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    assert float(alignment(z, pairs_of([0, 0]))) == pytest.approx(4)
    assert float(uniformity(z, pairs_of([0, 0]))) == pytest.approx(-8)
    assert float(alignment(z, pairs_of([0, 1]))) == 0


def test_spread_over_the_circle_is_more_uniform_than_a_cluster():
    angles = torch.arange(8) * math.pi / 4
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    cluster = torch.stack([(angles / 20).cos(), (angles / 20).sin()], dim=1)
    pairs = pairs_of(list(range(8)))
    assert uniformity(circle, pairs) < uniformity(cluster, pairs) - 0.5
