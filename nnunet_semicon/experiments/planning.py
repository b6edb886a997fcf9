"""The plan step of a sweep file: from raw data to preprocessed data, with nnU-Net's own commands.

Every part is skipped where it is done. The plans file of the step notes what it was made of; other values are refused.
Only that file is written; nnU-Net's own plans stay as they are.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon.configuration.plans import read_plans
from nnunet_semicon.data.images_un import scan_images_un
from nnunet_semicon.data.raw_cases import DESCRIPTION, raw_cases
from nnunet_semicon.data.unlabeled import has_outputs, unlabeled_folder
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.experiments.file import PlanStep
from nnunet_semicon.experiments.locks import lock
from nnunet_semicon.experiments.run import Runner, failure
from nnunet_semicon.files import read_object, write_json

NOTE = "semicon_plan_step"  # key of the plans file
FINGERPRINT, LOG = "dataset_fingerprint.json", "plan_step.log"
SMALLEST_WIDTH = WIDTH_STEP = 8  # features of a stage
MOST_PROCESSES = 8

Say = Callable[[str], None]


class Planner:
    """Runs the plan step of a sweep.

    Args:
        step: what the file says.
        raw: raw folder of the dataset.
        preprocessed: preprocessed folder of the dataset, which need not exist.
        where: names the step in messages.
    """

    def __init__(self, step: PlanStep, raw: Path, preprocessed: Path, where: str) -> None:
        self.step, self.raw, self.preprocessed, self.where = step, raw, preprocessed, where
        self.number = str(int(raw.name[len("Dataset") :].split("_")[0]))
        self.plans_file = preprocessed / f"{step.name}.json"

    def run(self, say: Say, runner: Runner, dry: bool = False) -> bool:
        """Do what is not done yet.

        Args:
            say: prints a line.
            runner: for the commands.
            dry: only print the commands.

        Returns:
            Whether the plans and the preprocessed data are there at the end.

        Raises:
            UserError: the plans exist with other values, or a command failed.
        """
        if dry:
            for words in self._left():
                say(f"$ {' '.join(words)}")
            return not self._left()
        self.preprocessed.mkdir(parents=True, exist_ok=True)
        with open(self.preprocessed / LOG, "ab") as log:
            lock(log, wait=True)  # jobs that start together all come here
            while left := self._left():
                words = left[0]
                say(f"$ {' '.join(words)}\n  output: {log.name}")
                if words[0] == "nnUNetv2_plan_experiment":
                    self._plan(words, runner, log)
                else:
                    self._command(words, runner, log)
                if self._left()[:1] == [words]:
                    raise UserError(
                        f"`{' '.join(words)}` ended without an error, but not all of its files are in "
                        f"{self.preprocessed}: see its output in {log.name}"
                    )
        return True

    def _left(self) -> list[list[str]]:
        """Return the commands that are still to be run.

        Raises:
            UserError: the plans exist with other values.
        """
        step, commands = self.step, []
        processes = str(min(MOST_PROCESSES, os.cpu_count() or 1))
        if not (self.preprocessed / FINGERPRINT).is_file():
            commands.append(["nnUNetv2_extract_fingerprint", "-d", self.number, "-np", processes, "--no_pbar"])
        if not self.plans_file.is_file():
            plan = ["nnUNetv2_plan_experiment", "-d", self.number, "-pl", step.planner]
            plan += [word for key, value in step.arguments.items() for word in (f"-{key}", str(value))]
            if step.spacing:
                plan += ["-overwrite_target_spacing", *map(str, step.spacing)]
            commands.append([*plan, "-overwrite_plans_name", step.name])
            missing = list(step.configurations)
        else:
            plans = read_plans(self.plans_file)
            self._refuse_other_plans(plans)
            missing = [name for name in step.configurations if not self._is_preprocessed(plans, name)]
        preprocess = ["nnUNetv2_preprocess", "-d", self.number, "-plans_name", step.name, "--no_pbar", "-np", processes]
        commands += [[*preprocess, "-c", name] for name in missing]
        images_un = self._images_un()
        if images_un:
            for name in step.configurations:
                if name in missing or not self._are_unlabeled_preprocessed(name, images_un):
                    words = ["semicon", "preprocess", "-d", self.number, "-p", step.name, "-c", name]
                    commands.append([*words, "-np", processes])
        return commands

    # --- parts -----------------------------------------------------------------------------------------------------

    def _command(
        self, words: Sequence[str], runner: Runner, log: Any, variables: Mapping[str, str] | None = None
    ) -> None:
        ended = runner.run(words, log, variables)
        if ended.code != 0:
            raise UserError(f"{self.where}: `{' '.join(words)}` failed: {failure(ended.code, Path(log.name))}")

    def _plan(self, words: Sequence[str], runner: Runner, log: Any) -> None:
        """Plan in a temporary folder, so that the plans appear with their widths and their note, or not at all."""
        with tempfile.TemporaryDirectory(prefix="semicon_") as temporary:
            folder = Path(temporary) / self.preprocessed.name
            folder.mkdir()
            shutil.copyfile(self.preprocessed / FINGERPRINT, folder / FINGERPRINT)
            # the planner asks torch for as many threads as there are loading processes
            loaders = {"nnUNet_n_proc_DA": "1"} if runner.environment.get("nnUNet_n_proc_DA") == "0" else {}
            self._command(words, runner, log, {"nnUNet_preprocessed": temporary, **loaders})
            plans = read_plans(folder / self.plans_file.name)
        for name in self.step.configurations:
            if name not in plans["configurations"]:
                raise UserError(
                    f"{self.where}: nnU-Net planned no configuration '{name}' for {self.raw.name}, only "
                    f"{listing(plans['configurations'])}: correct 'configurations'"
                )
            self._set_widths(plans, name)
        if not (self.preprocessed / DESCRIPTION).is_file():
            shutil.copyfile(self.raw / DESCRIPTION, self.preprocessed / DESCRIPTION)
        write_json(self.plans_file, {**plans, NOTE: asdict(self.step)}, indent=4)

    def _set_widths(self, plans: Mapping[str, Any], name: str) -> None:
        kwargs = plans["configurations"][name].get("architecture", {}).get("arch_kwargs", {})
        planned, widths = kwargs.get("features_per_stage"), self.step.widths
        if widths is None:
            return
        if planned is None:
            raise UserError(f"{self.where}: configuration '{name}' has no features_per_stage: leave out 'widths'")
        if isinstance(widths, float):
            kwargs["features_per_stage"] = [scaled(width, widths) for width in planned]
        elif len(widths) != len(planned):
            raise UserError(
                f"{self.where}: 'widths' has {len(widths)} numbers, but configuration '{name}' has {len(planned)} "
                f"stages ({listing(map(str, planned), at_most=9)}): expected a number for each"
            )
        else:
            kwargs["features_per_stage"] = list(widths)

    def _refuse_other_plans(self, plans: Mapping[str, Any]) -> None:
        then, now = plans.get(NOTE), _as_json(self.step)
        if then is None:
            raise UserError(
                f"{self.plans_file} exists and was not written by a plan step: choose another 'name' in {self.where}"
            )
        changed = [f"{key}: {then.get(key)} -> {value}" for key, value in now.items() if then.get(key) != value]
        if changed:
            raise UserError(
                f"{self.plans_file} was made with other values ({listing(changed)}): choose another 'name' in "
                f"{self.where}, or remove that file and its preprocessed data"
            )

    # --- what is there ---------------------------------------------------------------------------------------------

    def _is_preprocessed(self, plans: Mapping[str, Any], name: str) -> bool:
        """Return whether every labeled case is there; nnU-Net writes the .pkl of a case last."""
        folder = self.preprocessed / PlansManager(dict(plans)).get_configuration(name).data_identifier
        ending = read_object(self.raw / DESCRIPTION)["file_ending"]
        truth = self.preprocessed / "gt_segmentations"
        cases = raw_cases(self.raw)
        return all((folder / f"{case}.pkl").is_file() and (truth / f"{case}{ending}").is_file() for case in cases)

    def _images_un(self) -> list[str]:
        return list(scan_images_un(str(self.raw), read_object(self.raw / DESCRIPTION)))

    def _are_unlabeled_preprocessed(self, name: str, cases: Sequence[str]) -> bool:
        identifier = PlansManager(str(self.plans_file)).get_configuration(name).data_identifier
        folder = unlabeled_folder(str(self.preprocessed), identifier)
        return all(has_outputs(folder, case) for case in cases)


def scaled(width: int, factor: float) -> int:
    """Return a number of features times a factor, as a multiple of 8 and at least 8."""
    return max(SMALLEST_WIDTH, WIDTH_STEP * math.floor(width * factor / WIDTH_STEP + 0.5))


def _as_json(step: PlanStep) -> dict[str, Any]:
    """Return the step as it is read back from a JSON file: tuples are lists."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(step).items()}
