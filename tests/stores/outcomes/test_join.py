import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.stores.prediction_log.samples import START, outcome, prediction

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.settings import Settings
from loopwright.records.declarations import Column, Outcome, Table
from loopwright.records.prediction import OutcomeRow, OutcomeStates, Prediction
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import join, of_prediction, outcomes, states
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter

LANDED = Table(
    "landings",
    columns={"flight": Column("string"), "at": Column("timestamp"), "arr_delay": Column("float")},
    key=["flight"],
    event_time="at",
)
LABEL = Outcome(LANDED, "arr_delay > 15")
LATER = START + timedelta(days=1)
HOUR = 3_600_000_000


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home")) as opened:
        yield opened


def log(home: Home, records: list[Prediction] | list[OutcomeRow]) -> None:
    kind: Any = "outcomes" if isinstance(records[0], OutcomeRow) else "predictions"
    with LogWriter(log_folder(home.path, "loop"), kind) as writer:
        writer.append(records)


def truths(home: Home, *, known_by: datetime = LATER, label: Outcome = LABEL) -> dict[str, Any]:
    joined = join(home, predictions(home, "loop"), outcomes(home, "loop"), label, known_by=known_by)
    return {row["_unit"]: row["_truth"] for row in joined.to_pylist()}


def test_without_any_outcome_all_is_pending(home: Home) -> None:
    log(home, [prediction(0), prediction(1)])
    table = outcomes(home, "loop")
    assert (table.num_rows, table.column_names[0]) == (0, "_id")
    assert truths(home) == {"AA|0": None, "AA|1": None}
    assert states(home, "loop", LABEL, LATER) == OutcomeStates(
        joined=0,
        pending=2,
        overdue=0,
        outcomes=0,
        matched=0,
        known_before_decision=0,
        unmatched=0,
        known_later=0,
        repeated=0,
        contradicting=0,
    )


def test_outcomes_join_by_prediction_id_else_by_unit(home: Home) -> None:
    first, second, third = (prediction(i) for i in range(3))
    log(home, [first, second, third])
    log(home, [outcome(0), outcome(99, prediction=second.id, late=False), outcome(50)])
    for _ in range(2):
        assert truths(home) == {"AA|0": True, "AA|1": False, "AA|2": None}
        assert commit(home, "loop").problems == []


def test_an_outcome_with_a_prediction_id_is_of_that_prediction_alone(home: Home) -> None:
    twice = [prediction(0), prediction(0)]
    log(home, twice)
    log(home, [outcome(0, prediction=twice[0].id)])
    joined = join(home, predictions(home, "loop"), outcomes(home, "loop"), LABEL, known_by=LATER)
    assert {r["_id"]: r["_truth"] for r in joined.to_pylist()} == {twice[0].id: True, twice[1].id: None}


def test_by_unit_every_prediction_of_the_unit_is_joined(home: Home) -> None:
    log(home, [prediction(0), prediction(0)])
    log(home, [outcome(0)])
    joined = join(home, predictions(home, "loop"), outcomes(home, "loop"), LABEL, known_by=LATER)
    assert joined["_truth"].to_pylist() == [True, True]


def test_of_contradicting_outcomes_the_last_known_counts_and_all_are_kept(home: Home) -> None:
    log(home, [prediction(0)])
    early = outcome(0, late=True)
    log(home, [outcome(0, late=False, known_at=early.known_at + HOUR), early])
    assert outcomes(home, "loop").num_rows == 2
    assert truths(home) == {"AA|0": False}
    # What was known then stays readable.
    assert truths(home, known_by=START + timedelta(hours=1, minutes=1)) == {"AA|0": True}
    assert truths(home, known_by=START) == {"AA|0": None}
    assert states(home, "loop", LABEL, LATER).contradicting == 1


def test_an_outcome_may_come_before_its_prediction(home: Home) -> None:
    log(home, [outcome(0, known_at=round(START.timestamp() * 1e6) - HOUR)])
    assert states(home, "loop", LABEL, LATER).unmatched == 1
    log(home, [prediction(0)])
    assert truths(home) == {"AA|0": True}
    found = states(home, "loop", LABEL, LATER)
    assert (found.unmatched, found.matched, found.known_before_decision) == (0, 0, 1)


