"""The figure of ``semicon meta``: example slices of every meta-label's values, as in SP-Con, Figures 2 to 4."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from nnunet_semicon.errors import UserError
from nnunet_semicon.files import explain_unwritable, replacing
from nnunet_semicon.meta_labels.position import SliceAxis, axis_direction, is_backward
from nnunet_semicon.meta_labels.table import PATIENT, POSITION, MetaTable

mpl.use("Agg")
import matplotlib.pyplot as plt

ROWS = 3  # examples per value
MOST_VALUES = 7  # columns
TILE = 1.55  # inches

# how an image is shown upright: rows run to the back or to the feet, columns to the patient's left or to the back
_DOWN_LPS = np.array([0.1, 1.0, -1.0])
_RIGHT_LPS = np.array([1.0, 0.9, -0.1])


@dataclass(frozen=True)
class Scan:
    """The first channel of an image, (Z, Y, X) with the slice axis first, spacing in mm, and where its slices lie."""

    array: NDArray[np.float32]
    spacing: tuple[float, ...]
    axis: SliceAxis
    window: tuple[float, float]

    def slice_at(self, fraction: float) -> int:
        """Return the slice whose position is nearest to a fraction of the scan."""
        positions = self.axis.fraction(np.arange(len(self.array), dtype=np.float64) + 0.5)
        return int(np.argmin(np.abs(positions - fraction)))


class ScanReader:
    """Reads scans with nnU-Net's reader, each once.

    Args:
        files: case -> channel files.
        reader: nnU-Net's reader of the dataset.
        transpose_forward: of the plans.
    """

    def __init__(self, files: Mapping[str, Sequence[str]], reader: Any, transpose_forward: Sequence[int]) -> None:
        self.files = files
        self.reader = reader
        self.axes = tuple(transpose_forward)

    @cache  # noqa: B019  (the reader lives as long as the command)
    def read(self, case: str) -> Scan:
        """Return a scan, upright.

        Raises:
            UserError: The file cannot be read.
        """
        path = self.files[case][0]
        try:
            image, properties = self.reader.read_images([path])
        except Exception as error:  # readers raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]  # libraries put it there
            raise UserError(f"{path} cannot be read ({reason}): repair or remove it, or leave out --figure") from None
        array = image[0].transpose(self.axes)
        for axis, shown in ((1, _DOWN_LPS), (2, _RIGHT_LPS)):
            direction = axis_direction(properties, self.axes[axis])
            if direction is not None and direction @ shown < 0:
                array = np.flip(array, axis)
        low, high = np.percentile(array, [0.5, 99.5])
        spacing = tuple(float(properties["spacing"][axis]) for axis in self.axes)
        slices = len(array)
        position = SliceAxis(slices, 0, slices, slices, is_backward(properties, self.axes[0]))
        return Scan(array, spacing, position, (float(low), float(high)))


@dataclass(frozen=True)
class Tile:
    """One example: the slice of a case nearest to a fraction of its scan."""

    case: str
    fraction: float


@dataclass(frozen=True)
class Block:
    """Examples of one label: a column of tiles per value; the rows may have names."""

    title: str
    columns: Mapping[str, Sequence[Tile]]


def draw(path: str, table: MetaTable, scans: ScanReader, partitions: int | None, dataset: str) -> None:
    """Write the figure.

    Args:
        path: PNG file.
        table: of cases that have an image.
        scans: reads them.
        partitions: S, or None without a position label.
        dataset: name, for the title.

    Raises:
        UserError: An image cannot be read, or the file cannot be written.
    """
    blocks = [_position_block(table, partitions)] if partitions else []
    blocks += [_patient_block(table) if name == PATIENT else _block(table, name) for name in table.labels()]
    if not blocks:
        raise UserError(
            "--figure: there is no label to draw, since every column has one value and there is no position"
        )
    width = max(len(block.columns) for block in blocks)
    heights = [max(map(len, block.columns.values())) * (TILE + 0.2) + 0.65 for block in blocks]
    figure = plt.figure(figsize=(max(width * TILE + 0.6, 6.5), sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"{dataset}: examples of every meta-label", fontsize=12)
    parts = np.atleast_1d(figure.subfigures(len(blocks), 1, height_ratios=heights))
    for part, block in zip(parts, blocks, strict=True):
        _draw_block(part, block, width, scans)
    try:
        with explain_unwritable(path, "check the folder"), replacing(path) as (temporary,):
            figure.savefig(temporary, dpi=110, format="png")
    finally:
        plt.close(figure)


def _draw_block(part: Any, block: Block, width: int, scans: ScanReader) -> None:
    part.suptitle(block.title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    n_rows = max(map(len, block.columns.values()))
    grid = part.subplots(n_rows, width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for column, (value, tiles) in enumerate(block.columns.items()):
        for row, tile in enumerate(tiles):
            scan = scans.read(tile.case)
            index = scan.slice_at(tile.fraction)
            axes = grid[row, column]
            axes.imshow(
                scan.array[index],
                cmap="gray",
                vmin=scan.window[0],
                vmax=scan.window[1],
                aspect=scan.spacing[1] / scan.spacing[2],
                interpolation="nearest",
            )
            axes.text(
                0.5,
                -0.03,
                f"{_short(tile.case)}\nslice {index}",
                transform=axes.transAxes,
                fontsize=6,
                ha="center",
                va="top",
            )
        grid[0, column].set_title(_short(value), fontsize=9)


def _position_block(table: MetaTable, partitions: int) -> Block:
    cases = _spread(_one_case_per_patient(table), ROWS)
    columns = {
        f"partition {number}": [Tile(case, (number + 0.5) / partitions) for case in cases]
        for number in range(partitions)
    }
    return Block(f"{POSITION}: {partitions} partitions of a scan, middle slice of each; a row is a scan", columns)


def _patient_block(table: MetaTable) -> Block:
    column = table.columns[PATIENT]
    shown = _spread(column.values, MOST_VALUES)
    columns = {}
    for patient in shown:
        cases = [case for case in table.cases if column.value(case) == patient]
        columns[patient] = [Tile(cases[row % len(cases)], (row + 1) / (ROWS + 1)) for row in range(ROWS)]
    return Block(f"{PATIENT}: {len(shown)} of {len(column.values)}, slices of any of a patient's scans", columns)


def _block(table: MetaTable, name: str) -> Block:
    column = table.columns[name]
    counts = dict(list(column.counts().items())[:MOST_VALUES])
    columns = {
        f"{value} ({counts[value]})": [
            Tile(case, 0.5) for case in _spread([case for case in table.cases if column.value(case) == value], ROWS)
        ]
        for value in sorted(counts)
    }
    return Block(f"{name}: {len(counts)} of {len(column.values)} values, middle slices", columns)


def _one_case_per_patient(table: MetaTable) -> list[str]:
    first: dict[str, str] = {}
    for case in table.cases:
        first.setdefault(table.columns[PATIENT].value(case) or case, case)
    return list(first.values())


def _spread(items: Sequence[str], n: int) -> list[str]:
    """Return at most n of the items, evenly spread."""
    if len(items) <= n:
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, n)]


def _short(text: str, width: int = 24) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
