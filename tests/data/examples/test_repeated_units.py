"""Customers who are asked about every week: each decision has its own outcome, in training, monitoring and trace."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from loopwright import Column, Home, Outcome, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.ids import digest
from loopwright.base.settings import Settings
from loopwright.data.examples.build import build, repeated_units
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema
from loopwright.records.prediction import OutcomeRow, Prediction
from loopwright.stores.examples import read_examples
from loopwright.stores.outcomes.join import history
from loopwright.stores.outcomes.labelled import with_truth
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

LOOP, START, WEEK = "churn", datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=7)
END = START + 40 * WEEK
ASKED = Table(
    "renewals",
    {"customer": Column("string"), "asked_at": Column("timestamp"), "price": Column("float")},
    key=["customer"],
    event_time="asked_at",
)
LEFT = Table(
    "cancellations",
    {"customer": Column("string"), "seen_at": Column("timestamp"), "known_at": Column("timestamp"), "left": Column("boolean")},
    key=["customer"],
    event_time="seen_at",
    known_time="known_at",
)
OUTCOME = Outcome(LEFT, '"left"', wait="60d")
Row = dict[str, Any]


def world(*, dated_as_asked: bool, customers: int = 300, weeks: int = 30) -> tuple[list[Row], list[Row]]:
    """Weekly questions until a customer leaves; six days after each it is known whether it left (ten, `dated_as_asked`)."""
    rng = np.random.default_rng(0)
    asked, left = [], []
    for i in range(customers):
        leaves, offset = int(rng.integers(3, weeks + 20)), timedelta(hours=int(rng.integers(0, 100)))
        for week in range(min(leaves, weeks)):
            at = START + offset + week * WEEK
            asked.append({"customer": f"c{i}", "asked_at": at, "price": 1.0})
            known = at + timedelta(days=10 if dated_as_asked else 6)
            seen = at if dated_as_asked else known
            left.append({"customer": f"c{i}", "seen_at": seen, "known_at": known, "left": week == leaves - 1})
    return asked, left


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(END)) as opened:
        yield opened


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def log(home: Home, asked: list[Row], left: list[Row]) -> list[Prediction]:
    """The same questions answered, and the outcomes posted by key."""
    answered = [
        Prediction(
            id=f"{i + 1:032x}",
            at=us(r["asked_at"]),
            package="0" * 64,
            arm="champion",
            probability=1.0,
            request={**r, "asked_at": us(r["asked_at"])},
            context={},
            context_age_s=None,
            score=0.5,
            label=True,
            flags=[],
            latency_us=1.0,
            unit=r["customer"],
        )
        for i, r in enumerate(asked)
    ]
    stated = [
        OutcomeRow(
            id=digest(str(i).encode())[:32],
            prediction="",
            unit=r["customer"],
            values={"seen_at": us(r["seen_at"]), "known_at": us(r["known_at"]), "left": r["left"]},
            known_at=us(r["known_at"]),
            received_at=us(r["known_at"]),
            provenance="tests",
        )
        for i, r in enumerate(left)
    ]
    for kind, records in (("predictions", answered), ("outcomes", stated)):
        with LogWriter(log_folder(home.path, LOOP), kind) as writer:  # type: ignore[arg-type]  # both are kinds of logs
            writer.append(records)
    return answered


@pytest.mark.parametrize("dated_as_asked", [False, True])
def test_each_of_several_decisions_of_a_customer_has_its_own_outcome(home: Home, dated_as_asked: bool) -> None:
    """Each had the newest outcome of its customer: in the first world 43 % of the labels were wrong, and `check` said all is well."""
    asked, left = world(dated_as_asked=dated_as_asked)
    own = {(a["customer"], a["asked_at"]): o["left"] for a, o in zip(asked, left, strict=True)}
    for table, rows in ((ASKED, asked), (LEFT, left)):
        assert ingest(home, table, pa.Table.from_pylist(rows, arrow_schema(table.columns))).quarantined == 0
    made = build(home, loop_name=LOOP, requests=ASKED, context=[], outcome=OUTCOME, as_of=END)
    found = read_examples(home, made.digest).to_pylist()
    assert {(r["customer"], r["asked_at"]): r["_label"] for r in found} == own


def test_monitoring_and_trace_take_the_outcome_of_the_decision_too(home: Home) -> None:
    """Window by window, which sees only its own decisions; as was known when the window closed, and later."""
    asked, left = world(dated_as_asked=False, customers=40, weeks=12)
    own = {f"{i + 1:032x}": o["left"] for i, o in enumerate(left)}
    answered = log(home, asked, left)
    right = 0
    for week in range(13):
        start, end = START + week * WEEK, START + (week + 1) * WEEK
        for known_at in (end, END):
            joined = with_truth(home, LOOP, OUTCOME, start=start, end=end, known_at=known_at).to_pylist()
            known = [r for r in joined if r["_truth"] is not None]
            assert all(r["_truth"] == own[r["_id"]] for r in known)
            right += len(known) if known_at == END else 0
    assert right == len(asked)
    for prediction in answered[::40]:
        [counted] = [s for s in history(home, LOOP, prediction, OUTCOME) if s.counts]
        assert counted.truth == own[prediction.id]


def test_keys_that_repeat_are_named_with_the_choices(home: Home) -> None:
    asked, _ = world(dated_as_asked=False, customers=5, weeks=4)
    assert repeated_units(home, ASKED, OUTCOME) == ""
    ingest(home, ASKED, pa.Table.from_pylist(asked[:1], arrow_schema(ASKED.columns)))
    assert repeated_units(home, ASKED, OUTCOME) == "", "each key once"
    ingest(home, ASKED, pa.Table.from_pylist(asked[1:], arrow_schema(ASKED.columns)))
    why = repeated_units(home, ASKED, OUTCOME)
    assert why.startswith(f"5 keys repeat, in {len(asked)} decisions: each takes the first outcome")
    assert "within 60d" in why
    assert "id in the outcome" in why
    with_time = msgspec.structs.replace(ASKED, key=["customer", "asked_at"])
    assert repeated_units(home, with_time, OUTCOME) == "", "such a key names one decision"
