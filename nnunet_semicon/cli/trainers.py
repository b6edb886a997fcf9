"""``semicon trainers``: every trainer, by group, with one line, what it needs and what it costs."""

import argparse
from typing import TYPE_CHECKING, Any

from nnunet_semicon.configuration.config import allowed, default_of, help_of, source_of
from nnunet_semicon.configuration.plans import in_words
from nnunet_semicon.tables import render

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from nnunet_semicon.configuration.needs import Needs

EXAMPLE = """example:
  semicon trainers
  semicon trainers --long nnUNetTrainerSemicon     # its hyper-parameters"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("--long", metavar="TRAINER", help="all hyper-parameters of one trainer")


def run(args: argparse.Namespace) -> int:
    """Print the catalogue, or the hyper-parameters of one trainer."""
    from nnunet_semicon import trainers

    if args.long is not None:
        print(hyper_parameters(args.long))
        return 0
    for title, names in trainers.GROUPS.items():
        print(f"{title}\n{'-' * len(title)}\n")
        print("\n\n".join(summary(name) for name in names), end="\n\n\n")
    print("Hyper-parameters of one of them: semicon trainers --long TRAINER. Use: nnUNetv2_train ... -tr TRAINER")
    return 0


def summary(name: str) -> str:
    """Return what a trainer does, needs and costs, in a few lines."""
    from nnunet_semicon.catalogue import find_trainer

    trainer = find_trainer(name)
    method = trainer.method_class
    rows = [
        ["does", (trainer.__doc__ or "").strip().splitlines()[0]],
        ["needs", what_it_needs(method.needs)],
        ["rows", how_rows_are_spent(method.needs)],
        ["costs", f"beyond stock nnU-Net: {method.cost}"],
    ]
    return f"{name}\n{render(rows, header=False, indent='  ')}"


def what_it_needs(needs: "Needs") -> str:
    """Return the data that a method asks for, in words."""
    parts = [] if needs.stage == "pretrain" and needs.views else ["labeled scans"]
    if needs.views:
        parts.append("unlabeled scans (without any, the training scans)")
    if needs.meta:
        parts.append("meta-labels (position and patient are always there; more: semicon meta)")
    return ", ".join(parts)


def how_rows_are_spent(needs: "Needs") -> str:
    """Return what the rows of a step are, in words."""
    if needs.student_views == 0:
        return "all labeled" if needs.labeled_views == 1 else f"{needs.labeled_views} views of each labeled image"
    views = "1 view" if needs.student_views == 1 else f"{needs.student_views} views"
    if needs.stage == "pretrain":
        return f"{views} of each image, none labeled"
    number = "the same number" if needs.paired else "as many where memory allows (unlabeled_per_step)"
    return f"the planned ones labeled (labeled_per_step); of unlabeled images {number}, {views} of each"


def hyper_parameters(name: str) -> str:
    """Return every hyper-parameter of a trainer: default, range or choices, meaning, source."""
    from nnunet_semicon.catalogue import find_trainer, keys_of_trainer

    trainer = find_trainer(name)
    settings = keys_of_trainer(trainer)
    of_method = {key: derived.value for key, derived in trainer.method_class.defaults.items()}
    defaults = {**{key: default_of(f) for key, f in settings.items()}, **of_method, **trainer.defaults}
    rows = [["key", "default", "allowed", "meaning [source]"]]
    rows += [_row(key, defaults[key], f) for key, f in settings.items()]
    rows.append(["batch_size", "planned", "at least 1", "rows per step; nnU-Net's own key [nnU-Net]"])
    return f"{summary(name)}\n\n{render(rows)}\n\nSet them with `semicon configure --set KEY=VALUE`."


def _row(key: str, default: Any, field: "FieldInfo") -> list[str]:
    meaning, source = help_of(field), source_of(field)
    return [key, in_words(default), allowed(field), f"{meaning} [{source}]" if source else meaning]
