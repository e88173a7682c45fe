"""Files: atomic replacement, syncing, and reading of untrusted files.

Only regular files are read, so a pipe, device or socket blocks nobody and no link leads outside.
"""

import os
import stat
from pathlib import Path


def read_named(path: Path | str, limit: int) -> bytes:
    """As `read_regular`, of a file that a setting names: links are followed (mounted secrets are links)."""
    return read_regular(Path(path).resolve(), limit)


def read_regular(path: Path | str, limit: int, *, folder: int | None = None) -> bytes:
    """The bytes of a regular file, at most `limit + 1` of them: more than `limit` means that it is larger.

    Args:
        path: relative to `folder`, the descriptor of an open directory, if there is one.

    Raises OSError, also for a link and anything else that is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe blocks until it has a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with os.fdopen(os.open(path, flags, dir_fd=folder), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "it is no regular file", str(path))
        return file.read(limit + 1)


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file in one step: a reader sees the old one or the new one, never a part. Raises OSError.

    Args:
        durable: survive a power cut: sync the bytes before the rename and the folder after it. Not needed for files that the
            next start, or the next seconds, write again.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        temporary.write_bytes(data)
        move_file(temporary, path, durable=durable)
    finally:
        temporary.unlink(missing_ok=True)


def move_file(temporary: Path, path: Path, *, durable: bool = True) -> None:
    """Move a complete file to its final name, replacing any file there. Raises OSError."""
    if durable:
        sync(temporary)
    temporary.replace(path)
    if durable:
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
