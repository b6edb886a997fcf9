"""``semicon compare``: whether one method is better than another, paired by case."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from nnunet_semicon.errors import UserError, nearest
from nnunet_semicon.evaluation.comparison import Comparison, Method
from nnunet_semicon.evaluation.runs import Source, find, methods_of
from nnunet_semicon.tables import render

SWEEP_FILES = (".yaml", ".yml")
NOTES = """example:
  R=$nnUNet_results/Dataset027_ACDC
  semicon evaluate $R/nnUNetTrainerSPCon__nnUNetPlans__2d_s0               # first, for every run
  semicon compare $R/nnUNetTrainerSupervisedControl__nnUNetPlans__2d_s* $R/nnUNetTrainerSPCon__nnUNetPlans__2d_s*
  semicon compare sweep.yaml                                               # what `semicon sweep` has measured

Runs whose names differ only in a trailing _s<seed> are one method. The first method is the baseline."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = NOTES
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="model folder (all its folds), fold folder, prediction folder, file that `semicon evaluate` wrote, or "
        "sweep file",
    )
    parser.add_argument("--baseline", metavar="METHOD", help="compare with this one (default: the first)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--convention",
        choices=("mm", "voxel"),
        default="mm",
        help="mm: DSC, HD95_mm, ASSD_mm; voxel: DSC, Jaccard, HD95_voxel, ASD_voxel (default: %(default)s)",
    )
    which.add_argument("--metrics", nargs="+", metavar="METRIC", help="any metrics of the files instead")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="also write Markdown, CSV and JSON: a folder (comparison.*), or a name for all three",
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables and write the files."""
    from nnunet_semicon.evaluation.compare import DEFAULT_METRICS, compare
    from nnunet_semicon.evaluation.comparison_files import write_comparison

    sources: list[Source] = []
    left_out: list[str] = []
    for argument in args.runs:
        if argument.endswith(SWEEP_FILES):
            measured, notes = _measured(argument)
            sources, left_out = sources + measured, left_out + notes
        else:
            sources += find(argument)
    methods, damaged = methods_of(sources)
    left_out += damaged
    if args.baseline is not None:
        methods = _with_first(methods, args.baseline)
    comparison = compare(methods, args.metrics or DEFAULT_METRICS[args.convention])
    comparison = replace(comparison, notes=(*left_out, *comparison.notes))
    written = []
    if args.out is not None:  # before anything is printed: `semicon compare ... | head` must write it too
        written = write_comparison(args.out, comparison)
    print(_tables(comparison))
    for path in written:
        print(f"written: {path}")
    return 0


def _measured(file: str) -> tuple[list[Source], list[str]]:
    """Return what a sweep has measured, its stages as methods, and notes on what is left out."""
    from nnunet_semicon.experiments.file import read_sweep
    from nnunet_semicon.experiments.results import results_of

    sweep = read_sweep(file)
    results, notes = results_of(sweep)
    return [Source(result.file, sweep.results / result.run, result.fold) for result in results], notes


def _with_first(methods: Sequence[Method], name: str) -> list[Method]:
    first = [method for method in methods if method.name == name]
    if not first:
        names = [method.name for method in methods]
        raise UserError(
            f"--baseline '{name}' is none of the methods{nearest(name, names)}; there are {', '.join(names)}"
        )
    return first + [method for method in methods if method.name != name]


def _tables(comparison: Comparison) -> str:
    from nnunet_semicon.evaluation import comparison_tables as tables

    rows = tables.means_rows(comparison)
    names = [row[0] for row in rows]
    rows = [["" if names[i] in names[:i] else names[i], *row[1:]] for i, row in enumerate(rows)]  # a name once
    parts = [tables.describe(comparison), f"{tables.means_title(comparison)}\n{render(rows, indent='  ')}"]
    for method in comparison.methods[1:]:
        rows = tables.differences_rows(comparison, method.name)
        parts.append(f"{tables.differences_title(comparison, method.name)}\n{render(rows, indent='  ')}")
    parts.append("\n".join([tables.how(comparison), *(f"note: {note}" for note in comparison.notes)]))
    return "\n\n".join(parts)
