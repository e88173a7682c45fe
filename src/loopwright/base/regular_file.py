"""Reading a file that may be anything: only a regular one is read, so a pipe, device or socket hangs nobody and no link leads outside."""

import os
import stat
from pathlib import Path


def read_named(path: Path | str, limit: int) -> bytes:
    """As `read_regular`, of a file that a setting names: links are followed (mounted secrets are links)."""
    return read_regular(Path(path).resolve(), limit)


def read_regular(path: Path | str, limit: int, *, folder: int | None = None) -> bytes:
    """The bytes of a regular file, at most `limit + 1` of them: more than `limit` means that it is larger.

    Args:
        path: where it is; relative to `folder`, the descriptor of an open directory, where there is one.

    Raises OSError, also for a link and for what is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits for whoever writes into it.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with os.fdopen(os.open(path, flags, dir_fd=folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is no regular file", str(path))
        return file.read(limit + 1)
