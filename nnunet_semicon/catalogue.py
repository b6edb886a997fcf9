"""The trainers and their keys: find a trainer, and check hyper-parameters as a ``semicon`` block has them."""

import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import RunConfig, check_keys, default_of, keys_of, resolve
from nnunet_semicon.configuration.plans import BATCH_SIZE
from nnunet_semicon.errors import UserError, listing, nearest
from nnunet_semicon.training.configured_trainer import known_keys
from nnunet_semicon.training.semi_trainer import SemiTrainer

# --- trainers ----------------------------------------------------------------------------------------------------


def find_trainer(name: str) -> type[SemiTrainer]:
    """Return a trainer of the catalogue.

    Raises:
        UserError: there is none of that name; says the nearest.
    """
    if name not in trainers.__all__:
        raise UserError(
            f"no trainer '{name}' in this package{nearest(name, trainers.__all__)}; "
            f"known are {listing(trainers.__all__, at_most=99)}"
        )
    trainer: type[SemiTrainer] = getattr(trainers, name)
    return trainer


def find_any_trainer(name: str) -> type[nnUNetTrainer]:
    """Return a trainer of ours, of nnU-Net, or of the user.

    Raises:
        UserError: nnU-Net finds none of that name.
    """
    if name in trainers.__all__:
        return find_trainer(name)
    try:
        with redirect_stdout(io.StringIO()):
            found: type[nnUNetTrainer] = recursive_find_trainer_class_by_name(name)
    except (AssertionError, RuntimeError):
        known = ["nnUNetTrainer", *trainers.__all__]
        raise UserError(
            f"nnU-Net finds no trainer '{name}'{nearest(name, known)}; ours are "
            f"{listing(trainers.__all__, at_most=99)}, its own nnUNetTrainer and its variants"
        ) from None
    return found


# --- keys --------------------------------------------------------------------------------------------------------


def config_classes() -> list[type]:
    """Return the config dataclasses of the run and of every method in the catalogue."""
    return [RunConfig, *(find_trainer(name).method_class.Config for name in trainers.__all__)]


def list_settings(classes: Iterable[type]) -> set[str]:
    """Return the keys of config dataclasses whose value is a list."""
    return {key for c in classes for key, f in keys_of(c).items() if isinstance(default_of(f), list | tuple)}


def check_values(settings: Mapping[str, Any], where: str, columns: Mapping[str, str | None]) -> None:
    """Refuse keys that no trainer knows, values of the wrong type and values outside their documented range.

    Args:
        settings: as in a ``semicon`` block; nnU-Net's own ``batch_size`` too.
        where: where they come from, for messages.
        columns: column of the meta table -> why it cannot be a label, or None if it can.

    Raises:
        UserError: names the first such key.
    """
    check_keys(settings, {*known_keys(), BATCH_SIZE}, where)
    batch_size = settings.get(BATCH_SIZE, 1)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"'batch_size' in {where} is {batch_size!r}, expected a whole number of at least 1")
    check_block({key: value for key, value in settings.items() if key != BATCH_SIZE}, where, columns)


def check_block(block: Mapping[str, Any], where: str, columns: Mapping[str, str | None]) -> None:
    """Refuse what :func:`check_values` refuses, in a ``semicon`` block: ``batch_size`` stands beside it, not in it.

    Raises:
        UserError: names the first such key.
    """
    check_keys(block, known_keys(), where)
    for config in config_classes():
        resolve(config, block, where, columns)
