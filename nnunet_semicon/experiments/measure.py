"""Measures a finished training: predicts the validation cases of its fold with stock commands and evaluates them.

One JSON file per training and network, which ``semicon compare`` reads. A file is there whole or not at all.
"""

import os
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nnunet_semicon.data.raw_cases import DESCRIPTION, raw_cases
from nnunet_semicon.data.splits import FILE, read_splits
from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.file import ALL
from nnunet_semicon.experiments.plan import FINAL, SUMMARY, Plan
from nnunet_semicon.experiments.provenance import provenance
from nnunet_semicon.experiments.records import curves, pacing, training_record
from nnunet_semicon.experiments.run import Runner, failure
from nnunet_semicon.experiments.trainings import Training
from nnunet_semicon.experiments.weights import fingerprint, read_checkpoint
from nnunet_semicon.files import read_object, write_json
from nnunet_semicon.training.checkpoint import predicts_with

DEFAULT_DEVICE = "cuda"  # as nnU-Net's commands
IMAGES, LABELS, PREDICTED, MODEL = "images", "labels", "predicted", "model"  # in the temporary folder


def measure(plan: Plan, training: Training, network: str, runner: Runner, log: IO[bytes]) -> None:
    """Measure one network of a finished training and write the file.

    Args:
        plan: the sweep.
        training: its network is trained.
        network: ``student``, ``teacher`` or ``second``.
        runner: for the commands.
        log: for their output.

    Raises:
        UserError: a command failed, or something that it needs is missing.
        OSError: the file cannot be written.
    """
    content = _of_training(plan, training, network, runner.environment)
    if plan.segments(training):
        with tempfile.TemporaryDirectory(prefix="semicon_") as temporary:
            _predict(plan, training, network, Path(temporary), runner, log)
            content |= _evaluation(Path(temporary) / PREDICTED)
        summary = read_object(plan.folder(training) / SUMMARY)
        content["validation_dice"] = summary["foreground_mean"]["Dice"]
    else:
        folder = plan.folder(training)
        content |= {"epochs": curves(folder), "pacing": pacing(folder)}
    file = plan.result_file(training, network)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content, indent=1)


def _of_training(plan: Plan, training: Training, network: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what is recorded of a training, whichever network is measured."""
    folder = plan.folder(training)
    record = plan.record(training)  # None: trained by hand
    origin = None if record is None else record.origin
    return {
        "training": training.name,
        "stage": training.stage.name,
        "trainer": training.stage.trainer,
        "configuration": training.configuration,
        "dataset": plan.results.name,
        "plans": plan.sweep.plans,
        "fold": training.fold,
        "seed": training.seed,
        "network": network,
        "start": training.parent or (None if training.stage.weights is None else training.stage.weights.name),
        "checkpoint": fingerprint(folder / FINAL),
        "minutes": None if record is None else round(record.minutes, 2),
        "peak_memory_mib": None if record is None else record.peak_memory_mib,
        **(origin or provenance(plan.sweep.device or DEFAULT_DEVICE, environment)),
        **training_record(folder),
    }


# --- prediction --------------------------------------------------------------------------------------------------


def _predict(plan: Plan, training: Training, network: str, folder: Path, runner: Runner, log: IO[bytes]) -> None:
    """Predict and evaluate the validation cases in ``folder``."""
    _link_validation(plan, training, folder)
    trainer, variables = training.stage.trainer, {}
    if network != predicts_with(read_checkpoint(plan.folder(training) / FINAL)):
        export = ["semicon", "export", *_model(plan, training, trainer), "-o", str(folder / MODEL)]
        _run([*export, "--network", network], runner, log)
        (exported,) = (folder / MODEL / plan.results.name).iterdir()
        trainer, variables = exported.name.split("__")[0], {"nnUNet_results": str(folder / MODEL)}
    predict = ["nnUNetv2_predict", *_model(plan, training, trainer), "--disable_progress_bar"]
    # on a CPU, processes that prepare and write would only take its cores from the prediction
    helpers = "0" if plan.sweep.device == "cpu" else "1"
    predict += ["-npp", helpers, "-nps", helpers, "-i", str(folder / IMAGES), "-o", str(folder / PREDICTED)]
    if plan.sweep.device is not None:
        predict += ["-device", plan.sweep.device]
    _run(predict, runner, log, variables)
    evaluate = ["semicon", "evaluate", str(folder / PREDICTED), str(folder / LABELS)]
    _run([*evaluate, "-np", runner.environment.get("OMP_NUM_THREADS", "1")], runner, log)


def _model(plan: Plan, training: Training, trainer: str) -> list[str]:
    """Return the options that name a trained model."""
    words = ["-d", plan.sweep.dataset, "-c", training.configuration, "-f", str(training.fold)]
    return [*words, "-tr", trainer, "-p", plan.sweep.plans]


def _run(words: Sequence[str], runner: Runner, log: IO[bytes], variables: Mapping[str, str] | None = None) -> None:
    """Run a command.

    Raises:
        UserError: it failed.
    """
    added = "".join(f"{key}={shlex.quote(value)} " for key, value in (variables or {}).items())
    log.write(f"\n$ {added}{shlex.join(words)}\n".encode())
    log.flush()
    ended = runner.run(words, log, variables)
    if ended.code != 0:
        raise UserError(f"`{added}{shlex.join(words)}` failed: {failure(ended.code, Path(log.name))}")


def _link_validation(plan: Plan, training: Training, folder: Path) -> None:
    """Link images and labels of the validation cases of the training's fold into two folders."""
    raw = Path(os.environ["nnUNet_raw"]) / plan.results.name
    ending, cases = read_object(raw / DESCRIPTION)["file_ending"], raw_cases(raw)
    for name in (IMAGES, LABELS):
        (folder / name).mkdir()
    for name in validation_cases(plan, training):
        if name not in cases:
            raise UserError(f"{raw} has no case {name}, which fold {training.fold} validates on: put it back")
        case = cases[name]
        links = {folder / LABELS / f"{name}{ending}": case.label}
        links |= {folder / IMAGES / f"{name}_{i:04d}{ending}": image for i, image in enumerate(case.images)}
        for where, file in ((IMAGES, case.images[0]), (LABELS, case.label)):
            sidecar = file.with_name(f"{name}.json")  # the spacing of a TIFF file
            if sidecar.is_file():
                links[folder / where / sidecar.name] = sidecar
        for link, file in links.items():
            link.symlink_to(file.resolve())


def validation_cases(plan: Plan, training: Training) -> list[str]:
    """Return the validation cases of a training's fold; nnU-Net has written the split when it trained.

    Raises:
        UserError: there is no such fold.
    """
    path = Path(os.environ["nnUNet_preprocessed"]) / plan.results.name / FILE
    splits = read_splits(str(path)) if path.is_file() else []
    if training.fold == ALL or int(training.fold) >= len(splits):
        raise UserError(f"{path} has no fold {training.fold}, so nothing says on which cases it validates: put it back")
    return list(splits[int(training.fold)]["val"])


def _evaluation(predicted: Path) -> dict[str, Any]:
    """Return what ``semicon evaluate`` wrote, without the folders of this machine."""
    content = read_object(predicted / "evaluation.json")
    for entry in content["metric_per_case"]:
        for key in ("reference_file", "prediction_file"):
            entry[key] = Path(entry[key]).name
    return content
