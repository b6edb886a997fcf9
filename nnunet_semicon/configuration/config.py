"""Settings: typed models, filled from the ``semicon`` block of a configuration in the plans file.

A block is a flat JSON object, e.g. ``{"num_epochs": 6, "temperature": 0.1, "lambda": {"patient": 0.01}}``. Every
field of a model is declared with :func:`setting` or :func:`open_setting`, which carry its meaning, range and source.
"""

from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from nnunet_semicon.errors import UserError, listing, nearest

BLOCK = "semicon"
Weights = dict[str, Annotated[float, Field(ge=0)]]  # name -> weight
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _key(name: str) -> str:
    """Drop a trailing underscore: ``lambda`` is a Python keyword."""
    return name.rstrip("_")


class Settings(BaseModel):
    """Base of all settings: frozen, and as strict as JSON: ``"6"`` and ``true`` are no numbers."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", allow_inf_nan=False, alias_generator=_key, populate_by_name=True
    )


S = TypeVar("S", bound=Settings)


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    source: str = "",
    columns: bool = False,
    before: Any = None,
) -> Any:
    """Declare a field: default, meaning (with unit), closed range, source of the default.

    Args:
        default: value where nothing is set.
        help: meaning, with unit.
        low: smallest value.
        high: largest value.
        source: paper or code that the default comes from.
        columns: the entries of an object may also be columns of the meta table.
        before: value that equals the behavior of versions without this key; None: the default.
    """
    extra: dict[str, Any] = {"source": source, "columns": columns, "before": before, "open": False}
    return Field(default, description=help, ge=low, le=high, json_schema_extra=extra)


def open_setting(help: str, *, low: float | None = None, high: float | None = None, source: str = "") -> Any:
    """Declare a field without a default: a rule fills it where it is not set, so that nobody reads an open value."""
    extra: dict[str, Any] = {"source": source, "columns": False, "before": None, "open": True}
    return Field(None, description=help, ge=low, le=high, json_schema_extra=extra)


# --- what is declared --------------------------------------------------------------------------------------------


def keys_of(settings: type[Settings]) -> dict[str, FieldInfo]:
    """Return key of the block -> field."""
    return {_key(name): field for name, field in settings.model_fields.items()}


def value_of(settings: Settings, key: str) -> Any:
    """Return the value of a key."""
    name = next(name for name in type(settings).model_fields if _key(name) == key)
    return getattr(settings, name)


def default_of(field: FieldInfo) -> Any:
    """Return the default of a field, None where it is open."""
    return field.get_default(call_default_factory=True)


def help_of(field: FieldInfo) -> str:
    """Return the meaning of a field, with its unit."""
    return field.description or ""


def source_of(field: FieldInfo) -> str:
    """Return the paper or code that the default of a field comes from."""
    return str(_extra(field)["source"])


def is_open(field: FieldInfo) -> bool:
    """Return whether a rule fills a field that is not set."""
    return bool(_extra(field)["open"])


def before(field: FieldInfo) -> Any:
    """Return the value that equals the behavior of versions without the key, None where that is the default."""
    return _extra(field)["before"]


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the allowed texts of a field, none where it is not a choice."""
    return next((get_args(kind) for kind in _kinds(field) if get_origin(kind) is Literal), ())


def bounds_of(field: FieldInfo) -> tuple[float | None, float | None]:
    """Return the smallest and the largest value of a field, of an object those of its entries."""
    entries = next((get_args(kind)[1] for kind in _kinds(field) if get_origin(kind) is dict), None)
    metadata = field.metadata if entries is None else _metadata(entries)
    low = next((m.ge for m in metadata if getattr(m, "ge", None) is not None), None)
    high = next((m.le for m in metadata if getattr(m, "le", None) is not None), None)
    return low, high


