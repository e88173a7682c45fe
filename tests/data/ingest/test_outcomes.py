from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest
from tests.data.history import ASKED, CAME, LOOP, MINUTE, START, home, log, served, us

from loopwright import Home
from loopwright.base.errors import IngestRefused
from loopwright.data.ingest.outcomes import accept
from loopwright.deploy.serving.outcomes import OutcomeDecoder
from loopwright.stores.outcomes.table import outcomes, states


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def test_a_file_of_outcomes_is_logged_by_key_and_its_bad_rows_wait_in_quarantine(opened: Home, tmp_path: Path) -> None:
    path = tmp_path / "came.csv"
    path.write_text(
        "id,came_at,delay\n7,2024-01-01T01:00:00Z,20\n8,2024-01-01T02:00:00Z,much\n9,2024-01-01T03:00:00Z,\n", "utf-8"
    )
    assert accept(opened, LOOP, CAME, ASKED.key, path) == (2, 1)
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
    accept(opened, LOOP, CAME, ASKED.key, path)
    accept(opened, LOOP, CAME, ASKED.key, path)
    now = us(opened.clock.now())
    posted = OutcomeDecoder(CAME)(
        b'{"id":7,"came_at":"2024-01-01T01:00:00+00:00","delay":20}', received_at=now, provenance="POST"
    )
    log(opened, "outcomes", [a.row for a in posted])
    assert outcomes(opened, LOOP).num_rows == 1
    log(opened, "predictions", [served({"id": 7, "at": START, "place": "A", "size": None}, 0)])
    found = states(opened, LOOP, timedelta(days=1), opened.clock.now())
    assert (found.joined, found.repeated, found.unmatched) == (1, 2, 0)


@pytest.mark.parametrize("time_too", [False, True])
def test_file_that_names_predictions_needs_no_time_of_the_key(opened: Home, time_too: bool) -> None:
    table = msgspec.structs.replace(CAME, key=["came_at"], columns={n: c for n, c in CAME.columns.items() if n != "id"})
    frame = pa.table({"id": ["a" * 32], "delay": [1.0]})
    if time_too:
        frame = frame.append_column("came_at", pa.array([START]))
    assert accept(opened, LOOP, table, ["came_at"], frame) == (1, 0)
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
    assert accept(opened, LOOP, CAME, ASKED.key, frame) == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"], row["delay"]) == ("a" * 32, "", 1.0)


@pytest.mark.parametrize("field", ["id", "prediction", "prediction_id"])
def test_outcomes_may_name_predictions(opened: Home, field: str) -> None:
    table = CAME.__class__(
        "landed", {"flight": CAME.columns["id"], **{n: c for n, c in CAME.columns.items() if n != "id"}}, ["flight"], "came_at"
    )
    frame = pa.table({field: ["a" * 32], "came_at": [START], "delay": [1.0]})
    assert accept(opened, LOOP, table, ["flight"], frame) == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"], row["delay"]) == ("a" * 32, "", 1.0)


def test_file_that_names_predictions_may_leave_out_the_time_as_a_post_may(opened: Home) -> None:
    """And is the same outcome whichever way, and however often, it comes."""
    frame = pa.table({"prediction_id": ["a" * 32, "b" * 32], "delay": [1.0, 2.0]})
    for _ in range(2):
        assert accept(opened, LOOP, CAME, ASKED.key, frame) == (2, 0)
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
    assert accept(opened, LOOP, table, ASKED.key, frame) == (1, 0)
    [row] = outcomes(opened, LOOP).to_pylist()
    assert (row["_prediction"], row["_unit"]) == ("", "7")


def test_another_schema_is_refused_and_nothing_is_logged(opened: Home) -> None:
    with pytest.raises(IngestRefused, match="'delay' is missing"):
        accept(opened, LOOP, CAME, ASKED.key, pa.table({"id": [1], "came_at": [START]}))
    assert outcomes(opened, LOOP).num_rows == 0
