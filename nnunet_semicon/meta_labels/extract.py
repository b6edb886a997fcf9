"""Meta-labels that a case's name tells."""

import re

# What follows the patient in names such as patient001_frame01 (ACDC), A0S9V9_ED (M&Ms), scan7-t02, s12_visit2,
# sub-04_ses-01 (BIDS). Only clear markers of a time point: a bare number may as well be the patient's own.
_TIME_POINT = re.compile(
    r"""[_-](?: frame[_-]?\d+
              | ED | ES
              | t\d+ | (?:time|tp|timepoint|visit)[_-]?\d+
              | ses-[A-Za-z0-9]+ )$""",
    re.VERBOSE | re.IGNORECASE,
)


def patient_of(case: str) -> str:
    """Return the patient of a case: its name before a time-point suffix, else the whole name.

    ``patient001_frame01`` -> ``patient001``, ``A0S9V9_ED`` -> ``A0S9V9``, ``hippocampus_007`` -> ``hippocampus_007``.
    """
    match = _TIME_POINT.search(case)
    return case[: match.start()] if match and match.start() > 0 else case
