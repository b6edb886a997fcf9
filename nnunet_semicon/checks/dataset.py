"""Checks of a dataset: labels, plans, unlabeled cases, meta-labels; raw files and splits have modules of their own."""

from collections.abc import Iterator
from dataclasses import replace
from os.path import basename, isdir, isfile, join

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.catalogue import check_settings
from nnunet_semicon.checks.dataset_facts import Configuration, Dataset
from nnunet_semicon.checks.findings import Finding, note, ok, problem, survived, together
from nnunet_semicon.checks.raw import check_raw
from nnunet_semicon.checks.splits import check_splits
from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.configuration.resolved import partitions_of, read_fingerprint
from nnunet_semicon.data.images_un import FOLDER, scan_images_un
from nnunet_semicon.data.meta import training_table
from nnunet_semicon.data.splits import FILE as SPLITS
from nnunet_semicon.data.splits import count, labeled_cases
from nnunet_semicon.data.unlabeled import preprocess_command, require_preprocessed
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.files import read_object_or_none
from nnunet_semicon.meta_labels.table import PATIENT
from nnunet_semicon.workspace import find_folders


def check_dataset(name_or_id: str) -> Iterator[Finding]:
    """Check a dataset, what nnU-Net made of it, its splits, unlabeled cases and meta-labels."""
    try:
        dataset = Dataset(name_or_id, *find_folders(name_or_id))
    except UserError as error:
        yield problem(str(error), "check -d and the variables above")
        return
    yield from check_labeled(dataset)
    yield from survived(check_raw(dataset))
    if not isdir(dataset.preprocessed):
        if dataset.labeled:  # otherwise what stands above comes first
            yield from survived(check_unlabeled(dataset))
        yield problem(f"there is no folder {dataset.preprocessed}", f"run: {dataset.plan_command}")
        return
    for check in (check_plans, check_splits, check_unlabeled, check_meta_labels):
        yield from survived(check(dataset))


def check_labeled(dataset: Dataset) -> Iterator[Finding]:
    """Look for ``dataset.json`` and labels."""
    if not isdir(dataset.raw):
        yield note("no raw dataset: enough for training, but changes of imagesUn cannot be noticed")
    try:
        yield ok(f"dataset.json, {len(labeled_cases(dataset.raw, dataset.preprocessed))} cases with a label")
    except UserError as error:
        yield problem(str(error), "arrange the files as nnU-Net's description of its dataset format says")


def check_plans(dataset: Dataset) -> Iterator[Finding]:
    """Check the fingerprint, the plans and the preprocessed folders of every configuration."""
    for name, command in (
        ("dataset.json", dataset.plan_command),
        ("dataset_fingerprint.json", f"nnUNetv2_extract_fingerprint -d {dataset.option}"),
    ):
        path = join(dataset.preprocessed, name)
        yield ok(f"preprocessed {name}") if isfile(path) else problem(f"there is no {path}", f"run: {command}")
    for path in dataset.json_files:
        if read_object_or_none(path) is None and basename(path) != SPLITS:  # that one has a check of its own
            yield problem(f"{path} is not valid JSON", f"repair it, or run: {dataset.plan_command}")
    if not dataset.plans:
        yield problem(f"there is no plans file in {dataset.preprocessed}", f"run: {dataset.plan_command}")
        return
    for plans in dataset.plans:
        found = (
            (name, finding)
            for name in plans.available_configurations
            for finding in survived(check_configuration(dataset, plans, name))
        )
        for finding in together(found):
            yield replace(finding, text=f"{plans.plans_name} {finding.text}")
    if not dataset.usable:
        yield problem("no configuration is preprocessed", f"run: {dataset.plan_command}")


