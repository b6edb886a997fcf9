"""Configurations of ours in nnU-Net's plans file: they inherit from another one and carry a ``semicon`` block.

Only the keys ``inherits_from``, ``semicon`` and nnU-Net's own ``batch_size`` are ever written. Below, ``plans`` is the
content of a plans file and ``configurations`` its ``"configurations"``: name -> settings. Nothing is changed in place.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.files import explain_unwritable, write_json

BATCH_SIZE = "batch_size"
INHERITS = "inherits_from"
NNUNET_NAMES = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")  # nnU-Net's planner may write them later
# a name is the last part of a result folder `Trainer__Plans__NAME`, which nnU-Net splits at `__` (ensembles: `___`)
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9])?")
LONGEST_NAME = 150  # file systems allow 255 characters for the whole folder name

Configurations = Mapping[str, Mapping[str, Any]]


# --- reading -----------------------------------------------------------------------------------------------------


def read_plans(path: str | Path) -> dict[str, Any]:
    """Return the content of a plans file.

    Raises:
        UserError: it cannot be read, is not a plans file, or has a ``semicon`` block that is not an object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            plans = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): repair it, or remove it and plan again") from None
    configurations = plans.get("configurations") if isinstance(plans, dict) else None
    if (
        not isinstance(configurations, dict)
        or not all(isinstance(configuration, dict) for configuration in configurations.values())
        or not isinstance(plans.get("plans_name"), str)
    ):
        raise UserError(f"{path} is not a plans file: expected an object with 'plans_name' and 'configurations'")
    for name, configuration in configurations.items():
        if not isinstance(configuration.get(BLOCK, {}), dict):
            raise UserError(
                f"the '{BLOCK}' block of configuration '{name}' in {path} is {configuration[BLOCK]!r}, expected an "
                'object such as {"num_epochs": 100}'
            )
    return plans


def is_ours(configurations: Configurations, name: str) -> bool:
    """Return whether a configuration was added by us; a block inside one of nnU-Net's own does not make it ours."""
    configuration = configurations[name]
    return BLOCK in configuration and INHERITS in configuration and name not in NNUNET_NAMES


def our_configurations(configurations: Configurations) -> list[str]:
    """Return the names of our configurations in the order of the file."""
    return [name for name in configurations if is_ours(configurations, name)]


def lineage(configurations: Configurations, name: str) -> list[str]:
    """Return a configuration, the one it inherits from, and so on.

    Raises:
        UserError: one of them does not exist, or they inherit from each other.
    """
    if name not in configurations:
        raise UserError(f"configuration '{name}' is not in the plans{nearest(name, configurations)}")
    line = [name]
    while (parent := configurations[line[-1]].get(INHERITS)) is not None:
        if parent not in configurations:
            raise UserError(
                f"configuration '{line[-1]}' inherits from '{parent}', which is not in the plans"
                f"{nearest(parent, configurations)}; correct '{INHERITS}' or remove the configuration"
            )
        if parent in line:
            raise UserError(f"the configurations {listing(line)} inherit from each other: correct '{INHERITS}' of one")
        line.append(parent)
    return line


def inherited_block(configurations: Configurations, name: str) -> dict[str, Any]:
    """Return the ``semicon`` block that a configuration has after inheritance."""
    blocks = (configurations[ancestor].get(BLOCK) for ancestor in lineage(configurations, name))
    return dict(next((block for block in blocks if block is not None), {}))


