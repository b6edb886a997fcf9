"""``semicon meta``: the labels that a dataset carries for free, where each comes from, and which can be used."""

import argparse
import os
from collections.abc import Mapping, Sequence
from os.path import exists, isdir, join
from typing import TYPE_CHECKING

from nnunet_semicon.configuration import rules
from nnunet_semicon.configuration.resolved import partitions_of, read_fingerprint
from nnunet_semicon.data.headers import Header, read_headers
from nnunet_semicon.data.meta import Extracted, extract, write_table
from nnunet_semicon.data.splits import labeled_cases
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.files import explain_unwritable, read_object, write_text
from nnunet_semicon.meta_labels.position import is_backward
from nnunet_semicon.meta_labels.table import MetaTable
from nnunet_semicon.tables import render
from nnunet_semicon.workspace import DEFAULT_PLANS, find_any_plans, find_folders, image_files, unlabeled_cases

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

NOTES = """example:
  semicon meta -d 027 --patient-pattern '(patient[0-9]+)_' --figure

The table is written to meta_table.json in the preprocessed folder, where trainings read it. A file meta_labels.csv or
meta_labels.json in the raw dataset folder adds columns: one row per case, the column 'case' and any others."""

FIGURE = "meta_labels.png"
FIRST_ROWS = 5
EXAMPLES = 3
WIDEST = 44  # characters of a cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = NOTES
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset: 4, 004 or Dataset004_Name")
    parser.add_argument(
        "-p", metavar="PLANS", help=f"plans identifier (default: {DEFAULT_PLANS}, or the only plans that there are)"
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression searched in case names; its first group, or the whole match, is the patient",
    )
    parser.add_argument("--info-cfg", metavar="FOLDER", help="original ACDC data, with patient001/Info.cfg below it")
    parser.add_argument("--out", metavar="FILE.csv", help="also write the table as CSV, in the form of meta_labels.csv")
    parser.add_argument(
        "--figure",
        nargs="?",
        const="",
        metavar="FILE.png",
        help=f"draw example slices per value of each label (default: {FIGURE} in the preprocessed folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table and write it."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw, preprocessed = find_folders(args.d)
    content = find_any_plans(preprocessed, args.p)
    plans = None if content is None else PlansManager(content)
    figure = _figure_path(args.figure, raw, preprocessed)
    if args.out is not None and exists(args.out):  # it may be somebody's own table
        raise UserError(f"--out {args.out} exists: remove it or choose another name")
    if args.out is not None:
        _require_folder("--out", args.out)

    labeled, unlabeled = labeled_cases(raw, preprocessed), unlabeled_cases(raw, preprocessed)
    cases = sorted({*labeled, *unlabeled})
    images = image_files(raw)
    headers = read_headers({case: images[case][0] for case in cases if case in images})
    fields = {case: header.fields for case, header in headers.items()} if headers else None
    extracted = extract(raw, cases, args.patient_pattern, args.info_cfg, fields)
    # before anything is printed: `semicon meta | head` must write it too
    written = []
    if isdir(preprocessed):
        written.append(write_table(raw, preprocessed, extracted, args.patient_pattern, args.info_cfg))
    if args.out is not None:
        with explain_unwritable(args.out, "check the folder"):
            write_text(args.out, extracted.table.to_csv())
        written.append(args.out)

    where = f"{len(labeled)} in imagesTr, {len(unlabeled)} in imagesUn"
    print(f"{os.path.basename(preprocessed)}: {len(cases)} cases ({where})\n")
    print(_describe(extracted.table))
    print("\nposition: a label of every slice or patch, so it is no column")
    if plans is not None and args.p is None and plans.plans_name != DEFAULT_PLANS:
        print(f"  plans: {plans.plans_name}, the only ones that there are")
    for line in [*_describe_position(plans, preprocessed), *_describe_orientation(plans, headers)]:
        print(f"  {line}")
    print(f"\nfirst {min(FIRST_ROWS, len(cases))} of {len(cases)} rows")
    print(_first_rows(extracted.table))
    print()
    for text in _notes(extracted, images, cases):
        print(f"note: {text}")
    if not isdir(preprocessed):
        print(
            f"note: not written, since there is no folder {preprocessed} yet; run `nnUNetv2_plan_and_preprocess -d "
            f"{args.d} -c 2d`, then this command again"
        )
    for path in written:
        print(f"written: {path}")
    if figure is not None:
        _draw(figure, extracted.table, images, plans, preprocessed, raw)
        print(f"written: {figure}")
    return 0


# --- what is printed ---------------------------------------------------------------------------------------------


def _describe(table: MetaTable) -> str:
    rows = [["column", "values", "unknown", "label", "from", "examples"]]
    for name, column in table.columns.items():
        counts = [f"{value} ({n})" for value, n in list(column.counts().items())[:EXAMPLES]]
        examples = ", ".join(counts + ["..."] * (len(column.values) > EXAMPLES))
        unknown = len(table.cases) - len(column.codes)
        label = "no" if table.why_no_label(name) else "yes"
        rows.append([name, str(len(column.values)), str(unknown), label, _cut(column.source, 72), _cut(examples, 72)])
    reasons = [f"{name} is no label: {why}" for name in table.columns if (why := table.why_no_label(name))]
    return "\n".join([render(rows), *reasons])


def _describe_position(plans: "PlansManager | None", preprocessed: str) -> list[str]:
    """Say how many partitions every configuration has, and why."""
    if plans is None:
        return ["its partitions follow from nnU-Net's plans, which are not there yet"]
    lines = [rules.slice_axis(plans.transpose_forward).reason]
    fingerprint = read_fingerprint(preprocessed)
    configurations: dict[tuple[int | None, str], list[str]] = {}  # those made by `semicon configure` are mostly alike
    for name in plans.available_configurations:
        if plans.get_configuration(name).previous_stage_name is None:  # cascade stages are not trained
            derived = partitions_of(plans.get_configuration(name).configuration, plans.plans, fingerprint)
            configurations.setdefault(derived, []).append(name)
    rows = [
        [f"{listing(names, 3)}:", f"{value or 'no'} partitions", f"({reason})"]
        for (value, reason), names in configurations.items()
    ]
    return lines + (render(rows, header=False).split("\n") if rows else [])


def _describe_orientation(plans: "PlansManager | None", headers: Mapping[str, Header]) -> list[str]:
    """Say how many files store their slices the other way around."""
    if not headers or (plans is not None and "Reorient" in plans.plans["image_reader_writer"]):
        return []
    axis = 0 if plans is None else plans.transpose_forward[0]
    backward = sum(is_backward({"sitk_stuff": {"direction": h.direction}}, axis) for h in headers.values())
    if backward in (0, len(headers)):
        return [f"all {len(headers)} image headers say that slices are stored in the same direction"]
    return [
        f"{backward} of {len(headers)} images store their slices in the opposite direction (image header): their "
        "positions are counted from the other end"
    ]


def _first_rows(table: MetaTable) -> str:
    rows = [["case", *table.columns]]
    for case, row in list(table.rows().items())[:FIRST_ROWS]:
        rows.append([_cut(case), *(_cut(value) if value is not None else "?" for value in row.values())])
    return render(rows)


def _notes(extracted: Extracted, images: Mapping[str, Sequence[str]], cases: Sequence[str]) -> list[str]:
    if not images:
        return [*extracted.notes, "no raw dataset: names alone, neither a user's table nor image headers"]
    without = sum(case not in images for case in cases)
    return [*extracted.notes, *([f"{without} cases have no image in the raw dataset"] if without else [])]


def _cut(text: str, width: int = WIDEST) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


# --- the figure --------------------------------------------------------------------------------------------------


def _figure_path(option: str | None, raw: str, preprocessed: str) -> str | None:
    """Return where the figure goes, or None; refuses before anything is written."""
    if option is None:
        return None
    if not isdir(raw):
        raise UserError(f"--figure needs the images, but there is no raw dataset for {os.path.basename(preprocessed)}")
    if option and not option.lower().endswith(".png"):
        raise UserError(f"--figure {option}: expected a name that ends with .png")
    path = option or join(preprocessed if isdir(preprocessed) else os.curdir, FIGURE)
    _require_folder("--figure", path)
    return path


def _require_folder(option: str, path: str) -> None:
    if not isdir(os.path.dirname(path) or os.curdir):
        raise UserError(f"{option} {path}: there is no folder {os.path.dirname(path)}")


def _draw(
    path: str,
    table: MetaTable,
    images: Mapping[str, list[str]],
    plans: "PlansManager | None",
    preprocessed: str,
    raw: str,
) -> None:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    from nnunet_semicon.pictures.meta_labels import ScanReader, draw

    with_image = [case for case in table.cases if case in images]
    if not with_image:
        raise UserError(f"--figure needs images, but there is none in {raw}")
    if plans is not None:
        configurations = [
            name for name in ("2d", *plans.available_configurations) if name in plans.available_configurations
        ]
        configuration = plans.get_configuration(configurations[0]).configuration
        partitions = partitions_of(configuration, plans.plans, read_fingerprint(preprocessed)).value
        scans = ScanReader(images, plans.image_reader_writer_class(), plans.transpose_forward)
    else:
        reader = determine_reader_writer_from_dataset_json(read_object(join(raw, "dataset.json")), verbose=False)
        partitions, scans = None, ScanReader(images, reader(), (0, 1, 2))
    draw(path, table.restricted(with_image), scans, partitions, os.path.basename(preprocessed))