def check_configuration(dataset: Dataset, plans: PlansManager, name: str) -> Iterator[Finding]:
    """Check one configuration, which the caller names: its ``semicon`` block and its preprocessed cases."""
    command = f"nnUNetv2_preprocess -d {dataset.option} -plans_name {plans.plans_name} -c {name}"
    configuration = plans.get_configuration(name)
    if configuration.previous_stage_name is not None:
        yield note("a cascade stage, which only nnU-Net's own trainers train")
        return
    try:
        block = configuration.configuration.get(BLOCK, {})
        check_settings(block, f"the '{BLOCK}' block", dataset.label_columns)
    except UserError as error:
        yield problem(str(error), "correct the block with `semicon configure`, or in the plans file")
    cases = dataset.preprocessed_cases(plans, name)
    missing = sorted(set(dataset.labeled) - set(cases))
    if not cases:
        yield note("not preprocessed", f"to use it, run: {command}")
    elif missing:
        yield problem(f"{len(missing)} cases are not preprocessed ({listing(missing)})", f"run: {command}")
    else:
        patch = " x ".join(map(str, configuration.patch_size))
        yield ok(f"{len(cases)} cases preprocessed, patch {patch}, batch size {configuration.batch_size}")


def check_unlabeled(dataset: Dataset) -> Iterator[Finding]:
    """Check ``imagesUn`` and whether it is preprocessed for everything that can be trained."""
    images = scan_images_un(dataset.raw, dataset.description)
    checked = set()
    for configuration in dataset.usable:
        if configuration.data_identifier in checked:
            continue
        checked.add(configuration.data_identifier)
        plans, name = configuration.plans, configuration.name
        try:
            ready = require_preprocessed(dataset.raw, dataset.preprocessed, plans, name, dataset.description)
        except UserError as error:
            yield problem(str(error), "run: " + preprocess_command(dataset.preprocessed, plans, name))
            continue
        if ready:
            yield ok(
                f"imagesUn: {count(ready, dataset.patient_of)} unlabeled, preprocessed for {plans.plans_name} {name}"
            )
    if images and not dataset.usable:
        yield ok(f"imagesUn: {count(list(images), dataset.patient_of)} unlabeled")
    if isdir(dataset.raw) and not images:
        remedy = "copy the unlabeled scans there (is a disk not mounted?), or remove the folder"
        is_there = isdir(join(dataset.raw, FOLDER))
        yield note("imagesUn is empty", remedy) if is_there else ok("imagesUn: none (optional)")


def check_meta_labels(dataset: Dataset) -> Iterator[Finding]:
    """Say what the contrastive trainers know about a scan: its patient, its table and the position of its slices."""
    try:
        table = training_table(dataset.raw, dataset.preprocessed, dataset.all_cases)
    except UserError as error:
        yield problem(str(error), "then look at the table: semicon meta -d " + dataset.option)
    else:
        cases = dataset.known
        patients = len({dataset.patient_of[case] for case in cases})
        source = table.columns[PATIENT].source
        if cases and patients == len(cases):
            yield ok(f"patients: every one of the {patients} cases is its own ({source})")
        elif cases:
            yield ok(f"patients: {patients}, with {len(cases)} cases ({source})")
        for name, column in list(table.columns.items())[1:]:
            reason = table.why_no_label(name)
            if reason is None:
                yield ok(f"meta-label {name}: {len(column.values)} values ({column.source})")
            else:
                yield note(f"meta-label {name}: not used ({reason})")
    for plans in dataset.plans:
        found = ((own.name, check_position(dataset, own)) for own in dataset.usable if own.plans is plans)
        for finding in together(found):
            yield replace(finding, text=f"slice position, {plans.plans_name} {finding.text}")


def check_position(dataset: Dataset, configuration: Configuration) -> Finding:
    """Say what a configuration, which the caller names, knows of the position of a slice."""
    plans = configuration.plans
    settings = plans.get_configuration(configuration.name).configuration
    partitions = partitions_of(settings, plans.plans, read_fingerprint(dataset.preprocessed))
    if partitions.value is None:
        return note(f"not used ({partitions.reason})")
    return ok(f"{partitions.value} partitions along axis {plans.transpose_forward[0]} ({partitions.reason})")
