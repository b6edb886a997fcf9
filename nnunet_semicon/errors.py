"""The one exception for mistakes that a user can repair.

Its message is a single sentence: what is wrong, where (file, case, key), what was expected, what to do.
``semicon`` prints it and exits with 1; trainers turn it into ``SystemExit`` so that nnU-Net's own commands show
the sentence and no traceback.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in data, files or settings that the user can repair."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a :class:`UserError` into ``SystemExit(sentence)`` (exit code 1, no traceback)."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"\nnnunet_semicon: {error}") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean 'x'?'`` for the known name nearest to ``name``, or an empty string."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def listing(names: Iterable[str], at_most: int = 5) -> str:
    """Return the first names, comma separated, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:at_most])
    return shown if len(names) <= at_most else f"{shown} and {len(names) - at_most} more"
