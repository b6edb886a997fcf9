"""Words and tables that the generated pages share."""

from collections.abc import Sequence

NOT_RUN = "not run"
NOTICE = "<!-- written by scripts/make_results.py from docs/results/: change that, not this -->"
PAGES_COMMAND = "python scripts/make_results.py"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    ruler = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ruler, *lines])


def number(value: float, digits: int = 3) -> str:
    """Return a Dice value or a spread as text."""
    return f"{value:.{digits}f}"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, with three digits where they are few."""
    return f"{1000 * seconds:.3g}" if seconds < 0.1 else f"{1000 * seconds:.0f}"
