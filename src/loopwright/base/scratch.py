"""Folders for the time of one task."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loopwright.base.errors import Unavailable


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new folder among the system's temporary files, removed at the end. Raises Unavailable where it cannot be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise Unavailable(
            f"there is no temporary folder: {error.strerror or error}; set TMPDIR to a folder that can be written"
        ) from error
    with folder as path:
        yield Path(path)
