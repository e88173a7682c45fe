"""Predictions of a file: the same path, contract and log as requests, each row logged once."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.cli.test_terminal import text_of
from tests.deploy.loops import EVER, LOOP, NOW, NOW_US, flight, opened, package

from loopwright import bulk
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import NotFound, Unavailable, UsageError
from loopwright.base.ids import trace_id_of
from loopwright.base.lock import FileLock
from loopwright.base.settings import Settings
from loopwright.deploy import releases
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.stores.home import Home
from loopwright.stores.online.steps import Fed, pack
from loopwright.stores.prediction_log.read import find, predictions
from loopwright.verbs.predict import predict


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "home") as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        home.online.write("weather", [("JFK", pack([EVER[0]], [[NOW_US, 20.0, None]]))], Fed(1, *EVER))
        yield home


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa

    table = pa.Table.from_pylist(rows)
    times = pa.array([row["pushed_back_at"] for row in rows]).cast(pa.timestamp("us", "UTC"))
    table = table.set_column(table.column_names.index("pushed_back_at"), "pushed_back_at", times)
    pq.write_table(table.set_column(table.column_names.index("tail"), "tail", pa.nulls(len(rows), pa.string())), path)
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(home: Home) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = predictions(home, LOOP).to_pylist()
    return rows


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_predict_answers_rows_as_requests_are_answered(home: Home, tmp_path: Path, write: Any) -> None:
    rows = [flight(i, delay=5.0 * i) for i in range(30)]
    done = predict(home, LOOP, write(tmp_path / f"in{write.__name__.replace('write_', '.')}", rows), out=tmp_path / "out.jsonl")
    assert (done.rows, done.logged, done.refused, done.repeated, done.ok) == (30, 30, 0, 0, True)
    engine = ServingEngine(Registry(home.path, home.packages, home.online, home.clock))
    engine.registry.refresh()
    asked = engine.answer(LOOP, [PredictionRequest([{**row, "pushed_back_at": NOW_US} for row in rows])])[0]
    assert not isinstance(asked, Exception)
    engine.close()
    out = lines_of(tmp_path / "out.jsonl")
    assert [line["_row"] for line in out] == list(range(1, 31))
    assert [line["flight"] for line in out] == [f"UA{i}" for i in range(30)]
    assert [(line["_score"], line["_label"], line["_flags"]) for line in out] == [(a.score, a.label, a.flags) for a in asked]
    found = find(home, out[7]["_id"])
    assert found is not None
    assert found[1].context == {"wind": 20.0, "gust": None}  # joined as a request is
    of_file = {row["_id"]: row["_of_file"] for row in logged(home)}
    assert {line["_id"] for line in out} == {id for id, marked in of_file.items() if marked}
    assert {answer.id for answer in asked} == {id for id, marked in of_file.items() if not marked}


def test_predict_again_logs_nothing_and_gives_the_logged_answers(home: Home, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [flight(i) for i in range(25)])
    predict(home, LOOP, source, out=tmp_path / "first.jsonl")
    releases.release(home, LOOP, package(home.packages, weight=0.2).digest, why="another")
    again = predict(home, LOOP, source, out=tmp_path / "second.jsonl")
    assert (again.logged, again.repeated, len(logged(home))) == (0, 25, 25)
    assert (tmp_path / "second.jsonl").read_bytes() == (tmp_path / "first.jsonl").read_bytes()
    anew = predict(home, LOOP, source, out=tmp_path / "third.jsonl", request_id="after the release")
    assert (anew.logged, anew.repeated, len(logged(home))) == (25, 0, 50)


def test_predict_goes_on_where_it_was_interrupted(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Exception):
        pass

    class Stops:
        def say(self, text: str) -> None:
            pass

        def advance(self, what: str, done: float, total: float) -> None:
            if done > 0.5:
                raise Interrupted

    monkeypatch.setattr(bulk, "ROWS", 10)
    source, out = write_csv(tmp_path / "in.csv", [flight(i) for i in range(45)]), tmp_path / "out.csv"
    with pytest.raises(Interrupted):
        predict(home, LOOP, source, out=out, progress=Stops())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "in.csv"]
    before = len(logged(home))
    assert 0 < before < 45
    done = predict(home, LOOP, source, out=out)
    assert (done.repeated, done.logged, len(logged(home))) == (before, 45 - before, 45)
    with out.open() as file:
        assert [row["flight"] for row in csv.DictReader(file)] == [f"UA{i}" for i in range(45)]


def test_predict_names_rows_that_break_the_contract(home: Home, tmp_path: Path) -> None:
    rows = [flight(0), flight(1, delay="late"), flight(2, origin="XXX", delay=9000), flight(3, hour=""), flight(4)]
    source = write_csv(tmp_path / "in.csv", [row | {"remark": "x"} for row in rows])
    source.write_text(source.read_text() + "UA5,2024-05-01T09:00:00Z,JFK\n")
    done = predict(home, LOOP, source, out=tmp_path / "out.parquet")
    assert (done.rows, done.logged, done.refused, done.ok, done.ignored) == (6, 3, 3, False, ["remark"])
    out = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [line["_error"] is None for line in out] == [True, False, True, False, True, False]
    assert "delay: 'late' is not a number" in out[1]["_error"]
    assert out[3]["_error"] == "hour: missing"
    assert "3 fields where the header has 8" in out[5]["_error"]
    assert out[2]["_flags"] == [
        "out_of_range:delay",
        "new_category:origin",
        "missing_context:weather",
    ]  # as a request: answered
    assert done.reasons["hour: missing"] == 1
    assert done.flags["out_of_range:delay"] == 1
    assert done.first_refused == 2
    assert len(logged(home)) == 3


def test_row_of_a_file_with_an_empty_key_is_refused_as_one_without(home: Home, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in (flight(0), flight(1, flight=""))))
    done = predict(home, LOOP, source, out=tmp_path / "out.csv")
    why = "flight: missing, but it is the key: give each row one, for outcomes to find it by"
    assert (done.logged, done.refused, done.reasons) == (1, 1, {why: 1})


def test_row_of_a_file_without_its_key_is_refused_by_what_to_do(home: Home, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [flight(0), flight(1, flight=""), flight(2)])
    done = predict(home, LOOP, source, out=tmp_path / "out.csv")
    why = "flight: missing, but it is the key: give each row one, for outcomes to find it by"
    assert (done.logged, done.refused, done.first_refused, done.reasons) == (2, 1, 2, {why: 1})
    with (tmp_path / "out.csv").open() as file:
        assert [row["_error"] for row in csv.DictReader(file)] == ["", why, ""]


def test_row_ids_are_request_ids(home: Home, tmp_path: Path) -> None:
    rows = [flight(i) | {"order": f"order-{i}"} for i in range(6)]
    predict(home, LOOP, write_csv(tmp_path / "a.csv", rows[:4]), out=tmp_path / "a.jsonl", id="order")
    assert find(home, trace_id_of("order-2")) is not None
    second = [*rows[2:4], rows[4], flight(1, delay=99.0) | {"order": "order-1"}, rows[5], rows[5], flight(9) | {"order": ""}]
    done = predict(home, LOOP, write_csv(tmp_path / "b.csv", second), out=tmp_path / "b.jsonl", id="order")
    assert (done.repeated, done.logged, done.refused) == (2, 2, 3)
    errors = [line["_error"] for line in lines_of(tmp_path / "b.jsonl")]
    assert [bool(e) for e in errors] == [False, False, False, True, False, True, True]
    assert "answered before, for another request" in errors[3]
    assert "the same id as row 5" in errors[5]
    assert len(logged(home)) == 6
    with pytest.raises(UsageError, match="--id 'nothing': there is no such column"):
        predict(home, LOOP, tmp_path / "b.csv", out=tmp_path / "c.jsonl", id="nothing")


def test_event_time_may_be_left_out(home: Home, tmp_path: Path) -> None:
    rows = [{k: v for k, v in flight(i).items() if k != "pushed_back_at"} for i in range(3)]
    predict(home, LOOP, write_csv(tmp_path / "in.csv", rows), out=tmp_path / "out.parquet")
    assert [r["pushed_back_at"] for r in pq.read_table(tmp_path / "out.parquet").to_pylist()] == [NOW] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "in.csv",
            "flight,origin,Dealy\nUA1,JFK,3\n",
            "schema is not that of the requests of loop 'late-arrival': column 'delay' is missing: the nearest name in the file is 'Dealy', ",
        ),
        (
            "in.csv",
            "UA1,JFK,3\n",
            "column 'delay' is missing: add it.*'UA1', 'JFK', '3': if the first line is a row of data, give --names",
        ),
        ("in.jsonl", '{"Flight": "UA1"}\n', "column 'flight' is missing: the nearest name in the file is 'Flight', rename it"),
        ("in.csv", "\n\n", "in.csv cannot be predicted: it is empty"),
        ("in.csv", "", "in.csv cannot be predicted: it is empty"),
    ],
)
def test_unusable_file_is_refused_by_name(home: Home, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message):
        predict(home, LOOP, tmp_path / name, out=tmp_path / "out.csv")
    assert logged(home) == []


def test_file_of_a_header_alone_or_of_another_type_is_answered_or_named(home: Home, tmp_path: Path) -> None:
    header = write_csv(tmp_path / "in.csv", [flight(0)])
    header.write_text(header.read_text().splitlines()[0] + "\n")
    done = predict(home, LOOP, header, out=tmp_path / "out.csv")
    assert (done.rows, done.refused, len((tmp_path / "out.csv").read_text().splitlines())) == (0, 0, 1)
    typed = pa.Table.from_pylist([flight(0) | {"delay": [1.0]}])
    pq.write_table(typed, tmp_path / "in.parquet")
    with pytest.raises(UsageError, match=r"in.parquet cannot .*column 'delay' is list.* where the contract says float"):
        predict(home, LOOP, tmp_path / "in.parquet", out=tmp_path / "out.csv")


def test_unusable_outputs_are_refused_before_anything_is_read(home: Home, tmp_path: Path) -> None:
    for out in (tmp_path / "out.xlsx", tmp_path / "nowhere" / "out.csv"):
        with pytest.raises(UsageError, match="--out"):
            predict(home, LOOP, tmp_path / "none.csv", out=out)


@pytest.mark.parametrize("link", ["itself", "by another path", "symbolic", "hard", "source is a link"])
def test_predict_never_writes_onto_the_file_that_it_reads(home: Home, tmp_path: Path, link: str) -> None:
    source = write_csv(tmp_path / "in.csv", [flight(i) for i in range(5)])
    before, out = source.read_bytes(), tmp_path / "other.csv"
    (tmp_path / "sub").mkdir()
    asked, written = {
        "itself": (source, source),
        "by another path": (source, tmp_path / "sub" / ".." / "in.csv"),
        "symbolic": (source, out),
        "hard": (source, out),
        "source is a link": (out, source),
    }[link]
    if link in ("symbolic", "source is a link"):
        out.symlink_to(source)
    elif link == "hard":
        out.hardlink_to(source)
    with pytest.raises(UsageError, match="is the file that is read"):
        predict(home, LOOP, asked, out=written)
    assert source.read_bytes() == before
    assert logged(home) == []


def test_loop_without_a_package_says_what_to_do(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [flight()])
    with opened(tmp_path / "empty") as home, pytest.raises(NotFound, match="loopwright release late-arrival"):
        predict(home, LOOP, source, out=tmp_path / "out.csv")


def test_one_process_at_a_time_predicts_a_file(home: Home, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", [flight()])
    predict(home, LOOP, source, out=tmp_path / "out.csv")
    (lock,) = (home.path / "batches").iterdir()
    other = FileLock(lock)
    with other.hold(0), pytest.raises(Unavailable, match="another process"):
        predict(home, LOOP, source, out=tmp_path / "out.csv")
    other.close()


def test_rows_of_a_file_leave_remembered_requests_alone(home: Home, tmp_path: Path) -> None:
    predict(home, LOOP, write_csv(tmp_path / "in.csv", [flight(i) for i in range(5)]), out=tmp_path / "out.csv")
    assert not list((home.path).rglob("requests"))


@pytest.mark.parametrize(("encoding", "said"), [("utf-16", "utf-16"), ("utf-8", "")])
def test_predict_says_in_which_encoding_a_file_was_read(home: Home, tmp_path: Path, encoding: str, said: str) -> None:
    source = write_csv(tmp_path / "plain.csv", [flight(1)])
    (tmp_path / "in.csv").write_text(source.read_text(), encoding)
    done = predict(home, LOOP, tmp_path / "in.csv", out=tmp_path / "out.csv")
    assert (done.logged, done.encoding) == (1, said)
    assert (f"in.csv was read as {said}" in text_of(done)) == bool(said)


def test_predict_uses_what_was_released_in_another_home_of_the_ledger(home: Home, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "other", ledger=home.settings.ledger_url, by="tests")
    with Home(settings, SimulatedClock(NOW)) as other:
        shutil.copytree(home.path / "packages", other.path / "packages")
        served = releases.serving(home, LOOP)
        assert served is not None
        done = predict(other, LOOP, write_csv(tmp_path / "rows.csv", [flight(1)]), out=tmp_path / "answers.csv")
        assert done.package == served.champion.package
