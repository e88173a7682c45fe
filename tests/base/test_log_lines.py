import logging
import re
from collections.abc import Iterator

import pytest

from loopwright.base import log_lines
from loopwright.base.log_lines import LOG, StandardError, flush, forget, say, set_up


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    forget()
    handlers, level = list(LOG.handlers), LOG.level
    yield
    LOG.handlers[:] = handlers
    LOG.setLevel(level)
    forget()


def test_a_line_has_time_level_and_process(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("worker-0")
    set_up("worker-0")  # twice writes no line twice
    LOG.warning("%s", "the disk is full")
    written = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING loopwright worker-0: the disk is full\n", written)
    assert sum(isinstance(h, StandardError) for h in LOG.handlers) == 1


def test_a_repeated_line_is_written_once_and_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("loopwright.base.log_lines.time.monotonic", lambda: now[0])
    for i in range(10_000):
        say("unlogged.a", f"loop a: {i} predictions could not be logged")
    say("unlogged.b", "another line", logging.ERROR)
    flush()
    assert caplog.messages == ["loop a: 0 predictions could not be logged", "another line"]
    now[0] += log_lines.INTERVAL_SECONDS
    flush()
    assert caplog.messages[2:] == ["9999 more lines in 60 s, the last one: loop a: 9999 predictions could not be logged"]
    say("unlogged.a", "again")  # the interval is over: it is written
    assert caplog.messages[3:] == ["again"]


def test_a_line_after_its_interval_says_how_many_came_meanwhile(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("loopwright.base.log_lines.time.monotonic", lambda: now[0])
    for _ in range(3):
        say("a", "it fails")
    now[0] += 61
    say("a", "it fails")
    assert caplog.messages == ["it fails", "it fails", "2 more lines like this one in the 61 s before"]


def test_a_key_too_many_is_written_as_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    for i in range(log_lines.MAX_KEYS + 5):
        say(f"key-{i}", "line")
    say(f"key-{log_lines.MAX_KEYS + 1}", "line")
    assert len(caplog.messages) == log_lines.MAX_KEYS + 6
