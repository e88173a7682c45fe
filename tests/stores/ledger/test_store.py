"""The same promises on SQLite and on a real PostgreSQL."""

import math
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import create_engine, text
from tests.postgres import Postgres

from loopwright.base.clock import RealClock, SimulatedClock
from loopwright.base.errors import (
    Damaged,
    ExtraMissing,
    LedgerUnavailable,
    LoopwrightError,
    NameInvalid,
    RecordNotFound,
    ReleaseConflict,
    SettingInvalid,
    UsageError,
)
from loopwright.base.holder import Holder, encode_holder
from loopwright.base.ids import time_of
from loopwright.records.entries import Entry, Link, Pointer, Record, Untyped
from loopwright.records.evaluation import Estimate
from loopwright.records.windows import Trigger
from loopwright.stores.ledger import database, schema
from loopwright.stores.ledger.store import Ledger, keys

START = datetime(2013, 4, 1, 12, 0, 0, 123456, tzinfo=UTC)


class Note(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = "note"
    text: str = ""
    moment: datetime = START
    measures: dict[str, Estimate] = {}


class Count(Record, frozen=True, kw_only=True):
    kind: ClassVar[str] = "count"
    number: int


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock(START)


@pytest.fixture
def ledger(ledger_url: str, clock: SimulatedClock) -> Iterator[Ledger]:
    with closing(Ledger(ledger_url, clock=clock, by="ada", lease_clock=clock)) as ledger:
        yield ledger


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run `work` in `count` threads that start at the same moment; results, exceptions among them."""
    barrier = threading.Barrier(count)

    def run(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        except LoopwrightError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# --- put and get -----------------------------------------------------------------------------------------------------


def test_an_entry_comes_back_as_it_was_put(ledger: Ledger, clock: SimulatedClock) -> None:
    record = Note(text='é"\\\n\0', moment=START, measures={"recall": Estimate(0.5, 0.25, 0.75, 9)})
    entry = ledger.put(record, loop="late-arrival", key="2013-04-01T00:00:00Z")
    assert entry == ledger.get(entry.id, Note)
    assert entry.record == record
    assert (entry.sequence, entry.kind, entry.loop, entry.key, entry.at, entry.by) == (
        1, "note", "late-arrival", "2013-04-01T00:00:00Z", START, "ada",
    )  # fmt: skip
    assert time_of(entry.id) == START.replace(microsecond=123000)


def test_nan_and_infinity_come_back(ledger: Ledger) -> None:
    entry = ledger.put(Note(measures={"gap": Estimate(math.nan, -math.inf, math.inf, 0)}))
    back = ledger.get(entry.id, Note).record.measures["gap"]
    assert math.isnan(back.value)
    assert (back.low, back.high) == (-math.inf, math.inf)
    raw = ledger.get(entry.id).record.fields["measures"]["gap"]
    assert math.isnan(raw["value"])
    assert raw["high"] == math.inf


def test_without_a_type_a_record_is_plain_data(ledger: Ledger) -> None:
    entry = ledger.put(Count(number=3))
    assert ledger.get(entry.id).record == Untyped(fields={"number": 3})


def test_the_order_of_a_dictionary_is_kept(ledger: Ledger) -> None:
    measures = {name: Estimate(0.0, 0.0, 0.0, 1) for name in ("z", "a", "m")}
    entry = ledger.put(Note(measures=measures))
    assert list(ledger.get(entry.id, Note).record.measures) == ["z", "a", "m"]


@pytest.mark.parametrize("id", ["", "0" * 32, "f" * 32, "../ledger", "x\0y", "'; DROP TABLE entry; --"])
def test_an_unknown_id_is_not_found(ledger: Ledger, id: str) -> None:
    ledger.put(Count(number=1))
    with pytest.raises(RecordNotFound, match="no record"):
        ledger.get(id)


def test_an_entry_of_another_kind_is_not_found(ledger: Ledger) -> None:
    entry = ledger.put(Count(number=1))
    with pytest.raises(RecordNotFound):
        ledger.get(entry.id, Note)


def test_a_record_that_no_longer_fits_its_type_is_damage_that_names_the_entry(ledger: Ledger) -> None:
    class Other(Record, frozen=True, kw_only=True):
        kind: ClassVar[str] = "count"
        other: str

    entry = ledger.put(Count(number=1))
    with pytest.raises(Damaged, match=entry.id):
        ledger.get(entry.id, Other)


def test_what_cannot_be_stored_is_refused_and_leaves_nothing(ledger: Ledger) -> None:
    class Wrong(Record, frozen=True, kw_only=True):
        kind: ClassVar[str] = "wrong"
        value: Any

    class Unlawful(Record, frozen=True, kw_only=True):
        kind: ClassVar[str] = "../up"

    for value in (object(), "\ud800", {"a": {1, object()}}):
        with pytest.raises(UsageError, match="cannot be written as JSON"):
            ledger.put(Wrong(value=value))
    with pytest.raises(NameInvalid):
        ledger.put(Unlawful())
    with pytest.raises(NameInvalid):
        ledger.put(Count(number=1), loop="Loop/1")
    for key in ("k" * 513, "a\0b", "\udfff"):
        with pytest.raises(UsageError):
            ledger.put(Count(number=1), key=key)
    with pytest.raises(UsageError):
        ledger.put(Count(number=1), links=[("a\0", "made")])
    assert ledger.history() == []
    assert ledger.verify() == []


# --- find ------------------------------------------------------------------------------------------------------------


def test_find_agrees_with_a_search_through_everything(ledger: Ledger, clock: SimulatedClock) -> None:
    rng = random.Random(7)
    entries: list[Entry[Any]] = []
    with ledger.batch():
        for i in range(120):
            record: Record = Count(number=i) if rng.random() < 0.5 else Note(text=str(i))
            entries.append(ledger.put(record, loop=rng.choice(["", "a", "b"]), key=rng.choice(["", "x", "y"])))
            clock.advance(timedelta(seconds=rng.choice([0, 1, 60])))
    for _ in range(150):
        type: Any = rng.choice([Count, Note])
        loop, key = rng.choice([None, "", "a", "c"]), rng.choice([None, "x", "\0"])
        since = rng.choice([None, rng.choice(entries).at])
        until = rng.choice([None, rng.choice(entries).at])
        limit, newest = rng.choice([None, 0, 3]), rng.random() < 0.5
        want = [
            e
            for e in entries
            if e.kind == type.kind
            and (loop is None or e.loop == loop)
            and (key is None or e.key == key)
            and (since is None or e.at >= since)
            and (until is None or e.at <= until)
        ]
        want = (want[::-1] if newest else want)[:limit]
        assert ledger.find(type, loop=loop, key=key, since=since, until=until, limit=limit, newest=newest) == want
        newest_one = [
            e for e in entries if e.kind == type.kind and (loop is None or e.loop == loop) and (until is None or e.at <= until)
        ]
        assert ledger.latest(type, loop=loop, until=until) == (newest_one[-1] if newest_one else None)


def test_history_has_every_kind_newest_first(ledger: Ledger) -> None:
    ids = [ledger.put(record, loop=loop).id for record, loop in ((Count(number=1), "a"), (Note(), "b"), (Note(text="!"), "a"))]
    assert [e.id for e in ledger.history()] == ids[::-1]
    assert [(e.id, e.kind) for e in ledger.history("a")] == [(ids[2], "note"), (ids[0], "count")]
    assert [e.id for e in ledger.history(limit=1)] == ids[2:]


def test_loops_that_have_something_new(ledger: Ledger) -> None:
    for loop, record in (("b", Note()), ("a", Note()), ("", Note()), ("c", Count(number=1)), ("a", Note())):
        ledger.put(record, loop=loop)
    assert ledger.loops(Note) == ["a", "b"]
    assert ledger.loops(Count) == ["c"]
    assert ledger.loops(Note, after=1) == ["a"]
    assert ledger.loops(Note, after=ledger.count()) == []
    ledger.put(Note(), loop="d")
    assert ledger.loops(Note, after=5) == ["d"]


def test_a_moment_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="time zone"):
        ledger.find(Count, since=datetime(2013, 1, 1))  # noqa: DTZ001


# --- links -----------------------------------------------------------------------------------------------------------


def test_lineage_goes_up_and_down_step_by_step(ledger: Ledger) -> None:
    table = ledger.put(Note(text="table"))
    left = ledger.put(Note(text="left"), links=[(table.id, "read")])
    right = ledger.put(Note(text="right"), links=[(table.id, "read"), (table.id, "read")])
    both = ledger.put(Note(text="both"), links=[(left.id, "trained on"), (right.id, "validated on")])
    ledger.link(both.id, "sha256:package", "made")
    ledger.link(both.id, "sha256:package", "made")
    read = [Link(source=table.id, target=target.id, role="read") for target in (left, right)]
    used = [
        Link(source=left.id, target=both.id, role="trained on"),
        Link(source=right.id, target=both.id, role="validated on"),
    ]
    made = Link(source=both.id, target="sha256:package", role="made")
    assert ledger.links(both.id) == used
    assert ledger.links("sha256:package", depth=None) == [made, *used, *read]
    assert ledger.links("sha256:package", depth=2) == [made, *used]
    assert ledger.links(table.id, direction="down", depth=None) == [*read, *used, made]
    assert ledger.links(table.id) == []


def test_lineage_that_meets_itself_ends(ledger: Ledger) -> None:
    for source, target in (("a", "b"), ("b", "c"), ("c", "a")):
        ledger.link(source, target, "feeds")
    assert len(ledger.links("a", depth=None)) == 3
    assert len(ledger.links("a", direction="down", depth=50)) == 3


def test_lineage_with_more_sources_than_one_query_takes(ledger: Ledger) -> None:
    with ledger.batch():
        for i in range(510):
            ledger.link(f"source{i}", f"part{i}", "read")
            ledger.link(f"part{i}", "whole", "in")
    assert len(ledger.links("whole", depth=None)) == 1020


# --- pointers --------------------------------------------------------------------------------------------------------


def test_a_pointer_moves_from_the_generation_it_is_at(ledger: Ledger) -> None:
    assert ledger.pointer("release:a") is None
    first = ledger.swap("release.a", 0, Count(number=1), loop="a", key="k", links=[("p", "released")])
    assert ledger.pointer("release.a") == Pointer(name="release.a", generation=1, entry=first.id)
    second = ledger.swap("release.a", 1, Count(number=2), loop="a")
    assert ledger.pointer("release.a") == Pointer(name="release.a", generation=2, entry=second.id)
    assert ledger.latest(Count, loop="a") == second
    assert ledger.links(first.id) == [Link(source="p", target=first.id, role="released")]
    with pytest.raises(ReleaseConflict, match="generation 2, not 1") as caught:
        ledger.swap("release.a", 1, Count(number=3), loop="a")
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert len(ledger.history()) == 2
    ledger.swap("release.b", 0, Count(number=1))
    assert ledger.verify() == []


def test_of_many_that_swap_at_once_exactly_one_wins(ledger: Ledger) -> None:
    def contend(generation: int, number: int) -> Entry[Count]:
        return ledger.swap("release.a", generation, Count(number=number), loop="a")

    for generation in range(4):
        done = in_threads(24, partial(contend, generation))
        winners = [d for d in done if isinstance(d, Entry)]
        assert len(winners) == 1
        assert all(isinstance(d, ReleaseConflict) for d in done if d is not winners[0])
        assert ledger.pointer("release.a") == Pointer(name="release.a", generation=generation + 1, entry=winners[0].id)
    assert len(ledger.find(Count)) == 4
    assert ledger.verify() == []


CONTENDER = """
import sys
from loopwright.base.clock import RealClock
from loopwright.base.errors import ReleaseConflict
from loopwright.stores.ledger.store import Ledger
from loopwright.stores.ledger.store import keys
from loopwright.records.windows import Trigger
ledger = Ledger(sys.argv[1], clock=RealClock(), by=sys.argv[2])
won = 0
while won < 6:
    found = ledger.pointer("release.a")
    generation = found.generation if found else 0
    try:
        ledger.swap("release.a", generation, Trigger(cause="manual", reason=str(generation)))
        won += 1
    except ReleaseConflict:
        pass
ledger.close()
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *arguments], cwd=root, stdout=subprocess.PIPE, text=True
    )


