"""Which unlabeled images a step draws."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Draw(NamedTuple):
    """One image to load: the case, and the partition its slice or patch center should lie in (None: anywhere)."""

    case: str
    partition: int | None


def draw_cases(cases: Sequence[str], images: int) -> list[Draw]:
    """Draw ``images`` cases uniformly, with replacement, as nnU-Net draws its training cases."""
    return [Draw(str(case), None) for case in np.random.choice(cases, images, replace=True)]


def draw_scans(cases: Sequence[str], scans: int, per_scan: int, partitions: int | None) -> list[Draw]:
    """Draw ``scans`` cases and ``per_scan`` different partitions of each (SP-Con supplement, section 3.2).

    Cases repeat only if there are fewer than ``scans``; ``partitions`` None (no slice axis) gives images from anywhere.
    """
    chosen = np.random.choice(cases, scans, replace=len(cases) < scans)
    if partitions is None:
        return [Draw(str(case), None) for case in chosen for _ in range(per_scan)]
    return [
        Draw(str(case), int(partition))
        for case in chosen
        for partition in np.sort(np.random.choice(partitions, per_scan, replace=False))
    ]
