"""What every online table promises, the embedded one and a real Redis."""

import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tests.redis import PASSWORD, RedisServer

from loopwright.base.errors import Damaged, Unavailable
from loopwright.stores.online import Online, open_online
from loopwright.stores.online.redis import REST_SECONDS
from loopwright.stores.online.steps import FRESH_SECONDS, Fed, OnlineStep, pack


@pytest.fixture
def online(online_url: str, tmp_path: Path) -> Iterator[Online]:
    with closing(open_online(online_url, tmp_path / "online")) as online:
        yield online


@pytest.fixture
def other(online_url: str, tmp_path: Path) -> Iterator[Online]:
    """The same table, opened once more."""
    with closing(open_online(online_url, tmp_path / "online")) as other:
        yield other


def one(value: float, at: int = 0) -> bytes:
    return pack([at], [[at, value]])


def value(online: Online, key: str, at: int = 10, store: str = "weather") -> float | None:
    [steps] = online.get_many(store, [key])
    step = steps.at(at) if steps is not None else None
    return None if step is None else step.values[0]


class Stopped:
    """The clock of one reader, which stands still between two calls of `advance`."""

    def __init__(self, online: Online) -> None:
        self.now = 1000.0
        online._now = lambda: self.now  # type: ignore[attr-defined]  # both have one

    def advance(self, seconds: float = FRESH_SECONDS) -> None:
        self.now += seconds


def test_steps_come_back_as_they_were_written(online: Online) -> None:
    values = [1.5, None, True, "é", 1_364_817_600_000_000, [0.5, 2.0]]
    assert (
        online.write("weather", [("JFK", pack([5, 20], [[3, *values], [None, *values]])), ("", one(1.0))], Fed(3, -7, 99)) == 2
    )
    [steps, nothing, again, empty] = online.get_many("weather", ["JFK", "EWR", "JFK", ""])
    assert steps is not None
    assert again is not None
    assert empty is not None
    assert (steps.at(4), steps.at(5), steps.at(21)) == (None, OnlineStep(3, values), OnlineStep(None, values))
    assert (nothing, again.at(5), empty.at(0)) == (None, OnlineStep(3, values), OnlineStep(0, [1.0]))
    assert online.get_many("airports", ["JFK"]) == [None]
    assert online.get_many("weather", []) == []
    assert (online.fed("weather"), online.fed("airports")) == (Fed(3, -7, 99), None)


def test_writing_replaces_a_store_and_says_what_changed(online: Online) -> None:
    assert online.write("weather", [("a", one(1)), ("b", one(2)), ("c", one(3))], Fed(1, 0, 5)) == 3
    online.write("other", [("a", one(9))], Fed(1, 0, 5))
    assert online.write("weather", [("a", one(1)), ("b", one(7)), ("d", one(4))], Fed(2, 1, 6)) == 3, "b, c and d"
    assert [value(online, k) for k in "abcd"] == [1, 7, None, 4]
    assert value(online, "a", store="other") == 9
    assert online.write("weather", [], Fed(3, 1, 6)) == 3
    assert online.get_many("weather", ["a", "b", "d"]) == [None] * 3


def test_an_older_version_never_comes_back(online: Online, other: Online) -> None:
    clock = Stopped(online)
    online.write("weather", [("a", one(2))], Fed(2, 10, 50))
    assert other.write("weather", [("a", one(1)), ("b", one(1))], Fed(1, 0, 90)) == 0
    assert online.fed("weather") == Fed(2, 10, 50)
    assert (value(online, "a"), value(online, "b")) == (2, None)
    other.write("weather", [("a", one(3))], Fed(2, 5, 60))
    clock.advance()
    assert value(online, "a") == 3
    assert online.fed("weather") == Fed(2, 5, 60)


def test_a_mark_moves_only_forward_and_marks_nothing_that_was_never_fed(online: Online) -> None:
    online.write("weather", [], Fed(1, 0, 50))
    online.mark("weather", 40)
    assert online.fed("weather") == Fed(1, 0, 50)
    online.mark("weather", 60)
    assert online.fed("weather") == Fed(1, 0, 60)
    online.write("weather", [], Fed(2, 0, 55))
    assert online.fed("weather") == Fed(2, 0, 60)
    online.mark("airports", 60)
    assert online.fed("airports") is None


