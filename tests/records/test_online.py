import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.records.errors import Damaged, Unavailable
from loopwright.records.online import ContextRow, Online


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online" / "context.db"


@pytest.fixture
def online(path: Path) -> Iterator[Online]:
    with closing(Online(path)) as online:
        yield online


def seen(online: Online, table: str, key: str, want: ContextRow | None) -> float:
    """Seconds until a reader sees what it should."""
    start = time.perf_counter()
    while online.get(table, key) != want:
        assert time.perf_counter() - start < 5, "never seen"
        time.sleep(0.001)
    return time.perf_counter() - start


def test_a_row_comes_back_as_it_was_put(online: Online) -> None:
    values = {"wind": 1.5, "gust": None, "calm": True, "sky": "é", "at": 1_364_817_600_000_000}
    online.put("weather", [("JFK", 20, 10, values)])
    assert online.get("weather", "JFK") == ContextRow(known_at=20, event_at=10, values=values)
    assert online.get("weather", "EWR") is None
    assert online.get("airports", "JFK") is None
    assert online.get_many("weather", ["EWR", "JFK", "JFK"]) == [
        None,
        online.get("weather", "JFK"),
        online.get("weather", "JFK"),
    ]


ROW = st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99))


@given(st.lists(st.lists(ROW, max_size=6), max_size=4))
def test_the_newest_event_stays_and_of_it_what_was_known_last(
    tmp_path_factory: pytest.TempPathFactory, puts: list[list[Any]]
) -> None:
    newest: dict[str, tuple[int, int, int]] = {}
    with closing(Online(tmp_path_factory.mktemp("online") / "context.db")) as online:
        for rows in puts:
            online.put("t", [(key, known, event, {"n": n}) for key, known, event, n in rows])
            for key, known, event, n in rows:
                if key not in newest or (event, known) >= newest[key][:2]:
                    newest[key] = (event, known, n)
        for key in "ab":
            row = online.get("t", key)
            assert (row and (row.event_at, row.known_at, row.values["n"])) == newest.get(key)


def test_one_bad_row_leaves_nothing_of_its_batch(online: Online) -> None:
    online.put("weather", [("JFK", 1, 1, {})])
    with pytest.raises(TypeError):
        online.put("weather", [("EWR", 1, 1, {}), ("LGA", 1, 1, {"x": object()})])
    with pytest.raises(OverflowError):
        online.put("weather", [("EWR", 1, 1, {}), ("LGA", 2**70, 1, {})])
    assert online.get("weather", "EWR") is None
    online.put("weather", [("EWR", 1, 1, {})])
    assert online.get("weather", "EWR") is not None


def test_reading_where_nothing_was_ever_written_finds_nothing_and_makes_nothing(online: Online, path: Path) -> None:
    assert online.get("weather", "JFK") is None
    assert online.get_many("weather", ["JFK", "EWR"]) == [None, None]
    assert not path.parent.exists()
    with closing(Online(path)) as writer:
        writer.put("weather", [("JFK", 1, 1, {})])
    seen(online, "weather", "JFK", ContextRow(1, 1, {}))


def test_a_reader_meets_a_file_whose_first_transaction_is_not_there_yet(online: Online, path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    assert online.get("weather", "JFK") is None


WRITER = """
import sys
from loopwright.records.online import Online
online = Online(sys.argv[1])
for line in sys.stdin:
    online.put("weather", [("JFK", int(line), int(line), {"n": int(line)})])
    print("done", flush=True)
"""


def test_another_process_is_seen_within_a_tenth_of_a_second(online: Online, path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    delays = []
    for n in range(1, 9):
        online.get("weather", "JFK")
        print(n, file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "done\n"
        delays.append(seen(online, "weather", "JFK", ContextRow(n, n, {"n": n})))
    writer.communicate()
    assert sorted(delays)[len(delays) // 2] < 0.1


def test_own_writes_are_seen_at_once(online: Online) -> None:
    for n in range(20):
        online.put("weather", [("JFK", n, n, {"n": n})])
        assert online.get("weather", "JFK") == ContextRow(n, n, {"n": n})


def test_a_warm_read_takes_microseconds(online: Online) -> None:
    online.put("weather", [(str(n), n, n, {"wind": 1.0, "visib": 2.0}) for n in range(1000)])
    keys = [str(n) for n in range(1000)]
    online.get_many("weather", keys)
    fastest = 1.0
    for _ in range(10):
        start = time.perf_counter()
        online.get_many("weather", keys)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest / 1000 < 15e-6


def test_threads_and_processes_write_and_read_at_once(online: Online, path: Path) -> None:
    def work(number: int) -> None:
        with closing(Online(path)) as own:
            for n in range(25):
                (own if number % 2 else online).put(
                    "weather", [(f"{number}-{n}", n, n, {"n": n}), ("shared", n, number, {"n": n})]
                )
                assert online.get("weather", f"{number}-{n}") or number % 2

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [None] * 6
    for number in range(6):
        for n in range(25):
            seen(online, "weather", f"{number}-{n}", ContextRow(n, n, {"n": n}))
    seen(online, "weather", "shared", ContextRow(24, 5, {"n": 24}))


FORKER = """
import os, sys
from loopwright.records.online import ContextRow, Online
online = Online(sys.argv[1])
online.put("t", [("a", 1, 1, {})])
online.get("t", "a")
pid = os.fork()
if pid == 0:
    online.put("t", [("b", 1, 1, {})])
    assert online.get("t", "a") == online.get("t", "b") == ContextRow(1, 1, {})
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
online.put("t", [("c", 1, 1, {})])
assert all(online.get("t", key) for key in "abc")
online.close()
"""


def test_a_forked_child_has_connections_of_its_own(path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FORKER, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_damaged_file_is_damaged_and_an_impossible_place_unavailable(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(random.Random(1).randbytes(8192))
    with closing(Online(path)) as online:
        with pytest.raises(Damaged):
            online.get("weather", "JFK")
        with pytest.raises(Damaged):
            online.put("weather", [("JFK", 1, 1, {})])
    (tmp_path / "file").touch()
    with closing(Online(tmp_path / "file" / "context.db")) as online, pytest.raises(Unavailable):
        online.put("weather", [("JFK", 1, 1, {})])


def test_memory_stays_bounded(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopwright.records.online._CACHED_ROWS", 100)
    monkeypatch.setattr("loopwright.records.online.FRESH_SECONDS", 0.0)
    for n in range(500):
        online.get("weather", str(n))
    assert len(online._cache) <= 102
