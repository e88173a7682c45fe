from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from tests.data.history import ASKED, CAME, LOOP, MINUTE, OUTCOME, START, home, log, served, us

from loopwright import Candidate, Column, Heuristic, Home, Loop, Objective, Outcome, Scope, Table
from loopwright.base.errors import IngestRefused, RequestInvalid
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.load import bring_mended
from loopwright.data.ingest.outcomes import accept
from loopwright.data.ingest.quarantine import quarantined
from loopwright.deploy.serving.outcomes import OutcomeDecoder
from loopwright.records.prediction import OutcomeRow
from loopwright.records.turns import LoopRecord
from loopwright.stores.outcomes.join import join, outcomes, states


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def test_a_file_of_outcomes_is_logged_by_key_and_its_bad_rows_wait_in_quarantine(opened: Home, tmp_path: Path) -> None:
    path = tmp_path / "came.csv"
    path.write_text(
        "id,came_at,delay\n7,2024-01-01T01:00:00Z,20\n8,2024-01-01T02:00:00Z,much\n9,2024-01-01T03:00:00Z,\n", "utf-8"
    )
    assert accept(opened, LOOP, CAME, ASKED, path)[:3] == (2, 1, {"delay: not a number": 1})
    rows = sorted(outcomes(opened, LOOP).to_pylist(), key=lambda r: r["_unit"])
    assert [(r["_prediction"], r["_unit"], r["_known_at"], r["delay"]) for r in rows] == [
        ("", "7", START + 62 * MINUTE, 20.0),
        ("", "9", START + 182 * MINUTE, None),
    ]
    assert {r["_provenance"] for r in rows} == {"file came.csv"}
    assert opened.lake.read("quarantine.came")["_row"].to_pylist() == [2]


def test_the_same_outcome_from_a_file_twice_and_by_post_is_one(opened: Home, tmp_path: Path) -> None:
    path = tmp_path / "came.csv"
    path.write_text("id,came_at,delay\n7,2024-01-01T01:00:00Z,20\n", "utf-8")
    accept(opened, LOOP, CAME, ASKED, path)
    accept(opened, LOOP, CAME, ASKED, path)
    now = us(opened.clock.now())
    posted = OutcomeDecoder(CAME)(
        b'{"id":7,"came_at":"2024-01-01T01:00:00+00:00","delay":20}', received_at=now, provenance="POST"
    )
    log(opened, "outcomes", [a.row for a in posted])
    assert outcomes(opened, LOOP).num_rows == 1
    log(opened, "predictions", [served({"id": 7, "at": START, "place": "A", "size": None}, 0)])
    found = states(opened, LOOP, OUTCOME, opened.clock.now())
    assert (found.joined, found.repeated, found.unmatched) == (1, 2, 0)


@pytest.mark.parametrize("time_too", [False, True])
def test_file_that_names_predictions_needs_no_time_of_the_key(opened: Home, time_too: bool) -> None:
    table = msgspec.structs.replace(CAME, key=["came_at"], columns={n: c for n, c in CAME.columns.items() if n != "id"})
    frame = pa.table({"id": ["a" * 32], "delay": [1.0]})
    if time_too:
        frame = frame.append_column("came_at", pa.array([START]))
    assert accept(opened, LOOP, table, table, frame)[:2] == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    known = START + 2 * MINUTE if time_too else opened.clock.now()
    assert (row["_prediction"], row["_unit"], row["_known_at"], row["delay"]) == ("a" * 32, "", known, 1.0)


@pytest.mark.parametrize("field", ["prediction", "prediction_id"])
@pytest.mark.parametrize("key_too", [False, True])
def test_where_the_table_has_an_id_of_its_own_a_file_names_predictions_in_another_column(
    opened: Home, key_too: bool, field: str
) -> None:
    frame = pa.table({field: ["a" * 32], "came_at": [START], "delay": [1.0]})
    if key_too:
        frame = frame.append_column("id", pa.array([7]))
    assert accept(opened, LOOP, CAME, ASKED, frame)[:2] == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"], row["delay"]) == ("a" * 32, "", 1.0)


@pytest.mark.parametrize("field", ["id", "prediction", "prediction_id"])
def test_outcomes_may_name_predictions(opened: Home, field: str) -> None:
    table = CAME.__class__(
        "landed", {"flight": CAME.columns["id"], **{n: c for n, c in CAME.columns.items() if n != "id"}}, ["flight"], "came_at"
    )
    frame = pa.table({field: ["a" * 32], "came_at": [START], "delay": [1.0]})
    assert accept(opened, LOOP, table, table, frame)[:2] == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"], row["delay"]) == ("a" * 32, "", 1.0)


