"""The table of ``semicon demo``: Dice per structure of every row."""

import json
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


def table(rows: Sequence[tuple[str, int, Mapping[str, float]]]) -> str:
    """Return a Markdown table with aligned columns.

    Args:
        rows: title, labeled images per step, structure -> Dice in [0, 1] (NaN: the structure is nowhere).
    """
    header = ["training", "labeled images per step", *STRUCTURES, MEAN]
    cells = [
        [title, str(labeled), *("missing" if dice[k] != dice[k] else f"{dice[k]:.3f}" for k in header[2:])]
        for title, labeled, dice in rows
    ]
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [header, rule, *cells]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
