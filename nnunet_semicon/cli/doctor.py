"""``semicon doctor``: is everything in place, and if not, what to do."""

import argparse
from collections.abc import Callable, Iterator

from nnunet_semicon.checks.findings import Finding, once, survived
from nnunet_semicon.checks.installation import (
    check_devices,
    check_discovery,
    check_installation,
    check_variables,
    export_line,
)
from nnunet_semicon.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Exit code: 0 if there is no problem, otherwise 1."
    parser.add_argument("-d", metavar="DATASET", help="also check a dataset: 4, 004 or Dataset004_Name")
    parser.add_argument("-c", metavar="CONFIGURATION", help="with --weights: the configuration to start in, e.g. 2d")
    parser.add_argument("-p", metavar="PLANS", help="with --weights: plans identifier (default: nnUNetPlans)")
    parser.add_argument("--weights", metavar="FILE", help="also check that a training with -d and -c can start from it")
    parser.add_argument(
        "--print-export",
        action="store_true",
        help="print only the line that makes nnU-Net find the trainers explicitly",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 if there is a problem.

    Raises:
        UserError: an option is missing that another one needs.
    """
    if args.print_export:
        print(export_line())
        return 0
    sections: dict[str, Callable[[], Iterator[Finding]]] = {
        "installation": check_installation,
        "variables": check_variables,
        "discovery": check_discovery,
        "devices": check_devices,
    }
    if args.d is not None:
        sections[f"dataset {args.d}"] = lambda: _check_dataset(args)
    if args.weights is not None:
        if args.d is None or args.c is None:
            raise UserError("--weights needs -d DATASET and -c CONFIGURATION, which the training would have")
        sections["weights"] = lambda: _check_weights(args)
    elif args.c is not None or args.p is not None:
        raise UserError("-c and -p are for --weights FILE; without it, all configurations are checked: leave them out")
    problems = 0
    for title, check in sections.items():
        print(title)
        for finding in once(survived(check())):
            print(f"  {finding.status:<9}{finding.text}")
            if finding.remedy:
                print(f"  {'':<9}-> {finding.remedy}")
            problems += finding.status == "problem"
    print("no problem" if problems == 0 else f"{problems} problem{'s' * (problems > 1)}")
    return 1 if problems else 0


# The checks of a dataset load torch and nnU-Net. They are imported where an exception is reported as a finding, so that
# a broken installation keeps nothing else from being printed.


def _check_dataset(args: argparse.Namespace) -> Iterator[Finding]:
    from nnunet_semicon.checks.dataset import check_dataset

    yield from check_dataset(args.d)


def _check_weights(args: argparse.Namespace) -> Iterator[Finding]:
    from nnunet_semicon.checks.weights import check_weights
    from nnunet_semicon.workspace import DEFAULT_PLANS

    yield from check_weights(args.d, args.p or DEFAULT_PLANS, args.c, args.weights)
