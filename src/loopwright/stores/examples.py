"""Files of examples, named by the SHA-256 of their bytes, which every reader verifies."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.base.errors import Damaged, RecordNotFound
from loopwright.graph.columns import ARROW_TYPES
from loopwright.records.entries import Problem
from loopwright.records.examples import Examples

FIXED = {
    "_decided_at": ARROW_TYPES["timestamp"],
    "_known_at": ARROW_TYPES["timestamp"],
    "_unit": pa.string(),
    "_prediction": pa.string(),
}
"""The columns of every examples file in addition to the label, whose type depends on the task, and the loop's own columns."""

if TYPE_CHECKING:  # it opens every store, and needs this one for nothing
    from loopwright.stores.home import Home


def read_examples(home: "Home", digest: str, columns: Collection[str] | None = None) -> pa.Table:
    """Read the rows of an examples file, ordered by decision, with its columns among `columns` (None: all). See `records.examples`.

    Raises RecordNotFound when the file is missing (the same inputs make the same digest), Damaged when its bytes have changed.
    """
    try:
        with _path(home, digest).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                why = f"the file is not what was written, its SHA-256 is {found[:12]}: build it again with `loopwright run`"
                raise Damaged(f"examples {digest[:12]}: {why}")
            file.seek(0)
            names = None if columns is None else [n for n in pq.read_schema(file).names if n in columns]
            file.seek(0)
            return pq.read_table(file, columns=names)
    except FileNotFoundError as error:
        raise RecordNotFound(digest) from error


def verify_examples(home: "Home") -> list[Problem]:
    """Verify that every examples file has the digest of its name, and that every one in the ledger exists."""
    files = {path.stem: path for path in sorted((home.path / "examples").glob("*.parquet"))}
    problems = []
    for name, path in files.items():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != name:
                problems.append(Problem(where=f"examples {name[:12]}", what="the file's bytes are not what its name says"))
    known = {entry.record.digest for entry in home.ledger.find(Examples)}
    return problems + [Problem(where=f"examples {n[:12]}", what="the file is missing") for n in sorted(known - set(files))]


def _path(home: "Home", digest: str) -> Path:
    return home.path / "examples" / f"{digest}.parquet"
