"""The meta table of a dataset: everything about its cases that can serve as a label and costs nothing.

A training extracts it at every start from names and small files, see :func:`training_table`. What takes longer or must
be told (headers of all images, a regular expression for the patient, a folder with ACDC's ``Info.cfg``) is done by
``semicon meta``, which leaves its result in ``<preprocessed dataset>/meta_table.json``::

    {"patient_pattern": ..., "info_cfg": ..., "files": [{"path": ..., "sha256": ...}],
     "columns": {name: source}, "rows": {case: {name: label or null}}}

That file is then used instead, as long as it covers all cases and the files that it was made from are the same.
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import isdir, isfile, join
from typing import Any

from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.files import explain_unwritable, sha256, write_json
from nnunet_semicon.meta_labels.extract import (
    UserTable,
    find_info_cfg,
    patient_of,
    patients_by_pattern,
    phase_of,
    read_info_cfg,
    read_user_table,
)
from nnunet_semicon.meta_labels.table import (
    PATIENT,
    RESERVED,
    MetaColumn,
    MetaTable,
    column,
    is_continuous,
    patient_column,
)

FILE = "meta_table.json"
USER_FILES = ("meta_labels.json", "meta_labels.csv")
PHASE = "phase"
GROUP = "group"

# where nnU-Net keeps images and labels: no Info.cfg lies there, and listing thousands of files takes time
_IMAGE_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs", "imagesUn")


@dataclass(frozen=True)
class Extracted:
    """A meta table and how it came about.

    Attributes:
        table: the table.
        notes: what was left out or replaced and why, one sentence each.
        files: the files that it was made from (not the images).
    """

    table: MetaTable
    notes: tuple[str, ...]
    files: tuple[str, ...]


# --- extraction --------------------------------------------------------------------------------------------------


def extract(
    raw_dataset: str,
    cases: Sequence[str],
    patient_pattern: str | None = None,
    info_cfg: str | None = None,
    headers: Mapping[str, Mapping[str, str]] | None = None,
) -> Extracted:
    """Gather the meta-labels of cases; of several sources for one column the first named below counts.

    1. a column of the user's ``meta_labels.json`` or ``.csv`` in the raw dataset;
    2. patient: ``patient_pattern``; phase and group: ``Info.cfg`` files in the raw dataset or in ``info_cfg``;
    3. the names of the cases;
    4. text fields of the image headers.

    Args:
        raw_dataset: folder; empty or missing where there is only preprocessed data (then names alone).
        cases: all cases of the dataset: whether a part of a name marks the scan or the patient shows in all of them.
        patient_pattern: regular expression, its first group or the whole match is the patient.
        info_cfg: folder with ``patient001/Info.cfg`` and the like, at most three levels below it.
        headers: case -> header field -> text; None: not looked at.

    Raises:
        UserError: A file or the pattern is malformed, a file misses cases, or nothing matches.
    """
    columns: dict[str, MetaColumn] = {}
    notes: list[str] = []
    files: list[str] = []

    def add(name: str, labels: Mapping[str, str], source: str) -> None:
        if name in columns:
            if labels:
                notes.append(f"column '{name}' is taken from {columns[name].source}, not from {source}")
        elif labels:
            columns[name] = column(labels, source)

    path = user_file(raw_dataset)
    if path is not None:
        files.append(path)
        user = read_user_table(path)
        notes += _check_user_table(path, user, cases)
        for name in user.columns:
            labels = {case: user.rows[case][name] for case in cases if name in user.rows[case]}
            columns[name] = column(labels, os.path.basename(path))

    if patient_pattern is not None:
        patients, unmatched = patients_by_pattern(cases, patient_pattern)
        add(PATIENT, patients, f"regular expression {patient_pattern}")
        if unmatched:
            notes.append(
                f"the regular expression {patient_pattern} does not match {len(unmatched)} cases "
                f"({listing(unmatched)}): each is a patient of its own"
            )
    elif PATIENT not in columns:
        columns[PATIENT] = patient_column(cases)

    phases, groups, found = _from_info_cfg(raw_dataset, cases, columns[PATIENT], info_cfg)
    files += found
    add(PHASE, phases, "ED and ES frame in Info.cfg")
    add(GROUP, groups, "Group in Info.cfg")
    add(PHASE, {case: phase for case in cases if (phase := phase_of(case))}, "case names (_ED, _ES)")

    if found and PHASE not in columns:
        notes.append(
            "Info.cfg gives no phase: no case ends with _frameNN where NN is the ED or ES frame of its patient"
        )

    if headers is not None:
        dropped = []
        for name, labels, why_not in _from_headers(headers):
            if why_not:
                dropped.append(f"{name} ({why_not})")
            else:
                add(f"header_{name}", labels, f"image headers, field {name}")
        if dropped:
            notes.append(f"header fields that were looked at and give no label: {', '.join(dropped)}")

    ordered = {PATIENT: columns[PATIENT]} | columns
    return Extracted(MetaTable(tuple(cases), ordered), tuple(notes), tuple(files))


def user_file(raw_dataset: str) -> str | None:
    """Return the path of the user's table in the raw dataset, or None.

    Raises:
        UserError: There are two.
    """
    paths = [join(raw_dataset, name) for name in USER_FILES] if isdir(raw_dataset) else []
    existing = [path for path in paths if isfile(path)]
    if len(existing) > 1:
        raise UserError(f"there are both {existing[0]} and {existing[1]}: keep one and remove the other")
    return existing[0] if existing else None


def _check_user_table(path: str, user: UserTable, cases: Sequence[str]) -> list[str]:
    """Return notes on cases that the dataset lacks; a case that the file lacks is refused."""
    refused = [name for name in user.columns if name in ("", *RESERVED)]
    if refused:
        raise UserError(
            f"{path} has a column '{refused[0]}', a name that is ours ({listing(RESERVED)} mean something else) or "
            "empty: rename or remove it"
        )
    missing = [case for case in cases if case not in user.rows]
    unknown = sorted(set(user.rows) - set(cases))
    if missing:
        raise UserError(
            f"{path} has no row for {len(missing)} of {len(cases)} cases ({listing(missing)}): add one for each, with "
            f"empty values (null) for what is not known{nearest(missing[0], unknown)}"
        )
    if unknown:
        return [f"{path} lists {len(unknown)} cases that the dataset does not have ({listing(unknown)}): not used"]
    return []


def _from_info_cfg(
    raw_dataset: str, cases: Sequence[str], patients: MetaColumn, info_cfg: str | None
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Return case -> phase, case -> group, and the files of patients that the dataset has."""
    if info_cfg is not None and not isdir(info_cfg):
        raise UserError(f"--info-cfg {info_cfg} is not a folder: expected one that holds patient001/Info.cfg, ...")
    paths = find_info_cfg(raw_dataset, skip=_IMAGE_FOLDERS) if isdir(raw_dataset) else {}
    if info_cfg is not None:
        elsewhere = find_info_cfg(info_cfg)
        if not elsewhere:
            raise UserError(
                f"there is no Info.cfg below {info_cfg}: expected {join(info_cfg, 'patient001', 'Info.cfg')}"
            )
        paths = elsewhere
    # by the patient's label or, where a user's table calls patients differently, by the name of the case
    of_case = {
        case: paths[patient]
        for case in cases
        for patient in (patient_of(case), patients.value(case))
        if patient in paths
    }
    if info_cfg is not None and not of_case:
        raise UserError(
            f"the {len(paths)} files Info.cfg below {info_cfg} belong to {listing(sorted(paths), 3)}, none of which is "
            f"a patient of this dataset ({listing(patients.values, 3)}): their folders must be called like the patients"
        )
    infos = {path: read_info_cfg(path) for path in sorted(set(of_case.values()))}
    phases = {case: phase for case, path in of_case.items() if (phase := infos[path].phase(case))}
    groups = {case: group for case, path in of_case.items() if (group := infos[path].group)}
    return phases, groups, list(infos)


