"""The plans file that a command works on, and where the rest of the dataset lies."""

import argparse
import os
from dataclasses import dataclass
from typing import Any

from nnunet_semicon.errors import UserError, nearest

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


def find_plans(args: argparse.Namespace) -> Place:
    """Read the plans file that -d and -p name.

    Raises:
        UserError: it does not exist or is not a plans file.
    """
    from nnunet_semicon.cli.common import find_folders
    from nnunet_semicon.configuration.plans import read_plans

    raw, preprocessed = find_folders(args.d)
    path = os.path.join(preprocessed, f"{args.p}.json")
    if not os.path.isfile(path):
        there = os.listdir(preprocessed) if os.path.isdir(preprocessed) else []
        others = [name.removesuffix(".json") for name in there if name.endswith(".json")]
        raise UserError(
            f"{path} does not exist{nearest(args.p, others)}; run `nnUNetv2_plan_and_preprocess -d {args.d} "
            f"-c {args.c or '2d'}` first"
        )
    return Place(raw, preprocessed, path, read_plans(path))


def all_cases(place: Place) -> list[str]:
    """Return every scan that a run could see: those with a label and those of ``imagesUn``, sorted."""
    from nnunet_semicon.cli.meta import unlabeled_cases
    from nnunet_semicon.data.splits import labeled_cases

    labeled = labeled_cases(place.raw, place.preprocessed)  # after this, dataset.json is known to be legible
    return sorted({*labeled, *unlabeled_cases(place.raw, place.preprocessed)})


def label_columns(place: Place) -> dict[str, str | None]:
    """Return column of the meta table -> why it cannot be a label, or None if it can."""
    from nnunet_semicon.data.meta import training_table

    return training_table(place.raw, place.preprocessed, all_cases(place)).label_columns()
