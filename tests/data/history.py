"""Random histories of a small loop, and what its examples must be, written as plainly as possible."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from loopwright import Column, Context, Home, Outcome, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.ids import digest
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

LOOP = "late"
START = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
Row = dict[str, Any]

ASKED = Table(
    "asked",
    {
        "id": Column("integer"),
        "at": Column("timestamp"),
        "place": Column("string"),
        "size": Column("float", nullable=True),
    },
    key=["id"],
    event_time="at",
)
WEATHER = Table(
    "weather",
    {
        "site": Column("string"),
        "seen_at": Column("timestamp"),
        "told_at": Column("timestamp"),
        "wind": Column("float", nullable=True),
        "calm": Column("boolean", nullable=True),
    },
    key=["site"],
    event_time="seen_at",
    known_time="told_at",
    known_after="5m",
)
CAME = Table(
    "came",
    {"id": Column("integer"), "came_at": Column("timestamp"), "delay": Column("float", nullable=True)},
    key=["id"],
    event_time="came_at",
    known_after="2m",
)
CONTEXT = [Context(WEATHER, by={"site": "place"}, columns=["wind", "calm"], max_age="90m", lag="3m")]
OUTCOME = Outcome(CAME, "delay > 15", wait="5h")


class History(NamedTuple):
    """What happened: rows of the three tables."""

    asked: list[Row]
    weather: list[Row]
    came: list[Row]


def random_history(seed: int, *, decisions: int = 120, observations: int = 150) -> History:
    """A day of decisions at three places; weather with gaps, stragglers and corrections; outcomes late, twice or never."""
    rng = np.random.default_rng(seed)

    def moment(high: int = 24 * 60) -> datetime:
        return START + MINUTE * int(rng.integers(0, high))

    asked: list[Row] = [
        {
            "id": i,
            "at": moment(),
            "place": str(rng.choice(["A", "B", "nowhere"], p=[0.5, 0.4, 0.1])),
            "size": None if rng.random() < 0.2 else float(rng.integers(0, 100)),
        }
        for i in range(decisions)
    ]
    weather: dict[tuple[Any, ...], Row] = {}
    for _ in range(observations):
        seen = START + timedelta(hours=int(rng.integers(0, 24)))
        told = seen + MINUTE * int(rng.choice([0, 0, 10, 60, 180]))
        observed: Row = {
            "site": str(rng.choice(["A", "B"])),
            "seen_at": seen,
            "told_at": told,
            "wind": None if rng.random() < 0.2 else float(rng.integers(0, 1000)),
            "calm": None if rng.random() < 0.3 else bool(rng.random() < 0.5),
        }
        weather[observed["site"], seen, told] = observed
    came: dict[tuple[Any, ...], Row] = {}
    for row in asked:
        for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            at = row["at"] + MINUTE * int(rng.integers(-40, 600))
            delay = None if rng.random() < 0.1 else float(rng.integers(-10, 60))
            came[row["id"], at] = {"id": row["id"], "came_at": at, "delay": delay}
    return History(asked, list(weather.values()), list(came.values()))


def context_at(history: History, place: str, at: datetime) -> Row | None:
    """The weather that counts for a decision: of all rows known then the latest event, of those the one known last."""
    known = [r for r in history.weather if r["site"] == place and r["told_at"] + 8 * MINUTE <= at]  # known_after and lag
    return max(known, key=lambda r: (r["seen_at"], r["told_at"]), default=None)


def truth_at(history: History, id: int, as_of: datetime) -> tuple[bool, datetime] | None:
    """The label of a decision (each `id` decides once) as known at `as_of`, and when it became known: the last within the wait.

    What was known before the decision is returned where nothing came after it: it belongs to none.
    """
    [asked] = [r["at"] for r in history.asked if r["id"] == id]
    wait_is_over = asked + timedelta(hours=5) <= as_of
    known = sorted(
        (r["came_at"] + 2 * MINUTE, r["delay"]) for r in history.came if r["id"] == id and r["came_at"] + 2 * MINUTE <= as_of
    )
    after = [(at, delay) for at, delay in known if asked <= at <= asked + timedelta(hours=5)]
    if after and not wait_is_over:
        return None
    if after:
        at, delay = after[-1]
        return None if delay is None else (delay > 15, at)
    before = [at for at, delay in known if at < asked and delay is not None]
    return (False, before[-1]) if before else None


def expected(history: History, as_of: datetime) -> list[Row]:
    """The examples at `as_of`, in order."""
    rows = []
    for asked in history.asked:
        truth = truth_at(history, asked["id"], as_of)
        if asked["at"] >= as_of or truth is None or truth[1] < asked["at"]:
            continue
        weather = context_at(history, asked["place"], asked["at"])
        fresh = (
            weather if weather and asked["at"] - weather["seen_at"] <= timedelta(minutes=90) else {"wind": None, "calm": None}
        )
        rows.append(
            {
                **asked,
                "wind": fresh["wind"],
                "calm": fresh["calm"],
                "_decided_at": asked["at"],
                "_known_at": truth[1],
                "_label": truth[0],
                "_unit": str(asked["id"]),
                "_prediction": None,
            }
        )
    return sorted(rows, key=lambda r: (r["_decided_at"], r["_unit"]))


def home(folder: Path, now: datetime = START + timedelta(days=30)) -> Home:
    """A home in which nothing happened yet."""
    return Home(Settings(home=folder, by="tests"), SimulatedClock(now))


def fill(home: Home, history: History) -> None:
    """Ingest a history."""
    for table, rows in ((ASKED, history.asked), (WEATHER, history.weather), (CAME, history.came)):
        done = ingest(home, table, pa.Table.from_pylist(rows, schema=arrow_schema(table.columns)))
        assert done.quarantined == 0, done.reasons


def us(moment: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def served(row: Row, number: int, **context: Any) -> Prediction:
    """The logged prediction of a decision."""
    return Prediction(
        id=f"{number + 1:032x}",
        at=us(row["at"]),
        package="0" * 64,
        arm="champion",
        probability=1.0,
        request={name: us(value) if isinstance(value, datetime) else value for name, value in row.items()},
        context=context,
        context_age_s=None,
        score=0.5,
        label=True,
        flags=[],
        latency_us=1.0,
        unit=str(row["id"]),
    )


def told(number: int, delay: float | None, known: datetime, *, unit: str = "", prediction: str = "") -> OutcomeRow:
    """A logged outcome."""
    return OutcomeRow(
        id=digest(str(number).encode())[:32],
        prediction=prediction,
        unit=unit,
        values={"came_at": us(known), "delay": delay},
        known_at=us(known),
        received_at=us(known),
        provenance="tests",
    )


def log(home: Home, kind: Any, records: Sequence[Any]) -> None:
    """Write records to the loop's log."""
    writer = LogWriter(log_folder(home.path, LOOP), kind)
    writer.append(records)
    writer.close()