def _from_headers(headers: Mapping[str, Mapping[str, str]]) -> list[tuple[str, dict[str, str], str]]:
    """Return for every header field its labels and why they are not used (empty: they are)."""
    decided = []
    for name in dict.fromkeys(name for fields in headers.values() for name in fields):
        labels = {case: text for case, fields in headers.items() if (text := fields.get(name, "").strip())}
        values = sorted(set(labels.values()))
        why_not = ""
        if not values:
            why_not = "empty"
        elif len(values) == 1:
            why_not = f"always '{values[0]}'"
        elif is_continuous(len(values), len(labels)):
            why_not = f"{len(values)} values in {len(labels)} images, nearly one per case"
        decided.append((name, labels, why_not))
    return decided


# --- the file ----------------------------------------------------------------------------------------------------


def write_table(
    raw_dataset: str, preprocessed_dataset: str, extracted: Extracted, patient_pattern: str | None, info_cfg: str | None
) -> str:
    """Write ``meta_table.json`` at once; return its path.

    Raises:
        UserError: It cannot be written.
    """
    content = {
        "patient_pattern": patient_pattern,
        "info_cfg": None if info_cfg is None else os.path.abspath(info_cfg),
        "files": [{"path": _recorded(path, raw_dataset), "sha256": sha256(path)} for path in extracted.files],
        **extracted.table.to_dict(),
    }
    path = join(preprocessed_dataset, FILE)
    with explain_unwritable(path, "check the folder"):
        write_json(path, content, indent=1)
    return path