def test_states_of_outcomes_add_up_to_all_that_were_delivered(home: Home) -> None:
    """By id and by unit; an outcome of a unit is early only where it was known before all of its predictions."""
    first, second, third = prediction(0), prediction(1), prediction(1)
    at = round(START.timestamp() * 1e6)
    log(home, [first, second, third])
    early = [
        outcome(0, prediction=first.id, known_at=at - HOUR),
        outcome(1, known_at=second.at - 1),
        outcome(1, late=False, known_at=second.at),
    ]
    future = outcome(0, prediction=first.id, late=False, known_at=round(LATER.timestamp() * 1e6) + HOUR)
    log(home, [*early, early[0], future, outcome(77), outcome(78, prediction="f" * 32)])
    for _ in range(2):
        found = states(home, "loop", LABEL, LATER)
        assert found.outcomes == 7
        assert (found.matched, found.known_before_decision, found.unmatched, found.known_later, found.repeated) == (
            1,
            2,
            2,
            1,
            1,
        )
        commit(home, "loop")


def test_row_of_a_file_is_decided_at_its_event_time(home: Home) -> None:
    """An outcome between the event and the prediction of a file's row is trained on; of a request it is known before its decision."""
    event, known = (round(START.timestamp() * 1e6) - hours * HOUR for hours in (48, 24))
    filed, asked = (prediction(n, request={"event": event}, of_file=n == 0) for n in (0, 1))
    log(home, [filed, asked])
    log(home, [outcome(n, known_at=known) for n in (0, 1)] + [outcome(0, prediction=filed.id, known_at=event - 1)])
    found = states(home, "loop", LABEL, LATER, "event")
    assert (found.matched, found.known_before_decision, found.unmatched) == (1, 2, 0)


def test_a_repeated_outcome_is_one_row_counted(home: Home) -> None:
    same = outcome(0)
    log(home, [prediction(0)])
    log(home, [same, same])
    commit(home, "loop")
    log(home, [same])
    assert outcomes(home, "loop").num_rows == 1
    found = states(home, "loop", LABEL, LATER)
    assert (found.joined, found.repeated, found.contradicting) == (1, 2, 0)


def test_an_outcome_whose_label_is_null_leaves_its_prediction_pending(home: Home) -> None:
    log(home, [prediction(0), prediction(1)])
    log(home, [outcome(0, values={"arr_delay": None}), outcome(1)])
    assert truths(home) == {"AA|0": None, "AA|1": True}
    found = states(home, "loop", LABEL, LATER)
    assert (found.matched, found.joined, found.pending) == (2, 1, 1)


def test_an_outcome_that_returns_after_another_is_the_truth_again(home: Home) -> None:
    """Yes, no and yes again, by id and by unit; the last yes is known from its own moment on, a mere repetition from the first."""
    by_id, by_unit, repeated = (prediction(i) for i in range(3))
    log(home, [by_id, by_unit, repeated])
    for hours, late in enumerate([True, False, True, True], 1):
        known_at = round(START.timestamp() * 1e6) + hours * HOUR
        of_id = outcome(0, id=f"0-{late}", late=late, known_at=known_at, prediction=by_id.id)
        log(home, [of_id, outcome(1, id=f"1-{late}", late=late, known_at=known_at), outcome(2, id="2", known_at=known_at)])
        if hours == 2:
            commit(home, "loop")
    for _ in range(2):
        joined = join(home, predictions(home, "loop"), outcomes(home, "loop"), LABEL, known_by=LATER)
        known = {r["_unit"]: (r["_truth"], r["_known_at"] - START) for r in joined.to_pylist()}
        third, first = (True, timedelta(hours=3)), (True, timedelta(hours=1))
        assert known == {"AA|0": third, "AA|1": third, "AA|2": first}
        assert truths(home, known_by=START + timedelta(hours=2)) == {"AA|0": False, "AA|1": False, "AA|2": True}
        for asked in (by_id, by_unit):
            found = of_prediction(home, "loop", asked, LABEL)
            assert found is not None
            assert found[0] is True
        assert states(home, "loop", LABEL, LATER).contradicting == 2
        commit(home, "loop")


def test_states_count_every_prediction_and_outcome_once(home: Home) -> None:
    log(home, [prediction(i) for i in range(10)])
    log(home, [outcome(i) for i in (0, 1, 2)] + [outcome(2, late=False), outcome(77), outcome(0, known_at=2 * 10**15)])
    for _ in range(2):
        assert states(
            home, "loop", msgspec.structs.replace(LABEL, wait="20h"), START + timedelta(hours=20, seconds=5)
        ) == OutcomeStates(
            joined=3,
            pending=5,
            overdue=2,
            outcomes=6,
            matched=4,
            known_before_decision=0,
            unmatched=1,
            known_later=1,
            repeated=0,
            contradicting=1,
        )
        commit(home, "loop")


def test_known_by_cuts_off_what_was_not_yet_known(home: Home) -> None:
    log(home, [outcome(i) for i in range(5)])
    assert outcomes(home, "loop", known_by=START + timedelta(hours=1, seconds=2)).num_rows == 3


