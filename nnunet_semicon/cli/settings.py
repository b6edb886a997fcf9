"""Hyper-parameters as commands take them: checked, and as one configuration for every cell of a grid and every seed."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from nnunet_semicon.cli.key_values import nested, parse_grid, parse_settings
from nnunet_semicon.errors import UserError, listing
from nnunet_semicon.workspace import Place, label_columns

MOST_CONFIGURATIONS = 500  # of one command


def read_values(
    args: argparse.Namespace, place: Place, trainer: Any = None
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return what ``--set`` and ``--grid`` say, checked; what the parent has is checked too, as it is copied.

    Raises:
        UserError: an unknown parent, an unknown key, or a value that is not allowed.
    """
    from nnunet_semicon.catalogue import check_settings, list_keys
    from nnunet_semicon.configuration.config import BLOCK
    from nnunet_semicon.configuration.plans import inherited_block, refuse_unknown

    refuse_unknown(place.plans, args.c)
    inherited = inherited_block(place.configurations, args.c)
    lists = list_keys()
    values, grid = parse_settings(args.set, lists), parse_grid(args.grid, lists)
    varied = [nested({key: value}) for key, choices in grid.items() for value in choices]
    # the entries of an object (lambda) may be columns of the meta table, which is read only for them
    objects = any(isinstance(value, Mapping) for block in (inherited, values, *varied) for value in block.values())
    columns = label_columns(place) if objects else {}
    check_settings(inherited, f"the '{BLOCK}' block that configuration '{args.c}' has in {place.path}", columns)
    check_settings(values, "--set", columns, trainer)
    for block in varied:
        check_settings(block, "--grid", columns, trainer)
    return values, grid


def variants_of(
    name: str, values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], seeds: Sequence[int] | None
) -> dict[str, dict[str, Any]]:
    """Return configuration name -> settings: one for every cell of the grid and every seed.

    Args:
        name: what ``--name`` gives; alone it names a single configuration.
        values: settings that all have in common.
        grid: dotted key -> values, see :func:`parse_grid`.
        seeds: None for configurations without a seed of their own.

    Raises:
        UserError: too many of them, or two with the same name.
    """
    from nnunet_semicon.configuration.plans import deep_merge

    number = math.prod(map(len, grid.values())) * (1 if seeds is None else len(seeds))
    if number > MOST_CONFIGURATIONS:
        raise UserError(
            f"the grid would give {number} configurations, expected at most {MOST_CONFIGURATIONS}: use fewer values"
        )
    variants: dict[str, dict[str, Any]] = {}
    for cell in product(*grid.values()):
        chosen = dict(zip(grid, cell, strict=True))
        cell_name = "_".join([name, *(f"{key.replace('.', '-')}{_in_name(value)}" for key, value in chosen.items())])
        settings = deep_merge(values, nested(chosen))
        of_seeds = {cell_name: settings}
        if seeds is not None:
            of_seeds = {f"{cell_name}_s{seed}": {**settings, "seed": seed} for seed in seeds}
        double = next((variant for variant in of_seeds if variant in variants), None)
        if double is not None:
            raise UserError(f"two cells of the grid would be named '{double}': leave out one of the values")
        variants |= of_seeds
    return variants


def _in_name(value: Any) -> str:
    """Return a value as part of a folder name."""
    if isinstance(value, list):
        return "-".join(map(_in_name, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).rstrip("-")


def refuse_replacing(names: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise the sentence that says how existing configurations differ from the new ones."""
    from nnunet_semicon.configuration.plans import differences

    name = names[0]
    more = f", and so have {listing(names[1:])}" if names[1:] else ""
    raise UserError(
        f"configuration '{name}' already exists with other values ({'; '.join(differences(old[name], new[name]))})"
        f"{more}: choose another --name, or replace with --force"
    )
