"""What changes in the course of a run, as functions of the fraction t in [0, 1] of the run that is done.

    ramp-up:  exp(-5 (1 - min(t / length, 1))^2)                       (Laine & Aila, ICLR 2017; Mean Teacher)
    pace:     gamma(t) = start + (end - start) t^p                     (SP-Con, eq. 16)
    EMA:      alpha(step) = min(1 - 1 / (step + 1), decay)             (Mean Teacher, authors' code)

Deviations: the papers count epochs or iterations; a fraction fits runs of any length. SP-Con updates gamma once per
epoch; here it follows t as often as the caller asks.
"""

import math


def sigmoid_rampup(t: float, length: float = 1.0) -> float:
    """Grow from exp(-5) = 0.0067 to 1 within the first ``length`` of the run, then stay at 1.

    Args:
        t: fraction of the run that is done, in [0, 1].
        length: part of the run over which the weight grows, in [0, 1]; 0 = no ramp, always 1.

    Raises:
        ValueError: an argument outside its range.
    """
    _require_fraction("t", t)
    _require_fraction("length", length)
    done = min(t / length, 1.0) if length > 0 else 1.0
    return math.exp(-5.0 * (1.0 - done) ** 2)


def power_schedule(t: float, start: float, end: float, exponent: float = 0.5) -> float:
    """Go from ``start`` (t = 0, exactly) to ``end`` (t = 1), fast first for an exponent below 1.

    Args:
        t: fraction of the run that is done, in [0, 1].
        start: value at t = 0.
        end: value at t = 1.
        exponent: p >= 0; 1 is a straight line, 0 is ``end`` throughout.

    Raises:
        ValueError: an argument outside its range.
    """
    _require_fraction("t", t)
    if not exponent >= 0:
        raise ValueError(f"exponent must be at least 0, got {exponent}")
    return start + (end - start) * t**exponent


def ema_decay(step: int, decay: float) -> float:
    """Decay of a moving average that starts as a plain mean: 0 at step 0 (a copy), then up to ``decay``.

    Args:
        step: updates made so far, >= 0.
        decay: final decay, in [0, 1].

    Raises:
        ValueError: an argument outside its range.
    """
    _require_fraction("decay", decay)
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return min(1.0 - 1.0 / (step + 1), decay)


def _require_fraction(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
