"""The verb `outcomes`."""

from pathlib import Path
from typing import Any, Unpack

import msgspec

from loopwright.base.errors import UsageError
from loopwright.data.ingest.outcomes import Delivered, accept
from loopwright.data.ingest.source_reader import FileOptions, Reading
from loopwright.records.examples import Examples, OutcomeDelay
from loopwright.records.prediction import OutcomeStates
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import states
from loopwright.verbs.known_loop import known_loop


class OutcomesReport(OutcomeStates, frozen=True, kw_only=True):
    """Outcomes of a loop: rows of the `file` that were `accepted` and `quarantined` (by reason), and the counts of `OutcomeStates`.

    `delays` are those of the newest examples that a model was trained on. The file was read as `encoding`; `undated` rows have no time, so their truth counts as known from now on.
    """

    loop: str
    accepted: int
    quarantined: int
    file: str = ""
    table: str = ""
    reasons: dict[str, int] = {}
    encoding: str = ""
    undated: int = 0
    delays: list[OutcomeDelay] = []

    @property
    def ok(self) -> bool:
        """Whether any row was accepted; a file with every row in quarantine fails."""
        return self.accepted > 0 or self.quarantined == 0


def outcomes(home: Home, loop: str, file: Path | None = None, **file_options: Unpack[FileOptions]) -> OutcomesReport:
    """Load outcomes from a file, and count matched, pending and missing ones.

    Args:
        loop: name of the loop.
        file: CSV, JSON Lines, Excel, Parquet or Arrow with the columns of the outcome table, matched by its key or by a column of
            prediction ids: `id`, `prediction` or `prediction_id` (one that the table does not have itself), or `_id` as `loopwright
            predict` writes it. Times are optional: the default is now, or the column `known_at`.
    """
    declared = known_loop(home, loop)
    reading = Reading.of(**file_options)
    if file is None and reading.options():
        raise UsageError(f"{reading.options().split()[0]} needs a file: name it after the loop")
    table, requests = declared.outcome.table, declared.requests
    logged = accept(home, loop, table, requests, file, reading) if file else Delivered(0, 0, {})
    counts = states(home, loop, declared.outcome, home.clock.now(), requests.event_time)
    delivered: dict[str, Any] = {"file": str(file or ""), "table": table.name, **logged._asdict()}
    trained = home.ledger.latest(Examples, loop=loop)
    delivered["delays"] = trained.record.delays if trained is not None else []
    return OutcomesReport(loop=loop, **delivered, **msgspec.structs.asdict(counts))