def _recorded(path: str, raw_dataset: str) -> str:
    """Return the path as written to the file: relative inside the raw dataset, which may lie elsewhere next time."""
    inside = raw_dataset and os.path.commonpath(
        [os.path.abspath(path), os.path.abspath(raw_dataset)]
    ) == os.path.abspath(raw_dataset)
    return os.path.relpath(path, raw_dataset) if inside else os.path.abspath(path)


def training_table(raw_dataset: str, preprocessed_dataset: str, cases: Sequence[str]) -> MetaTable:
    """Return the meta table that a training uses; no image is opened.

    Args:
        raw_dataset: ``<nnUNet_raw>/<Dataset>``; empty or missing on a machine with preprocessed data alone.
        preprocessed_dataset: ``<nnUNet_preprocessed>/<Dataset>``.
        cases: all cases of the dataset, those of ``imagesUn`` too.

    Returns:
        Rows of exactly these cases: from ``meta_table.json`` if there is one, else extracted from names and files.

    Raises:
        UserError: ``meta_table.json`` lacks a case, or was made from files that changed since (the message ends with
            the command to run); or what :func:`extract` refuses.
    """
    path = join(preprocessed_dataset, FILE)
    if not isfile(path):
        return extract(raw_dataset, cases).table
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        table = MetaTable.from_dict(content)
        recorded = {str(entry["path"]): str(entry["sha256"]) for entry in content["files"]}
        command = meta_command(preprocessed_dataset, content["patient_pattern"], content["info_cfg"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a meta table ({type(error).__name__}: {error}); run: {meta_command(preprocessed_dataset)}"
        ) from None
    known = set(table.cases)
    missing = [case for case in cases if case not in known]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} of {len(cases)} cases ({listing(missing)}); run: {command}")
    for name, digest in recorded.items():
        file_path = name if os.path.isabs(name) else join(raw_dataset, name)
        if isdir(raw_dataset) or os.path.isabs(name):
            reachable = isfile(file_path)
            if reachable and sha256(file_path) != digest:
                raise UserError(f"{path} was made before {file_path} changed; run: {command}")
    added = user_file(raw_dataset)
    if added is not None and _recorded(added, raw_dataset) not in recorded:
        raise UserError(f"{path} was made before {added} was added; run: {command}")
    return table.restricted(cases)


def meta_command(preprocessed_dataset: str, patient_pattern: str | None = None, info_cfg: str | None = None) -> str:
    """Return the ``semicon meta`` line that makes the table of this dataset again."""
    words = ["semicon", "meta", "-d", str(int(os.path.basename(os.path.normpath(preprocessed_dataset))[7:10]))]
    for option, value in (("--patient-pattern", patient_pattern), ("--info-cfg", info_cfg)):
        if value is not None:
            words += [option, value]
    return shlex.join(words)


def patients(raw_dataset: str, preprocessed_dataset: str, cases: Sequence[str]) -> dict[str, str]:
    """Return case -> patient, as a training labels them; a case whose patient is unknown is one of its own.

    Args and errors: see :func:`training_table`.
    """
    column: Any = training_table(raw_dataset, preprocessed_dataset, cases).columns[PATIENT]
    return {case: column.value(case) or case for case in cases}
