"""``semicon configure``: hyper-parameters without code, kept where nnU-Net keeps its own."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_semicon.cli.key_values import parse_grid, parse_seeds, parse_settings
from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.configuration.plans import (
    INHERITS,
    add_configuration,
    in_words,
    our_configurations,
    refuse_cascade,
    remove_configurations,
    select_ours,
    values_of,
    write_plans,
)
from nnunet_semicon.configuration.resolved import read_fingerprint, resolve_run
from nnunet_semicon.configuration.run_length import about_run_length
from nnunet_semicon.configuration.wording import as_table
from nnunet_semicon.data.meta import training_table
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.experiments.variants import COMMAND_LINE, nested, refuse_replacing, variants_of
from nnunet_semicon.tables import render
from nnunet_semicon.workspace import DEFAULT_PLANS, DEFAULT_TRAINER, Place, all_cases, find_plans, result_folders

EXAMPLE = """examples:
  semicon configure -d 027                                                     # list the configurations of ours
  semicon configure -d 027 -c 2d --show                                        # what would run, with reasons
  semicon configure -d 027 -c 2d --name 2d_tau01 --set temperature=0.1
  semicon configure -d 004 -c 2d --name 2d_short --set batch_size=32 labeled_per_step=16 num_epochs=6
  semicon configure -d 027 -c 2d --name 2d_pat --set lambda.patient=0.1 --seeds 0,1,2
  semicon configure -d 027 -c 2d --name 2d_g --grid gamma_start=1,2,3 gamma_end=40,50,60
  semicon configure -d 027 --delete '2d_g_*'

