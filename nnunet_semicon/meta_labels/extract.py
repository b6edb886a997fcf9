"""Meta-labels that names and small text files tell: patient, phase, a user's table, ACDC's ``Info.cfg``.

Nothing here opens an image, so that a training can afford it at every start.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import basename
from typing import Any

from nnunet_semicon.errors import UserError, listing, nearest

CASE = "case"  # the column of a user's table that names the case

# --- names -------------------------------------------------------------------------------------------------------

# What follows the patient in names such as patient001_frame01 (ACDC), A0S9V9_ED (M&Ms), scan7-t02, s12_visit2,
# sub-04_ses-01 (BIDS). Only clear markers of a time point: a bare number may as well be the patient's own.
_TIME_POINT = re.compile(
    r"""[_-](?: frame[_-]?\d+
              | ED | ES
              | t\d+ | (?:time|tp|timepoint|visit)[_-]?\d+
              | ses-[A-Za-z0-9]+ )$""",
    re.VERBOSE | re.IGNORECASE,
)
_PHASE = re.compile(r"[_-](ED|ES)$", re.IGNORECASE)
_FRAME = re.compile(r"frame[_-]?(\d+)$", re.IGNORECASE)
_LAST_TOKEN = re.compile(r"(?P<prefix>.*\d.*)(?P<suffix>[_-][A-Za-z0-9]+)")
# site1_01, fold2_03, T1_003: the number in front is no patient
_NO_PATIENT = re.compile(
    r"(?:site|center|centre|hospital|scanner|vendor|cohort|fold|batch|set|part|group|task|year|v|t)[_-]?\d+",
    re.IGNORECASE,
)
_MOST_SCANS = 10  # scans per patient that a repeated suffix may tell apart


def patient_of(case: str) -> str:
    """Return the patient of a case: its name before a time-point suffix, else the whole name.

    ``patient001_frame01`` -> ``patient001``, ``A0S9V9_ED`` -> ``A0S9V9``, ``hippocampus_007`` -> ``hippocampus_007``.
    """
    match = _TIME_POINT.search(case)
    return case[: match.start()] if match and match.start() > 0 else case


def patients_from_names(cases: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return case -> patient for all cases of a dataset, and in words how the names tell it.

    Time-point suffixes (:func:`patient_of`) decide. Where no name has one, the last part of the names is taken for a
    scan of the patient named before it (``s01_a``, ``s01_b``, ``s02_a``, ``s02_b``) if it can hardly be anything
    else, see :func:`_repeated_suffixes`. Otherwise every case is a patient of its own.
    """
    patients = {case: patient_of(case) for case in cases}
    suffixes = sorted({case.removeprefix(patient) for case, patient in patients.items()} - {""})
    if suffixes:
        return patients, f"case names before their time point ({listing(suffixes, 3)})"
    repeated = _repeated_suffixes(cases)
    if repeated:
        for case in cases:
            match = _LAST_TOKEN.fullmatch(case)
            if match and match["suffix"] in repeated:
                patients[case] = match["prefix"]
        return patients, f"case names before a part that repeats for every patient ({listing(sorted(repeated))})"
    return patients, "whole case names"


def _repeated_suffixes(cases: Iterable[str]) -> frozenset[str]:
    """Return the last parts of the names that tell scans of one patient apart, empty if there is any doubt.

    ``hippocampus_001, hippocampus_002`` must not become one patient, nor ``siteA_01, siteA_02, siteB_01, ...`` two.
    So the same few last parts must come with at least 9 of 10 prefixes; there are at least as many such prefixes
    as last parts; the prefixes differ only in their numbers (an id) and are no site, fold or the like. Last parts
    that are numbers may count patients: they must be consecutive, and there must be three times as many prefixes.
    """
    suffixes: dict[str, set[str]] = {}
    others = 0
    for case in cases:
        match = _LAST_TOKEN.fullmatch(case)
        if match:
            suffixes.setdefault(match["prefix"], set()).add(match["suffix"])
        else:
            others += 1
    kinds = Counter(frozenset(found) for found in suffixes.values() if len(found) >= 2)
    if not kinds:
        return frozenset()
    common, n_prefixes = kinds.most_common(1)[0]
    prefixes = [prefix for prefix, found in suffixes.items() if found == common]
    tokens = [suffix[1:] for suffix in common]
    per_suffix = 1
    if any(token.isdecimal() for token in tokens):
        numbers = sorted(int(token) for token in tokens if token.isdecimal())
        if len(numbers) < len(tokens) or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            return frozenset()
        per_suffix = 3
    unambiguous = (
        n_prefixes >= max(2, per_suffix * len(common))
        and n_prefixes >= 0.9 * (len(suffixes) + others)
        and len(common) <= _MOST_SCANS
        and len({re.sub(r"\d+", "0", prefix) for prefix in prefixes}) == 1
        and not _NO_PATIENT.fullmatch(prefixes[0])
    )
    return common if unambiguous else frozenset()


