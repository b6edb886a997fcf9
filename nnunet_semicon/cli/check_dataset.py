"""Checks of a dataset: labels, plans, unlabeled cases, meta-labels; raw files and splits have modules of their own."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import basename, isdir, isfile, join
from typing import TYPE_CHECKING

from nnunet_semicon.cli.findings import Finding, note, ok, problem, survived, together
from nnunet_semicon.errors import UserError, listing

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager


@dataclass(frozen=True)
class Configuration:
    """A configuration that can be trained: preprocessed, and not a cascade stage."""

    plans: "PlansManager"
    name: str
    cases: list[str]  # preprocessed labeled cases

    @property
    def data_identifier(self) -> str:
        """Name of the folder of its preprocessed cases; several configurations may share one."""
        return str(self.plans.get_configuration(self.name).data_identifier)


@dataclass(frozen=True)
class Dataset:
    """A dataset on disk; ``option`` is how the user named it, ``raw`` is empty if ``nnUNet_raw`` is not set."""

    option: str
    raw: str
    preprocessed: str

    @property
    def plan_command(self) -> str:
        """nnU-Net's command that plans and preprocesses."""
        return f"nnUNetv2_plan_and_preprocess -d {self.option} -c 2d"

    @cached_property
    def labeled(self) -> list[str]:
        """Cases with a label; empty where :func:`check_labeled` finds a problem."""
        from nnunet_semicon.data.splits import labeled_cases

        try:
            return labeled_cases(self.raw, self.preprocessed)
        except UserError:
            return []

    @cached_property
    def description(self) -> dict:
        """Content of ``dataset.json``, from the preprocessed folder (which training reads) if it is there."""
        for folder in (self.preprocessed, self.raw):
            content = read_json(join(folder, "dataset.json"))
            if content:
                return content
        raise UserError(f"no dataset.json in {self.preprocessed} or {self.raw or 'nnUNet_raw'} can be read")

    @cached_property
    def plans(self) -> list["PlansManager"]:
        """Every plans file of the preprocessed folder; :func:`check_plans` reports those that cannot be read."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        contents = [read_json(path) for path in self.json_files]
        return [PlansManager(content) for content in contents if content and "configurations" in content]

    @property
    def json_files(self) -> list[str]:
        """All JSON files of the preprocessed folder: plans files can have any name."""
        names = sorted(os.listdir(self.preprocessed)) if isdir(self.preprocessed) else []
        return [join(self.preprocessed, name) for name in names if name.endswith(".json")]

    @cached_property
    def usable(self) -> list[Configuration]:
        """The configurations that can be trained; :func:`check_configuration` reports those that cannot be read."""
        found = []
        for plans in self.plans:
            for name in plans.available_configurations:
                with suppress(Exception):  # whatever nnU-Net raises for plans that were edited by hand
                    is_cascade_stage = plans.get_configuration(name).previous_stage_name is not None
                    cases = self.preprocessed_cases(plans, name)
                    if cases and not is_cascade_stage:
                        found.append(Configuration(plans, name, cases))
        return found

    @property
    def known(self) -> list[str]:
        """The cases of imagesTr: those that are preprocessed, otherwise those with a label."""
        return sorted({case for configuration in self.usable for case in configuration.cases} or self.labeled)

    @cached_property
    def all_cases(self) -> list[str]:
        """The cases of imagesTr and imagesUn; :func:`check_unlabeled` reports what is wrong with the latter."""
        from nnunet_semicon.cli.meta import unlabeled_cases

        try:
            unlabeled = unlabeled_cases(self.raw, self.preprocessed)
        except UserError:
            unlabeled = []
        return sorted({*self.known, *unlabeled})

    @cached_property
    def patient_of(self) -> Mapping[str, str]:
        """Case -> patient; by the names alone where :func:`check_meta_labels` finds a problem."""
        from nnunet_semicon.data.meta import patients
        from nnunet_semicon.meta_labels.extract import patients_from_names

        try:
            return patients(self.raw, self.preprocessed, self.all_cases)
        except UserError:
            return patients_from_names(self.all_cases)[0]

    @cached_property
    def label_columns(self) -> dict[str, str | None]:
        """Column of the meta table -> why it is no label; empty where :func:`check_meta_labels` finds a problem."""
        from nnunet_semicon.data.meta import training_table

        try:
            return training_table(self.raw, self.preprocessed, self.all_cases).label_columns()
        except UserError:
            return {}

    def preprocessed_cases(self, plans: "PlansManager", name: str) -> list[str]:
        """Return the labeled cases that are preprocessed for a configuration."""
        from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

        folder = join(self.preprocessed, plans.get_configuration(name).data_identifier)
        if not isdir(folder) or not os.listdir(folder):
            return []
        return sorted(infer_dataset_class(folder).get_identifiers(folder))


def read_json(path: str) -> dict | None:
    """Return the object in a JSON file, empty if it holds something else, or None if it cannot be read."""
    try:
        with open(path) as file:
            content = json.load(file)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else {}


def check_dataset(name_or_id: str) -> Iterator[Finding]:
    """Check a dataset, what nnU-Net made of it, its splits, unlabeled cases and meta-labels."""
    from nnunet_semicon.cli.check_raw import check_raw
    from nnunet_semicon.cli.check_splits import check_splits
    from nnunet_semicon.cli.common import find_folders

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
    from nnunet_semicon.data.splits import labeled_cases

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
        if read_json(path) is None and basename(path) != "splits_final.json":  # that one has a check of its own
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


def check_configuration(dataset: Dataset, plans: "PlansManager", name: str) -> Iterator[Finding]:
    """Check one configuration, which the caller names: its ``semicon`` block and its preprocessed cases."""
    command = f"nnUNetv2_preprocess -d {dataset.option} -plans_name {plans.plans_name} -c {name}"
    configuration = plans.get_configuration(name)
    if configuration.previous_stage_name is not None:
        yield note("a cascade stage, which only nnU-Net's own trainers train")
        return
    try:
        check_block(configuration.configuration, dataset.label_columns)
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


def check_block(configuration: dict, columns: Mapping[str, str | None]) -> None:
    """Refuse hyper-parameters that no trainer knows, and values out of range."""
    from nnunet_semicon import trainers
    from nnunet_semicon.configuration.config import BLOCK, RunConfig, check_keys, resolve
    from nnunet_semicon.training.configured_trainer import known_keys

    block = configuration.get(BLOCK, {})
    where = f"the '{BLOCK}' block"
    check_keys(block, known_keys(), where)
    for config in (RunConfig, *(getattr(trainers, name).method_class.Config for name in trainers.__all__)):
        resolve(config, block, where, columns)


def check_unlabeled(dataset: Dataset) -> Iterator[Finding]:
    """Check ``imagesUn`` and whether it is preprocessed for everything that can be trained."""
    from nnunet_semicon.cli.split import count
    from nnunet_semicon.data.images_un import FOLDER, scan_images_un
    from nnunet_semicon.data.unlabeled import preprocess_command, require_preprocessed

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
    from nnunet_semicon.data.meta import training_table
    from nnunet_semicon.meta_labels.table import PATIENT

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
    from nnunet_semicon.configuration.resolved import partitions_of, read_fingerprint

    plans = configuration.plans
    settings = plans.get_configuration(configuration.name).configuration
    partitions = partitions_of(settings, plans.plans, read_fingerprint(dataset.preprocessed))
    if partitions.value is None:
        return note(f"not used ({partitions.reason})")
    return ok(f"{partitions.value} partitions along axis {plans.transpose_forward[0]} ({partitions.reason})")
