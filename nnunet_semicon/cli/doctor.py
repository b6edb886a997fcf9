"""``semicon doctor``: is everything in place, and if not, what to do."""

import argparse
from collections.abc import Callable, Iterator

from nnunet_semicon.cli.check_dataset import check_dataset
from nnunet_semicon.cli.check_installation import (
    check_devices,
    check_discovery,
    check_installation,
    check_variables,
    export_line,
)
from nnunet_semicon.cli.findings import Finding, survived


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = "Exit code: 0 if there is no problem, otherwise 1."
    parser.add_argument("-d", metavar="DATASET", help="also check a dataset: 4, 004 or Dataset004_Name")
    parser.add_argument(
        "--print-export",
        action="store_true",
        help="print only the line that makes nnU-Net find the trainers explicitly",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; returns 1 if there is a problem."""
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
        sections[f"dataset {args.d}"] = lambda: check_dataset(args.d)
    problems = 0
    for title, check in sections.items():
        print(title)
        for finding in survived(check()):
            print(f"  {finding.status:<9}{finding.text}")
            if finding.remedy:
                print(f"  {'':<9}-> {finding.remedy}")
            problems += finding.status == "problem"
    print("no problem" if problems == 0 else f"{problems} problem{'s' * (problems > 1)}")
    return 1 if problems else 0
