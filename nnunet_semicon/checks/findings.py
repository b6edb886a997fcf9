"""What a check of ``semicon doctor`` finds: something in order, something to know, or a problem and its remedy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from nnunet_semicon.errors import UserError, listing


@dataclass(frozen=True)
class Finding:
    """One line of the report; a problem has a remedy."""

    status: Literal["ok", "note", "problem"]
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """Something is as it should be."""
    return Finding("ok", text)


def note(text: str, remedy: str = "") -> Finding:
    """Something to know that stops nothing."""
    return Finding("note", text, remedy)


def problem(text: str, remedy: str) -> Finding:
    """Something that stops a command, or makes its result wrong."""
    return Finding("problem", text, remedy)


def together(found: Iterable[tuple[str, Finding]]) -> Iterator[Finding]:
    """Say once what was found for several subjects, such as the configurations of many seeds."""
    subjects: dict[Finding, list[str]] = {}
    for subject, finding in found:
        subjects.setdefault(finding, []).append(subject)
    for finding, names in subjects.items():
        yield replace(finding, text=f"{listing(names)}: {finding.text}")


def once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Leave out what was found before: several checks may stop at the same mistake."""
    found: set[Finding] = set()
    for finding in findings:
        if finding not in found:
            found.add(finding)
            yield finding


def survived(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on; an exception becomes the last one: a broken installation can raise anything anywhere."""
    try:
        yield from findings
    except UserError as error:
        yield problem(str(error), "then run this command again")
    except Exception as error:
        yield problem(
            f"the check stopped here: {in_one_line(error)}",
            "repair the problems above; if there are none, please report this as a bug",
        )


def in_one_line(error: BaseException) -> str:
    """Return kind and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