def test_processes_that_swap_against_each_other_lose_no_generation(ledger_url: str) -> None:
    contenders = [start(CONTENDER, ledger_url, name) for name in ("one", "two", "three")]
    for contender in contenders:
        contender.communicate(timeout=600)
    assert [c.returncode for c in contenders] == [0, 0, 0]
    with closing(Ledger(ledger_url, clock=RealClock(), by="ada")) as ledger:
        entries = ledger.find(Trigger, newest=False)
        assert [e.record.reason for e in entries] == [str(n) for n in range(18)]
        assert {e.by for e in entries} == {"one", "two", "three"}
        assert ledger.verify() == []


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_is_held_renewed_given_back_and_runs_out(ledger: Ledger, clock: SimulatedClock) -> None:
    assert ledger.lock("tend", "one", 10)
    assert not ledger.lock("tend", "two", 10)
    assert ledger.lock("other", "two", 10)
    clock.advance(timedelta(seconds=9))
    assert ledger.lock("tend", "one", 10)
    clock.advance(timedelta(seconds=9))
    assert not ledger.lock("tend", "two", 10)
    ledger.unlock("tend", "two")
    assert not ledger.lock("tend", "two", 10)
    clock.advance(timedelta(seconds=1))
    assert ledger.lock("tend", "two", 10)
    assert not ledger.lock("tend", "one", 10)
    ledger.unlock("tend", "two")
    assert ledger.lock("tend", "one", 10)


