"""Examples: one row per decision, as the server would have seen it, with its outcome once that became known.

An examples file is Parquet in `home/examples/<digest>.parquet` with the request columns, the context columns, and
`_decided_at` (timestamp), `_known_at` (when the outcome became known), `_label` (typed by the task, see `tasks.label`), `_unit`
(the request's key as text) and `_prediction` (id where the row comes from the prediction log, else null), sorted by `_decided_at`.
Only for anomalies `_label` may be null: unlabelled; `_known_at` is then the moment of decision.
"""

from datetime import datetime
from typing import ClassVar

import msgspec

from loopwright.records.declarations import Column
from loopwright.records.entries import Record


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A table's version that went in, its rows, and the SHA-256 of each file it was ingested from."""

    table: str
    version: int
    rows: int
    files: dict[str, str]


class OutcomeDelay(msgspec.Struct, frozen=True, kw_only=True):
    """How long outcomes of one label take, from the decision until they are known, over examples (whose wait is over).

    `seconds` are the delays within which 0 %, 10 % ... 100 % of the `count` outcomes are known. `label` is "" for numbers: of all.
    """

    label: str
    count: int
    seconds: list[float]


class Examples(Record, frozen=True, kw_only=True):
    """Result of the stage `data`, input of `develop`: the location and origin of the rows. `summary` describes the labels."""

    kind: ClassVar[str] = "examples"
    digest: str
    rows: int
    positives: int
    as_of: datetime
    first: datetime
    last: datetime
    sources: list[Source]
    excluded: dict[str, int]
    request: dict[str, Column]
    context: dict[str, Column]
    summary: str = ""
    delays: list[OutcomeDelay] = []
