"""``semicon export``: a trained model for a machine that has nnU-Net but not this package."""

import argparse
import json
import os
import shutil
from pathlib import Path

from nnunet_semicon.errors import UserError, listing

EXAMPLE = """example:
  semicon export -d 027 -c 2d -tr nnUNetTrainerSPCon -f 0 -o EXPORT
  nnUNet_results=EXPORT nnUNetv2_predict -d 027 -c 2d -f 0 -i IN -o OUT           # needs no nnunet_semicon
  nnUNet_results=EXPORT nnUNetv2_export_model_to_zip -d 027 -c 2d -f 0 -o model.zip"""

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
    parser.add_argument("--weights", choices=("student", "teacher"), default="student", help="default: %(default)s")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Write the copy and print how to predict with it."""
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    from nnunet_semicon import trainers
    from nnunet_semicon.cli.common import dataset_name, results_folder
    from nnunet_semicon.training.checkpoint import STOCK_TRAINER

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
    source = Path(get_output_folder(name, args.tr, args.p, args.c))
    target = Path(args.o) / name / f"{STOCK_TRAINER}__{args.p}__{args.c}"
    if Path(args.o).is_file():
        raise UserError(f"{args.o} is a file: expected a new or empty folder; choose another -o")
    if target.exists():
        raise UserError(f"{target} exists: choose another -o, or delete it first")
    checkpoints = {fold: _find_checkpoint(source, fold, args.checkpoint) for fold in args.f}

    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for fold, path in checkpoints.items():
            _export_fold(path, partial / f"fold_{fold}", args)
        for file in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
            shutil.copyfile(source / file, partial / file)
        os.replace(partial, target)
    except OSError as error:
        raise UserError(
            f"{error.filename} cannot be copied ({error.strerror}): expected what nnU-Net writes beside a checkpoint, "
            "and a folder -o that can be written"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    folds = " ".join(args.f)
    print(f"{args.weights} of {args.tr}, folds {folds}, exported to {target}. Predict without this package:")
    print(f"  nnUNet_results={args.o} nnUNetv2_predict -d {args.d} -c {args.c} -p {args.p} -f {folds} -i IN -o OUT")
    return 0


def _export_fold(path: Path, folder: Path, args: argparse.Namespace) -> None:
    """Write checkpoint, progress figure and validation summary of one fold to ``folder``."""
    import torch

    from nnunet_semicon.training.checkpoint import exported

    (folder / "validation").mkdir(parents=True)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # whatever unpickling a damaged file raises
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): it is damaged or no checkpoint; copy it again, or "
            "export another one with --checkpoint"
        ) from None
    try:
        content = exported(checkpoint, args.weights)
    except KeyError:
        raise UserError(f"{path} ({args.tr}) has no teacher: use --weights student") from None
    torch.save(content, folder / "checkpoint_final.pth")
    shutil.copyfile(path.parent / "progress.png", folder / "progress.png")
    summary = path.parent / "validation" / "summary.json"
    if args.weights == "student" and summary.is_file():
        shutil.copyfile(summary, folder / "validation" / "summary.json")
    else:
        (folder / "validation" / "summary.json").write_text(json.dumps(NOT_VALIDATED))


def _find_checkpoint(source: Path, fold: str, name: str) -> Path:
    if not source.is_dir():
        trained = sorted(p.name for p in source.parent.glob("*__*__*")) if source.parent.is_dir() else []
        raise UserError(f"{source} does not exist; trained so far: {listing(trained) or 'nothing'}")
    path = source / f"fold_{fold}" / name
    if not path.is_file():
        found = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist; expected a finished training of this fold; found {found or 'nothing'}")
    return path