def test_many_keys_are_written_and_found(online: Online) -> None:
    assert online.write("weather", ((str(n), one(n)) for n in range(5_000)), Fed(1, 0, 0)) == 5_000
    keys = [str(n) for n in range(0, 6_000, 7)]
    found = [steps and steps.at(1) for steps in online.get_many("weather", keys)]
    assert found == [OnlineStep(0, [n]) if n < 5_000 else None for n in range(0, 6_000, 7)]


WRITER = """
import sys
from pathlib import Path
from loopwright.stores.online import open_online
from loopwright.stores.online.steps import Fed, pack
online = open_online(sys.argv[1], Path(sys.argv[2]))
for line in sys.stdin:
    online.write("weather", [("JFK", pack([0], [[0, int(line)]]))], Fed(int(line), 0, 0))
    print("done", flush=True)
online.close()
"""


def test_a_reader_answers_from_memory_and_sees_another_process_once_that_is_no_longer_fresh(
    online: Online, online_url: str, tmp_path: Path
) -> None:
    assert FRESH_SECONDS <= 0.1
    clock = Stopped(online)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, online_url, str(tmp_path / "online")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    for n in range(1, 9):
        before = value(online, "JFK")
        print(n, file=writer.stdin, flush=True)
        assert writer.stdout.readline() == "done\n"
        clock.advance(0.9 * FRESH_SECONDS)
        assert value(online, "JFK") == before
        clock.advance(0.1 * FRESH_SECONDS + 1e-6)
        assert value(online, "JFK") == n
    writer.communicate()


def test_own_writes_are_seen_at_once(online: Online) -> None:
    for n in range(20):
        online.write("weather", [("JFK", one(n))], Fed(n, n, n))
        assert value(online, "JFK") == n
        assert online.fed("weather") == Fed(n, n, n)


def test_threads_write_and_read_at_once(online: Online, other: Online) -> None:
    def work(number: int) -> None:
        mine = other if number % 2 else online
        for n in range(10):
            mine.write(f"s{number}", [("a", one(n)), (str(n), one(n))], Fed(n, 0, 0))
            assert value(mine, "a", store=f"s{number}") == n

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [None] * 6
    Stopped(online).advance(1e6)
    for number in range(6):
        assert [value(online, k, store=f"s{number}") for k in ("a", "9", "8")] == [9, 9, None]


FORKER = """
import os, sys
from pathlib import Path
from loopwright.stores.online import open_online
from loopwright.stores.online.steps import Fed, pack
online = open_online(sys.argv[1], Path(sys.argv[2]))
def there(store):
    [steps] = online.get_many(store, ["k"])
    return steps is not None
online.write("a", [("k", pack([0], [[0]]))], Fed(1, 0, 0))
assert there("a")
pid = os.fork()
if pid == 0:
    online.write("b", [("k", pack([0], [[0]]))], Fed(1, 0, 0))
    assert there("a") and there("b")
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
online.write("c", [("k", pack([0], [[0]]))], Fed(1, 0, 0))
assert all(there(s) for s in "abc")
online.close()
"""


