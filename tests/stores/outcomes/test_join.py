import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from tests.stores.prediction_log.samples import START, outcome, prediction

from loopwright.base.clock import microseconds
from loopwright.base.errors import DeclarationInvalid
from loopwright.base.settings import Settings
from loopwright.records.declarations import Column, Outcome, Table
from loopwright.records.prediction import OutcomeRow, OutcomeStates, Prediction
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home
from loopwright.stores.outcomes.contract import OutcomeContract
from loopwright.stores.outcomes.join import history, join, outcomes, states
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


def of_prediction(home: Home, asked: Prediction) -> tuple[Any, OutcomeRow] | None:
    return next(((s.truth, s.row) for s in history(home, "loop", asked, LABEL) if s.counts), None)


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


def test_outcome_of_a_unit_that_was_known_before_the_decision_is_not_its_outcome(home: Home) -> None:
    """What names the prediction is joined whenever it was known; nothing is trained on it."""
    asked, named = prediction(0), prediction(1)
    early = round(START.timestamp() * 1e6) - HOUR
    log(home, [outcome(0, known_at=early), outcome(5, known_at=early, prediction=named.id)])
    assert states(home, "loop", LABEL, LATER).unmatched == 2
    log(home, [asked, named])
    assert truths(home) == {"AA|0": None, "AA|1": True}
    found = states(home, "loop", LABEL, LATER)
    assert (found.joined, found.unmatched, found.matched, found.known_before_decision) == (1, 0, 0, 2)


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
            found = of_prediction(home, asked)
            assert found is not None
            assert found[0] is True
        assert states(home, "loop", LABEL, LATER).contradicting == 2
        commit(home, "loop")


@pytest.mark.parametrize("named", [True, False])
def test_stated_moment_is_corrected_by_the_same_outcome_with_another(home: Home, named: bool) -> None:
    """Too early, before the decision, or in the future; the same outcome without a moment repeats it and changes nothing."""
    contract = OutcomeContract(LANDED)
    at = round(START.timestamp() * 1e6)
    asked = prediction(0, unit="AA")
    whose = {"id": asked.id} if named else {"flight": "AA"}

    def posted(received: int, **row: Any) -> OutcomeRow:
        return contract.row({**whose, "arr_delay": 40.0, **row}, received_at=received, provenance="POST")

    log(home, [asked])
    for wrong in (at - 9 * HOUR, at + 900 * HOUR):
        log(home, [posted(at + 3 * HOUR, known_at=wrong), posted(at + 4 * HOUR, known_at=at + 2 * HOUR), posted(at + 5 * HOUR)])
        [found] = join(home, predictions(home, "loop"), outcomes(home, "loop"), LABEL, known_by=LATER).to_pylist()
        assert (found["_truth"], found["_known_at"]) == (True, START + timedelta(hours=2))
    stated = history(home, "loop", asked, LABEL)
    assert [s.row.known_at for s in stated if s.counts] == [at + 2 * HOUR]
    assert len(stated) == 6 if named else len(stated) >= 3


@pytest.mark.parametrize("named", [True, False])
def test_null_takes_back_an_outcome_and_trace_sees_both(home: Home, named: bool) -> None:
    asked = prediction(0)
    whose: dict[str, Any] = {"prediction": asked.id} if named else {}
    log(home, [asked])
    log(home, [outcome(0, **whose)])
    assert truths(home) == {"AA|0": True}
    at = outcome(0).known_at
    log(home, [outcome(0, values={"arr_delay": None}, known_at=at + HOUR, received_at=at + HOUR, **whose)])
    assert truths(home) == {"AA|0": None}
    assert truths(home, known_by=START + timedelta(hours=1, minutes=30)) == {"AA|0": True}
    assert [(s.truth, s.counts) for s in history(home, "loop", asked, LABEL)] == [(True, False), (None, False)]
    log(home, [outcome(0, late=False, known_at=at + 2 * HOUR, received_at=at + 2 * HOUR, **whose)])
    assert truths(home) == {"AA|0": False}
    assert [(s.truth, s.counts) for s in history(home, "loop", asked, LABEL)] == [(True, False), (None, False), (False, True)]


