import math

import pytest

from nnunet_semicon.losses.schedules import ema_decay, power_schedule, sigmoid_rampup


@pytest.mark.parametrize(
    ("t", "length", "expected"),
    [
        (0.0, 1.0, math.exp(-5)),
        (0.5, 1.0, math.exp(-5 / 4)),
        (1.0, 1.0, 1.0),
        (0.0, 0.4, math.exp(-5)),
        (0.2, 0.4, math.exp(-5 / 4)),
        (0.4, 0.4, 1.0),
        (0.9, 0.4, 1.0),
        (0.0, 0.0, 1.0),
        (0.5, 0.0, 1.0),
    ],
)
def test_sigmoid_rampup(t, length, expected):
    assert sigmoid_rampup(t, length) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("t", "exponent", "expected"),
    [
        (0.0, 0.5, 2.0),
        (0.25, 0.5, 26.0),
        (0.5, 0.5, 2 + 48 * math.sqrt(0.5)),
        (1.0, 0.5, 50.0),
        (0.5, 1.0, 26.0),
        (0.5, 2.0, 14.0),
        (0.0, 0.0, 50.0),
    ],
)
def test_power_schedule(t, exponent, expected):
    assert power_schedule(t, 2.0, 50.0, exponent) == pytest.approx(expected)


def test_power_schedule_defaults_to_the_square_root_and_may_fall():
    assert power_schedule(0.25, 0.0, 1.0) == 0.5
    assert power_schedule(0.25, 1.0, 0.0) == 0.5


@pytest.mark.parametrize(
    ("step", "decay", "expected"),
    [(0, 0.999, 0.0), (1, 0.999, 0.5), (9, 0.999, 0.9), (9, 0.5, 0.5), (10**6, 0.999, 0.999), (3, 0.0, 0.0)],
)
def test_ema_decay(step, decay, expected):
    assert ema_decay(step, decay) == pytest.approx(expected)


def test_ema_decay_averages_the_first_steps_equally():
    values, mean = [4.0, 1.0, 7.0, 2.0], 100.0  # what the average held before step 0 is gone
    for step, value in enumerate(values):
        alpha = ema_decay(step, 0.999)
        mean = alpha * mean + (1 - alpha) * value
    assert mean == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_refuses_values_outside_their_range(bad):
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\]"):
        sigmoid_rampup(bad)
    with pytest.raises(ValueError, match=r"length must be in \[0, 1\]"):
        sigmoid_rampup(0.5, bad)
    with pytest.raises(ValueError, match=r"t must be in \[0, 1\]"):
        power_schedule(bad, 2.0, 50.0)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\]"):
        ema_decay(3, bad)
    with pytest.raises(ValueError, match="exponent must be at least 0"):
        power_schedule(0.5, 2.0, 50.0, -1.0)
    with pytest.raises(ValueError, match="step must be at least 0"):
        ema_decay(-1, 0.9)
