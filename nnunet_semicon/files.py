"""Files that appear whole or not at all, and JSON files that hold an object."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_semicon.errors import UserError

TEMPORARY = ".tmp"  # added to the name of a file that is being written
_BLOCK = 1 << 20  # bytes that are hashed at once

FilePath = str | Path


# --- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def replacing(*paths: FilePath) -> Iterator[list[Path]]:
    """Yield a temporary path for each file; at the end of the block they replace the files.

    Nothing is replaced, and no temporary file stays, if the block raises. A replaced file keeps its permissions.

    Args:
        paths: the files, each in a folder that exists.

    Raises:
        OSError: a file cannot be written; ``filename`` names it, not its temporary path.
    """
    targets = [Path(path) for path in paths]
    temporaries = [target.with_name(f"{target.name}{TEMPORARY}") for target in targets]
    try:
        yield temporaries
        for target, temporary in zip(targets, temporaries, strict=True):
            if target.is_dir():  # before the first is replaced: `os.replace` would refuse this one
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            if target.exists():
                shutil.copymode(target, temporary)
        for target, temporary in zip(targets, temporaries, strict=True):
            os.replace(temporary, target)
    except OSError as error:
        if error.filename is not None and Path(error.filename) in temporaries:
            error.filename = str(error.filename).removesuffix(TEMPORARY)
        raise
    finally:
        for temporary in temporaries:
            if temporary.is_file():
                temporary.unlink()


def write_texts(texts: Mapping[Any, str]) -> None:
    """Replace text files (path -> content, UTF-8), all of them or none.

    Raises:
        OSError: one of them cannot be written.
    """
    with replacing(*texts) as temporaries:
        for temporary, text in zip(temporaries, texts.values(), strict=True):
            temporary.write_text(text, encoding="utf-8", newline="")


def write_text(path: FilePath, text: str) -> None:
    """Replace a text file (UTF-8) at once.

    Raises:
        OSError: it cannot be written.
    """
    write_texts({path: text})


def write_json(path: FilePath, content: Any, indent: int | None = None) -> None:
    """Replace a JSON file at once.

    Raises:
        OSError: it cannot be written.
        TypeError, ValueError: the content has no form in JSON.
    """
    write_text(path, json.dumps(content, indent=indent))


@contextmanager
def explain_unwritable(path: FilePath, remedy: str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a sentence for the user.

    Args:
        path: named where the error names no file.
        remedy: end of the sentence.

    Raises:
        UserError: says which file cannot be written, why, and what to do.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be written ({error.strerror or error}): {remedy}") from None


# --- reading -----------------------------------------------------------------------------------------------------


def read_object(path: FilePath) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UserError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): repair it, or copy it again") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): repair it, or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: repair it, or copy it again")
    return content


def read_object_or_none(path: FilePath) -> dict[str, Any] | None:
    """Return the object in a JSON file, empty if it holds something else, or None if it cannot be read."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else {}


def sha256(path: FilePath) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
