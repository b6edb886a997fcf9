"""The table of ``semicon demo``: Dice per structure of every row."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_semicon.demo.phantom import LABELS

STRUCTURES = {name: value for name, value in LABELS.items() if value > 0}
MEAN = "mean"


def read_dice(summary: Path) -> dict[str, float]:
    """Return the mean Dice over the cases for every structure, and their ``mean``, from nnU-Net's ``summary.json``."""
    content = json.loads(summary.read_text())
    dice = {name: float(content["mean"][str(value)]["Dice"]) for name, value in STRUCTURES.items()}
    return {**dice, MEAN: float(content["foreground_mean"]["Dice"])}


def table_rows(trainings: Sequence[tuple[str, Mapping[str, float]]]) -> list[list[str]]:
    """Return the cells of the table, its header first.

    Args:
        trainings: title, structure -> Dice in [0, 1] (NaN: the structure is nowhere).
    """
    columns = [*STRUCTURES, MEAN]
    rows = [["training", *columns]]
    for title, dice in trainings:
        cells = ["missing" if math.isnan(dice[column]) else f"{dice[column]:.3f}" for column in columns]
        rows.append([title, *cells])
    return rows