def test_file_that_names_predictions_may_leave_out_the_time_as_a_post_may(opened: Home) -> None:
    """And is the same outcome whichever way, and however often, it comes."""
    frame = pa.table({"prediction_id": ["a" * 32, "b" * 32], "delay": [1.0, 2.0]})
    for _ in range(2):
        assert accept(opened, LOOP, CAME, ASKED, frame)[:2] == (2, 0)
    now = us(opened.clock.now())
    posted = OutcomeDecoder(CAME)(
        msgspec.json.encode({"prediction": "a" * 32, "delay": 1.0}), received_at=now, provenance="POST"
    )
    log(opened, "outcomes", [a.row for a in posted])
    found = outcomes(opened, LOOP).sort_by("_prediction").to_pylist()
    assert [(r["_prediction"], r["delay"], r["_known_at"]) for r in found] == [
        (name * 32, delay, opened.clock.now()) for name, delay in (("a", 1.0), ("b", 2.0))
    ]


def test_column_of_answers_does_not_name_predictions(opened: Home) -> None:
    """A file with the key, and with what was predicted in a column `prediction`, which the table ignores."""
    table = msgspec.structs.replace(CAME, ignore=["*"])
    frame = pa.table({"id": [7], "prediction": ["yes"], "came_at": [START], "delay": [1.0]})
    assert accept(opened, LOOP, table, ASKED, frame)[:2] == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"]) == ("", "7")


def test_another_schema_is_refused_and_nothing_is_logged(opened: Home) -> None:
    with pytest.raises(IngestRefused, match="'delay' is missing"):
        accept(opened, LOOP, CAME, ASKED, pa.table({"id": [1], "came_at": [START]}))
    assert outcomes(opened, LOOP).num_rows == 0


ID = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
NOT_AN_ID = "must be the 32 hexadecimal digits that came with the answer"


def posted(body: dict[str, object], opened: Home) -> OutcomeRow:
    return OutcomeDecoder(CAME)(msgspec.json.encode(body), received_at=us(opened.clock.now()), provenance="POST")[0].row