def values_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one of our configurations sets, under the keys of ``semicon configure --set``: ``lambda.patient``."""
    others = {key: value for key, value in configuration.items() if key not in (INHERITS, BLOCK)}
    return _flat({**configuration[BLOCK], **others})


def in_words(value: Any) -> str:
    """Return a value as ``--set`` takes it; an object as ``key=value`` words."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={in_words(inner)}" for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return ``'key: old -> new'`` for everything in which two of our configurations differ."""
    before = {INHERITS: old[INHERITS], **values_of(old)}
    after = {INHERITS: new[INHERITS], **values_of(new)}
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}"
        for key in keys
        if key not in before or key not in after or before[key] != after[key]
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not set"


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in _flat(value).items()})
        else:
            flat[key] = value
    return flat


# --- adding and removing -----------------------------------------------------------------------------------------


RENAME = "choose another --name"  # what `semicon configure` says where a name is refused


def check_name(name: str, rename: str = RENAME) -> None:
    """Refuse a name that nnU-Net uses, or that its folder names would not survive.

    Args:
        name: of a configuration.
        rename: how to choose another one, for messages.

    Raises:
        UserError: says what is wrong with it.
    """
    if name in NNUNET_NAMES:
        raise UserError(f"configuration '{name}' is nnU-Net's own and is never edited: {rename}")
    if "__" in name:
        raise UserError(f"the name '{name}' contains '__', where nnU-Net splits the names of result folders: {rename}")
    if not NAME.fullmatch(name):
        raise UserError(
            f"the name '{name}' cannot be part of a folder name: expected letters, digits and . _ + - in between, e.g. "
            f"2d_tau01; {rename}"
        )
    if len(name) > LONGEST_NAME:
        raise UserError(f"the name '{name}' has {len(name)} characters, expected at most {LONGEST_NAME}: {rename}")


def add_configuration(
    plans: Mapping[str, Any], name: str, parent: str, values: Mapping[str, Any], rename: str = RENAME
) -> dict[str, Any]:
    """Return a copy of ``plans`` with one more (or a replaced) configuration.

    Args:
        plans: content of the plans file.
        name: of the new configuration; it gets its own result folder.
        parent: configuration to inherit from; preprocessed data is shared with it.
        values: ``semicon`` keys, and nnU-Net's own ``batch_size``; objects are merged over those of the parent.
        rename: how to choose another name, for messages.

    Raises:
        UserError: unknown parent, a parent that is a cascade stage, a name that belongs to nnU-Net or cannot be one,
            or the new configuration would inherit from itself.
    """
    configurations = plans["configurations"]
    check_name(name, rename)
    refuse_unknown(plans, parent)
    if name in configurations and not is_ours(configurations, name):
        raise UserError(f"configuration '{name}' is nnU-Net's own and is never edited: {rename}")
    if name == parent:
        raise UserError(f"configuration '{name}' cannot inherit from itself: {rename}")
    if name in lineage(configurations, parent):
        raise UserError(f"'{parent}' inherits from '{name}', so '{name}' cannot inherit from it: {rename}")
    refuse_cascade(configurations, parent)
    block = {key: value for key, value in values.items() if key != BATCH_SIZE}
    # nnU-Net's merge is shallow: a child's block replaces its parent's, so the whole block is written
    own: dict[str, Any] = {INHERITS: parent, BLOCK: deep_merge(inherited_block(configurations, parent), block)}
    if BATCH_SIZE in values:
        own[BATCH_SIZE] = values[BATCH_SIZE]
    return {**plans, "configurations": {**configurations, name: own}}


def refuse_unknown(plans: Mapping[str, Any], name: str) -> None:
    """Refuse a configuration that is not in the plans.

    Raises:
        UserError: names the nearest.
    """
    configurations = plans["configurations"]
    if name not in configurations:
        raise UserError(
            f"no configuration '{name}' in {plans['plans_name']}.json{nearest(name, configurations)}; "
            f"known are {listing(configurations)}"
        )


def refuse_cascade(configurations: Configurations, name: str) -> None:
    """Refuse a configuration that is a cascade stage.

    Raises:
        UserError: names the stage before it.
    """
    stages = (configurations[ancestor].get("previous_stage") for ancestor in lineage(configurations, name))
    stage = next((stage for stage in stages if stage is not None), None)
    if stage is not None:
        raise UserError(
            f"configuration '{name}' is a cascade stage (previous_stage '{stage}'), which we do not support: "
            "use '3d_fullres' or '2d'"
        )


def deep_merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` overridden by ``over``; where both have an object, the objects are merged in the same way."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            value = deep_merge(below, value)
        merged[key] = value
    return merged


def select_ours(plans: Mapping[str, Any], patterns: Iterable[str]) -> list[str]:
    """Return our configurations with the given names, or whose names match a shell-style pattern (``2d_tau*``).

    Raises:
        UserError: an unknown name, one of nnU-Net's own, or a pattern that matches none of ours.
    """
    configurations = plans["configurations"]
    ours = our_configurations(configurations)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        if any(character in pattern for character in "*?["):
            matching = [name for name in ours if fnmatchcase(name, pattern)]
            if not matching:
                raise UserError(
                    f"no configuration of ours in {plans['plans_name']}.json matches '{pattern}'; "
                    f"ours are {listing(ours) or 'none'}"
                )
            chosen.update(dict.fromkeys(matching))
        elif pattern in ours:
            chosen[pattern] = None
        elif pattern in configurations:
            raise UserError(f"configuration '{pattern}' is nnU-Net's own and is never removed")
        else:
            raise UserError(
                f"no configuration '{pattern}' in {plans['plans_name']}.json{nearest(pattern, ours)}; "
                f"ours are {listing(ours) or 'none'}"
            )
    return list(chosen)


def remove_configurations(plans: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``plans`` without the given configurations.

    Raises:
        UserError: another configuration inherits from one of them.
    """
    left = {name: c for name, c in plans["configurations"].items() if name not in names}
    for name in names:
        children = [child for child, configuration in left.items() if configuration.get(INHERITS) == name]
        if children:
            raise UserError(
                f"configuration '{name}' cannot be deleted alone, because others inherit from it: delete "
                f"{listing(children)} too"
            )
    return {**plans, "configurations": left}


# --- writing -----------------------------------------------------------------------------------------------------


def write_plans(plans: Mapping[str, Any], path: str | Path) -> None:
    """Replace the plans file at once, in nnU-Net's own format; its permissions stay.

    Raises:
        UserError: it cannot be written; then nothing is changed.
    """
    with explain_unwritable(path, "check the folder and its permissions"):
        write_json(path, plans, indent=4)
