"""The plans file that a command works on, and where the rest of the dataset lies."""

import os
from dataclasses import dataclass
from typing import Any

from nnunet_semicon.errors import UserError, listing

DEFAULT_PLANS = "nnUNetPlans"


@dataclass(frozen=True)
class Place:
    """A plans file and where the rest of the dataset lies.

    Attributes:
        raw: folder of the raw dataset; empty where ``nnUNet_raw`` is not set.
        preprocessed: folder of the preprocessed dataset.
        path: the plans file.
        plans: its content.
    """

    raw: str
    preprocessed: str
    path: str
    plans: dict[str, Any]

    @property
    def dataset(self) -> str:
        """``DatasetXXX_Name``."""
        return os.path.basename(self.preprocessed)

    @property
    def configurations(self) -> dict[str, Any]:
        """The configurations of the plans."""
        return dict(self.plans["configurations"])


def find_plans(dataset: str, identifier: str, configurations: str = "2d", option: str = "-p") -> Place:
    """Read a plans file.

    Args:
        dataset: id or name, as for nnU-Net.
        identifier: name of the plans.
        configurations: what to plan for where there are no plans yet.
        option: where the user named the plans, for messages.

    Raises:
        UserError: it does not exist or is not a plans file.
    """
    from nnunet_semicon.cli.common import find_folders
    from nnunet_semicon.configuration.plans import read_plans

    raw, preprocessed = find_folders(dataset)
    path = os.path.join(preprocessed, f"{identifier}.json")
    if not os.path.isfile(path):
        raise UserError(no_such_plans(path, configurations, option))
    return Place(raw, preprocessed, path, read_plans(path))


def plans_in(preprocessed: str) -> list[str]:
    """Return the names of the plans in a preprocessed folder, sorted; none where there is no such folder."""
    names = sorted(os.listdir(preprocessed)) if os.path.isdir(preprocessed) else []
    files = [name for name in names if name.endswith(".json") and _holds_plans(os.path.join(preprocessed, name))]
    return [name.removesuffix(".json") for name in files]


def _holds_plans(path: str) -> bool:
    from nnunet_semicon.cli.common import read_object

    try:
        return "configurations" in read_object(path)
    except UserError:
        return False


def no_such_plans(path: str, configurations: str = "2d", option: str = "-p") -> str:
    """Return that a plans file does not exist and what to do: where there are others, not to plan again."""
    from nnunet_semicon.data.unlabeled import dataset_option

    folder = os.path.dirname(path)
    others = plans_in(folder)
    if not others:
        command = f"nnUNetv2_plan_and_preprocess {dataset_option(folder)} -c {configurations}"
        return f"{path} does not exist; run first: {command}"
    return f"{path} does not exist, but other plans do; name one of them with {option}: {listing(others)}"


def all_cases(place: Place) -> list[str]:
    """Return every scan that a run could see: those with a label and those of ``imagesUn``, sorted."""
    from nnunet_semicon.cli.meta import unlabeled_cases
    from nnunet_semicon.data.splits import labeled_cases

    labeled = labeled_cases(place.raw, place.preprocessed)  # after this, dataset.json is known to be readable
    return sorted({*labeled, *unlabeled_cases(place.raw, place.preprocessed)})


def label_columns(place: Place) -> dict[str, str | None]:
    """Return column of the meta table -> why it cannot be a label, or None if it can."""
    from nnunet_semicon.data.meta import training_table

    return training_table(place.raw, place.preprocessed, all_cases(place)).label_columns()