def patients_by_pattern(cases: Sequence[str], pattern: str) -> tuple[dict[str, str], list[str]]:
    """Return case -> patient by a regular expression, and the cases that it does not match (their own patients).

    Args:
        cases: names.
        pattern: searched in every name; its first group, or without one the whole match, is the patient.

    Raises:
        UserError: It is no regular expression, or matches no case.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--patient-pattern '{pattern}' is not a regular expression ({error}): expected one such as '(.+)_scan'"
        ) from None
    group = min(expression.groups, 1)
    found = {case: match[group] for case in cases if (match := expression.search(case)) and match[group]}
    if not found:
        raise UserError(
            f"--patient-pattern '{pattern}' matches none of the {len(cases)} cases ({listing(cases, 3)}): expected an "
            "expression whose first group, or whole match, is the patient in their names"
        )
    return {case: found.get(case, case) for case in cases}, [case for case in cases if case not in found]


def phase_of(case: str) -> str | None:
    """Return ``'ED'`` or ``'ES'`` (end-diastole, end-systole) if the name ends with it, as in ``A0S9V9_ED``."""
    match = _PHASE.search(case)
    return match[1].upper() if match else None


# --- a user's table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UserTable:
    """Content of ``meta_labels.json`` or ``meta_labels.csv``.

    Attributes:
        columns: names, in the order of the file.
        rows: case -> column -> label; a column without a value is missing.
    """

    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, str]]


def read_user_table(path: str) -> UserTable:
    """Read a table of categorical labels.

    JSON: ``{"case_1": {"phase": "ED"}, ...}`` or ``[{"case": "case_1", "phase": "ED"}, ...]``. CSV: a header with
    the column ``case``; comma, semicolon or tab; quotes. Numbers and booleans become text; null, an empty cell and a
    column missing from a JSON row mean unknown.

    Raises:
        UserError: The file cannot be read, is malformed, or lists a case or a column twice.
    """
    text = _read_text(path)
    named = _rows_of_json(path, text) if path.endswith(".json") else _rows_of_csv(path, text)
    rows: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}  # an ordered set
    for case, row in named:
        if case in rows:
            raise UserError(f"{path} lists case {case} twice: remove one of the rows")
        columns |= dict.fromkeys(row)
        rows[case] = {name: label for name, label in row.items() if label}
    return UserTable(tuple(columns), rows)


def _read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8-sig")  # with or without the mark that spreadsheets write
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x}): save it as UTF-8"
        ) from None


def _rows_of_json(path: str, text: str) -> list[tuple[str, dict[str, str]]]:
    expected = 'expected {"case_1": {"phase": "ED"}, ...} or [{"case": "case_1", "phase": "ED"}, ...]'

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if repeated:
            what = "case" if isinstance(dict(pairs)[repeated[0]], dict) else "column"
            raise UserError(f"{path} lists {what} {repeated[0]} twice: remove one of the two")
        return dict(pairs)

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): {expected}") from None
    if isinstance(content, dict):
        named = list(content.items())
    elif isinstance(content, list):
        named = []
        for number, row in enumerate(content):
            case = row.pop(CASE, None) if isinstance(row, dict) else None
            if not isinstance(case, str) or not case:
                raise UserError(f"entry {number} of {path} has no '{CASE}' with the name of a case: {expected}")
            named.append((case, row))
    else:
        raise UserError(f"{path} holds neither an object nor a list: {expected}")
    for case, row in named:
        if not isinstance(row, dict):
            raise UserError(f"case {case} in {path} has no columns, but {json.dumps(row)[:40]}: {expected}")
        for name, value in row.items():
            if isinstance(value, (dict, list)):
                raise UserError(
                    f"column '{name}' of case {case} in {path} holds {json.dumps(value)[:40]}: expected one label "
                    "(text, number, true, false) or null"
                )
    return [(case, {name.strip(): _label(value) for name, value in row.items()}) for case, row in named]


def _label(value: Any) -> str:
    """Return a JSON value as text, empty if it is unknown."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else json.dumps(value)