The new configuration inherits from -c, shares its preprocessed data and has its own result folder. nnU-Net's own
configurations are never edited. Planning again keeps ours; they then inherit from the new plans."""

DEFAULT_DEVICE = "cuda"  # as nnUNetv2_train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, as for nnU-Net")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration to inherit from, or to show, e.g. 2d")
    parser.add_argument("-p", default=DEFAULT_PLANS, metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument(
        "-tr",
        metavar="TRAINER",
        help=f"trainer to show or to train with (default: {DEFAULT_TRAINER}, or the first one that has all keys of "
        "--set and --grid)",
    )
    parser.add_argument(
        "-device",
        choices=("cpu", "cuda", "mps"),
        help=f"device to show for or to train on (default: {DEFAULT_DEVICE}, as for nnUNetv2_train)",
    )
    parser.add_argument("--name", help="name of the new configuration")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="hyper-parameters (`semicon trainers --long TRAINER` lists them); batch_size too",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=A,B",
        help="one configuration per combination of the values, named NAME_KEYA_...",
    )
    parser.add_argument("--seeds", metavar="0,1,2", help="one configuration NAME_sK per seed K")
    parser.add_argument("--force", action="store_true", help="replace configurations of ours that have other values")
    parser.add_argument("--show", action="store_true", help="show what would run, with reasons, and write nothing")
    parser.add_argument(
        "--delete", nargs="+", metavar="NAME", help="remove configurations of ours; quoted patterns such as '2d_g_*'"
    )


def run(args: argparse.Namespace) -> int:
    """List, show, add or delete configurations."""
    action = action_of(args)
    place = find_plans(args.d, args.p, args.c or "2d")
    if action == "delete":
        delete(args, place)
    elif action == "list":
        print_list(args, place)
    elif action == "show":
        show(args, place)
    else:
        add(args, place)
    return 0


def action_of(args: argparse.Namespace) -> str:
    """Return ``add``, ``show``, ``delete`` or ``list``.

    Raises:
        UserError: options that do not go together, or one that is missing.
    """
    given = {
        "-c": args.c is not None,
        "-tr": args.tr is not None,
        "-device": args.device is not None,
        "--name": args.name is not None,
        "--set": bool(args.set),
        "--grid": bool(args.grid),
        "--seeds": args.seeds is not None,
        "--force": args.force,
        "--show": args.show,
    }
    used = [option for option, is_used in given.items() if is_used]
    if args.delete is not None:
        if used:
            raise UserError(f"--delete does not go together with {used[0]}: it takes only -d and -p")
        return "delete"
    if args.show:
        for option in ("--grid", "--seeds", "--force"):
            if given[option]:
                raise UserError(f"--show does not go together with {option}: it shows one run; try single values --set")
    elif args.name is None:
        if used:
            raise UserError(
                f"{used[0]} needs --name NAME (to add a configuration) or --show (to write nothing); "
                f"`semicon configure -d {args.d}` alone lists those there are"
            )
        return "list"
    if args.c is None:
        raise UserError(f"-c is missing: name the configuration to {'show' if args.show else 'inherit from'}, e.g. 2d")
    return "show" if args.show else "add"


# --- add ---------------------------------------------------------------------------------------------------------


def add(args: argparse.Namespace, place: Place) -> None:
    """Write the configuration(s) and print the training command(s)."""
    values, grid, legal = read_values(args, place)
    seeds = None if args.seeds is None else parse_seeds(args.seeds)
    variants = variants_of(args.name, values, grid, seeds)
    plans = place.plans
    for name, settings in variants.items():
        plans = add_configuration(plans, name, args.c, settings)
    after = plans["configurations"]
    changed = [name for name in variants if place.configurations.get(name) != after[name]]
    replaced = [name for name in changed if name in place.configurations]
    if replaced and not args.force:
        refuse_replacing(replaced, place.configurations, after, COMMAND_LINE.rename)
    if changed:
        write_plans(plans, place.path)

    names = listing(variants)
    state = "now has" if changed else "has, unchanged,"
    print(f"{args.p}.json of {place.dataset} {state} {names} (inheriting from {args.c}). Train with:")
    for name in variants:
        print(f"  {train_command(args, name, args.tr or trainer_with(legal))}")
    print_notes(args, place, legal, changed, replaced)


def read_values(
    args: argparse.Namespace, place: Place
) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, list[str]]]:
    """Return what ``--set`` and ``--grid`` say (dotted keys), checked, and key -> trainers for which it is legal.

    Raises:
        UserError: an unknown trainer, parent or key, or a value that is not allowed.
    """
    from nnunet_semicon.catalogue import find_trainer, list_keys
    from nnunet_semicon.checks.settings import check_variants

    trainer = None if args.tr is None else find_trainer(args.tr)
    lists = list_keys()
    values, grid = parse_settings(args.set, lists), parse_grid(args.grid, lists)
    legal = check_variants(args.c, values, grid, args.seeds is not None, place, COMMAND_LINE, trainer)
    return values, grid, legal


def trainer_with(legal: Mapping[str, Sequence[str]]) -> str:
    """Return the trainer for which all values are legal, the recommended one if it is among several.

    Args:
        legal: key of a method -> trainers for which its value is legal. No trainer may have all keys.
    """
    from nnunet_semicon.trainers import GROUPS

    in_order = [DEFAULT_TRAINER, *(name for names in GROUPS.values() for name in names)]
    return next((name for name in in_order if all(name in names for names in legal.values())), DEFAULT_TRAINER)


def train_command(args: argparse.Namespace, name: str, trainer: str) -> str:
    """Return the line that trains a configuration."""
    words = ["nnUNetv2_train", args.d, name, "0", "-tr", trainer]
    if args.p != DEFAULT_PLANS:
        words += ["-p", args.p]
    if args.device is not None:
        words += ["-device", args.device]
    return shlex.join(words)


def print_notes(
    args: argparse.Namespace,
    place: Place,
    legal: Mapping[str, Sequence[str]],
    changed: Sequence[str],
    replaced: Sequence[str],
) -> None:
    """Say what is easily overlooked: who uses a key, copies in children, results of earlier values."""
    for key, names in legal.items():
        if args.tr is None:
            print(f"note: '{key}' is used by {', '.join(names)}")
        elif args.tr not in names:
            print(f"note: {args.tr} has no '{key}', which is for {', '.join(names)}")
    existing = place.configurations
    children = [name for name in existing if existing[name].get(INHERITS) in replaced and name not in replaced]
    if children:
        print(f"note: {listing(children)} inherited from what was replaced and keeps the hyper-parameters it had")
    for folder in result_folders(place, changed):
        print(f"note: results of an earlier configuration of that name lie in {folder}: training would overwrite them")


# --- list, delete, show ------------------------------------------------------------------------------------------


def print_list(args: argparse.Namespace, place: Place) -> None:
    """Print the configurations of ours with what they set."""
    names = our_configurations(place.configurations)
    if names:
        rows = [describe(name, place.configurations[name]) for name in names]
        print(render([["configuration", "inherits from", "sets"], *rows]))
        return
    print(
        f"{args.p}.json of {place.dataset} has no configuration of ours, only nnU-Net's own "
        f"({', '.join(place.configurations)}); add one: semicon configure -d {args.d} -c CONFIGURATION --name NAME "
        "--set KEY=VALUE"
    )


def describe(name: str, configuration: Mapping[str, Any]) -> list[str]:
    """Return name, parent and settings (as ``--set`` takes them) of one of our configurations."""
    return [name, configuration[INHERITS], in_words(values_of(configuration)) or "nothing"]


def delete(args: argparse.Namespace, place: Place) -> None:
    """Remove configurations of ours from the plans file; data and results stay."""
    names = select_ours(place.plans, args.delete)
    write_plans(remove_configurations(place.plans, names), place.path)
    print(f"deleted from {args.p}.json of {place.dataset}:")
    print(render([describe(name, place.configurations[name]) for name in names], header=False, indent="  "))
    for folder in result_folders(place, names):
        print(f"note: results still lie in {folder}")


def show(args: argparse.Namespace, place: Place) -> None:
    """Print every hyper-parameter that a run would have, with its reason; nothing is written."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semicon.catalogue import find_trainer, users_of
    from nnunet_semicon.training.memory import memory_of

    values, _, legal = read_values(args, place)
    device = args.device or DEFAULT_DEVICE
    refuse_cascade(place.configurations, args.c)
    plans, name, title = place.plans, args.c, args.c
    if values or args.name is not None:
        name = args.name or f"{args.c}-preview"  # in memory only
        title = args.name or f"{args.c} with {' '.join(args.set)}"
        plans = add_configuration(plans, name, args.c, nested(values))
    configuration = PlansManager(plans).get_configuration(name).configuration
    inherited = {key: users for key in configuration.get(BLOCK, {}) if (users := users_of(key))}
    trainer = find_trainer(args.tr or trainer_with({**inherited, **legal}))
    meta = None
    if trainer.method_class.needs.meta:
        meta = training_table(place.raw, place.preprocessed, all_cases(place))
    where = f"the '{BLOCK}' block of configuration '{title}' ({args.p}.json)"
    fingerprint = read_fingerprint(place.preprocessed)
    resolved = resolve_run(
        configuration,
        plans,
        fingerprint,
        meta,
        trainer.method_class,
        device,
        where,
        defaults=trainer.defaults,
        memory=memory_of(torch.device(device)),
    )
    print(f"{trainer.__name__} on {place.dataset}, configuration {title}, device {device}:")
    print(as_table(resolved.settings, wrap=True))
    run = resolved.run
    run_length = about_run_length(resolved.needs, run.num_epochs, run.num_iterations_per_epoch)
    if run_length is not None:
        print(run_length)
    print("This is what would run. Nothing was written.")
