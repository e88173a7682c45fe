"""Records of ingestion: an ingested source, and its quarantined rows."""

from datetime import datetime
from typing import Any, ClassVar

import msgspec

from loopwright.records.entries import Record

DOUBT = ": say --encoding if letters look wrong"
"""Hint for files read as Windows-1252, which decodes any bytes as letters."""


class Ingested(Record, frozen=True, kw_only=True):
    """One source ingested into one table.

    `digest` is the SHA-256 of its content, `version` that of the table with its rows, `reasons` counts quarantined rows
    by reason (a row may have several), `contract` is the digest of the contract that judged them. `encoding` is set for
    text that is not UTF-8. `absent` are columns that the
    source did not have, which are null; `moment` is the value of columns filled with `ingested_at`. A growing source has
    what it `follows` and the position it `reached`; rows `mended` left the quarantine, by the digest of their source
    and their row number in it; `replaced` counts versions of them that a later version in the same file replaced. `already` is true when the same content was ingested before; then nothing was
    added, and columns `declared_since` are null in its rows. `repeated` rows have key and times of existing rows: the last counts.
    `repeated_keys` explains what it means that keys of a loop's requests repeat.
    """

    kind: ClassVar[str] = "ingested"
    table: str
    source: str
    digest: str
    rows: int
    good: int
    quarantined: int
    reasons: dict[str, int]
    version: int
    contract: str
    encoding: str = ""
    absent: list[str] = []
    moment: datetime | None = None
    follows: str = ""
    reached: str = ""
    mended: dict[str, list[int]] = {}
    replaced: int = 0
    already: bool = False
    declared_since: list[str] = []
    repeated: int = 0
    repeated_keys: str = ""

    @property
    def ok(self) -> bool:
        """Whether any row was stored; a source with every row in quarantine was not ingested."""
        return self.good > 0 or self.already or self.rows == 0

    @property
    def file(self) -> str:
        """The id of the source in the ledger's links."""
        return f"file:{self.digest}:{self.source}"[:512]


class OutcomesMended(Ingested, frozen=True, kw_only=True):
    """Quarantined rows of an outcome table that were ingested as outcomes of a loop, and went to its outcome log; `version` is 0."""

    kind: ClassVar[str] = "outcomes-mended"
    loop: str


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """Contents of a table's quarantine: rows by reason and by source, number of rows `mended` before, the first `shown`."""

    table: str
    rows: int
    mended: int
    by_reason: dict[str, int]
    by_source: dict[str, int]
    shown: list[dict[str, Any]]
    file: str = ""
