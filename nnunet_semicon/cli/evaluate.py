"""``semicon evaluate``: overlap and surface distances of predictions, in two named conventions."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.tables import render

if TYPE_CHECKING:
    from nnunet_semicon.evaluation.folders import Source

NAME = "evaluation.json"
EXAMPLE = f"""examples:
  semicon evaluate PREDICTIONS labelsTs                    # writes PREDICTIONS/{NAME} and .csv
  semicon evaluate $nnUNet_results/Dataset027_ACDC/nnUNetTrainerSPCon__nnUNetPlans__2d      # its folds' validation
  semicon evaluate .../nnUNetTrainerSPCon__nnUNetPlans__2d/fold_0 --pseudo-labels --weights teacher"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument(
        "predictions",
        metavar="PRED",
        type=Path,
        help="folder of segmentations; or a result folder of nnU-Net (model or fold), for its validation",
    )
    parser.add_argument("references", metavar="REF", type=Path, nargs="?", help="folder of the true segmentations")
    parser.add_argument("--out", metavar="F", type=Path, help=f"file to write (default: PRED/{NAME}); a CSV beside it")
    parser.add_argument(
        "--metrics", metavar="NSD=MM", nargs="+", default=[], help="more metrics: NSD at a tolerance in mm, e.g. NSD=1"
    )
    parser.add_argument("--dataset", metavar="FILE", type=Path, help="dataset.json (default: the nearest one)")
    parser.add_argument("--chill", action="store_true", help="some references may have no prediction")
    parser.add_argument("-np", type=int, default=os.cpu_count() or 1, metavar="N", help="threads (default: all cores)")
    group = parser.add_argument_group("quality of pseudo-labels")
    group.add_argument(
        "--pseudo-labels",
        action="store_true",
        help="of a fold: predict the unlabeled cases of its split whose truth exists, and evaluate that",
    )
    group.add_argument("--weights", choices=("student", "teacher"), default="student", help="default: %(default)s")
    group.add_argument("--checkpoint", default="checkpoint_final.pth", help="default: %(default)s")
    group.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cuda", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the files, print the tables."""
    from nnunet_semicon.evaluation.evaluate_folder import evaluate_folder, write_evaluation

    tolerance = _tolerance(args.metrics)
    if args.out and args.out.suffix != ".json":
        raise UserError(
            f"--out {args.out}: expected a file ending in .json; the CSV of the same name is written beside it"
        )
    if args.pseudo_labels and args.references is not None:
        raise UserError("--pseudo-labels takes the truth from nnUNet_preprocessed: leave out REF")
    sources = _sources(args)
    if args.out and len(sources) > 1:
        raise UserError(
            f"--out names one file, but {args.predictions} has {len(sources)} folds: leave it out, or name a fold"
        )
    all_references = args.references is not None and not args.chill
    for source in sources:
        content, notes = evaluate_folder(source, tolerance, all_references, args.np)
        file = args.out or source.predictions / NAME
        write_evaluation(content, file)
        _print(content, notes, file)
    return 0


def _tolerance(metrics: list[str]) -> float | None:
    tolerance = None
    for metric in metrics:
        name, _, value = metric.partition("=")
        try:
            tolerance = float(value)
        except ValueError:
            tolerance = -1.0
        if name.upper() != "NSD" or not 0 < tolerance < float("inf"):
            raise UserError(f"--metrics {metric}: expected NSD with a tolerance in mm above 0, such as NSD=1")
    return tolerance


def _sources(args: argparse.Namespace) -> "list[Source]":
    from nnunet_semicon.evaluation.folders import Source, find_dataset_json, sources_of_results

    if not args.predictions.is_dir():
        raise UserError(
            f"{args.predictions} is no folder: expected one with segmentations, or a result folder of nnU-Net"
        )
    if args.pseudo_labels:
        from nnunet_semicon.inference.pseudo_labels import predict

        return [predict(args.predictions, args.checkpoint, args.weights, args.device, args.np)]
    if args.references is not None:
        dataset = args.dataset or find_dataset_json(args.predictions, args.references)
        return [Source(args.predictions, args.references, dataset)]
    return sources_of_results(args.predictions, args.dataset)


def _print(content: dict[str, Any], notes: list[str], file: Path) -> None:
    from nnunet_semicon.evaluation.evaluate import CONVENTIONS
    from nnunet_semicon.evaluation.tables import HEADINGS, is_missing, rows

    for convention in CONVENTIONS:
        print(f"\n{HEADINGS[convention]}")
        print(render(rows(content, convention), indent="  "))
    print("\nMeans are over the cases that have the class in both files.")
    if is_missing(content):
        print("pen.: over all cases; a class that is missing in one file counts as Dice 0 and as the image's diagonal.")
    for name, of_class in zip(
        content["semicon"]["class_names"].values(), content["semicon"]["summary"].values(), strict=True
    ):
        for where in ("prediction", "reference"):
            cases = of_class[f"missing_in_{where}"]
            if cases:
                print(f"{name} is missing in the {where} of {listing(cases)}.")
    for note in notes:
        print(f"note: {note}")
    print(f"written: {file} and {file.with_suffix('.csv').name}")
