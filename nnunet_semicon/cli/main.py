"""Entry point of ``semicon``: finds the subcommand, prints a user's mistake as one sentence.

Each subcommand is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``: it parses, calls
and prints. It is imported only when it is needed, so that ``semicon --help`` answers at once. For the same reason it
imports torch, scipy or matplotlib, and modules of ours that load them, in its functions and not at its top.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from nnunet_semicon import __version__
from nnunet_semicon.errors import UserError

# name -> (group, one line); the module is nnunet_semicon.cli.<name>
COMMANDS = {
    "demo": ("start", "run the whole chain on synthetic scans: six minutes on two CPU cores, every command is shown"),
    "doctor": ("start", "check the installation and, with -d, a dataset; every problem comes with its remedy"),
    "preprocess": ("data", "preprocess the unlabeled scans in imagesUn/ with the plans of the labeled ones"),
    "split": ("data", "write splits_final.json with few labeled and many unlabeled cases per fold"),
    "meta": ("data", "print and write the meta table: patient, phase, any column of yours; --figure draws examples"),
    "configure": ("train", "add a configuration with other hyper-parameters to the plans file"),
    "trainers": ("train", "list the trainers: what each of them does, needs and costs"),
    "sweep": ("train", "plan, train and measure from one file: stages that start from each other, folds, seeds, grids"),
    "evaluate": ("results", "Dice, HD95, ASD of predictions, in mm and in voxels; a missing class is never a silent 0"),
    "compare": ("results", "compare several runs on the same cases: paired differences, intervals, tests"),
    "export": ("results", "copy a trained model so that a machine without this package can predict with it"),
}


def _overview() -> str:
    lines = []
    for group in dict.fromkeys(group for group, _ in COMMANDS.values()):
        lines.append(f"{group}:")
        lines += [f"  {name:<12}{text}" for name, (g, text) in COMMANDS.items() if g == group]
    return "\n".join(lines)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; only the named command's own arguments are added (its module is imported)."""
    parser = argparse.ArgumentParser(
        prog="semicon",
        description="Semi-supervised and contrastive learning for nnU-Net v2.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nnunet_semicon {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, (_, text) in COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == command:
            import_module(f"nnunet_semicon.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``semicon``; returns the exit code (1 after a user's mistake, which is printed as one sentence)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if word in COMMANDS), None)
    parser = build_parser(command)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        return import_module(f"nnunet_semicon.cli.{args.command}").run(args)
    except UserError as error:
        print(f"semicon {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"semicon {args.command}: interrupted", file=sys.stderr)
        return 130
