"""The verb `outcomes`."""

from pathlib import Path

import msgspec

from loopwright.base.errors import UsageError
from loopwright.data.ingest.opened import Reading
from loopwright.data.ingest.outcomes import Delivered, accept
from loopwright.records.declarations import duration
from loopwright.records.prediction import OutcomeStates
from loopwright.stores.home import Home
from loopwright.stores.outcomes.table import states
from loopwright.verbs.known_loop import known_loop


class OutcomesReport(OutcomeStates, frozen=True, kw_only=True):
    """How outcomes stand: rows of the file that were `accepted` and `quarantined`, and all that `OutcomeStates` counts."""

    loop: str
    accepted: int
    quarantined: int


def outcomes(
    home: Home,
    loop: str,
    file: Path | None = None,
    *,
    encoding: str = "",
    sheet: str = "",
    no_header: bool = False,
    names: str = "",
) -> OutcomesReport:
    """Load outcomes from a file, and count matched, pending and missing ones.

    Args:
        loop: name of the loop.
        file: CSV, Excel or Parquet with the outcome table's columns (its key, or a column `id`, `prediction` or `prediction_id` with
            prediction ids; the first of them that the table does not have itself).
        encoding: encoding of text files, e.g. cp1252, latin-1, utf-16 (default: detected).
        sheet: sheet of an Excel workbook (default: the only one with rows).
        no_header: the first line is a row of data; the columns become column_1, column_2 ...
        names: comma-separated column names, if the first line is a row of data.
    """
    declared = known_loop(home, loop)
    reading = Reading.of(encoding, sheet, names, no_header=no_header)
    if file is None and reading.options():
        raise UsageError(f"{reading.options().split()[0]} needs a file: name it after the loop")
    logged = accept(home, loop, declared.outcome.table, declared.requests.key, file, reading) if file else Delivered(0, 0)
    counts = states(home, loop, duration(declared.outcome.wait), home.clock.now(), declared.requests.event_time)
    return OutcomesReport(loop=loop, **logged._asdict(), **msgspec.structs.asdict(counts))
