import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from tests.deploy.loops import LOOP, NOW

from loopwright.deploy.serving.heartbeat import Busy, Heartbeat, WorkerState, note_of, workers
from loopwright.deploy.serving.suspects import encoded, fingerprints
from loopwright.records.releases import Arm, ReleaseState

GOOD, BAD = "a" * 64, "b" * 64


@pytest.fixture
def heartbeat(tmp_path: Path) -> Heartbeat:
    (tmp_path / "run" / "4194305").mkdir(parents=True)
    return Heartbeat.fresh(tmp_path / "run" / "4194305" / "worker-0.heartbeat")


def state(generation: int, loop: str = LOOP) -> ReleaseState:
    return ReleaseState(
        loop=loop,
        generation=generation,
        arms=[Arm(package=GOOD)],
        strategy="direct",
        action="release",
        since=NOW,
        by="tests",
        why="",
    )


def test_what_each_thread_is_doing_is_seen_from_outside(heartbeat: Heartbeat) -> None:
    seen = Heartbeat(heartbeat.path)
    assert seen.busy() == []
    with heartbeat.loading(GOOD):
        me = threading.get_ident()
        assert seen.busy() == [Busy(me, "loads", GOOD)]
        place = heartbeat.began(note_of(GOOD))
        assert seen.busy() == [Busy(me, "answers", GOOD)]
        heartbeat.ended(place)
        with heartbeat.loading(BAD):
            assert seen.busy() == [Busy(me, "loads", BAD)]
        assert seen.busy() == [Busy(me, "loads", GOOD)]
        ready, over = threading.Event(), threading.Event()

        def other() -> None:
            heartbeat.began(note_of(BAD))
            ready.set()
            over.wait(60)

        thread = threading.Thread(target=other)
        thread.start()
        ready.wait(60)
        assert set(seen.busy()) == {Busy(me, "loads", GOOD), Busy(int(thread.ident or 0), "answers", BAD)}
        over.set()
        thread.join()
    heartbeat.clear()
    assert seen.busy() == []


def test_more_threads_than_places_share_the_last(heartbeat: Heartbeat) -> None:
    threads = [threading.Thread(target=lambda: heartbeat.ended(heartbeat.began(note_of(GOOD)))) for _ in range(40)]
    for thread in threads:
        thread.start()
        thread.join()
    with heartbeat.loading(BAD):
        assert [b.package for b in heartbeat.busy()] == [BAD]


def test_packages_that_fail_are_told_once(heartbeat: Heartbeat) -> None:
    for _ in range(3):
        heartbeat.troubles.fails(BAD)
    for i in range(20):
        heartbeat.troubles.fails(f"{i:064x}")
    assert Heartbeat(heartbeat.path).troubles.take_failing() == [BAD, *(f"{i:064x}" for i in range(7))]
    assert heartbeat.troubles.take_failing() == []


def test_how_a_worker_stands_to_a_release(heartbeat: Heartbeat) -> None:
    seen = Heartbeat(heartbeat.path)
    assert seen.releases.stands(state(1)) == "idle"
    heartbeat.releases.serves(state(1))
    assert seen.releases.stands(state(1)) == "serves"
    heartbeat.releases.refuses(state(2))
    assert [seen.releases.stands(state(i)) for i in (1, 2, 3)] == ["serves", "refuses", "lags"]
    heartbeat.releases.serves(state(2))
    assert [seen.releases.stands(state(i)) for i in (1, 2)] == ["lags", "serves"]
    fleet = msgspec.structs.replace(state(2), fleet="origin", segments={"JFK": BAD})
    assert seen.releases.stands(fleet) == "lags"
    heartbeat.releases.forgets(LOOP)
    assert seen.releases.stands(fleet) == "idle"
    heartbeat.releases.refuses(state(3))
    assert [seen.releases.stands(state(i)) for i in (2, 3)] == ["lags", "refuses"]


def test_inputs_of_a_run_are_named_by_who_looks_whatever_their_size(heartbeat: Heartbeat) -> None:
    small, large = [(i, "UA", None) for i in range(3)], [(i, "UA" * 20, 0.5) for i in range(10_000)]
    for rows in (small, large):
        place = heartbeat.began(note_of(GOOD), encoded(rows), 7)
        (busy,) = heartbeat.busy()
        assert busy.inputs == fingerprints(note_of(GOOD), encoded(rows))
        assert (len(set(busy.inputs)), busy.answered) == (len(rows), 7)
        heartbeat.ended(place)
    heartbeat.began(note_of(GOOD), encoded(small)[:-1])  # two threads wrote into one place
    assert [busy.inputs for busy in heartbeat.busy()] == [()]


def test_every_loop_has_its_place_until_the_table_is_full(heartbeat: Heartbeat) -> None:
    states = [state(i, f"loop-{i}") for i in range(16_500)]
    for each in states:
        heartbeat.releases.serves(each)
    assert all(heartbeat.releases.stands(each) == "serves" for each in states[:16_384])
    assert heartbeat.releases.stands(states[-1]) == "idle"


WRITES = """
import sys
from pathlib import Path
from loopwright.deploy.serving.suspects import encoded, fingerprints
from loopwright.deploy.serving.heartbeat import Heartbeat
from tests.deploy.serving.test_heartbeat import state
heartbeat, states = Heartbeat(Path(sys.argv[1])), [state(1), state(2)]
heartbeat.releases.serves(states[0])
heartbeat.beat(1e6)
print("begun", flush=True)
for i in range(100_000):
    heartbeat.beat(1e6 + i)
    if i % 10 == 0:
        heartbeat.releases.serves(states[i // 10 % 2])
"""


def test_a_reader_in_another_process_never_sees_a_beat_or_a_release_half_written(heartbeat: Heartbeat) -> None:
    root = Path(__file__).parents[3]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(heartbeat.path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
    )
    one, reads, torn = state(1), 0, 0
    with writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        while writer.poll() is None:
            for _ in range(1000):
                reads += 1
                torn += (
                    heartbeat.beaten < 1e6
                    or heartbeat.pid != writer.pid
                    or (reads % 10 == 0 and heartbeat.releases.stands(one) == "idle")
                )
    assert writer.returncode == 0
    assert reads > 1000
    assert torn == 0, f"{torn} of {reads} reads saw what nobody wrote"


def test_workers_of_servers_that_run(heartbeat: Heartbeat, tmp_path: Path) -> None:
    assert workers(tmp_path, state(1)) == []  # it has not beaten yet
    heartbeat.beat(12.5)
    assert (heartbeat.pid, heartbeat.beaten, heartbeat.main) == (os.getpid(), 12.5, threading.get_ident())
    heartbeat.releases.serves(state(1))
    gone = Heartbeat.fresh(heartbeat.path.with_name("worker-1.heartbeat"))
    gone._map[0:8] = (2**22 + 1).to_bytes(8, "little")  # a process that cannot be
    heartbeat.path.with_name("worker-2.heartbeat").write_bytes(b"")
    assert workers(tmp_path, state(1)) == [WorkerState(pid=os.getpid(), state="serves")]
    assert workers(tmp_path, state(2)) == [WorkerState(pid=os.getpid(), state="lags")]


def test_worker_that_is_down_while_its_server_runs_is_one_that_does_not_follow(tmp_path: Path) -> None:
    for server, found in ((os.getpid(), [WorkerState(pid=0, state="down")]), (2**22 + 1, [])):
        home = tmp_path / str(server)
        folder = home / "run" / str(server)
        folder.mkdir(parents=True)
        Heartbeat.fresh(folder / "worker-0.heartbeat").close()  # as after a death
        assert workers(home, state(1)) == found
