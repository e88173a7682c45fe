"""A page of loops costs the same number of statements however many loops there are."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from tests.deploy.loops import LOOP, NOW, declared, opened, package

from loopwright.base.errors import UsageError
from loopwright.base.holder import this_process
from loopwright.console.pages import Verbs, home_page
from loopwright.deploy import releases
from loopwright.records.turns import Step, Turn
from loopwright.records.windows import Alert, Window
from loopwright.server.processes.supervisor import Serving
from loopwright.stores.home import Home
from loopwright.stores.turn_lease import LEASE_SECONDS, lease_name
from loopwright.verbs import loop_page as loop_page_module
from loopwright.verbs.loop_page import loop_page
from loopwright.verbs.loop_status import loop_status
from loopwright.verbs.status import PAGE
from loopwright.verbs.status import status as status_verb


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path) as found:
        yield found


@contextmanager
def counted() -> Iterator[list[str]]:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def window(state: str) -> Window:
    end = NOW - timedelta(days=1)
    whole = {
        "start": end - timedelta(days=7),
        "end": end,
        "rows": 1,
        "state": state,
        "reference": "",
        "packages": {},
        "degraded": 0.0,
    }
    return msgspec.convert({**whole, "flags": {}, "columns": [], "drifted": []}, Window)


def alert(key: str, severity: str = "warning", state: str = "open") -> Alert:
    whole = {"key": key, "severity": severity, "title": key, "detail": "", "state": state}
    return msgspec.convert(whole, Alert)


def turn(home: Home, loop: str, name: str, state: str) -> None:
    whole = {"turn": name, "declaration": "", "as_of": NOW, "cause": "manual", "why": "", "state": state, "result": ""}
    home.ledger.put(msgspec.convert(whole, Turn), loop=loop, key=name)
    step = {"turn": name, "stage": "develop", "state": state, "started": NOW, "seconds": 1.0, "summary": name, "output": {}}
    home.ledger.put(msgspec.convert(step, Step), loop=loop, key=f"{name}:develop")


def loops(home: Home, count: int, first: int = 0) -> None:
    record = declared().record("loop.py")
    with home.ledger.batch():
        for i in range(first, first + count):
            home.ledger.put(msgspec.structs.replace(record, name=f"l{i:05}"), loop=f"l{i:05}", key=f"l{i:05}")
            home.ledger.put(window("ok"), loop=f"l{i:05}", key="w1")


def test_page_takes_as_many_statements_for_many_loops_as_for_few(home: Home) -> None:
    counts = []
    loops(home, 60)
    for more in (0, 940):
        loops(home, more, first=60)
        with counted() as statements:
            page = home_page(Verbs(home))
        assert (len(page.loops), page.total) == (PAGE, 61 + more)
        counts.append(len(statements))
    assert counts[0] == counts[1] <= 40


def test_worst_loops_come_first_and_every_loop_is_on_one_page(home: Home) -> None:
    loops(home, 120)
    for loop, record in (("l00003", "drift"), ("l00004", "watch"), ("l00005", "no data")):
        home.ledger.put(window(record), loop=loop, key="w2")
    turn(home, "l00007", "t1", "failed")
    home.ledger.put(alert("decay"), loop="l00110", key="decay")
    home.ledger.put(alert("crash", "critical"), loop="l00111", key="crash")
    home.ledger.put(alert("over"), loop="l00112", key="over")
    home.ledger.put(alert("over", state="closed"), loop="l00112", key="over")
    pages = [status_verb(home, page=i) for i in (1, 2, 3)]
    names = [s.name for page in pages for s in page.loops]
    assert names[:6] == ["l00111", "l00110", "l00007", "l00003", "l00004", "l00005"]
    assert sorted(names) == home.ledger.loops(type(declared().record("loop.py")))
    assert [(p.page, p.pages, p.total) for p in pages] == [(i, 3, 121) for i in (1, 2, 3)]
    assert [s.name for s in status_verb(home, all=True).loops] == names
    with pytest.raises(UsageError, match="no page 9: there are 3 pages of 50 loops"):
        status_verb(home, page=9)
    with pytest.raises(UsageError):
        status_verb(home, page=0)
    second = home_page(Verbs(home), 2)
    assert next(s for s in second.stages if s.stage == "monitor").loop == "l00111", "the wheel shows the worst of all"


def test_page_of_a_loop_is_bounded(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_page_module, "MAX_WINDOWS", 5)
    monkeypatch.setattr(loop_page_module, "MAX_RELEASES", 3)
    monkeypatch.setattr(loop_page_module, "MAX_ALERTS", 4)
    for i in range(9):
        releases.release(home, LOOP, package(home.packages, weight=0.05 + i / 100).digest, why="x")
        home.ledger.put(alert(f"a{i}"), loop=LOOP, key=f"a{i}")
        for revision in ("no data", "ok"):
            state = msgspec.structs.replace(window(revision), start=NOW - timedelta(days=100 - i))
            home.ledger.put(state, loop=LOOP, key=f"w{i}")
    page = loop_page(home, LOOP)
    assert [r.generation for r in page.releases] == [7, 8, 9]
    assert [(w.start - NOW).days + 100 for w in page.windows] == [4, 5, 6, 7, 8]
    assert {w.state for w in page.windows} == {"ok"}
    assert len(page.alerts) == 4
    assert len(page.status.packages_served) == 9


def test_stages_of_a_loop_are_those_of_its_newest_steps(home: Home) -> None:
    for name, state in (("t1", "done"), ("t2", "failed"), ("t3", "running")):
        turn(home, LOOP, name, state)
    assert home.ledger.lock(lease_name(LOOP), "me", LEASE_SECONDS)
    status = loop_status(home, LOOP)
    develop = next(s for s in status.stages if s.stage == "develop")
    assert (develop.state, develop.detail, status.turns) == ("running", "t3", 3)
    assert {s.state for s in status.stages if s.stage != "develop"} == {"not yet"}


def test_turn_whose_process_was_killed_is_not_shown_as_running(home: Home) -> None:
    turn(home, LOOP, "t1", "running")
    develop = next(s for s in loop_status(home, LOOP).stages if s.stage == "develop")
    assert (develop.state, develop.detail) == ("watch", "t1, and its process has ended: `loopwright run` resumes it")


def test_server_is_known_by_more_than_the_number_of_its_process(home: Home) -> None:
    me = this_process("serve", 0.0)
    for holder, running in (
        (me, True),
        (msgspec.structs.replace(me, started=me.started + 1), False),  # its number is another process's by now
        (msgspec.structs.replace(me, boot="before the machine started again"), False),
    ):
        serving = Serving(pid=me.pid, holder=holder, workers=[], data="http://a:1", control="http://a:2")
        (home.path / "serve.json").write_bytes(msgspec.json.encode(serving))
        assert (status_verb(home).server is not None) == running
