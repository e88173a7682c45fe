"""The newest predictions that match, from Delta and from segments, without reading what cannot match."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.loops import LOOP, NOW, opened

from loopwright.base.errors import UsageError
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.lake import tables
from loopwright.stores.prediction_log.commit import commit
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.verbs.predictions import predictions

DAYS = 30


def prediction(number: int, at: datetime) -> Prediction:
    return Prediction(
        id=f"{number + 1:032x}",
        at=int(at.timestamp() * 1e6),
        package=("a" if number % 2 else "b") * 64,
        arm="champion",
        probability=1.0,
        request={"flight": f"UA{number % 7}"},
        context={},
        context_age_s=None,
        score=number / 1000,
        label=number % 3 == 0,
        flags=["out_of_range:delay"] if number % 10 == 0 else ["degraded"] if number % 25 == 0 else [],
        latency_us=5.0,
        unit=f"UA{number % 7}",
    )


ROWS = [prediction(i, NOW - timedelta(days=DAYS) + timedelta(hours=i)) for i in range(DAYS * 24)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A file of the table for each day, the last day still in segments."""
    with opened(tmp_path_factory.mktemp("home")) as home:
        for day in range(DAYS):
            with LogWriter(log_folder(home.path, LOOP), "predictions") as writer:
                writer.append(ROWS[24 * day : 24 * day + 24])
            if day < DAYS - 1:
                commit(home, LOOP)
        yield home


def ids(home: Home, **query: Any) -> list[str]:
    return [row.id for row in predictions(home, LOOP, **query).rows]


def test_newest_come_first_from_delta_and_segments(home: Home) -> None:
    assert ids(home, limit=100) == [row.id for row in reversed(ROWS)][:100]


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({"key": "UA3"}, lambda i, _: i % 7 == 3),
        ({"flag": "out_of_range"}, lambda i, _: i % 10 == 0),
        ({"flag": "out_of_range:delay"}, lambda i, _: i % 10 == 0),
        ({"flag": "undelivered"}, lambda _, __: False),
        ({"package": "aaaa"}, lambda i, _: i % 2 == 1),
        ({"since": "2024-04-10", "until": "2024-04-11T12:00"}, lambda _, at: "2024-04-10T00" <= at < "2024-04-11T12"),
        (
            {"since": "yesterday", "key": "UA1", "flag": "degraded"},
            lambda i, at: i % 7 == 1 and i % 50 == 25 and at >= "2024-04-30",
        ),
    ],
)
def test_each_filter_finds_the_rows_that_match(home: Home, query: dict[str, str], matches: Any) -> None:
    at = [datetime.fromtimestamp(row.at / 1e6, NOW.tzinfo).isoformat() for row in ROWS]
    expected = [row.id for i, row in enumerate(ROWS) if matches(i, at[i])]
    assert ids(home, limit=1000, **query) == expected[::-1]


def test_pages_go_on_where_the_one_before_ended(home: Home) -> None:
    found: list[str] = []
    page = predictions(home, LOOP, key="UA5", limit=30)
    found += [row.id for row in page.rows]
    while page.before:
        page = predictions(home, LOOP, key="UA5", limit=30, before=page.before)
        found += [row.id for row in page.rows]
    assert found == [row.id for i, row in reversed(list(enumerate(ROWS))) if i % 7 == 5]


def test_old_files_are_not_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 29 daily files the newest 40 rows are in one, a day in April in one or two."""
    highest = tables._highest
    groups: list[Any] = []

    def counted(group: Any, column: str, otherwise: Any) -> Any:
        groups.append(group.path)
        return highest(group, column, otherwise)

    monkeypatch.setattr(tables, "_highest", counted)
    assert len(ids(home, limit=40)) == 40
    assert len(set(groups)) <= 2
    groups.clear()
    assert len(ids(home, since="2024-04-10", until="2024-04-11", limit=40)) == 24
    assert 1 <= len(set(groups)) <= 2


@pytest.mark.parametrize("query", [{"since": "soon"}, {"limit": 0}, {"limit": 1001}, {"before": "x"}])
def test_what_cannot_be_asked_is_refused(home: Home, query: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        predictions(home, LOOP, **query)


def test_loop_without_predictions_lists_none(tmp_path: Path) -> None:
    with opened(tmp_path / "home") as home:
        assert ids(home) == []
