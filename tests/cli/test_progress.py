import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Display

from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.cli.live import Live
from loopwright.cli.progress import PlainLines, listener
from loopwright.monitor.alerts import close_alert, raise_alert, send
from loopwright.stores.home import Home


def test_plain_lines_tell_each_quarter_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines()
    for done in range(101):
        lines.advance("fitting", done, 100)
    lines.say("data: 3 rows")
    for done in range(101):
        lines.advance("fitting", done, 100)
    out, err = capsys.readouterr()
    quarters = ["fitting: 25%", "fitting: 50%", "fitting: 75%", "fitting: 100%"]
    assert out == ""
    assert err.splitlines() == [*quarters, "data: 3 rows", *quarters]


def test_the_live_display_shows_the_story_above_its_bars() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system="standard")
    with Display(console=console, auto_refresh=False) as display:
        live = Live(display)
        live.advance("replay", 1, 2)
        assert [task.description for task in display.tasks] == ["replay"]
        live.say("week 1: [red]drift[/red]")
        live.advance("replay", 2, 2)
        assert display.tasks == []
    assert "\x1b[1;36mweek 1: \x1b[0m" in out.getvalue()
    assert "[red]drift[/red]" in out.getvalue()


def test_no_line_of_progress_holds_terminal_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    lines = PlainLines()
    lines.say("data: a\x1b[2J.csv")
    lines.advance("reading a\x9b2J.csv", 1, 1)
    assert capsys.readouterr().err == "data: a\\x1b[2J.csv\nreading a\\x9b2J.csv: 100%\n"
    out = io.StringIO()
    with Display(console=Console(file=out, width=80, color_system=None), auto_refresh=False) as display:
        live = Live(display)
        live.advance("reading a\x1b[2J.csv", 1, 2)
        live.say("week 1: a\x1b[2J.csv")
        assert [task.description for task in display.tasks] == ["reading a\\x1b[2J.csv"]
    assert "a\\x1b[2J.csv" in out.getvalue()


def test_pipes_and_machines_get_plain_lines() -> None:
    for as_json in (True, False):
        with listener(as_json=as_json) as progress:
            assert isinstance(progress, PlainLines)


def test_an_alert_is_a_line_of_the_story(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path), SimulatedClock(datetime(2013, 4, 8, tzinfo=UTC))) as home, listener(as_json=False):
        raise_alert(home, "late-arrival", "drift", severity="warning", title="1 column drifted", detail="humidity")
        close_alert(home, "late-arrival", "drift", detail="not so in the window after")
        send(home, "late-arrival")
    assert capsys.readouterr().err.splitlines() == ["alert: late-arrival: 1 column drifted (warning) - humidity"]