def test_join_keeps_rows_order_and_columns(home: Home) -> None:
    log(home, [prediction(i) for i in range(50)])
    log(home, [outcome(i, late=i % 3 == 0) for i in range(0, 50, 2)])
    asked = predictions(home, "loop", columns=["_unit", "_id", "delay"]).take(random.Random(1).sample(range(50), 50))
    joined = join(home, asked, outcomes(home, "loop"), LABEL, known_by=LATER)
    assert joined.select(asked.column_names).equals(asked)
    assert joined.schema.field("_known_at").type == pa.timestamp("us", tz="UTC")
    for row in joined.to_pylist():
        number = int(row["_unit"][3:])
        assert row["_truth"] == (None if number % 2 else number % 3 == 0)
        assert row["_known_at"] == (None if number % 2 else START + timedelta(hours=1, seconds=number))


def test_join_agrees_with_a_plain_search_on_random_histories(home: Home) -> None:
    dice = random.Random(4)
    fixed = pa.schema({"_id": pa.string(), "_unit": pa.string()})
    for _ in range(20):
        asked = [{"_id": f"p{i}", "_unit": f"u{dice.randrange(6)}"} for i in range(12)]
        known: list[dict[str, Any]] = [
            {
                "_id": f"o{i}",
                "_prediction": dice.choice(["", "", f"p{dice.randrange(14)}"]),
                "_unit": f"u{dice.randrange(8)}",
                "_known_at": datetime.fromtimestamp(dice.randrange(10), UTC),
                "_received_at": datetime.fromtimestamp(dice.randrange(10), UTC),
                "_provenance": "",
                "arr_delay": dice.choice([None, 0.0, 30.0]),
            }
            for i in range(dice.randrange(1, 25))
        ]
        cut = datetime.fromtimestamp(7, UTC)
        joined = join(home, pa.Table.from_pylist(asked, fixed), pa.Table.from_pylist(known), LABEL, known_by=cut)
        for row in joined.to_pylist():
            usable = [o for o in known if o["_known_at"] <= cut and o["arr_delay"] is not None]
            mine = [o for o in usable if o["_prediction"] == row["_id"]]
            mine = mine or [o for o in usable if o["_prediction"] == "" and o["_unit"] == row["_unit"]]
            best = max(mine, key=lambda o: (o["_known_at"], o["_received_at"], o["_id"]), default=None)
            assert row["_truth"] == (None if best is None else best["arr_delay"] > 15)
            assert row["_known_at"] == (None if best is None else best["_known_at"])


def test_of_one_prediction(home: Home) -> None:
    first, second, third = (prediction(i) for i in range(3))
    log(home, [first, second, third])
    log(home, [outcome(0), outcome(0, late=False, known_at=outcome(0).known_at + HOUR), outcome(5, prediction=second.id)])
    for _ in range(2):
        found = of_prediction(home, "loop", first, LABEL)
        assert found is not None
        assert (found[0], found[1].values) == (False, {"arr_delay": -5.0})
        by_id = of_prediction(home, "loop", second, LABEL)
        assert by_id is not None
        assert (by_id[0], by_id[1].prediction) == (True, second.id)
        assert of_prediction(home, "loop", third, LABEL) is None
        commit(home, "loop")


def test_outcome_columns_are_typed_by_the_loops_declaration(home: Home) -> None:
    columns = {"arr_delay": {"type": "float", "nullable": True}, "landed_at": {"type": "timestamp"}, "gate": {"type": "string"}}
    declaration = {"outcome": {"table": {"columns": columns}}}
    home.ledger.put(LoopRecord(name="loop", file="", digest="", declaration=declaration), loop="loop")
    log(home, [prediction(0)])
    moment = round(START.timestamp() * 1e6)
    log(home, [outcome(0, values={"arr_delay": 40, "landed_at": moment, "gate": None})])
    for _ in range(2):
        schema = outcomes(home, "loop").schema
        assert [schema.field(n).type for n in columns] == [pa.float64(), pa.timestamp("us", tz="UTC"), pa.string()]
        assert truths(home, label=Outcome(LANDED, "landed_at > TIMESTAMP '2026-03-01 11:00:00' AND arr_delay - 15 > 0")) == {
            "AA|0": True
        }
        commit(home, "loop")


@pytest.mark.parametrize("label", ["no_such_column > 3", "arr_delay >", "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0"])
def test_a_label_that_cannot_be_evaluated_is_named(home: Home, label: str) -> None:
    log(home, [prediction(0)])
    log(home, [outcome(0)])
    with pytest.raises(DeclarationInvalid, match="cannot be evaluated"):
        truths(home, label=Outcome(LANDED, label))