def allowed(field: FieldInfo) -> str:
    """Return the range or the choices of a field, in words."""
    choices, (low, high) = choices_of(field), bounds_of(field)
    if choices:
        return ", ".join(choices)
    if bool in _kinds(field):
        return "true, false"
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f"at least {low:g}"
    return "any" if high is None else f"at most {high:g}"


def is_list(field: FieldInfo) -> bool:
    """Return whether the value of a field is a list."""
    return any(get_origin(kind) in (list, tuple) for kind in _kinds(field))


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    assert isinstance(extra, dict), "declare the field with setting() or open_setting()"
    return extra


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types of a field, without None."""
    kind = field.annotation
    if get_origin(kind) in (Literal, dict, list, tuple) or not get_args(kind):
        return (kind,)
    return tuple(part for part in get_args(kind) if part is not NoneType)


def _metadata(kind: Any) -> list[Any]:
    """Return what an annotated type carries."""
    return FieldInfo.from_annotation(kind).metadata


# --- reading a block ---------------------------------------------------------------------------------------------


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
    settings: type[S], block: Mapping[str, Any], where: str, columns: Mapping[str, str | None] | None = None
) -> S:
    """Return ``settings`` with the values of ``block``; keys of other models are left alone.

    Args:
        settings: a model of settings.
        block: the ``semicon`` block; an object is merged over the default object.
        where: file and configuration, for the error message.
        columns: column of the meta table -> why it cannot be a label, or None if it can. These names may stand in an
            object (``lambda``) beside those of its default.

    Raises:
        UserError: a value of the wrong type or outside its documented range, or a column that cannot be a label.
    """
    values = {}
    for key, field in keys_of(settings).items():
        if key not in block or (block[key] is None and is_open(field)):
            continue
        value = block[key]
        if any(get_origin(kind) is dict for kind in _kinds(field)):
            value = _merged(key, value, field, where, (columns or {}) if _extra(field)["columns"] else {})
        values[key] = value
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], settings, where)) from None


def _merged(key: str, value: Any, field: FieldInfo, where: str, columns: Mapping[str, str | None]) -> dict[str, Any]:
    """Return an object over its default; its names must be those of the default, or columns.

    Raises:
        UserError: it is no object, a name is unknown, or a weight is given to a column that cannot be a label.
    """
    default = default_of(field) or {}
    known = dict.fromkeys([*default, *columns])
    if not isinstance(value, Mapping):
        example = next(iter(default), "1")
        raise UserError(f"'{key}' in {where} is {value!r}, expected an object such as {{\"{example}\": 0.01}}")
    for name, number in value.items():
        if known and name not in known:
            more = " (`semicon meta -d DATASET` shows the meta-labels of a dataset)"
            raise UserError(
                f"unknown entry '{key}.{name}' in {where}{nearest(name, known)}; known are {listing(known)}"
                f"{more if _extra(field)['columns'] else ''}"
            )
        if columns.get(name) is not None and number != 0:
            raise UserError(
                f"'{key}.{name}' in {where} asks for a meta-label that cannot be used ({columns[name]}): "
                f"leave it out, or correct the column (`semicon meta -d DATASET`)"
            )
    return {**default, **value}


def _sentence(error: ErrorDetails, settings: type[Settings], where: str) -> str:
    """Return what pydantic found, in our words."""
    key, *inner = map(str, error["loc"])
    field = keys_of(settings)[_key(key)]
    name, value = ".".join([key, *inner]), error["input"]
    choices, (low, high) = choices_of(field), bounds_of(field)
    start = f"'{name}' in {where} is {value!r}, expected"
    if error["type"] == "literal_error":
        return f"{start} one of {', '.join(choices)}"
    if error["type"] in ("greater_than_equal", "less_than_equal"):
        bounds = (
            f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        )
        return f"{start} {bounds}: {help_of(field)}"
    kind = next((WORDS[kind] for kind in _kinds(field) if kind in WORDS), "a number")
    return f"{start} {kind}" if inner else f"{start} {kind}: {help_of(field)}"