def test_a_lease_follows_real_time_while_entries_follow_a_simulated_clock(ledger_url: str, clock: SimulatedClock) -> None:
    with closing(Ledger(ledger_url, clock=clock, by="ada")) as ledger:
        assert ledger.lock("tend", "one", 60)
        clock.advance(timedelta(days=365))
        assert not ledger.lock("tend", "two", 60)


TAKES_A_LEASE_AND_DIES = """
import os, sys
from loopwright.base.clock import RealClock
from loopwright.stores.ledger.store import Ledger

os._exit(0 if Ledger(sys.argv[1], clock=RealClock(), by="gone").lock("tend", "gone", 3600) else 1)
"""


def test_the_lease_of_a_process_that_died_on_this_machine_is_free_at_once(ledger_url: str) -> None:
    with closing(Ledger(ledger_url, clock=RealClock(), by="ada")) as ledger:
        subprocess.run([sys.executable, "-c", TAKES_A_LEASE_AND_DIES, ledger_url], check=True)
        lease = ledger.lease("tend", 3600)
        assert lease is not None
        assert (lease.state, lease.holder.owner) == ("dead", "gone")
        assert ledger.lock("tend", "next", 60)
        held = ledger.lease("tend", 60)
        assert held is not None
        assert (held.state, str(held.holder).split(" on ")[0]) == ("held", f"process {os.getpid()}")


