"""Which files are compared with which: from folders, or from nnU-Net's result folders, to pairs of files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.evaluation.evaluate import Pair
from nnunet_semicon.workspace import preprocessed_folder

VALIDATION = "validation"
DATASET = "dataset.json"
PLANS = "plans.json"
SUMMARY = "summary.json"  # nnU-Net writes it when the validation of a fold is complete


@dataclass(frozen=True)
class Source:
    """Predictions and their references.

    Attributes:
        predictions: folder.
        references: folder.
        dataset: its ``dataset.json``.
        complete: False while nnU-Net still validates: what is there is evaluated, with a note.
    """

    predictions: Path
    references: Path
    dataset: Path
    complete: bool = field(default=True)


def is_results_folder(folder: Path) -> bool:
    """Say whether it is a model folder of nnU-Net, or one of its folds."""
    return (folder / VALIDATION).is_dir() or any(folder.glob("fold_*"))


def validated_folds(folder: Path) -> list[Path]:
    """Return the fold folders with a validation: the given one, or those of a model folder.

    Raises:
        UserError: there is none.
    """
    folds = [folder] if (folder / VALIDATION).is_dir() else sorted(folder.glob("fold_*"))
    validated = [fold for fold in folds if (fold / VALIDATION).is_dir()]
    if not validated:
        raise UserError(
            f"{folder} holds no finished training: expected a folder `{VALIDATION}` in a fold; finish the training, or "
            "run `nnUNetv2_train ... --val`"
        )
    return validated


def sources_of_results(folder: Path, dataset: Path | None) -> list[Source]:
    """Return the validation of each fold in a result folder of nnU-Net; the references are nnU-Net's own copies.

    Args:
        folder: of a model, or of one fold.
        dataset: ``dataset.json``; None: the nearest one.

    Raises:
        UserError: it is no such folder, holds no finished training, or ``nnUNet_preprocessed`` is not set.
    """
    if not is_results_folder(folder):
        raise UserError(
            f"{folder} is no result folder of nnU-Net (no `{VALIDATION}`, no `fold_*` in it): give the "
            "folder of the true segmentations too, `semicon evaluate PRED REF`"
        )
    folds = validated_folds(folder)
    model = folds[0].parent
    references = Path(preprocessed_folder()) / dataset_of(model) / "gt_segmentations"
    description = dataset or find_dataset_json(model)
    return [Source(f / VALIDATION, references, description, (f / VALIDATION / SUMMARY).is_file()) for f in folds]


def dataset_of(model: Path) -> str:
    """Return the name of the dataset that a model folder was trained on."""
    return str(entry(model / PLANS, "dataset_name"))


def find_dataset_json(*folders: Path) -> Path:
    """Return the nearest ``dataset.json``: nnU-Net puts it beside predictions, models and ``labelsTr``.

    Raises:
        UserError: none is in these folders or the two above each.
    """
    places = [place for folder in folders for place in (folder, *folder.resolve().parents[:2])]
    for place in places:
        if (place / DATASET).is_file():
            return place / DATASET
    raise UserError(
        f"no {DATASET} beside or above {' or '.join(map(str, folders))}: it says which labels there are; "
        f"give it with `--dataset FOLDER/{DATASET}`"
    )


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        UserError: it is missing, cannot be read or is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: expected nnU-Net's folder with this file in it") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder: expected a file, such as {file / DATASET}") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from None
    except ValueError:
        raise UserError(
            f"{file} is not valid JSON: it is damaged, or still being written; try again or copy it again"
        ) from None
    return content


def entry(file: Path, key: str) -> Any:
    """Return what one of nnU-Net's JSON files says under a key.

    Raises:
        UserError: it cannot be read, or does not say it.
    """
    content = read_json(file)
    if not isinstance(content, dict) or key not in content:
        raise UserError(f"{file} has no '{key}': expected a file of nnU-Net's; is it the right one?")
    return content[key]


def pairs(source: Source, ending: str, all_references: bool) -> Iterator[Pair]:
    """Yield the cases of a source, by name.

    Args:
        source: the folders.
        ending: file ending of the dataset, such as ``.nii.gz``.
        all_references: refuse a reference without a prediction.

    Raises:
        UserError: a folder is missing or empty, or the cases do not match.
    """
    predictions, references = (_cases(folder, ending) for folder in (source.predictions, source.references))
    without_reference = sorted(predictions - references)
    if without_reference:
        raise UserError(
            f"{source.references} has no reference for {listing(without_reference)}, predicted in "
            f"{source.predictions}: expected files of the same names; give the folder with the labels of these cases"
        )
    without_prediction = sorted(references - predictions)
    if without_prediction and all_references:
        raise UserError(
            f"{source.predictions} has no prediction for {listing(without_prediction)} of {source.references}: predict "
            "them too, or say with --chill that the rest is not wanted"
        )
    for case in sorted(predictions):
        yield Pair(case, source.predictions / f"{case}{ending}", source.references / f"{case}{ending}")


def _cases(folder: Path, ending: str) -> set[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: expected segmentations ending in {ending} in it")
    cases = {file.name.removesuffix(ending) for file in folder.iterdir() if file.name.endswith(ending)}
    if not cases:
        raise UserError(
            f"{folder} has no segmentation: expected files ending in {ending}, as {DATASET} says; a result folder of "
            "nnU-Net is evaluated alone, its references are known"
        )
    return cases
