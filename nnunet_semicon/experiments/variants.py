"""From values, a grid and seeds to named configurations: one for every combination.

Values have dotted keys here, as in sweep files and after ``semicon configure --set``: ``lambda.patient``.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from nnunet_semicon.configuration.plans import deep_merge, differences
from nnunet_semicon.errors import UserError, listing

MOST_CONFIGURATIONS = 500  # of one command


@dataclass(frozen=True)
class Places:
    """How messages name the places that values come from.

    Attributes:
        set: of the fixed values.
        grid: of the varied values.
        seeds: of the seeds.
        rename: how to choose another name for the configurations.
    """

    set: str
    grid: str
    seeds: str
    rename: str


COMMAND_LINE = Places("--set", "--grid", "--seeds", "choose another --name")


def variants_of(
    name: str, values: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], seeds: Sequence[int] | None
) -> dict[str, dict[str, Any]]:
    """Return configuration name -> settings: one for every combination of the grid and every seed.

    Args:
        name: of the configuration, if it is a single one; otherwise the beginning of all names.
        values: dotted key -> value, settings that all have in common.
        grid: dotted key -> values.
        seeds: None for configurations without a seed of their own.

    Raises:
        UserError: too many of them, or two with the same name.
    """
    number = math.prod(map(len, grid.values())) * (1 if seeds is None else len(seeds))
    if number > MOST_CONFIGURATIONS:
        raise UserError(
            f"the grid would give {number} configurations, expected at most {MOST_CONFIGURATIONS}: use fewer values"
        )
    variants: dict[str, dict[str, Any]] = {}
    for combination in product(*grid.values()):
        chosen = dict(zip(grid, combination, strict=True))
        own_name = "_".join([name, *(f"{key.replace('.', '-')}{_in_name(value)}" for key, value in chosen.items())])
        settings = deep_merge(nested(values), nested(chosen))
        of_seeds = {own_name: settings}
        if seeds is not None:
            of_seeds = {f"{own_name}_s{seed}": {**settings, "seed": seed} for seed in seeds}
        double = next((variant for variant in of_seeds if variant in variants), None)
        if double is not None:
            raise UserError(f"two configurations of the grid would be named '{double}': leave out one of the values")
        variants |= of_seeds
    return variants


def _in_name(value: Any) -> str:
    """Return a value as part of a folder name."""
    if isinstance(value, list):
        return "-".join(map(_in_name, value))
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).rstrip("-")


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"a": {"b": 1}}`` for ``{"a.b": 1}``."""
    values: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(".")
        place = values
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return values


# --- refusals ----------------------------------------------------------------------------------------------------


def overlapping(key: str, others: Iterable[str]) -> str | None:
    """Return the first key that sets the same value as ``key``, or a part of it: ``lambda`` and ``lambda.patient``."""
    return next((o for o in others if o == key or o.startswith(f"{key}.") or key.startswith(f"{o}.")), None)


def refuse_overlap(values: Iterable[str], grid: Iterable[str], has_seeds: bool, places: Places) -> None:
    """Refuse a value that is set in two ways.

    Args:
        values: dotted keys that are fixed.
        grid: dotted keys that vary.
        has_seeds: whether seeds are given apart.
        places: for messages.

    Raises:
        UserError: names both.
    """
    fixed, varied = list(values), list(grid)
    for keys, where in ((fixed, places.set), (varied, places.grid)):
        for i, key in enumerate(keys):
            double = overlapping(key, keys[:i])
            if double is not None:
                raise UserError(f"'{double}' and '{key}' in {where} set the same value: keep one of them")
    for key in varied:
        double = overlapping(key, fixed)
        if double is not None:
            raise UserError(f"'{key}' is in {places.grid} and '{double}' in {places.set}: keep one of them")
    if has_seeds and "seed" in [*fixed, *varied]:
        where = places.set if "seed" in fixed else places.grid
        raise UserError(f"'seed' is in {where} and in {places.seeds}: keep one of them")


def refuse_twice(grid: Mapping[str, Sequence[Any]], where: str) -> None:
    """Refuse a grid that has a value twice; 1 and true are two values.

    Raises:
        UserError: names the value.
    """
    for key, values in grid.items():
        for i, value in enumerate(values):
            if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values[:i]):
                shown = value if isinstance(value, str) else json.dumps(value, default=str)
                raise UserError(f"'{key}' in {where} has the value {shown} twice: keep one")


def refuse_replacing(names: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], rename: str) -> None:
    """Raise the sentence that says how existing configurations differ from the new ones.

    Args:
        names: configurations that exist with other values.
        old: name -> configuration, as it is.
        new: name -> configuration, as it would be.
        rename: how to choose another name.

    Raises:
        UserError: always.
    """
    name = names[0]
    more = f", and so have {listing(names[1:])}" if names[1:] else ""
    raise UserError(
        f"configuration '{name}' already exists with other values ({'; '.join(differences(old[name], new[name]))})"
        f"{more}: {rename}, or replace with --force"
    )