class SetClock(SimulatedClock):
    """A simulated machine whose time of day somebody sets; its uptime is not touched by that."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


def test_setting_the_clock_neither_frees_nor_prolongs_a_lease_on_one_machine(ledger_url: str) -> None:
    clock = SetClock(START)
    with closing(Ledger(ledger_url, clock=clock, by="ada", lease_clock=clock)) as ledger:
        assert ledger.lock("tend", "one", 60)
        clock.ahead = timedelta(days=400)
        assert not ledger.lock("tend", "two", 60)
        assert ledger.lock("tend", "one", 60), "the holder renews while the clock is wrong"
        clock.ahead = timedelta(0)
        assert not ledger.lock("tend", "two", 60)
        clock.advance(timedelta(seconds=61))
        assert ledger.lock("tend", "two", 60)


@pytest.mark.parametrize(("days", "state"), [(0, "held"), (400, "void"), (-400, "over")])
def test_the_lease_of_another_machine_is_void_when_it_ends_too_far_in_the_future(
    ledger: Ledger, clock: SimulatedClock, days: int, state: str
) -> None:
    elsewhere = Holder(owner="far", host="elsewhere", boot="another boot", pid=1)
    until = round((clock.now() + timedelta(days=days, seconds=60)).timestamp() * 1e6)
    with ledger._database.write() as connection:
        connection.execute(schema.lease.insert().values(name="tend", owner=encode_holder(elsewhere), expires=until))
    lease = ledger.lease("tend", 60)
    assert lease is not None
    assert lease.state == state
    assert ledger.lock("tend", "here", 60) == (state != "held")


def test_of_many_that_want_a_lease_exactly_one_gets_it(ledger: Ledger) -> None:
    assert in_threads(20, lambda n: ledger.lock("tend", f"owner{n}", 10)).count(True) == 1


# --- batches, threads, processes -------------------------------------------------------------------------------------


def test_a_batch_is_all_or_nothing(ledger: Ledger) -> None:
    with ledger.batch():
        first = ledger.put(Count(number=1))
        with ledger.batch():
            ledger.put(Count(number=2), links=[(first.id, "after")])
        assert len(ledger.find(Count)) == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(lambda: ledger.find(Count)).result() == []
    assert len(ledger.find(Count)) == 2

    def interrupted() -> None:
        with ledger.batch():
            ledger.put(Count(number=3))
            ledger.swap("release.a", 0, Count(number=4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert len(ledger.find(Count)) == 2
    assert ledger.pointer("release.a") is None
    assert ledger.put(Count(number=5)).sequence == 3
    assert ledger.verify() == []


def test_an_error_of_the_callers_own_leaves_a_batch_as_it_is(ledger: Ledger) -> None:
    for error in (FileNotFoundError("theirs"), TimeoutError("theirs"), KeyError("theirs")):
        with pytest.raises(type(error), match="theirs"), ledger.batch():
            raise error


def test_twenty_threads_write_one_unbroken_chain(ledger: Ledger) -> None:
    def work(number: int) -> None:
        for i in range(5):
            ledger.put(Count(number=number), key=str(i), links=[(f"source{number}", "from")])
            assert len(ledger.find(Count, key=str(i))) >= 1

    assert in_threads(20, work) == [None] * 20
    assert [e.sequence for e in ledger.history()] == list(range(100, 0, -1))
    assert len(ledger.links("source3", direction="down")) == 5
    assert ledger.verify() == []


WRITER = """
import sys
from loopwright.base.clock import RealClock
from loopwright.stores.ledger.store import Ledger
from loopwright.stores.ledger.store import keys
from loopwright.records.windows import Trigger
ledger = Ledger(sys.argv[1], clock=RealClock(), by="writer")
for i in range(100000):
    print(ledger.put(Trigger(cause="manual", reason=str(i)), links=[("x", str(i))]).id, flush=True)
