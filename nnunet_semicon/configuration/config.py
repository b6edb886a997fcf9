"""Hyper-parameters: typed defaults, overridden by the ``semicon`` block of a configuration in the plans file.

Every field of a config dataclass is declared with :func:`setting`, which carries its meaning, range and source. A
block is a flat JSON object, e.g. ``{"num_epochs": 6, "temperature": 0.1, "lambda": {"patient": 0.01}}``. A trailing
underscore of a field name is dropped in the block (``lambda`` is a Python keyword).
"""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, TypeVar, get_args, get_type_hints

from nnunet_semicon.errors import UserError, listing, nearest

T = TypeVar("T")
BLOCK = "semicon"


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    source: str = "",
    columns: bool = False,
) -> Any:
    """Declare a config field: default, meaning (with unit), closed range or choices, source of the default.

    ``columns``: the entries of an object may also be columns of the meta table.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "source": source, "columns": columns}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """What every trainer obeys, the supervised control too; lengths are nnU-Net's own."""

    num_epochs: int = setting(1000, "epochs of the run", low=1, source="nnU-Net")
    num_iterations_per_epoch: int = setting(250, "training steps per epoch", low=1, source="nnU-Net")
    num_val_iterations_per_epoch: int = setting(50, "validation batches per epoch", low=1, source="nnU-Net")
    save_every: int = setting(50, "epochs between two checkpoint_latest.pth", low=1, source="nnU-Net")
    seed: int | None = setting(None, "seed of network, sampling and augmentation; null: a new one every time", low=0)
    labeled_per_step: int | None = setting(
        None, "labeled images per training step (all ranks together); null: derived from the batch size", low=1
    )
    cutout: bool = setting(False, "overwrite one random box, up to a quarter of each side, in half of the strong views")


def key_of(config_field: "Field[Any]") -> str:
    """Return the key under which a field stands in a ``semicon`` block."""
    return config_field.name.rstrip("_")


def keys_of(config_class: type) -> dict[str, "Field[Any]"]:
    """Return block key -> dataclass field of a config class."""
    return {key_of(f): f for f in fields(config_class)}


def default_of(config_field: "Field[Any]") -> Any:
    """Return a field's default value."""
    if config_field.default_factory is not MISSING:
        return config_field.default_factory()
    return config_field.default


def check_keys(block: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that no trainer knows.

    Raises:
        UserError: names the key, where it stands and the nearest known key.
    """
    known = set(known)
    unknown = sorted(set(block) - known)
    if unknown:
        raise UserError(
            f"unknown hyper-parameter '{unknown[0]}' in {where}{nearest(unknown[0], known)}; "
            f"known are {listing(sorted(known), at_most=99)}"
        )


def resolve(
    config_class: type[T], block: Mapping[str, Any], where: str, columns: Mapping[str, str | None] | None = None
) -> T:
    """Return ``config_class`` with the values of ``block``; keys of other classes are left alone.

    Args:
        config_class: a frozen dataclass declared with :func:`setting`.
        block: the ``semicon`` block; a mapping value is merged over the default mapping.
        where: file and configuration, for the error message.
        columns: column of the meta table -> why it cannot be a label, or None if it can. These names may stand in a
            mapping (``lambda``) beside those of its default.

    Raises:
        UserError: a value of the wrong type or outside its documented range, or a column that cannot be a label.
    """
    hints = get_type_hints(config_class)
    values = {}
    for key, config_field in keys_of(config_class).items():
        if key not in block:
            continue
        value = checked(key, block[key], config_field, hints[config_field.name], where, columns or {})
        if isinstance(value, dict):
            value = {**default_of(config_field), **value}
        values[config_field.name] = value
    return config_class(**values)


def checked(
    key: str, value: Any, config_field: "Field[Any]", hint: Any, where: str, columns: Mapping[str, str | None]
) -> Any:
    """Return ``value`` in the field's type.

    Raises:
        UserError: wrong type, outside the range, or not one of the choices.
    """
    allowed = get_args(hint) or (hint,)
    if value is None and type(None) in allowed:
        return None
    if isinstance(default_of(config_field), dict):
        return _checked_mapping(key, value, config_field, where, columns if config_field.metadata["columns"] else {})
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    expected = next(t for t in allowed if t is not type(None))
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise UserError(
            f"'{key}' in {where} is {value!r}, expected {_article(expected)}: {config_field.metadata['help']}"
        )
    choices = config_field.metadata["choices"]
    if choices and value not in choices:
        raise UserError(f"'{key}' in {where} is {value!r}, expected one of {', '.join(choices)}")
    _check_range(key, value, config_field, where)
    return value


def _checked_mapping(
    key: str, value: Any, config_field: "Field[Any]", where: str, columns: Mapping[str, str | None]
) -> dict[str, float]:
    default = default_of(config_field)
    known = dict.fromkeys([*default, *columns])
    if not isinstance(value, Mapping):
        example = next(iter(default))
        raise UserError(f"'{key}' in {where} is {value!r}, expected an object such as {{\"{example}\": 0.01}}")
    for name, number in value.items():
        if name not in known:
            more = " (`semicon meta -d DATASET` shows the meta-labels of a dataset)"
            raise UserError(
                f"unknown entry '{key}.{name}' in {where}{nearest(name, known)}; known are {listing(known)}"
                f"{more if config_field.metadata['columns'] else ''}"
            )
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"'{key}.{name}' in {where} is {number!r}, expected a number")
        _check_range(f"{key}.{name}", number, config_field, where)
        if number > 0 and columns.get(name) is not None:
            raise UserError(
                f"'{key}.{name}' in {where} asks for a meta-label that cannot be used ({columns[name]}): "
                f"leave it out, or correct the column (`semicon meta -d DATASET`)"
            )
    return {name: float(number) for name, number in value.items()}


def _check_range(key: str, value: Any, config_field: "Field[Any]", where: str) -> None:
    low, high = config_field.metadata["low"], config_field.metadata["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = (
            f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        )
        raise UserError(f"'{key}' in {where} is {value!r}, expected {bounds}: {config_field.metadata['help']}")


def _article(expected: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[expected]
