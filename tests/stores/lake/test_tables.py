import operator
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from loopwright.base.errors import Damaged, NameInvalid, NotFound, Refused, TableNotFound, UsageError
from loopwright.base.ids import new_id
from loopwright.stores.lake.tables import Lake, Stream

NOON = datetime(2013, 4, 1, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture(params=["folder", "url"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """A lake in a folder, and one that is reached as object storage is."""
    return Lake(str(tmp_path / "lake") if request.param == "folder" else f"file://{tmp_path}/lake/")


@pytest.fixture
def local(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def numbers(*values: int | None) -> pa.Table:
    return pa.table({"number": pa.array(values, pa.int64())})


def column(lake: Lake, name: str, **how: Any) -> list[Any]:
    return sorted(lake.read(name, **how)["number"].to_pylist())


# --- writing and reading ---------------------------------------------------------------------------------------------


def test_rows_come_back_with_types_and_nulls(lake: Lake) -> None:
    table = pa.table(
        {
            "float": pa.array([1.5, None, float("nan")]),
            "integer": pa.array([2**62, None, -1], pa.int64()),
            "boolean": pa.array([True, None, False]),
            "string": pa.array(["é", None, ""]),
            "timestamp": pa.array([NOON, None, NOON], pa.timestamp("us", "UTC")),
            "flags": pa.array([["a", "b"], None, []], pa.list_(pa.string())),
        }
    )
    assert lake.write("weather", table) == 1
    back = lake.read("weather")
    assert back.schema.equals(table.schema)
    assert str(back.to_pylist()) == str(table.to_pylist())
    assert lake.schema("weather").equals(table.schema)


def test_other_string_list_and_time_types_are_read_as_one(lake: Lake) -> None:
    table = pa.table(
        {
            "large": pa.array(["a", None], pa.large_string()),
            "view": pa.array(["a", None], pa.string_view()),
            "dictionary": pa.array(["a", None]).dictionary_encode(),
            "list": pa.array([["a"], None], pa.large_list(pa.large_string())),
            "time": pa.array([NOON, None], pa.timestamp("ms", "America/New_York")),
        }
    )
    lake.write("weather", table)
    lake.write("weather", table)
    types = [pa.string(), pa.string(), pa.string(), pa.list_(pa.string()), pa.timestamp("us", "UTC")]
    back = lake.read("weather")
    assert back.schema.types == types
    assert back.to_pylist() == 2 * [
        {"large": "a", "view": "a", "dictionary": "a", "list": ["a"], "time": NOON.replace(microsecond=123000)},
        {"large": None, "view": None, "dictionary": None, "list": None, "time": None},
    ]


def test_every_version_stays_readable(lake: Lake) -> None:
    first = lake.write("weather", numbers(1, 2))
    second = lake.write("weather", numbers(3))
    third = lake.write("weather", pa.table({"other": ["x"]}), mode="overwrite")
    assert [first, second, third] == [1, 2, 3]
    assert lake.version("weather") == 3
    assert column(lake, "weather", version=1) == [1, 2]
    assert column(lake, "weather", version=2) == [1, 2, 3]
    assert lake.read("weather").to_pylist() == [{"other": "x"}]
    assert lake.read("weather", version=0).num_rows == 0
    assert len(lake.files("weather", 2)) == 2
    assert len(lake.files("weather")) == 1
    with pytest.raises(NotFound, match="the newest is 3"):
        lake.read("weather", version=4)


def test_a_new_column_is_added_and_a_missing_one_is_null(lake: Lake) -> None:
    lake.write("weather", numbers(1))
    lake.write("weather", pa.table({"number": [2], "wind": [0.5]}))
    lake.write("weather", numbers(3))
    rows = {row["number"]: row["wind"] for row in lake.read("weather").to_pylist()}
    assert rows == {1: None, 2: 0.5, 3: None}


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (pa.table({"number": [1.5]}), "column number is int64, not double"),
        (pa.table({"number": ["1"]}), "column number is int64, not string"),
        (pa.table({"number": [1], "nothing": pa.nulls(1)}), "column nothing has no type"),
        (pa.table({"number": [1], "when": pa.array([NOON], pa.timestamp("us"))}), "without a zone"),
    ],
)
def test_nothing_is_cast_silently(lake: Lake, table: pa.Table, reason: str) -> None:
    version = lake.write("weather", numbers(1))
    writes: list[Callable[[], Any]] = [
        lambda: lake.write("weather", table),
        lambda: lake.append_once("weather", table, application="a", sequence=1),
    ]
    for write in writes:
        with pytest.raises(Refused, match=reason):
            write()
    assert lake.version("weather") == version
    assert lake.last_sequence("weather", "a") is None


def test_a_column_of_nulls_takes_the_type_it_has(lake: Lake) -> None:
    lake.write("weather", numbers(1))
    lake.write("weather", pa.table({"number": pa.nulls(2)}))
    assert lake.read("weather")["number"].null_count == 2


def test_columns_and_filters(lake: Lake) -> None:
    lake.write("weather", pa.table({"number": [1, 2, 3], "name": ["a", "b", None]}))
    assert lake.read("weather", columns=["name"], filters=[("number", ">", 1)]).to_pylist() == [{"name": "b"}, {"name": None}]
    assert column(lake, "weather", filters=pc.field("name").is_null()) == [3]
    assert lake.read("weather", columns=[]).num_rows == 3
    with pytest.raises(UsageError, match="no column nmae: it has number, name"):
        lake.read("weather", columns=["nmae"])


def test_a_filter_finds_every_row_it_should_among_many_files(local: Lake) -> None:
    """Files are pruned by statistics that Delta keeps shortened (times to the millisecond, long text cut)."""
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for _ in range(12):
        part = []
        for _ in range(20):
            at = datetime.fromtimestamp(1_400_000_000 + rng.randint(0, 3000) + rng.random(), UTC)
            part.append({"id": new_id(at), "at": at, "text": rng.choice("aéz😀") * rng.randint(0, 90)})
        local.write(
            "log",
            pa.Table.from_pylist(part, pa.schema([("id", "string"), ("at", pa.timestamp("us", "UTC")), ("text", "string")])),
        )
        rows += part
    for row in rng.sample(rows, 25):
        assert [r["id"] for r in local.read("log", filters=pc.field("id") == row["id"]).to_pylist()] == [row["id"]]
        for name in ("at", "text"):
            for compare in (operator.eq, operator.gt, operator.le):
                want = sorted(r["id"] for r in rows if compare(_key(r[name]), _key(row[name])))
                got = local.read(
                    "log", filters=compare(pc.field(name), pa.scalar(row[name], local.schema("log").field(name).type))
                )
                assert sorted(got["id"].to_pylist()) == want


def _key(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def test_duckdb_reads_a_dataset_and_only_the_files_it_needs(local: Lake) -> None:
    for start in range(0, 30, 10):
        local.write("weather", pa.table({"number": list(range(start, start + 10)), "wind": [0.5] * 10}))
    dataset = local.dataset("weather")
    assert sum(1 for _ in dataset.get_fragments(pc.field("number") >= 25)) == 1
    with duckdb.connect() as connection:
        connection.register("weather", dataset)
        assert connection.execute("SELECT count(*), sum(wind) FROM weather WHERE number >= 25").fetchone() == (5, 2.5)


# --- names -----------------------------------------------------------------------------------------------------------


def test_tables_are_listed_and_a_missing_one_names_its_neighbours(lake: Lake) -> None:
    assert lake.names() == []
    assert not lake.exists("weather")
    for name in ("weather", "predictions.late-arrival", "outcomes." + "x" * 64):
        lake.write(name, numbers(1))
    assert lake.names() == ["outcomes." + "x" * 64, "predictions.late-arrival", "weather"]
    assert lake.exists("weather")
    asks: list[Callable[[str], Any]] = [lake.read, lake.version, lake.schema, lake.files, lake.dataset, lake.compact]
    for ask in asks:
        with pytest.raises(TableNotFound, match="nearest: weather"):
            ask("wether")
    assert lake.last_sequence("wether", "a") is None


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "A", "a\0", "x" * 65, "a." + "b" * 65, "%2e%2e", "_sums", ".a", "раge"]
)
def test_a_name_never_leaves_the_lake(lake: Lake, tmp_path: Path, name: str) -> None:
    asks: list[Callable[[str], Any]] = [lake.read, lake.exists, lambda n: lake.write(n, numbers(1))]
    for ask in asks:
        with pytest.raises(NameInvalid):
            ask(name)
    assert list(tmp_path.rglob("*.parquet")) == []


# --- exactly once ----------------------------------------------------------------------------------------------------


def test_a_sequence_goes_in_once(lake: Lake) -> None:
    assert lake.last_sequence("log", "writer") is None
    assert lake.append_once("log", numbers(1), application="writer", sequence=5) == 1
    assert lake.append_once("log", numbers(1), application="writer", sequence=5) is None
    assert lake.append_once("log", numbers(1), application="writer", sequence=4) is None
    assert lake.append_once("log", numbers(2), application="other", sequence=1) == 2
    assert lake.append_once("log", numbers(3), application="writer", sequence=6) == 3
    assert lake.last_sequence("log", "writer") == 6
    assert lake.last_sequence("log", "third") is None
    assert column(lake, "log") == [1, 2, 3]
    lake.compact("log")
    assert lake.last_sequence("log", "writer") == 6
    assert lake.append_once("log", numbers(1), application="writer", sequence=5) is None


def test_committers_that_race_add_every_sequence_once(local: Lake) -> None:
    barrier = Barrier(6)

    def commit(number: int) -> list[int | None]:
        barrier.wait()
        lake = Lake(local._root)
        return [lake.append_once("log", numbers(sequence), application="writer", sequence=sequence) for sequence in range(8)]

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(commit, range(6)))
    assert column(local, "log") == list(range(8))
    for sequence in range(8):
        assert sum(versions[sequence] is not None for versions in done) == 1
        version = next(versions[sequence] for versions in done if versions[sequence] is not None)
        assert column(local, "log", version=version) == list(range(sequence + 1))
    assert local.verify("log") == []


