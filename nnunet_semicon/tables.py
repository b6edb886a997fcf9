"""Tables as text: aligned columns for a terminal, a pipe or a log, and Markdown for a file."""

import re
import shutil
import sys
from collections.abc import Sequence
from io import StringIO

GAP = 2  # spaces between two columns
UNLIMITED = 1_000_000  # characters of a line in a pipe, a file or a log
NUMBER = re.compile(r"[-+<]?\d+(\.\d+)?(e[-+]\d+)?( ± (\d+(\.\d+)?|-))?")
NO_NUMBER = ("", "-", "?", "missing")  # cells of numbers that there are not


def render(rows: Sequence[Sequence[str]], header: bool = True, indent: str = "", wrap: bool = True) -> str:
    """Return a table without lines and colors; a column of numbers is aligned to the right.

    Args:
        rows: cells, as many in every row; they are printed as they are, square brackets too.
        header: the first row holds the titles of the columns.
        indent: text before every line.
        wrap: if stdout is a terminal, wrap long cells to its width. Numbers are never wrapped; a table whose words
            need more than the width keeps its full width.
    """
    # rich takes 0.1 s to import: a command that prints no table does not wait for it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return ""
    titles, cells = (rows[0], rows[1:]) if header else ([""] * len(rows[0]), rows)
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, GAP, 0, 0))
    for index, title in enumerate(titles):
        numeric = _is_numeric([row[index] for row in cells])
        table.add_column(Text(title), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    text = StringIO()
    console = Console(file=text, width=UNLIMITED, color_system=None, force_terminal=False, force_jupyter=False)
    width = shutil.get_terminal_size().columns - len(indent)
    if wrap and sys.stdout.isatty() and console.measure(table).minimum <= width:
        console.width = width
    console.print(table)
    return "\n".join(f"{indent}{line}".rstrip() for line in text.getvalue().removesuffix("\n").split("\n"))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its header."""
    header, *lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def _is_numeric(column: Sequence[str]) -> bool:
    numbers = [cell for cell in column if cell not in NO_NUMBER]
    return bool(numbers) and all(NUMBER.fullmatch(cell) for cell in numbers)
