"""A copy of a trained model for a machine that has nnU-Net but not this package."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semicon import trainers
from nnunet_semicon.configuration.architecture import CLASSES, SWIN, unet_architecture
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.training.checkpoint import exported, validation_folder
from nnunet_semicon.workspace import dataset_name, results_folder

STOCK_TRAINER, SWIN_TRAINER = "nnUNetTrainer", "nnUNetTrainerSwinUNet"  # who builds the exported network
NOT_VALIDATED = {"note": "no validation was run with these weights"}


@dataclass(frozen=True)
class Model:
    """A trained model, as nnU-Net's commands name it.

    Attributes:
        dataset: id or name.
        trainer: name of its class.
        plans: identifier of the plans.
        configuration: name in the plans.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str


@dataclass(frozen=True)
class Copy:
    """Where the copy of a model lies.

    Attributes:
        folder: the model folder, in the form of ``nnUNet_results``.
        trainer: whose ``build_network_architecture`` builds its network: nnU-Net's own, or one of ours.
    """

    folder: Path
    trainer: str

    @property
    def needs_us(self) -> bool:
        """Whether predictions with it need this package: nnU-Net alone cannot build a Transformer."""
        return self.trainer != STOCK_TRAINER


def export(model: Model, folds: Sequence[str], checkpoint: str, network: str, out: str) -> Copy:
    """Copy folds of a model, with the weights of one of its networks, to ``out``.

    Args:
        model: what was trained.
        folds: numbers, or ``all``.
        checkpoint: file name in each fold folder.
        network: ``student``, ``teacher`` for the moving average, ``second`` for the network beside the student.
        out: new or empty folder, which is ``nnUNet_results`` on the other machine.

    Raises:
        UserError: the model segments nothing, does not exist, has no such network, or ``out`` cannot take it.
    """
    _refuse_trainer(model.trainer)
    results_folder()
    name = dataset_name(model.dataset)
    if Path(out).is_file():
        raise UserError(f"{out} is a file: expected a new or empty folder; choose another -o")
    source = Path(get_output_folder(name, model.trainer, model.plans, model.configuration))
    paths = {fold: _find_checkpoint(source, fold, checkpoint) for fold in folds}
    kind = _second_kind(next(iter(paths.values())), model.trainer) if network == "second" else None
    built_by = SWIN_TRAINER if kind == SWIN else STOCK_TRAINER
    target = Path(out) / name / f"{built_by}__{model.plans}__{model.configuration}"
    if target.exists():
        raise UserError(f"{target} exists: choose another -o, or delete it first")

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for fold, path in paths.items():
            _export_fold(path, partial / f"fold_{fold}", model.trainer, network, built_by)
        for file in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(source / file, partial / file)
        _export_plans(source / "plans.json", partial / "plans.json", model.configuration, kind)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be copied ({error.strerror}): expected what nnU-Net writes beside a checkpoint, "
            "and a folder -o that can be written"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Copy(target, built_by)


def _refuse_trainer(name: str) -> None:
    trainer = getattr(trainers, name, None)
    if trainer is not None and trainer.method_class.needs.stage == "pretrain":
        raise UserError(
            f"{name} pre-trains an encoder and segments nothing: start another training from its checkpoint with "
            "-pretrained_weights, and export that one"
        )
    if trainer is not None and not trainer.network_of_plans:
        raise UserError(
            f"{name} trains a network that nnU-Net alone cannot build: copy its results folder to the other machine "
            "and install this package there"
        )


def _second_kind(path: Path, trainer: str) -> str:
    """Return what the second network of a checkpoint is."""
    kind = _load(path).get("semicon", {}).get("settings", {}).get("second_network")
    if kind is None:
        raise UserError(f"{path} ({trainer}) has no second network: use --network student")
    return str(kind)


def _export_plans(source: Path, target: Path, configuration: str, kind: str | None) -> None:
    """Write the plans; a second network of nnU-Net's own kinds stands in them in the place of the planned one."""
    plans = json.loads(source.read_text())
    if kind in CLASSES:
        planned = PlansManager(str(source)).get_configuration(configuration).configuration["architecture"]
        plans["configurations"][configuration]["architecture"] = unet_architecture(kind, planned)
    target.write_text(json.dumps(plans, indent=4))


def _export_fold(path: Path, folder: Path, trainer: str, network: str, built_by: str) -> None:
    """Write checkpoint, progress figure and validation summary of one fold to ``folder``."""
    (folder / "validation").mkdir(parents=True)
    checkpoint = _load(path)
    try:
        content = exported(checkpoint, network, built_by)
    except KeyError:
        raise UserError(f"{path} ({trainer}) has no {network}: use --network student") from None
    torch.save(content, folder / "checkpoint_final.pth")
    shutil.copyfile(path.parent / "progress.png", folder / "progress.png")
    summary = validation_folder(path.parent, checkpoint, network) / "summary.json"
    if summary.is_file():
        shutil.copyfile(summary, folder / "validation" / "summary.json")
    else:
        (folder / "validation" / "summary.json").write_text(json.dumps(NOT_VALIDATED))


def _load(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=False))
    except Exception as error:  # whatever unpickling a damaged file raises
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged or no checkpoint; copy it again, or "
            "export another one with --checkpoint"
        ) from None


def _find_checkpoint(source: Path, fold: str, name: str) -> Path:
    if not source.is_dir():
        trained = sorted(p.name for p in source.parent.glob("*__*__*")) if source.parent.is_dir() else []
        raise UserError(f"{source} does not exist; trained so far: {listing(trained) or 'nothing'}")
    path = source / f"fold_{fold}" / name
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist; expected a finished training of this fold; found {found or 'nothing'}")
    return path