def test_a_forked_child_has_connections_of_its_own(online_url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", FORKER, online_url, str(tmp_path / "online")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_stays_bounded(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("embedded", "redis"):
        monkeypatch.setattr(f"loopwright.stores.online.{module}.CACHED_KEYS", 100)
        monkeypatch.setattr(f"loopwright.stores.online.{module}.FRESH_SECONDS", 0.0)
    online.write("weather", [("1", one(1))], Fed(1, 0, 0))
    for n in range(500):
        online.get_many("weather", [str(n)])
    kept = online._cache.values()  # type: ignore[attr-defined]  # both have one
    assert 1 <= sum(len(k) if isinstance(k, dict) else 1 for k in kept) <= 102


# --- embedded only


def test_reading_where_nothing_was_ever_written_finds_nothing_and_makes_nothing(tmp_path: Path) -> None:
    with closing(open_online("embedded", tmp_path / "online")) as online:
        assert online.fed("weather") is None
        assert online.get_many("weather", ["JFK", "EWR"]) == [None, None]
        assert not (tmp_path / "online").exists()
        (tmp_path / "online").mkdir()
        (tmp_path / "online" / "steps.db").touch()  # a file whose first transaction is not there yet
        clock = Stopped(online)
        clock.advance(1e6)
        assert online.get_many("weather", ["JFK"]) == [None]
        with closing(open_online("embedded", tmp_path / "online")) as writer:
            writer.write("weather", [("JFK", one(1.0))], Fed(1, 0, 0))
        clock.advance()
        assert value(online, "JFK") == 1.0


def test_one_bad_row_leaves_nothing_of_its_batch(tmp_path: Path) -> None:
    with closing(open_online("embedded", tmp_path)) as online:
        online.write("weather", [("JFK", one(1.0))], Fed(1, 0, 0))
        with pytest.raises(Exception, match="type"):
            online.write("weather", [("EWR", one(1.0)), ("LGA", object())], Fed(2, 0, 0))  # type: ignore[list-item]  # on purpose
        assert (value(online, "JFK"), value(online, "EWR"), online.fed("weather")) == (1.0, None, Fed(1, 0, 0))


def test_a_damaged_file_is_damaged_and_an_impossible_place_unavailable(tmp_path: Path) -> None:
    (tmp_path / "steps.db").write_bytes(random.Random(1).randbytes(8192))
    with closing(open_online("embedded", tmp_path)) as online:
        with pytest.raises(Damaged):
            online.get_many("weather", ["JFK"])
        with pytest.raises(Damaged):
            online.write("weather", [("JFK", one(1.0))], Fed(1, 0, 0))
    (tmp_path / "file").touch()
    with closing(open_online("embedded", tmp_path / "file")) as online, pytest.raises(Unavailable):
        online.write("weather", [("JFK", one(1.0))], Fed(1, 0, 0))


# --- Redis only


def test_a_redis_that_is_down_is_told_at_once_and_without_its_password(redis_server: RedisServer, tmp_path: Path) -> None:
    with closing(open_online(redis_server.empty(), tmp_path)) as online:
        clock = Stopped(online)
        online.write("weather", [("JFK", one(1.0))], Fed(1, 0, 0))
        redis_server.stop()
        try:
            with pytest.raises(Unavailable) as told:
                online.get_many("weather", ["JFK"])
            assert PASSWORD not in str(told.value)
            assert told.value.__cause__ is None
            assert f"127.0.0.1:{redis_server.port}" in str(told.value)
            with pytest.raises(Unavailable):
                online.write("weather", [], Fed(2, 0, 0))
        finally:
            redis_server.start()
        for _ in range(3):  # after a failure the next ones fail at once: Redis is not asked
            with pytest.raises(Unavailable):
                online.get_many("weather", ["JFK"])
            with pytest.raises(Unavailable):
                online.fed("weather")
        clock.advance(REST_SECONDS)
        assert (online.fed("weather"), online.get_many("weather", ["JFK"])) == (None, [None]), "it came back empty"
        online.write("weather", [("JFK", one(2.0))], Fed(1, 0, 0))
        assert value(online, "JFK") == 2.0


def test_a_wrong_password_is_unavailable_and_what_others_wrote_there_is_damaged(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    url = redis_server.empty()
    with closing(open_online(url.replace(PASSWORD, "wrong-secret"), tmp_path)) as online:
        with pytest.raises(Unavailable) as told:
            online.fed("weather")
        assert "wrong-secret" not in str(told.value)
    from redis import Redis

    with Redis.from_url(url) as client, closing(open_online(url, tmp_path)) as online:
        client.hset("loopwright:fed", "weather", "nonsense")
        client.hset("loopwright:steps:weather", "JFK", b"nonsense")
        with pytest.raises(Damaged):
            online.fed("weather")
        with pytest.raises(Damaged):
            online.get_many("weather", ["JFK"])
