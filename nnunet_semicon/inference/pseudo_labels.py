"""Predictions of a checkpoint for the unlabeled cases of its fold, for ``semicon evaluate --pseudo-labels``.

Only where the truth of these cases exists: a split that calls labeled cases unlabeled. Training never sees it.
"""

import shutil
from pathlib import Path

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_semicon.data.raw_cases import raw_cases
from nnunet_semicon.data.splits import FILE, UNLABELED, read_splits
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.evaluation.folders import DATASET, Source, dataset_of, entry
from nnunet_semicon.training.checkpoint import weights_of
from nnunet_semicon.workspace import preprocessed_folder, raw_folder


def predict(fold: Path, checkpoint: str, weights: str, device: str, processes: int) -> Source:
    """Predict with nnU-Net's predictor into ``<fold>/pseudo_labels_<weights>``.

    Args:
        fold: fold folder of a trained model.
        checkpoint: file name in it.
        weights: ``student`` or ``teacher``.
        device: ``cpu``, ``cuda`` or ``mps``; nnU-Net's default ``cuda`` falls back to the CPU where there is none.
        processes: for preprocessing and export.

    Raises:
        UserError: no such checkpoint, no unlabeled case, no truth, or no teacher.
    """
    if not (fold / checkpoint).is_file():
        raise UserError(
            f"{fold} has no {checkpoint}: --pseudo-labels expects the fold folder of a training, such as "
            ".../nnUNetTrainerSPCon__nnUNetPlans__2d/fold_0, and --checkpoint a file in it"
        )
    dataset = dataset_of(fold.parent)
    references = Path(preprocessed_folder()) / dataset / "gt_segmentations"
    ending = entry(fold.parent / DATASET, "file_ending")
    cases = [case for case in _unlabeled(dataset, fold) if (references / f"{case}{ending}").is_file()]
    if not cases:
        raise UserError(
            f"no unlabeled case of {fold.name} has a true segmentation in {references}: the quality of pseudo-labels "
            "can be measured only where a split (`semicon split`) calls labeled cases unlabeled"
        )
    target = fold / f"pseudo_labels_{weights}"
    _run_predictor(fold, checkpoint, weights, device, processes, _images(dataset, cases), target)
    return Source(target, references, fold.parent / DATASET)


def _unlabeled(dataset: str, fold: Path) -> list[str]:
    file = Path(preprocessed_folder()) / dataset / FILE
    number = fold.name.removeprefix("fold_")
    splits = read_splits(str(file))
    if not number.isdigit() or int(number) >= len(splits):
        raise UserError(f"{file} has no fold '{number}': --pseudo-labels needs one of its {len(splits)} folds")
    return list(splits[int(number)].get(UNLABELED, []))


def _images(dataset: str, cases: list[str]) -> list[list[str]]:
    folder = Path(raw_folder()) / dataset
    known = raw_cases(folder)
    lacking = [case for case in cases if case not in known]
    if lacking:
        raise UserError(
            f"{folder} has no image of {listing(lacking)}: expected every case that the split lists as unlabeled; put "
            "the images back"
        )
    return [list(map(str, known[case].images)) for case in cases]


def _run_predictor(
    fold: Path, checkpoint: str, weights: str, device: str, processes: int, images: list[list[str]], target: Path
) -> None:
    found = torch.device("cpu" if device == "cuda" and not torch.cuda.is_available() else device)
    predictor = nnUNetPredictor(device=found, perform_everything_on_device=found.type == "cuda")
    number = fold.name.removeprefix("fold_")
    predictor.initialize_from_trained_model_folder(str(fold.parent), (number,), checkpoint)
    content = torch.load(fold / checkpoint, map_location="cpu", weights_only=False)
    try:
        predictor.list_of_parameters = [weights_of(content, weights)]
    except KeyError:
        raise UserError(f"{fold / checkpoint} has no teacher: use --weights student") from None
    shutil.rmtree(target, ignore_errors=True)  # of another split: its cases are not those of this one
    ending = predictor.dataset_json["file_ending"]
    files = [str(target / Path(channels[0]).name.removesuffix(ending).removesuffix("_0000")) for channels in images]
    predictor.predict_from_files(
        images, files, num_processes_preprocessing=processes, num_processes_segmentation_export=processes
    )
