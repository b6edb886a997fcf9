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
    text = StringIO()
    console = Console(file=text, width=UNLIMITED, color_system=None, force_terminal=False, force_jupyter=False)
    widths: list[int] = []
    if wrap and sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - len(indent) - GAP * (len(titles) - 1)
        measured = [[console.measure(Text(cell)) for cell in column] for column in zip(*rows, strict=True)]
        whole = [max(cell.maximum for cell in column) for column in measured]
        word = [min(LONGEST_WORD, max(cell.minimum for cell in column)) for column in measured]
        least = [w if i == 0 or numeric[i] else min(w, word[i]) for i, w in enumerate(whole)]
        widths = _shared(room, least, whole)
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, GAP, 0, 0))
    for i, title in enumerate(titles):
        width = widths[i] if widths else None
        table.add_column(Text(title), justify="right" if numeric[i] else "left", width=width, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table)
    return "\n".join(f"{indent}{line}".rstrip() for line in text.getvalue().removesuffix("\n").split("\n"))


def _shared(room: int, least: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return the widths of the columns: what is left after the least ones goes to those that lack most; [] if none is.

    Args:
        room: characters for all columns together.
        least: width that a column needs.
        whole: width at which it wraps nothing.
    """
    spare, lacking = room - sum(least), sum(whole) - sum(least)
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
