"""One row of categorical meta-labels per case, as integer codes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nnunet_semicon.meta_labels.extract import patient_of

UNKNOWN = -1
PATIENT = "patient"
POSITION = "position"  # depends on the slice, so it is no column of the table (see position.py)


@dataclass(frozen=True)
class MetaColumn:
    """One meta-label.

    Attributes:
        values: the label of each code.
        codes: case -> code in ``[0, len(values))``; a missing case is unknown.
        source: where it came from, in words.
    """

    values: tuple[str, ...]
    codes: Mapping[str, int]
    source: str

    def code(self, case: str) -> int:
        """Return the code of a case, -1 if it is unknown."""
        return self.codes.get(case, UNKNOWN)


def column(labels: Mapping[str, str], source: str) -> MetaColumn:
    """Number the distinct labels of ``labels`` (case -> label) in sorted order."""
    values = tuple(sorted(set(labels.values())))
    number = {value: code for code, value in enumerate(values)}
    return MetaColumn(values, {case: number[label] for case, label in labels.items()}, source)


def patient_column(cases: Iterable[str]) -> MetaColumn:
    """Return the patient of every case: the id before a frame suffix, or the case itself."""
    return column({case: patient_of(case) for case in cases}, "case name, without a frame suffix")
