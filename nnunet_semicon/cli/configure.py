"""``semicon configure``: hyper-parameters without code, kept where nnU-Net keeps its own."""

import argparse
import json
import os
from typing import Any

from nnunet_semicon.errors import UserError

EXAMPLE = """examples:
  semicon configure -d 027 -c 2d --name 2d_tau01 --set temperature=0.1
  semicon configure -d 004 -c 2d --name 2d_short --set batch_size=32 labeled_per_step=16 num_epochs=6
  semicon configure -d 027 -c 2d --name 2d_pat --set lambda.patient=0.1 --seeds 0,1,2

The new configuration inherits from -c, shares its preprocessed data and has its own result folder. nnU-Net's own
configurations are never edited; planning again drops ours."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLE
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name, as for nnU-Net")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration to inherit from, e.g. 2d")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans identifier (default: %(default)s)")
    parser.add_argument("--name", required=True, help="name of the new configuration")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="hyper-parameters; batch_size too")
    parser.add_argument("--seeds", metavar="0,1,2", help="one configuration NAME_sK per seed K")


def run(args: argparse.Namespace) -> int:
    """Write the configuration(s) and print the training command(s)."""
    values = parse_settings(args.set)
    variants = {args.name: values}
    if args.seeds is not None:
        variants = {f"{args.name}_s{seed}": {**values, "seed": seed} for seed in parse_seeds(args.seeds)}

    from nnunet_semicon.cli.common import dataset_name, preprocessed_folder
    from nnunet_semicon.configuration.config import check_keys
    from nnunet_semicon.configuration.plans import BATCH_SIZE, add_configuration, write_plans
    from nnunet_semicon.training.semi_trainer import known_keys

    name = dataset_name(args.d)
    path = os.path.join(preprocessed_folder(), name, f"{args.p}.json")
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: run `nnUNetv2_plan_and_preprocess -d {args.d} -c {args.c}` first")
    with open(path) as file:
        plans = json.load(file)
    from nnunet_semicon import trainers

    check_keys(values, {*known_keys(), BATCH_SIZE}, "--set")
    for variant, settings in variants.items():
        check_values(trainers, settings)
        plans = add_configuration(plans, variant, args.c, settings)
    write_plans(plans, path)
    print(f"{args.p}.json of {name} now has {', '.join(variants)} (inheriting from {args.c}). Train with, for example:")
    plans_option = "" if args.p == "nnUNetPlans" else f" -p {args.p}"
    for variant in variants:
        print(f"  nnUNetv2_train {args.d} {variant} 0 -tr nnUNetTrainerSPCon{plans_option}")
    return 0


def check_values(trainers: Any, settings: dict[str, Any]) -> None:
    """Refuse values of the wrong type or outside their documented range."""
    from nnunet_semicon.configuration.config import RunConfig, resolve
    from nnunet_semicon.configuration.plans import BATCH_SIZE

    batch_size = settings.get(BATCH_SIZE, 1)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"'batch_size' in --set is {batch_size!r}, expected a whole number of at least 1")
    for config in (RunConfig, *(getattr(trainers, name).method_class.Config for name in trainers.__all__)):
        resolve(config, settings, "--set")


def parse_settings(assignments: list[str]) -> dict[str, Any]:
    """Return key -> value of ``key=value`` words; ``a.b=1`` becomes ``{"a": {"b": 1}}``, values are JSON or text."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not key or not equals or not text:
            raise UserError(f"'{assignment}' after --set is not KEY=VALUE, e.g. temperature=0.1")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        outer, dot, inner = key.partition(".")
        if dot:
            values.setdefault(outer, {})[inner] = value
        else:
            values[key] = value
    return values


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``0,1,2``."""
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds is '{text}', expected whole numbers such as 0,1,2") from None
    if any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds is '{text}', expected numbers of at least 0")
    return seeds
