"""Locks on files, so that two processes never train one training, or write one plans file, at the same time.

They end with the processes that hold them, however these end. Where there are none (Windows, some network folders),
nothing is locked.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[bytes], wait: bool) -> bool:
    """Lock an open file until it, and every copy of it in other processes, is closed; False if others hold it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file."""
    with suppress(FileNotFoundError), _open(path) as file:
        return not lock(file, wait=False)
    return False


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Wait for, and hold, the lock of a file that others may read, lock and replace as a whole."""
    while True:
        with _open(path) as file:
            lock(file, wait=True)
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:  # otherwise it was replaced meanwhile
                yield
                return


def _open(path: str | Path) -> IO[bytes]:
    return open(path, "r+b" if os.access(path, os.W_OK) else "rb")  # NFS locks only what could be written
