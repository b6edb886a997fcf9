"""Writes docs/results.md and docs/performance.md, with a figure, from the JSON files in docs/results.

Nothing in these pages is written by hand: a number comes from a measurement in the repository, a cell without one is
"not run", and whether a method beats a control is computed. The tables of quality are those of ``semicon compare``.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from losses_page import draw_losses
from performance_page import performance_page
from provenance import REPOSITORY
from results_page import results_page

from nnunet_semicon.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Write both pages; return 0, or 1 after one sentence that says what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=REPOSITORY / "docs" / "results", help="folder of the JSON files"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs", help="folder of the pages")
    args = parser.parse_args(argv)
    try:
        pages = {"results.md": results_page(args.results), "performance.md": performance_page(args.results)}
    except UserError as error:
        print(f"make_results: {error}", file=sys.stderr)
        return 1
    draw_losses(args.results, args.out / "figures")
    for name, text in pages.items():
        (args.out / name).write_text(text)
        print(f"wrote {args.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