@pytest.mark.parametrize(
    "body",
    [
        {"id": 7, "delay": 1.0},
        {"id": 7, "delay": 1.0, "came_at": "2024-01-01T01:00:00Z"},
        {"id": 7, "delay": 1.0, "known_at": "2024-01-01T03:00:00Z"},
        {"prediction": ID, "delay": 1.0},
        {"prediction": ID, "delay": 1.0, "id": 7, "known_at": "2024-01-01T03:00:00Z"},
        {"_id": ID, "delay": 1.0},
        {"prediction": "no id", "delay": 1.0},
        {"prediction": ID.upper(), "delay": 1.0},
        {"prediction": ID, "prediction_id": OTHER, "delay": 1.0},
        {"prediction": ID, "prediction_id": ID, "delay": 1.0},
    ],
    ids="-".join,
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_outcome_means_the_same_in_a_file_and_posted(
    opened: Home, tmp_path: Path, body: dict[str, object], suffix: str
) -> None:
    """What may be left out, what is refused, which prediction or key it belongs to, and when the truth became known."""
    path = tmp_path / f"came{suffix}"
    lines = [",".join(body), ",".join(map(str, body.values()))] if suffix == ".csv" else [msgspec.json.encode(body).decode()]
    path.write_text("\n".join(lines), "utf-8")
    done = accept(opened, LOOP, CAME, ASKED, path)
    try:
        row = posted(body, opened)
    except RequestInvalid as refused:
        [problem] = refused.problems
        assert done[:3] == (0, 1, {f"{problem.field}: {problem.reason}": 1})
        assert list(quarantined(opened, "came").by_reason) == [f"{problem.field}: {problem.reason}"]
    else:
        assert done[:3] == (1, 0, {})
        [found] = outcomes(opened, LOOP).to_pylist()
        assert [found[n] for n in ("_id", "_prediction", "_unit")] == [row.id, row.prediction, row.unit]
        assert us(found["_known_at"]) == row.known_at


def test_file_says_its_encoding_and_how_many_rows_have_no_time(opened: Home, tmp_path: Path) -> None:
    """Their truth is known from now on, which is late for a decision of last month: whoever left the cell blank should know."""
    path = tmp_path / "came.csv"
    path.write_bytes(f"prediction,known_at,Größe,delay\n{ID},,1,20\n{OTHER},2024-01-02T00:00:00Z,2,3\n".encode("latin-1"))
    table = msgspec.structs.replace(CAME, ignore=["*"])
    done = accept(opened, LOOP, table, ASKED, path)
    assert (done.accepted, done.undated, done.encoding) == (2, 1, "cp1252")
    known = {r["_prediction"]: r["_known_at"] for r in outcomes(opened, LOOP).to_pylist()}
    assert known == {ID: opened.clock.now(), OTHER: START + timedelta(days=1)}


def test_empty_key_is_refused_in_both_doors(opened: Home) -> None:
    table = msgspec.structs.replace(CAME, columns={**CAME.columns, "id": Column("string")})
    assert accept(opened, LOOP, table, ASKED, pa.table({"id": ["", "a"], "delay": [1.0, 1.0]}))[:2] == (1, 1)
    with pytest.raises(RequestInvalid, match="or the key: id"):
        OutcomeDecoder(table)(b'{"id": "", "delay": 1.0}', received_at=0, provenance="POST")


def test_malformed_prediction_id_goes_to_quarantine_with_the_reason(opened: Home) -> None:
    frame = pa.table({"prediction": [ID, "42", ""], "came_at": [START] * 3, "delay": [1.0] * 3})
    reason = f"prediction: {NOT_AN_ID}"
    assert accept(opened, LOOP, CAME, ASKED, frame)[:3] == (1, 2, {reason: 2})
    waiting = quarantined(opened, "came")
    assert [(r["row"], r["reason"], msgspec.json.decode(r["raw"])["prediction"]) for r in waiting.shown] == [
        (2, reason, "42"),
        (3, reason, ""),
    ]


def test_rows_without_an_id_belong_to_their_key(opened: Home) -> None:
    frame = pa.table({"prediction": [ID, None, None], "id": [1, 2, None], "delay": [1.0, 2.0, 3.0]})
    assert accept(opened, LOOP, CAME, ASKED, frame)[:2] == (2, 1)
    rows = outcomes(opened, LOOP).sort_by("delay").to_pylist()
    assert [(r["_prediction"], r["_unit"]) for r in rows] == [(ID, ""), ("", "2")]


def test_file_that_predict_wrote_names_its_predictions(opened: Home) -> None:
    """With the truth in a column more; a row that was not answered belongs to its key."""
    frame = pa.table(
        {
            "_row": [1, 2],
            "_id": [ID, None],
            "id": [7, 8],
            "at": [START, START],
            "_score": [0.5, None],
            "_error": [None, "size: missing"],
            "delay": [20.0, 1.0],
        }
    )
    assert accept(opened, LOOP, CAME, ASKED, frame)[:3] == (2, 0, {})
    rows = outcomes(opened, LOOP).sort_by("delay").to_pylist()
    assert [(r["_prediction"], r["_unit"], r["delay"]) for r in rows] == [("", "8", 1.0), (ID, "", 20.0)]


def test_column_called_as_of_a_document_store_names_no_predictions(opened: Home) -> None:
    frame = pa.table({"_id": ["65a1f0c2e4b0a1b2c3d4e5f6"], "id": [7], "delay": [20.0]})
    table = msgspec.structs.replace(CAME, ignore=["*"])
    assert accept(opened, LOOP, table, ASKED, frame)[:3] == (1, 0, {})
    assert outcomes(opened, LOOP)["_unit"].to_pylist() == ["7"]


def test_correction_in_the_same_file_is_kept_and_a_repetition_is_one(opened: Home) -> None:
    frame = pa.table({"prediction": [ID, ID, ID], "delay": [1.0, 1.0, 2.0]})
    assert accept(opened, LOOP, CAME, ASKED, frame)[:3] == (3, 0, {})
    found = states(opened, LOOP, OUTCOME, opened.clock.now())
    assert (found.outcomes, found.repeated, found.contradicting) == (3, 1, 1)


@pytest.mark.parametrize("way", ["file", "post"])
def test_of_contradicting_rows_that_came_at_once_the_later_row_counts(opened: Home, way: str) -> None:
    """Whatever ids their values have."""
    ids = [f"{i:032x}" for i in range(1, 9)]
    rows = [(id, delay) for id in ids for delay in (1.0, 20.0, 1.0 if id > ids[3] else 30.0)]
    if way == "file":
        frame = pa.table({"prediction": [id for id, _ in rows], "delay": [delay for _, delay in rows]})
        accept(opened, LOOP, CAME, ASKED, frame)
    else:
        body = msgspec.json.encode([{"prediction": id, "delay": delay} for id, delay in rows])
        posted = OutcomeDecoder(CAME)(body, received_at=us(opened.clock.now()), provenance="POST")
        log(opened, "outcomes", [a.row for a in posted])
    asked = pa.table({"_id": ids, "_unit": ids, "_at": pa.array([opened.clock.now()] * len(ids), pa.timestamp("us", tz="UTC"))})
    joined = join(opened, asked, outcomes(opened, LOOP), Outcome(CAME, "delay", task="regression"), known_by=opened.clock.now())
    assert joined["_truth"].to_pylist() == [30.0] * 4 + [1.0] * 4


@pytest.mark.parametrize("field", ["prediction", "prediction_id", "_id", "id"])
def test_mended_outcomes_go_to_the_log_that_they_were_brought_for(opened: Home, tmp_path: Path, field: str) -> None:
    """By prediction or by key; what is still bad keeps waiting, and nothing lands in the table that examples are made of."""
    opened.ledger.put(declared(LOOP), loop=LOOP)
    key = field == "id"
    names = ["7", "8", "9"] if key else [ID, OTHER, "a" * 32]
    path, bad = tmp_path / "came.csv", tmp_path / "bad.csv"
    path.write_text(f"{field},delay\n{names[0]},20\n{names[1]},much\n{names[2]},little\n", "utf-8")
    assert accept(opened, LOOP, CAME, ASKED, path)[:2] == (1, 2)
    quarantined(opened, "came", export=bad)
    bad.write_text(bad.read_text("utf-8").replace('"much"', '"31"'), "utf-8")
    [done] = bring_mended(opened, CAME, [str(bad)])
    assert (done.rows, done.good, done.quarantined, done.reasons) == (2, 1, 1, {"delay: not a number": 1})
    assert not opened.lake.exists("came")
    rows = outcomes(opened, LOOP).sort_by("delay").to_pylist()
    assert [(r["_unit"] if key else r["_prediction"], r["delay"]) for r in rows] == [(names[0], 20.0), (names[1], 31.0)]
    left = quarantined(opened, "came")
    assert (left.rows, left.mended) == (1, 1)
    [again] = bring_mended(opened, CAME, [])
    assert (again.rows, again.good) == (1, 0)
    assert states(opened, LOOP, OUTCOME, opened.clock.now()).repeated == 0


def test_mended_rows_of_a_file_that_came_both_ways_go_both_ways(opened: Home, tmp_path: Path) -> None:
    opened.ledger.put(declared(LOOP), loop=LOOP)
    path, other, bad = tmp_path / "came.csv", tmp_path / "other.csv", tmp_path / "bad.csv"
    path.write_text("id,came_at,delay\n7,2024-01-01T01:00:00Z,much\n", "utf-8")
    other.write_text("id,came_at,delay\n8,2024-01-01T01:00:00Z,much\n", "utf-8")
    accept(opened, LOOP, CAME, ASKED, path)
    for source in (path, other):
        ingest(opened, CAME, source)
    quarantined(opened, "came", export=bad)
    bad.write_text(bad.read_text("utf-8").replace('"much"', '"31"'), "utf-8")
    assert sum(r.good for r in bring_mended(opened, CAME, [str(bad)])) == 3
    assert sorted(opened.lake.read("came")["id"].to_pylist()) == [7, 8]
    assert outcomes(opened, LOOP)["_unit"].to_pylist() == ["7"]
    assert quarantined(opened, "came").rows == 0


def declared(loop: str) -> LoopRecord:
    """A loop whose outcomes are `CAME`, as the ledger has it."""
    made = Loop(
        name=loop,
        scope=Scope(
            problem="late",
            objectives=[Objective("catch", owner="us", metric="recall", at_least=0.5)],
            heuristic=Heuristic(lambda f: f.size > 1),
        ),
        requests=ASKED,
        outcome=OUTCOME,
        features=lambda f: {"size": f.size},
        candidates=[Candidate("one", lambda: None)],
    )
    return made.record("loop.py")


def test_key_in_another_order_is_the_unit_of_the_predictions(opened: Home) -> None:
    """In the order of the requests, in which a prediction's unit is written."""
    columns = {"a": Column("string"), "b": Column("string"), "at": Column("timestamp"), "late": Column("boolean")}
    table = Table("landed", columns, ["b", "a"], "at")
    requests = Table("asked-for", {n: columns[n] for n in ("a", "b", "at")}, ["a", "b"], "at")
    accept(opened, LOOP, table, requests, pa.table({"a": ["x"], "b": ["y"], "late": [True]}))
    assert outcomes(opened, LOOP)["_unit"].to_pylist() == ["x|y"]
