"""``semicon export``: a trained model for a machine that has nnU-Net but not this package."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from nnunet_semicon.configuration.architecture import CLASSES, SWIN, unet_architecture
from nnunet_semicon.errors import UserError, listing

EXAMPLE = """example:
  semicon export -d 027 -c 2d -tr nnUNetTrainerSPCon -f 0 -o EXPORT
  nnUNet_results=EXPORT nnUNetv2_predict -d 027 -c 2d -f 0 -i IN -o OUT           # needs no nnunet_semicon
  nnUNet_results=EXPORT nnUNetv2_export_model_to_zip -d 027 -c 2d -f 0 -o model.zip
  semicon export -d 027 -c 2d -tr nnUNetTrainerCPS -f 0 -o SECOND --network second      # to predict with both"""

STOCK_TRAINER, SWIN_TRAINER = "nnUNetTrainer", "nnUNetTrainerSwinUNet"  # who builds the exported network
NOT_VALIDATED = {"note": "no validation was run with these weights"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, as for nnU-Net")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="e.g. 2d")
    parser.add_argument("-tr", required=True, metavar="TRAINER", help="the trainer it was trained with")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("-f", nargs="+", default=["0"], metavar="FOLD", help="folds (default: 0)")
    parser.add_argument("-o", required=True, metavar="FOLDER", help="new or empty folder, used as nnUNet_results there")
    parser.add_argument(
        "--network",
        "--weights",
        choices=("student", "teacher", "second"),
        default="student",
        help="teacher: the moving average; second: the network beside the student (default: %(default)s)",
    )
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Write the copy and print how to predict with it."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_semicon import trainers
    from nnunet_semicon.workspace import dataset_name, results_folder

    trainer = getattr(trainers, args.tr, None)
    if trainer is not None and trainer.method_class.needs.stage == "pretrain":
        raise UserError(
            f"{args.tr} pre-trains an encoder and segments nothing: start another training from its checkpoint with "
            "-pretrained_weights, and export that one"
        )
    if trainer is not None and not trainer.network_of_plans:
        raise UserError(
            f"{args.tr} trains a network that nnU-Net alone cannot build: copy its results folder to the other machine "
            "and install this package there"
        )
    results_folder()
    name = dataset_name(args.d)
    if Path(args.o).is_file():
        raise UserError(f"{args.o} is a file: expected a new or empty folder; choose another -o")
    source = Path(get_output_folder(name, args.tr, args.p, args.c))
    paths = {fold: _find_checkpoint(source, fold, args.checkpoint) for fold in args.f}
    kind = _second_kind(next(iter(paths.values())), args) if args.network == "second" else None
    built_by = SWIN_TRAINER if kind == SWIN else STOCK_TRAINER
    target = Path(args.o) / name / f"{built_by}__{args.p}__{args.c}"
    if target.exists():
        raise UserError(f"{target} exists: choose another -o, or delete it first")

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for fold, path in paths.items():
            _export_fold(path, partial / f"fold_{fold}", args, built_by)
        for file in ("dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(source / file, partial / file)
        _export_plans(source / "plans.json", partial / "plans.json", args.c, kind)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be copied ({error.strerror}): expected what nnU-Net writes beside a checkpoint, "
            "and a folder -o that can be written"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    folds = " ".join(args.f)
    package, model = "without", f"-d {args.d} -c {args.c} -p {args.p}"
    if built_by == SWIN_TRAINER:  # nnU-Net alone cannot build a Transformer
        package, model = "with", f"{model} -tr {SWIN_TRAINER}"
    network = "second network" if args.network == "second" else args.network
    which = f"fold{'s' if len(args.f) > 1 else ''} {folds}"
    print(f"{network} of {args.tr}, {which}, exported to {target}. Predict {package} this package:")
    print(f"  nnUNet_results={args.o} nnUNetv2_predict {model} -f {folds} -i IN -o OUT")
    return 0


def _second_kind(path: Path, args: argparse.Namespace) -> str:
    """Return what the second network of a checkpoint is."""
    kind = _load(path).get("semicon", {}).get("settings", {}).get("second_network")
    if kind is None:
        raise UserError(f"{path} ({args.tr}) has no second network: use --network student")
    return str(kind)


def _export_plans(source: Path, target: Path, configuration: str, kind: str | None) -> None:
    """Write the plans; a second network of nnU-Net's own kinds stands in them in the place of the planned one."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads(source.read_text())
    if kind in CLASSES:
        planned = PlansManager(str(source)).get_configuration(configuration).configuration["architecture"]
        plans["configurations"][configuration]["architecture"] = unet_architecture(kind, planned)
    target.write_text(json.dumps(plans, indent=4))


def _export_fold(path: Path, folder: Path, args: argparse.Namespace, trainer: str) -> None:
    """Write checkpoint, progress figure and validation summary of one fold to ``folder``."""
    import torch

    from nnunet_semicon.training.checkpoint import SECOND_FOLDER, exported

    (folder / "validation").mkdir(parents=True)
    try:
        content = exported(_load(path), args.network, trainer)
    except KeyError:
        raise UserError(f"{path} ({args.tr}) has no {args.network}: use --network student") from None
    torch.save(content, folder / "checkpoint_final.pth")
    shutil.copyfile(path.parent / "progress.png", folder / "progress.png")
    validated = path.parent / SECOND_FOLDER if args.network == "second" else path.parent
    summary = validated / "validation" / "summary.json"
    if args.network != "teacher" and summary.is_file():
        shutil.copyfile(summary, folder / "validation" / "summary.json")
    else:
        (folder / "validation" / "summary.json").write_text(json.dumps(NOT_VALIDATED))


def _load(path: Path) -> dict[str, Any]:
    import torch

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
