"""The trainers and their keys: find a trainer, and check hyper-parameters as a ``semicon`` block has them."""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from pydantic.fields import FieldInfo

from nnunet_semicon import trainers
from nnunet_semicon.configuration.config import Settings, check_keys, is_list, keys_of, resolve
from nnunet_semicon.configuration.plans import BATCH_SIZE
from nnunet_semicon.configuration.run import RunConfig
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


def keys_of_trainer(trainer: type[SemiTrainer]) -> dict[str, FieldInfo]:
    """Return every key that a trainer obeys, those of its method first."""
    return {**keys_of(trainer.method_class.Config), **keys_of(RunConfig)}


def users_of(key: str) -> list[str]:
    """Return the trainers of the catalogue whose method has a key."""
    return [name for name in trainers.__all__ if key in keys_of(find_trainer(name).method_class.Config)]


def list_keys() -> set[str]:
    """Return the keys whose value is a list."""
    return {key for name in trainers.__all__ for key, f in keys_of_trainer(find_trainer(name)).items() if is_list(f)}


def check_settings(
    settings: Mapping[str, Any],
    where: str,
    columns: Mapping[str, str | None],
    trainer: type[SemiTrainer] | None = None,
) -> dict[str, list[str]]:
    """Refuse keys that no trainer knows, and values that are not allowed.

    A value is checked for the given trainer. The value of a key that this trainer does not have, or of any key where
    none is given, must be legal for one trainer that has the key: a configuration may serve several trainers.

    Args:
        settings: as in a ``semicon`` block; nnU-Net's own ``batch_size`` too.
        where: where they come from, for messages.
        columns: column of the meta table -> why it cannot be a label, or None if it can.
        trainer: the one that is going to run.

    Returns:
        Key of a method -> trainers of the catalogue for which its value is legal.

    Raises:
        UserError: names the first such key.
    """
    check_keys(settings, {*known_keys(), BATCH_SIZE}, where)
    batch_size = settings.get(BATCH_SIZE, 1)
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise UserError(f"'batch_size' in {where} is {batch_size!r}, expected a whole number of at least 1")
    resolve(RunConfig, settings, where)
    if trainer is not None:
        resolve(trainer.method_class.Config, settings, where, columns)
    legal: dict[str, list[str]] = {}
    for key, value in settings.items():
        if key == BATCH_SIZE or key in keys_of(RunConfig):
            continue
        configs = {name: find_trainer(name).method_class.Config for name in users_of(key)}
        refusals = {name: _refusal(config, {key: value}, where, columns) for name, config in configs.items()}
        legal[key] = [name for name, refusal in refusals.items() if refusal is None]
        is_own = trainer is not None and key in keys_of(trainer.method_class.Config)
        if refusals and not legal[key] and not is_own:
            raise next(refusal for refusal in refusals.values() if refusal is not None)
    return legal


def _refusal(
    config: type[Settings], block: Mapping[str, Any], where: str, columns: Mapping[str, str | None]
) -> UserError | None:
    """Return why a block is refused, None if it is not."""
    try:
        resolve(config, block, where, columns)
    except UserError as error:
        return error
    return None