def _rows_of_csv(path: str, text: str) -> list[tuple[str, dict[str, str]]]:
    header_line = text.split("\n", 1)[0]
    # the separator that divides the header into most parts; a name may hold one of the others in quotes
    separator = max(",;\t", key=lambda mark: len(next(csv.reader([header_line], delimiter=mark), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        # reader.line_num is read at once: it is where the row ends in the file
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {path} is not valid CSV ({error}): correct the quotes") from None
    header = lines[0][1] if lines else []
    if CASE not in header:
        raise UserError(
            f"{path} has no column '{CASE}' in its first line ({listing(header, 10) or 'empty'})"
            f"{nearest(CASE, header)}: expected a header such as {CASE},phase,site"
        )
    repeated = [name for name, n in Counter(header).items() if n > 1]
    if repeated or "" in header:
        what = f"lists column {repeated[0]} twice" if repeated and repeated[0] else "has a column without a name"
        raise UserError(f"{path} {what}: correct its first line ({separator.join(header)!r})")
    named = []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(
                f"line {number} of {path} has {len(cells)} cells, the header {len(header)}: an unknown value is an "
                "empty cell, and a value that holds the separator is quoted"
            )
        row = dict(zip(header, cells, strict=True))
        case = row.pop(CASE)
        if not case:
            raise UserError(f"line {number} of {path} names no {CASE}: fill the cell or remove the line")
        named.append((case, row))
    return named


# --- ACDC --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InfoCfg:
    """What ACDC's ``Info.cfg`` says about a patient.

    Attributes:
        frames: phase (``'ED'``, ``'ES'``) -> frame number, from 1.
        group: pathology, e.g. ``'DCM'``; None if it is not said.
    """

    frames: Mapping[str, int]
    group: str | None

    def phase(self, case: str) -> str | None:
        """Return the phase of ``patient001_frame12`` by its frame number, None if it is neither."""
        match = _FRAME.search(case)
        number = int(match[1]) if match else None
        return next((phase for phase, frame in self.frames.items() if frame == number), None)


def find_info_cfg(folder: str, skip: Iterable[str] = (), depth: int = 3) -> dict[str, str]:
    """Return patient -> path of every ``<patient>/Info.cfg`` and ``patientNNN.cfg`` down to some depth below a folder.

    Raises:
        UserError: A patient has two.
    """
    found: dict[str, str] = {}
    folder = folder.rstrip(os.sep)
    for where, folders, names in os.walk(folder, followlinks=True):
        below = where[len(folder) :].count(os.sep)
        folders[:] = sorted(set(folders) - set(skip)) if below < depth else []
        for name in sorted(names):
            stem, ending = os.path.splitext(name)
            if ending.lower() != ".cfg" or not (stem.lower() == "info" or re.fullmatch(r"patient\d+", stem)):
                continue
            patient = basename(where) if stem.lower() == "info" else stem
            if patient in found:
                raise UserError(
                    f"patient {patient} has two files, {found[patient]} and {os.path.join(where, name)}: remove one"
                )
            found[patient] = os.path.join(where, name)
    return found


def read_info_cfg(path: str) -> InfoCfg:
    """Read the lines ``ED: 1``, ``ES: 12``, ``Group: DCM`` of an ``Info.cfg``.

    Raises:
        UserError: It cannot be read, says none of the three, or a frame is no number.
    """
    lines = [line.partition(":") for line in _read_text(path).splitlines()]
    entries = {key.strip(): value.strip() for key, colon, value in lines if colon}
    frames: dict[str, int] = {}
    for phase in ("ED", "ES"):
        if phase in entries:
            if not entries[phase].isdecimal():
                raise UserError(f"{path} says '{phase}: {entries[phase]}': expected the number of a frame, from 1")
            frames[phase] = int(entries[phase])
    group = entries.get("Group") or None
    if not frames and group is None:
        raise UserError(f"{path} has none of the lines 'ED: 1', 'ES: 12', 'Group: DCM': correct or remove the file")
    return InfoCfg(frames, group)
