"""What came out of the demo: a table of Dice scores and a picture of four test scans."""

from nnunet_semicon.demo.chain import CONTROL, ROWS, SEMICON, Folder
from nnunet_semicon.demo.dataset import TEST, case_name
from nnunet_semicon.demo.figure import POSITIONS, draw
from nnunet_semicon.demo.table import read_dice, table_rows


def measure(folder: Folder) -> tuple[list[list[str]], dict[str, dict[str, float]]]:
    """Return the cells of the table, its header first, and row -> structure -> mean Dice in [0, 1]."""
    dice = {row.key: read_dice(folder.predictions(row) / "summary.json") for row in ROWS}
    return table_rows([(row.title, dice[row.key]) for row in ROWS]), dice


def draw_figure(folder: Folder) -> None:
    """Draw four test scans: image, reference, the control and Semicon."""
    # one scan of each of the first patients, alternately ED and ES
    scans = [TEST[2 * i + i % 2] for i in range(len(POSITIONS))]
    segmentations = {row.title: folder.predictions(row) for row in (CONTROL, SEMICON)}
    cases = [case_name(*scan) for scan in scans]
    draw(folder.images, folder.labels, segmentations, cases, folder.figure, "synthetic scans, one seed: no evidence")
