"""Configurations of ours in nnU-Net's plans file: they inherit from one of nnU-Net's and carry a ``semicon`` block."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_semicon.configuration.config import BLOCK
from nnunet_semicon.errors import UserError, listing, nearest

BATCH_SIZE = "batch_size"


def add_configuration(plans: Mapping[str, Any], name: str, parent: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``plans`` with one more (or a replaced) configuration.

    Args:
        plans: content of the plans file.
        name: of the new configuration; it gets its own result folder.
        parent: configuration to inherit from; preprocessed data is shared with it.
        values: ``semicon`` keys, and nnU-Net's own ``batch_size``.

    Raises:
        UserError: unknown parent, or a name that belongs to nnU-Net.
    """
    configurations = plans["configurations"]
    if parent not in configurations:
        raise UserError(
            f"no configuration '{parent}' in {plans['plans_name']}.json{nearest(parent, configurations)}; "
            f"known are {listing(configurations)}"
        )
    if name in configurations and BLOCK not in configurations[name]:
        raise UserError(f"configuration '{name}' is nnU-Net's own and is never edited: choose another --name")
    if name == parent:
        raise UserError(f"--name and -c are both '{name}': choose another --name")
    block = {key: value for key, value in values.items() if key != BATCH_SIZE}
    # nnU-Net's merge is shallow: a child's block replaces its parent's, so the whole block is written
    inherited = inherited_block(configurations, parent)
    own: dict[str, Any] = {"inherits_from": parent, BLOCK: {**inherited, **block}}
    if BATCH_SIZE in values:
        own[BATCH_SIZE] = values[BATCH_SIZE]
    return {**plans, "configurations": {**configurations, name: own}}


def inherited_block(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the ``semicon`` block that a configuration has after inheritance."""
    configuration = configurations[name]
    if BLOCK in configuration:
        return dict(configuration[BLOCK])
    parent = configuration.get("inherits_from")
    return inherited_block(configurations, parent) if parent else {}


def write_plans(plans: Mapping[str, Any], path: str | Path) -> None:
    """Replace the plans file at once."""
    temporary = f"{path}.tmp"
    with open(temporary, "w") as file:
        json.dump(plans, file, indent=4, sort_keys=False)
    os.replace(temporary, path)