def test_writers_that_race_lose_nothing(local: Lake) -> None:
    barrier = Barrier(5)

    def write(number: int) -> list[tuple[int, int]]:
        barrier.wait()
        return [(local.write("log", numbers(number * 10 + i)), number * 10 + i) for i in range(4)]

    with ThreadPoolExecutor(5) as pool:
        versions = dict(written for part in pool.map(write, range(5)) for written in part)
    assert sorted(versions) == list(range(1, 21))
    for version, number in versions.items():
        assert set(column(local, "log", version=version)) - set(column(local, "log", version=version - 1)) == {number}
    assert column(local, "log") == sorted(n * 10 + i for n in range(5) for i in range(4))
    assert local.verify("log") == []


COMMITTER = """
import sys
import pyarrow as pa
from loopwright.stores.lake.tables import Lake, Stream
lake = Lake(sys.argv[1])
sequence = lake.last_sequence("log", "writer") or 0
for sequence in range(sequence + 1, 100000):
    lake.append_once("log", pa.table({"number": [sequence]}), application="writer", sequence=sequence)
    print(sequence, flush=True)
"""


def test_a_committer_killed_anywhere_leaves_every_row_once(local: Lake) -> None:
    last = 0
    for seed in range(3):
        child = subprocess.Popen([sys.executable, "-c", COMMITTER, local._root], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(random.Random(seed).randint(1, 30)):
            last = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        told = child.communicate()[0].split()
        last = int(told[-1]) if told else last
        there = column(local, "log")
        assert there in (list(range(1, last + 1)), list(range(1, last + 2)))
        assert local.verify("log") == []


def test_what_a_version_added_is_its_appended_rows_and_nothing_that_was_only_moved(lake: Lake) -> None:
    versions = [lake.write("log", numbers(n, n + 10)) for n in range(3)]
    lake.compact("log")
    versions.append(lake.write("log", numbers(7)))
    found = []
    for version in range(lake.version("log") + 1):
        added = lake.added("log", version)
        found.append(None if added is None else sorted(added.to_table()["number"].to_pylist()))
    assert [rows for rows in found if rows is not None] == [[0, 10], [1, 11], [2, 12], [7]]
    assert [v for v, rows in enumerate(found) if rows is not None] == versions
    with pytest.raises(NotFound):
        lake.added("log", versions[-1] + 1)


# --- compaction ------------------------------------------------------------------------------------------------------


def test_compaction_keeps_rows_and_old_versions(lake: Lake) -> None:
    for number in range(6):
        lake.write("weather", numbers(number))
    assert lake.compact("weather") == 5
    assert len(lake.files("weather")) == 1
    assert column(lake, "weather") == list(range(6))
    assert column(lake, "weather", version=3) == [0, 1, 2]
    assert lake.compact("weather") == 0
    assert lake.verify("weather") == []


def test_a_hundred_commits_make_a_checkpoint_and_lose_no_version(local: Lake, tmp_path: Path) -> None:
    for number in range(101):
        local.append_once("log", numbers(number), application="writer", sequence=number)
    checkpoints = list((tmp_path / "lake" / "log" / "_delta_log").glob("*.checkpoint.parquet"))
    assert checkpoints
    assert local.last_sequence("log", "writer") == 100
    assert column(local, "log", version=2) == [0, 1]
    assert local.verify("log") == []
    _flip(checkpoints[0], 50)
    assert any("checkpoint" in problem.where for problem in local.verify("log"))


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(local: Lake, tmp_path: Path) -> tuple[Lake, Path]:
    for start in range(3):
        local.write("weather", pa.table({"number": list(range(start, start + 50)), "text": ["calm"] * 50}))
    assert local.verify("weather") == []
    return local, tmp_path / "lake" / "weather"


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_single_flipped_bit_of_a_file_is_found_and_named(damaged: tuple[Lake, Path]) -> None:
    lake, folder = damaged
    path = next(folder.glob("*.parquet"))
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        _flip(path, at)
        problems = lake.verify("weather")
        assert [p.where for p in problems] == [f"table weather {path.name}"]
        assert problems[0].what == "is not what was written"
        path.write_bytes(whole)
    assert lake.verify("weather") == []


def test_missing_truncated_and_foreign_files_are_found(damaged: tuple[Lake, Path]) -> None:
    lake, folder = damaged
    first, second, third = sorted(folder.glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    pq.write_table(pa.table({"number": [1], "text": ["x"]}), third)
    assert {p.where.split()[-1]: p.what for p in lake.verify("weather")} == {
        first.name: "missing",
        second.name: "is not what was written",
        third.name: "is not what was written",
    }
    with pytest.raises(Damaged, match="table weather"):
        lake.read("weather")


def test_files_without_digests_are_read_to_the_end(damaged: tuple[Lake, Path]) -> None:
    """As on object storage, or after a crash between a commit and its digests."""
    lake, folder = damaged
    for sums in (folder / "_sums").iterdir():
        sums.unlink()
    assert lake.verify("weather") == []
    first, second, third = sorted(folder.glob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    size = third.stat().st_size
    third.write_bytes(b"PAR1" + bytes(size - 8) + b"PAR1")
    found = {p.where.split()[-1]: p.what for p in lake.verify("weather")}
    assert found.keys() == {first.name, second.name, third.name}
    assert found[first.name] == "missing"
    assert "bytes instead of" in found[second.name]
    assert "cannot be read" in found[third.name]


def test_a_flipped_or_missing_log_entry_is_found(damaged: tuple[Lake, Path]) -> None:
    lake, folder = damaged
    logs = sorted((folder / "_delta_log").glob("*.json"))
    _flip(logs[2], 20)
    assert f"table weather _delta_log/{logs[2].name}" in [p.where for p in lake.verify("weather")]
    logs[1].unlink()
    problems = lake.verify("weather")
    assert any("commits 1 are missing from the log" in p.what for p in problems)
    with pytest.raises(Damaged):
        lake.read("weather")


def test_damaged_digests_are_found(damaged: tuple[Lake, Path]) -> None:
    lake, folder = damaged
    sums = sorted((folder / "_sums").glob("*.json"))[1]
    sums.write_bytes(b"{")
    assert [(p.where, p.what) for p in lake.verify("weather")] == [(f"table weather _sums/{sums.name}", "cannot be read")]


def test_digests_missed_by_a_crash_come_with_the_next_commit(damaged: tuple[Lake, Path]) -> None:
    lake, folder = damaged
    sums = sorted((folder / "_sums").glob("*.json"))
    for path in sums[-2:]:
        path.unlink()
    lake.write("weather", pa.table({"number": [9], "text": ["gale"]}))
    assert len(list((folder / "_sums").glob("*.json"))) == len(sums) + 1


def test_a_process_that_read_a_table_ends_in_order(local: Lake) -> None:
    """Arrow's threads may still be closing files when the interpreter ends: they must not need it. (This aborted 16 of 25 times.)"""
    local.write("weather", numbers(*range(100)))
    program = (
        "from loopwright.stores.lake.tables import Lake\nimport pyarrow as pa\nimport sys\n"
        "lake = Lake(sys.argv[1])\nlake.write('weather', pa.table({'number': [1]}))\n"
        "print(lake.read('weather').num_rows, lake.read('weather').num_rows)\n"
    )
    for _ in range(8):
        done = subprocess.run([sys.executable, "-c", program, str(local._root)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_columns_are_added_as_null_and_rows_may_be_made_while_they_are_written(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path))
    lake.write("t", pa.table({"a": [1]}))
    assert lake.add_columns("t", pa.schema([("a", pa.int64()), ("b", pa.string())])) == 2
    assert lake.read("t").to_pylist() == [{"a": 1, "b": None}]
    assert lake.add_columns("t", pa.schema([("b", pa.string())])) == 2
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    stream = Stream(schema, lambda: iter([pa.table({"a": [n], "b": ["x"]}, schema=schema) for n in (2, 3)]))
    assert lake.append_once("t", stream, application="s", sequence=1, note="two rows") == 3
    assert lake.append_once("t", stream, application="s", sequence=1) is None
    assert sorted(lake.read("t")["a"].to_pylist()) == [1, 2, 3]
    assert lake.notes("t") == [(3, "two rows")]
    assert lake.notes("absent") == []
    assert lake.verify("t") == []


@pytest.mark.parametrize("good", [0, 2])
def test_what_making_rows_raises_comes_out_and_nothing_is_written(tmp_path: Path, good: int) -> None:
    lake = Lake(str(tmp_path))
    schema = pa.schema([("a", pa.int64())])

    def made() -> Iterator[pa.Table]:
        for n in range(good):
            yield pa.table({"a": [n]}, schema=schema)
        raise Refused("no more")

    with pytest.raises(Refused, match="no more"):
        lake.append_once("t", Stream(schema, made), application="s", sequence=1)
    assert lake.exists("t") == (good > 0), "what cannot begin makes no table"
    assert not good or (lake.count("t"), lake.last_sequence("t", "s")) == (0, None)
