"""What a notebook shows of a leaderboard, a report and a trace: everything escaped, markup that holds together."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.console import sample

from loopwright.verbs.leaderboard import Standings
from loopwright.verbs.report import ReportFile
from loopwright.verbs.trace import Trace

EVIL = "<script>alert('x')</script>"


class Checked(HTMLParser):
    """Collects tags and texts, and refuses an end that ends something else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes.update(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def standings(**changes: Any) -> Standings:
    board = msgspec.structs.replace(sample.leaderboard(), **changes)
    return Standings(**{name: getattr(board, name) for name in board.__struct_fields__}, serving=board.rows[1].package)


def test_leaderboard_marks_who_won_and_who_serves() -> None:
    shown = Checked(standings()._repr_html_())
    assert {"lightgbm", "wins", "serves", "average precision", "0.861 [0.850, 0.872]"} <= set(shown.texts)
    assert shown.tags.count("tr") == 5
    assert "<th></th><th>candidate</th><th></th>" in standings()._repr_html_()  # no dash where a column needs no name


def test_trace_shows_the_answer_and_what_it_came_from() -> None:
    shown = Checked(sample.trace()._repr_html_())
    assert {"Request", "Context", "Features", "Package", "Outcome", "yes"} <= set(shown.texts)
    pending = Checked(sample.trace(outcome=False)._repr_html_())
    assert "pending" in pending.texts


@pytest.mark.parametrize(
    "value",
    [
        sample.trace(carrier=EVIL),
        msgspec.structs.replace(sample.trace(), request={EVIL: [EVIL]}, flags=[EVIL], package_error=EVIL, loop=EVIL),
        standings(verdict=EVIL),
        standings(rows=[msgspec.structs.replace(r, candidate=EVIL) for r in sample.leaderboard().rows]),
        ReportFile(loop="x", markdown=EVIL, markdown_file="", html_file="/nowhere/at/all"),
    ],
)
def test_data_does_not_become_markup(value: Trace | Standings | ReportFile) -> None:
    shown = Checked(value._repr_html_())
    assert "script" not in shown.tags
    assert any(EVIL in text for text in shown.texts)


def test_report_is_shown_in_a_frame_that_runs_nothing(tmp_path: Path) -> None:
    page = '<!doctype html><p title="a">5 &lt; 6</p>'
    (tmp_path / "x.html").write_text(page)
    shown = Checked(ReportFile(loop="x", markdown="", markdown_file="", html_file=str(tmp_path / "x.html"))._repr_html_())
    assert shown.tags == ["iframe"]
    assert shown.attributes["srcdoc"] == page
    assert shown.attributes["sandbox"] is None
