"""A dataset as the checks see it: what lies on disk, and nothing where a check reports a problem instead."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from os.path import isdir, join

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.data.meta import patients, training_table
from nnunet_semicon.data.splits import labeled_cases
from nnunet_semicon.errors import UserError
from nnunet_semicon.files import read_object_or_none
from nnunet_semicon.meta_labels.extract import patients_from_names
from nnunet_semicon.workspace import unlabeled_cases


@dataclass(frozen=True)
class Configuration:
    """A configuration that can be trained: preprocessed, and not a cascade stage."""

    plans: PlansManager
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
        try:
            return labeled_cases(self.raw, self.preprocessed)
        except UserError:
            return []

    @cached_property
    def description(self) -> dict:
        """Content of ``dataset.json``, from the preprocessed folder (which training reads) if it is there."""
        for folder in (self.preprocessed, self.raw):
            content = read_object_or_none(join(folder, "dataset.json"))
            if content:
                return content
        raise UserError(f"no dataset.json in {self.preprocessed} or {self.raw or 'nnUNet_raw'} can be read")

    @cached_property
    def plans(self) -> list[PlansManager]:
        """Every plans file of the preprocessed folder; :func:`check_plans` reports those that cannot be read."""
        contents = [read_object_or_none(path) for path in self.json_files]
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
        try:
            unlabeled = unlabeled_cases(self.raw, self.preprocessed)
        except UserError:
            unlabeled = []
        return sorted({*self.known, *unlabeled})

    @cached_property
    def patient_of(self) -> Mapping[str, str]:
        """Case -> patient; by the names alone where :func:`check_meta_labels` finds a problem."""
        try:
            return patients(self.raw, self.preprocessed, self.all_cases)
        except UserError:
            return patients_from_names(self.all_cases)[0]

    @cached_property
    def label_columns(self) -> dict[str, str | None]:
        """Column of the meta table -> why it is no label; empty where :func:`check_meta_labels` finds a problem."""
        try:
            return training_table(self.raw, self.preprocessed, self.all_cases).label_columns()
        except UserError:
            return {}

    def preprocessed_cases(self, plans: PlansManager, name: str) -> list[str]:
        """Return the labeled cases that are preprocessed for a configuration."""
        folder = join(self.preprocessed, plans.get_configuration(name).data_identifier)
        if not isdir(folder) or not os.listdir(folder):
            return []
        return sorted(infer_dataset_class(folder).get_identifiers(folder))
