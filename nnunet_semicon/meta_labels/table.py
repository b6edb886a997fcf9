"""One row of categorical meta-labels per case, as integer codes."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_semicon.meta_labels.extract import patients_from_names

UNKNOWN = -1
PATIENT = "patient"
POSITION = "position"  # depends on the slice, so it is no column of the table (see position.py)
SELF = "self"  # every image is its own label: the contrast of SimCLR
OTHERS = "others"  # stands for every column without a weight of its own
RESERVED = (POSITION, SELF, OTHERS)  # no column may be called so


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

    def value(self, case: str) -> str | None:
        """Return the label of a case, None if it is unknown."""
        code = self.code(case)
        return None if code == UNKNOWN else self.values[code]

    def counts(self) -> dict[str, int]:
        """Return label -> number of cases, the most frequent first."""
        counts = Counter(self.values[code] for code in self.codes.values())
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def column(labels: Mapping[str, str], source: str) -> MetaColumn:
    """Number the distinct labels of ``labels`` (case -> label) in sorted order."""
    values = tuple(sorted(set(labels.values())))
    number = {value: code for code, value in enumerate(values)}
    return MetaColumn(values, {case: number[label] for case, label in labels.items()}, source)


def patient_column(cases: Iterable[str]) -> MetaColumn:
    """Return the patient of every case as the names of all cases tell it."""
    return column(*patients_from_names(list(cases)))


@dataclass(frozen=True)
class MetaTable:
    """The meta-labels of a dataset that do not depend on the slice.

    Attributes:
        cases: every case, also those without any known label.
        columns: name -> column; ``patient`` is always there, and first.
    """

    cases: tuple[str, ...]
    columns: Mapping[str, MetaColumn]

    def __post_init__(self) -> None:
        names = list(self.columns)
        if names[:1] != [PATIENT] or POSITION in names:
            raise ValueError(f"the columns must start with '{PATIENT}' and lack '{POSITION}', got {names}")

    def labels(self) -> tuple[str, ...]:
        """Return the columns that can serve as a label: those with at least two values, each shared by scans."""
        return tuple(name for name in self.columns if self.why_no_label(name) is None)

    def why_no_label(self, name: str) -> str | None:
        """Return why a column cannot serve as a label, or None if it can.

        A column other than ``patient`` with (nearly) one value per case is a measurement or an id: it would call
        no two scans alike.
        """
        values, known = self.columns[name].values, len(self.columns[name].codes)
        if not values:
            return "no case has a value"
        if len(values) == 1:
            return f"there is only one value, '{values[0]}'"
        if name != PATIENT and is_continuous(len(values), known):
            return f"{len(values)} values for {known} cases are nearly one per case, no categories"
        return None

    def label_columns(self) -> dict[str, str | None]:
        """Return column -> why it cannot serve as a label, or None if it can."""
        return {name: self.why_no_label(name) for name in self.columns}

    def restricted(self, cases: Sequence[str]) -> "MetaTable":
        """Return the table of some of its cases; values that none of them has are dropped."""
        wanted = set(cases)
        return MetaTable(
            tuple(cases),
            {
                name: column(
                    {case: whole.values[code] for case, code in whole.codes.items() if case in wanted}, whole.source
                )
                for name, whole in self.columns.items()
            },
        )

    def rows(self) -> dict[str, dict[str, str | None]]:
        """Return case -> column -> label, None where it is unknown."""
        return {case: {name: column.value(case) for name, column in self.columns.items()} for case in self.cases}

    def to_csv(self) -> str:
        """Return the rows as CSV, in the form of the user's ``meta_labels.csv``: empty where a label is unknown."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", *self.columns])
        writer.writerows(
            [case, *("" if value is None else value for value in row.values())] for case, row in self.rows().items()
        )
        return text.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON: ``{"columns": {name: source}, "rows": {case: {name: label}}}``."""
        return {"columns": {name: column.source for name, column in self.columns.items()}, "rows": self.rows()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "MetaTable":
        """Read what :meth:`to_dict` returned.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: It is something else.
        """
        rows = content["rows"]
        columns = {
            name: column({case: row[name] for case, row in rows.items() if row[name] is not None}, source)
            for name, source in content["columns"].items()
        }
        return cls(tuple(rows), columns)


def is_continuous(n_values: int, n_cases: int) -> bool:
    """Return whether values are too many to be categories: more than half as many as cases (two are always few)."""
    return n_values > max(2, n_cases / 2)