"""


def test_what_was_put_survives_the_death_of_its_process(ledger_url: str) -> None:
    with closing(Ledger(ledger_url, clock=RealClock(), by="ada")) as ledger:
        for seed in range(3):
            writer = start(WRITER, ledger_url)
            assert writer.stdout is not None
            told = [writer.stdout.readline().strip() for _ in range(random.Random(seed).randint(1, 60))]
            writer.send_signal(signal.SIGKILL)
            told += writer.communicate()[0].split("\n")[:-1]
            there = {e.id for e in ledger.history()}
            assert set(told) <= there
            assert ledger.verify() == []
        assert ledger.put(Count(number=1)).sequence == len(there) + 1


FORKER = """
import os, sys
from loopwright.base.clock import RealClock
from loopwright.stores.ledger.store import Ledger
from loopwright.stores.ledger.store import keys
from loopwright.records.windows import Trigger
ledger = Ledger(sys.argv[1], clock=RealClock(), by="forker")
ledger.put(Trigger(cause="manual", reason=str(0)))
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        for i in range(10):
            ledger.put(Trigger(cause="manual", reason=str(i)), key=str(child))
        assert len(ledger.find(Trigger, key=str(child))) == 10
        os._exit(0)
    children.append(pid)
for i in range(10):
    ledger.put(Trigger(cause="manual", reason=str(i)), key="parent")
