import math

import pytest
import torch

from nnunet_semicon.losses.entropy import binary_entropy


@pytest.mark.parametrize("bits", [True, False])
def test_equals_the_formula(bits):
    base = 2 if bits else math.e
    for x in (1e-6, 0.1, 0.3, 0.5, 0.9, 1 - 1e-6):
        expected = -x * math.log(x, base) - (1 - x) * math.log(1 - x, base)
        assert binary_entropy(torch.tensor(x, dtype=torch.float64), bits).item() == pytest.approx(expected, rel=1e-9)


def test_certainty_has_none_and_doubt_one_bit():
    entropy = binary_entropy(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float16))
    assert entropy.dtype == torch.float32
    assert entropy.tolist() == [0.0, 1.0, 0.0]