def test_outcome_that_becomes_known_later_than_now_is_shown_and_does_not_count_yet(home: Home) -> None:
    asked = prediction(0)
    ahead = microseconds(home.clock.now() + timedelta(days=1))
    log(home, [asked])
    log(home, [outcome(0, prediction=asked.id, late=False, known_at=ahead)])
    assert [(s.truth, s.counts) for s in history(home, "loop", asked, LABEL)] == [(False, False)]
    log(home, [outcome(0, prediction=asked.id)])
    assert {(s.truth, s.counts) for s in history(home, "loop", asked, LABEL)} == {(False, False), (True, True)}


def test_version_of_an_outcome_with_its_event_time_corrects_it_after_the_unit_was_asked_again(home: Home) -> None:
    """And after the wait; it is no outcome of the later decision. Without the event time it would be that one's."""
    wait = msgspec.structs.replace(LABEL, wait="2d")
    at = round(START.timestamp() * 1e6)
    first, second = (prediction(n * 10 * 86400, unit="AA") for n in range(2))
    landed = at + HOUR
    log(home, [first, second])
    log(
        home,
        [
            outcome(0, unit="AA", values={"at": landed, "arr_delay": 40.0}, known_at=landed),
            outcome(
                0, unit="AA", values={"at": landed, "arr_delay": 0.0}, known_at=second.at + HOUR, received_at=second.at + HOUR
            ),
        ],
    )

    def read(known: pa.Table) -> dict[str, Any]:
        joined = join(home, predictions(home, "loop"), known, wait, known_by=START + timedelta(days=20))
        return {r["_id"]: r["_truth"] for r in joined.to_pylist()}

    assert read(outcomes(home, "loop")) == {first.id: False, second.id: None}
    assert read(outcomes(home, "loop").drop_columns(["at"])) == {first.id: True, second.id: False}


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
    asked = predictions(home, "loop", columns=["_unit", "_id", "_at", "delay"]).take(random.Random(1).sample(range(50), 50))
    joined = join(home, asked, outcomes(home, "loop"), LABEL, known_by=LATER)
    assert joined.select(asked.column_names).equals(asked)
    assert joined.schema.field("_known_at").type == pa.timestamp("us", tz="UTC")
    for row in joined.to_pylist():
        number = int(row["_unit"][3:])
        assert row["_truth"] == (None if number % 2 else number % 3 == 0)
        assert row["_known_at"] == (None if number % 2 else START + timedelta(hours=1, seconds=number))


def instant(second: int | None) -> datetime | None:
    return None if second is None else datetime.fromtimestamp(second, UTC)


def plain_truth(decision: dict[str, Any], decisions: list[dict[str, Any]], known: list[dict[str, Any]], wait: int) -> Any:
    """The outcome of one decision, as plainly as the rule can be written: (label, when it became known), or None."""

    def newest(rows: list[dict[str, Any]]) -> Any:
        best = max(rows, key=lambda o: (o["known"], o["received"], o["id"]), default=None)
        return None if best is None or best["delay"] is None else (best["delay"] > 15, best["known"])

    if by_id := newest([o for o in known if o["prediction"] == decision["id"]]):
        return by_id
    unit = [o for o in known if o["prediction"] == "" and o["unit"] == decision["unit"]]
    mine = [d for d in decisions if d["unit"] == decision["unit"]]
    cases: dict[int, dict[str, list[Any]]] = {}
    for o in unit:  # the decision that each outcome is assigned to
        first = min(v["known"] for v in unit if v is o or (v["event"] is not None and v["event"] == o["event"]))
        named = {d["at"] for d in mine if d["event"] is not None and d["event"] == o["event"]}
        before = max((d["at"] for d in mine if d["at"] < first), default=None)
        open_ = {before} if before is not None and first <= before + wait else {d["at"] for d in mine if d["at"] == first}
        for at in named or open_:
            case = cases.setdefault(at, {"rows": [], "first": []})
            case["rows"].append(o)
            case["first"] += [] if named else [first]
    standing = {at: (newest(c["rows"]), min(c["first"], default=None)) for at, c in cases.items() if newest(c["rows"])}
    if decision["at"] in standing:
        return standing[decision["at"]][0]
    later = min((at for at, (_, first) in standing.items() if at > decision["at"] and first is not None), default=None)
    return standing[later][0] if later is not None and standing[later][1] <= decision["at"] + wait else None


