"""Contents of the ledger: records in envelopes (entries), links between entries, and pointers that move by compare-and-swap."""

from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything the ledger stores. A subclass has its `kind` (a valid name, unique) and JSON-able fields."""

    kind: ClassVar[str]


class Untyped(Record, frozen=True, kw_only=True):
    """A record of any kind as plain data: for reading only, where the type does not matter (history, lineage)."""

    kind: ClassVar[str] = "untyped"
    fields: dict[str, Any]


R_co = TypeVar("R_co", bound=Record, covariant=True)


class Entry(msgspec.Struct, Generic[R_co], frozen=True, kw_only=True):
    """A record in its envelope.

    `id` sorts by time; `sequence` is the order of writing; `digest` is the SHA-256 of the record's JSON and `chain` that
    of the previous entry's chain and this entry, so that a changed or missing entry is found by `Ledger.verify`.
    """

    id: str
    sequence: int
    kind: str
    loop: str
    key: str
    at: datetime
    by: str
    record: R_co
    digest: str
    chain: str


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """Lineage: entry or artefact `source` was used for `target` in `role` (`trained on`, `made`, `released` ...)."""

    source: str
    target: str
    role: str


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """A named place that moves: which entry it points to, and its generation (the number of moves so far)."""

    name: str
    generation: int
    entry: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Damage found by a verification: its place and its kind."""

    where: str
    what: str