assert all(os.waitpid(pid, 0)[1] == 0 for pid in children)
assert len(ledger.history()) == 41
ledger.close()
"""


def test_a_forked_child_has_connections_of_its_own(ledger_url: str) -> None:
    forker = start(FORKER, ledger_url)
    forker.communicate(timeout=600)
    assert forker.returncode == 0
    with closing(Ledger(ledger_url, clock=RealClock(), by="ada")) as ledger:
        assert ledger.verify() == []


# --- verify ----------------------------------------------------------------------------------------------------------

DAMAGE = {
    "a record changed": (
        "UPDATE entry SET record = replace(record, '7', '8') WHERE sequence = 7",
        [("ledger entry 7", "its record is not what was written")],
    ),
    "a digest changed with its record": (
        "UPDATE entry SET digest = '{other}' WHERE sequence = 7",
        [("ledger entry 7", "its chain does not follow"), ("ledger entry 7", "its record is not what was written")],
    ),
    "an author changed": ("UPDATE entry SET by = 'eve' WHERE sequence = 7", [("ledger entry 7", "its chain does not follow")]),
    "a time changed": ("UPDATE entry SET at = at + 1 WHERE sequence = 7", [("ledger entry 7", "its chain does not follow")]),
    "a chain changed": (
        "UPDATE entry SET chain = '{other}' WHERE sequence = 7",
        [("ledger entry 7", "its chain does not follow"), ("ledger entry 8", "its chain does not follow")],
    ),
    "entries deleted": (
        "DELETE FROM entry WHERE sequence IN (6, 7)",
        [("ledger entry 8", "entries 6 to 7 before it are missing")],
    ),
    "the last entries deleted": ("DELETE FROM entry WHERE sequence > 8", [("ledger head", "the last entry is 8")]),
    "everything deleted": ("DELETE FROM entry", [("ledger head", "the last entry is 0")]),
    "a move deleted": (
        "DELETE FROM entry WHERE sequence = 3",
        [("ledger entry 4", "entries 3 to 3"), ("ledger entry 4", "jumps to generation 3")],
    ),
    "a link changed": ("UPDATE link SET source = 'z' WHERE sequence = 1", [("ledger link 1", "its chain does not follow")]),
    "a link deleted": ("DELETE FROM link WHERE sequence = 1", [("ledger link 2", "links 1 to 1 before it are missing")]),
    "the last link deleted": ("DELETE FROM link WHERE sequence = 2", [("ledger head", "the last link is 1")]),
    "the head turned back": ("UPDATE head SET entries = 9", [("ledger head", "should be entry 9, but the last entry is 10")]),
    "the head deleted": ("DELETE FROM head", [("ledger head", "missing")]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds_every_change_and_names_where(ledger_url: str, ledger: Ledger, damage: str) -> None:
    names = {"ledger head": "ledger head", "ledger link 1": "ledger link 1", "ledger link 2": "ledger link 2"}
    with ledger.batch():
        for i in range(1, 11):
            links = [("source", "from")] if i in (2, 9) else []
            if i in (2, 3, 4):
                entry = ledger.swap("release.a", i - 2, Count(number=i), links=links)
            else:
                entry = ledger.put(Count(number=i), links=links)
            names[f"ledger entry {i}"] = f"ledger entry {entry.id}"
    assert ledger.verify() == []
    statement, want = DAMAGE[damage]
    engine = create_engine(ledger_url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        statement = statement.replace(" by =", ' "by" =').replace(" at = at", ' "at" = "at"')
        assert connection.execute(text(statement.format(other="0" * 64))).rowcount >= 1
    engine.dispose()
    found = ledger.verify()
    assert len(found) == len(want)
    for problem, (where, what) in zip(found, want, strict=True):
        assert problem.where == names[where]
        assert what in problem.what


# --- unavailable, damaged --------------------------------------------------------------------------------------------


def test_newest_entries_of_each_loop_and_key_come_in_one_statement(ledger: Ledger) -> None:
    for number, (loop, key) in enumerate([("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"), ("b", "x"), ("c", "z")]):
        ledger.put(Count(number=number), loop=loop, key=key)
        ledger.put(Note(), loop=loop, key=key)

    def numbers(**asked: Any) -> list[int]:
        return [entry.record.number for entry in ledger.newest(Count, **asked)]

    assert numbers() == [5, 4, 3]
    assert numbers(per="key") == [5, 4, 3, 2]
    assert numbers(loops=["a", "b"]) == [4, 3]
    assert numbers(loops=["a", "b"], each=2) == [4, 3, 2, 1]
    assert numbers(loops=["a"], per="key", each=2, limit=2) == [3, 2]
    assert numbers(loops=[]) == []
    assert keys(ledger, Count, ["a", "b"]) == [("a", "x"), ("b", "x"), ("a", "y")]


def test_statement_that_takes_too_long_is_ended(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 0.3)
    opened = database.Database(postgres.empty_database())
    try:
        with pytest.raises(LedgerUnavailable, match="statement timeout"), opened.read() as connection:
            connection.execute(text("SELECT pg_sleep(60)"))
        with opened.snapshot() as connection:
            assert connection.execute(text("SELECT 1 FROM pg_sleep(0.6)")).scalar() == 1, "checking everything takes its time"
        with opened.read() as connection:
            assert connection.execute(text("SHOW statement_timeout")).scalar() == "300ms"
    finally:
        opened.close()


def test_a_database_that_went_away_is_unavailable_and_comes_back(postgres: Postgres) -> None:
    with closing(Ledger(postgres.empty_database(), clock=RealClock(), by="ada")) as ledger:
        entry = ledger.put(Count(number=1))
        postgres.stop()
        for ask in (
            lambda: ledger.get(entry.id),
            lambda: ledger.put(Count(number=2)),
            lambda: ledger.pointer("release.a"),
            lambda: ledger.lock("tend", "one", 1),
            ledger.verify,
        ):
            with pytest.raises(LedgerUnavailable, match="does not answer"):
                ask()
        with pytest.raises(LedgerUnavailable):
            Ledger(postgres.url("postgres"), clock=RealClock(), by="ada")
        postgres.start()
        assert ledger.get(entry.id, Count) == entry
        assert ledger.put(Count(number=2)).sequence == 2


def test_a_place_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable):
        Ledger(f"sqlite:///{tmp_path}/file/ledger.db", clock=RealClock(), by="ada")
    with pytest.raises(LedgerUnavailable):
        Ledger(f"sqlite:///{tmp_path}", clock=RealClock(), by="ada")


def test_a_file_that_is_no_ledger_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(random.Random(1).randbytes(8192))
    with pytest.raises(Damaged, match="damaged"):
        Ledger(f"sqlite:///{path}", clock=RealClock(), by="ada")


def test_a_page_overwritten_in_the_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    with closing(Ledger(url, clock=RealClock(), by="ada")) as ledger, ledger.batch():
        for i in range(200):
            ledger.put(Note(text=f"{i:0300}"))
    data = bytearray(path.read_bytes())
    for page in range(4096 * 12, len(data) - 4096, 4096 * 5):
        data[page : page + 600] = bytes(600)
    path.write_bytes(data)
    with closing(Ledger(url, clock=RealClock(), by="ada")) as ledger:
        try:
            problems = [problem.what for problem in ledger.verify()]
        except Damaged as error:
            problems = [str(error)]
        assert problems


def test_a_writer_waits_its_turn_and_no_longer_than_it_has_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with closing(Ledger(url, clock=RealClock(), by="one")) as one, closing(Ledger(url, clock=RealClock(), by="two")) as two:
        monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.05)
        with one.batch():
            one.put(Count(number=1))
            with pytest.raises(LedgerUnavailable, match=r"ledger\.db\.lock"):
                two.put(Count(number=2))
            assert two.history() == []
        assert two.put(Count(number=2)).sequence == 2


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_LEDGER"):
        Ledger(url, clock=RealClock(), by="ada")


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExtraMissing, match=r"loopwright\[postgres\]"):
        Ledger("postgresql://tests@127.0.0.1:1/x", clock=RealClock(), by="ada")
