"""``KEY=VALUE`` words of the commands: nested keys, lists, grids, seeds; text in, dictionaries out."""

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from nnunet_semicon.errors import UserError
from nnunet_semicon.experiments.variants import overlapping, refuse_twice


def parse_settings(words: Sequence[str], lists: Collection[str] = (), option: str = "--set") -> dict[str, Any]:
    """Return dotted key -> value of ``key=value`` words; values are JSON or text.

    Args:
        words: what follows the option.
        lists: dotted keys whose value is a list: for them ``key=1,2`` is ``[1, 2]``.
        option: for messages.

    Raises:
        UserError: a word that is not ``key=value``, or one key twice.
    """
    return {key: _value(text, key in lists) for key, text in _assignments(words, option).items()}


def parse_grid(words: Sequence[str], lists: Collection[str] = ()) -> dict[str, list[Any]]:
    """Return dotted key -> values of ``key=value,value`` words; a comma in brackets or quotes is part of a value.

    Raises:
        UserError: as :func:`parse_settings`; also an empty value or one value twice.
    """
    grid: dict[str, list[Any]] = {}
    for key, text in _assignments(words, "--grid").items():
        parts = _split_at_commas(text)
        if not all(parts):
            raise UserError(f"'{key}={text}' after --grid has an empty value, expected values such as 1,2,3")
        grid[key] = [_value(part, key in lists) for part in parts]
    refuse_twice(grid, "--grid")
    return grid


def _assignments(words: Sequence[str], option: str) -> dict[str, str]:
    """Return dotted key -> text of ``key=text`` words.

    Raises:
        UserError: a word that is not ``key=text``, or two that set the same value.
    """
    texts: dict[str, str] = {}
    for word in words:
        key, _, text = word.partition("=")
        if not text or not all(key.split(".")):
            raise UserError(f"'{word}' after {option} is not KEY=VALUE, e.g. temperature=0.1")
        double = overlapping(key, texts)
        if double is not None:
            raise UserError(f"'{double}' and '{key}' after {option} set the same value: keep one of them")
        texts[key] = text
    return texts


def _value(text: str, is_list: bool) -> Any:
    """Return the JSON value of a text, or the text; NaN and infinity are no values of a hyper-parameter."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except ValueError:
        value = text
    if not is_list or isinstance(value, list):
        return value
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [_value(part.strip(), False) for part in _split_at_commas(inside)]


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _split_at_commas(text: str) -> list[str]:
    """Split at commas that are not in brackets or quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        if not quoted:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def parse_seeds(text: str) -> list[int]:
    """Return the seeds of ``0,1,2``."""
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds is '{text}', expected whole numbers such as 0,1,2") from None
    if any(seed < 0 for seed in seeds):
        raise UserError(f"--seeds is '{text}', expected numbers of at least 0")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds is '{text}', expected every number once")
    return seeds