def test_join_agrees_with_a_plain_search_on_random_histories(home: Home) -> None:
    """Few units, decided about often; outcomes by id and by unit, dated and not, corrected, taken back, early and late."""
    dice, matches = random.Random(4), 0
    for _ in range(40):
        decisions: list[dict[str, Any]] = [
            {
                "id": f"p{i}",
                "unit": f"u{dice.randrange(4)}",
                "at": dice.randrange(30),
                "event": dice.choice([None, dice.randrange(30)]),
            }
            for i in range(12)
        ]
        known: list[dict[str, Any]] = [
            {
                "id": f"{i:020}",
                "prediction": dice.choice(["", "", "", f"p{dice.randrange(14)}"]),
                "unit": f"u{dice.randrange(5)}",
                "event": dice.choice([None, dice.randrange(30)]),
                "known": dice.randrange(40),
                "received": dice.randrange(40),
                "delay": dice.choice([None, 0.0, 30.0]),
            }
            for i in range(dice.randrange(1, 40))
        ]
        asked = {
            "_id": [d["id"] for d in decisions],
            "_unit": [d["unit"] for d in decisions],
            "_decided": pa.array([instant(d["at"]) for d in decisions], pa.timestamp("us", tz="UTC")),
            "_event": pa.array([instant(d["event"]) for d in decisions], pa.timestamp("us", tz="UTC")),
        }
        stated = {
            "_id": [o["id"] for o in known],
            "_prediction": [o["prediction"] for o in known],
            "_unit": [o["unit"] for o in known],
            "_known_at": pa.array([instant(o["known"]) for o in known], pa.timestamp("us", tz="UTC")),
            "_received_at": pa.array([instant(o["received"]) for o in known], pa.timestamp("us", tz="UTC")),
            "at": pa.array([instant(o["event"]) for o in known], pa.timestamp("us", tz="UTC")),
            "arr_delay": pa.array([o["delay"] for o in known], pa.float64()),
        }
        wait = dice.choice([5, 10, 100])
        label = msgspec.structs.replace(LABEL, wait=f"{wait}s")
        joined = join(home, pa.table(asked), pa.table(stated), label, known_by=datetime.fromtimestamp(35, UTC))
        usable = [o for o in known if o["known"] <= 35]
        wanted = [plain_truth(d, decisions, usable, wait) for d in decisions]
        read = zip(joined["_truth"].to_pylist(), joined["_known_at"].to_pylist(), strict=True)
        assert [None if label is None else (label, at.timestamp()) for label, at in read] == wanted
        matches += sum(w is not None for w in wanted)
    assert matches > 100


def test_of_one_prediction(home: Home) -> None:
    first, second, third = (prediction(i) for i in range(3))
    log(home, [first, second, third])
    log(home, [outcome(0), outcome(0, late=False, known_at=outcome(0).known_at + HOUR), outcome(5, prediction=second.id)])
    for _ in range(2):
        found = of_prediction(home, first)
        assert found is not None
        assert (found[0], found[1].values) == (False, {"arr_delay": -5.0})
        by_id = of_prediction(home, second)
        assert by_id is not None
        assert (by_id[0], by_id[1].prediction) == (True, second.id)
        assert of_prediction(home, third) is None
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
