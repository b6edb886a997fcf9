"""Tables as text: aligned columns for a terminal, a pipe or a log, and Markdown for a file."""

import re
import shutil
import sys
from collections.abc import Sequence
from io import StringIO

GAP = 2  # spaces between two columns
LONGEST_WORD = 20  # characters that are broken only in a column of longer words, such as paths
UNLIMITED = 1_000_000  # characters of a line in a pipe, a file or a log
NUMBER = re.compile(r"[-+<]?\d+(\.\d+)?(e[-+]\d+)?( ± (\d+(\.\d+)?|-))?")
NO_NUMBER = ("", "-", "?", "missing")  # cells of numbers that there are not


def render(rows: Sequence[Sequence[str]], header: bool = True, indent: str = "", wrap: bool = True) -> str:
    """Return a table without lines and colors; a column of numbers is aligned to the right.

    Args:
        rows: cells, as many in every row; they are printed as they are, square brackets too.
        header: the first row holds the titles of the columns.
        indent: text before every line.
        wrap: if stdout is a terminal, wrap long cells to its width. The first column and numbers are never wrapped; a
            table that needs more than the width even then keeps its whole lines.
    """
    # rich takes 0.1 s to import: a command that prints no table does not wait for it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    titles, cells = (rows[0], rows[1:]) if header else ([""] * len(rows[0]), rows)
    numeric = [_is_numeric(column) for column in zip(*cells, strict=True)] or [False] * len(titles)
    widths: list[int | None] = [None] * len(titles)
    if wrap and sys.stdout.isatty():
        widths = _widths(rows, numeric, shutil.get_terminal_size().columns - len(indent)) or widths
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, GAP, 0, 0))
    for title, is_numeric, width in zip(titles, numeric, widths, strict=True):
        table.add_column(Text(title), justify="right" if is_numeric else "left", width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    text = StringIO()
    Console(file=text, width=UNLIMITED, color_system=None, force_terminal=False, force_jupyter=False).print(table)
    return "\n".join(f"{indent}{line}".rstrip() for line in text.getvalue().removesuffix("\n").split("\n"))


def _widths(rows: Sequence[Sequence[str]], numeric: Sequence[bool], available: int) -> list[int | None]:
    """Return the widths of the columns in a terminal; [] if all of them fit, or cannot be made to fit.

    Every column gets what its longest word needs. The rest is shared in proportion to what each one lacks.
    """
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    words = [max((cell_len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    least = [
        width if index == 0 or numeric[index] else min(word, LONGEST_WORD)
        for index, (width, word) in enumerate(zip(whole, words, strict=True))
    ]
    spare = available - GAP * (len(columns) - 1) - sum(least)
    lacking = sum(whole) - sum(least)
    if spare < 0 or spare >= lacking:
        return []
    return [small + spare * (large - small) // lacking for small, large in zip(least, whole, strict=True)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its header."""
    header, *lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _is_numeric(column: Sequence[str]) -> bool:
    numbers = [cell for cell in column if cell not in NO_NUMBER]
    return bool(numbers) and all(NUMBER.fullmatch(cell) for cell in numbers)
