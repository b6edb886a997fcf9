"""Hyper-parameters in words: a table, a value as it is typed, changes since a checkpoint, the words after ``--set``."""

import json
from collections.abc import Mapping
from typing import Any

from nnunet_semicon.configuration.derived import Derived
from nnunet_semicon.tables import render

# a resumed run may differ in these: they change neither the data nor the weights of the finished run
MAY_CHANGE = ("device", "save_every", "student_rows", "validate_both")


def as_table(settings: Mapping[str, Derived], wrap: bool = False) -> str:
    """Return one aligned line per hyper-parameter: key, value, reason; ``wrap``: to the width of a terminal."""
    rows = [(key, in_words(value), reason) for key, (value, reason) in settings.items()]
    return render(rows, header=False, indent="  ", wrap=wrap)


def in_words(value: Any) -> str:
    """Return a value as it is typed after ``--set``: numbers with at most five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(entry)}" for key, entry in value.items()) or "none"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return key -> value then and now, where they differ in a way that matters to a resumed run."""
    keys = [key for key in {**then, **now} if key not in MAY_CHANGE]
    return {key: (then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)}


def changes_in_words(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Return ``'key was ... and is now ...'`` of every change."""
    return [f"{key} was {in_words(then)} and is now {in_words(now)}" for key, (then, now) in changed.items()]


def assignments(values: Mapping[str, Any]) -> str:
    """Return values as the words after ``--set``."""
    words = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            words += [f"{key}.{name}={json.dumps(entry)}" for name, entry in value.items()]
        else:
            words.append(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    return " ".join(words)
