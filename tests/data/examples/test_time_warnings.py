from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from loopwright.data.examples.time_warnings import doubts
from loopwright.records.declarations import Aggregate, Column, Context, Outcome, Table

TIME, FLOAT, TEXT = Column("timestamp"), Column("float"), Column("string")
STAMP = pa.timestamp("us", tz="UTC")
START = datetime(2024, 1, 1, tzinfo=UTC)
N = 200


def requests(**more: Any) -> Table:
    columns = {"order": TEXT, "at": TIME, "amount": FLOAT, "due": TIME, "booked": TIME}
    return Table("orders", {**columns, **more.pop("columns", {})}, ["order"], "at", **more)


RETURNS = Table("returns", {"order": TEXT, "at": TIME, "amount": FLOAT, "back": TIME}, ["order"], "at")
RATES = Table("rates", {"shop": TEXT, "at": TIME, "rate": FLOAT}, ["shop"], "at", known_after="2h")


def examples(**columns: Any) -> pa.Table:
    decided = [START + timedelta(hours=i) for i in range(N)]
    made = {
        "at": decided,
        "booked": decided,
        "due": [d + timedelta(days=3) for d in decided],
        "rate": [1.0] * N,
        "_decided_at": decided,
        "_known_at": [d + timedelta(days=9, minutes=i) for i, d in enumerate(decided)],
        **columns,
    }
    return pa.table({n: pa.array(v, STAMP) if n != "rate" else pa.array(v, pa.float64()) for n, v in made.items()})


def look(
    table: Table | None = None,
    context: tuple[Context, ...] = (),
    aggregates: tuple[Aggregate, ...] = (),
    label: str = "true",
    used: tuple[str, ...] = ("amount", "due", "booked"),
    **more: Any,
) -> dict[str, str]:
    return dict(doubts(table or requests(), context, aggregates, Outcome(RETURNS, label), used=used, **more))


def test_nothing_doubtful_is_left_alone() -> None:
    context = Context(RATES, {"shop": "order"}, ["rate"], max_age="3h")
    aggregate = Aggregate(name="n", table=RATES, by={"shop": "order"}, function="count", window="3h")
    assert look(context=(context,), aggregates=(aggregate,), label="back - at < INTERVAL 9 DAY", examples=examples()) == {}
    assert look() == {}


def test_outcomes_that_are_known_later_than_a_decision_waits() -> None:
    late = Outcome(Table("returns", RETURNS.columns, ["order"], "at", known_after="40d"), "true")
    assert dict(doubts(requests(), (), (), late, used=()))["table returns"].startswith(
        "an outcome is known 40d after it happened"
    )
    waited = Outcome(late.table, "true", wait="40d")
    assert doubts(requests(), (), (), waited, used=()) == []


def test_a_request_that_is_known_after_its_decision() -> None:
    assert "become known 2h after the decision (known_after)" in look(requests(known_after="2h"))["table orders"]
    late = [START + timedelta(hours=i + (5 if i % 4 == 0 else 0)) for i in range(N)]
    found = look(requests(known_time="booked"), examples=examples(booked=late))
    assert found["table orders"].startswith("50 of 200 rows became known after their decision (booked is up to 5h after at)")
    assert look(requests(known_time="booked"), examples=examples()) == {}


@pytest.mark.parametrize(("max_age", "never"), [("2h", True), ("121m", False), (None, False)])
def test_a_context_that_is_too_old_when_it_is_known(max_age: str | None, never: bool) -> None:
    found = look(context=(Context(RATES, {"shop": "order"}, ["rate"], max_age=max_age),))
    assert bool(found) is never
    if never:
        assert found["context rate"] == (
            "never there: a row of rates is known 2.02h after it happened at the earliest (known_after and lag), and is then older than max_age (2h)"
        )


def test_an_aggregate_whose_window_is_over_when_its_rows_are_known() -> None:
    aggregate = Aggregate(name="n", table=RATES, by={"shop": "order"}, function="count", window="1h")
    assert "before its window (1h)" in look(aggregates=(aggregate,))["aggregate n"]


def test_a_joined_column_that_is_never_there() -> None:
    context = Context(RATES, {"shop": "order"}, {"rate_now": "rate"})
    rows = examples().drop_columns(["rate"]).append_column("rate_now", pa.nulls(N, pa.float64()))
    assert "null in all of 200 examples" in look(context=(context,), examples=rows)["column rate_now"]
    assert look(context=(context,), examples=rows.slice(0, 50)) == {}


def test_columns_that_the_label_is_computed_from() -> None:
    found = look(label="amount > 100 AND back IS NOT NULL")
    assert found == {
        "column amount": "features use it, and the label is computed from returns.amount: is it known at the decision?"
    }
    assert look(label="amount > 100", used=("due",)) == {}
    of_returns = Context(RETURNS, {"order": "order"}, {"amount_back": "amount"})
    assert "returns.amount" in look(label="amount > 1", context=(of_returns,), used=("amount_back",))["column amount_back"]


def test_a_column_that_is_the_moment_of_the_outcome() -> None:
    known = examples().column("_known_at").to_pylist()
    found = look(examples=examples(due=known))
    assert found["column due"].startswith("in 100.0% of the examples it is the very moment at which the outcome became known")
    assert look(used=("amount",), examples=examples(due=known)) == {}


def test_outcomes_that_came_before_their_decisions() -> None:
    found = look(examples=examples(), excluded={"outcome known before the decision": 30, "outcome pending": 5})
    assert found["table returns"].startswith("30 outcomes were known before the decision they belong to")
    assert look(examples=examples(), excluded={"outcome known before the decision": 1}) == {}
