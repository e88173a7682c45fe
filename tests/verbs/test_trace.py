"""What is said of one prediction: what the client sent, what the heuristic would have said, what the package knew, what it is worth."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from tests.deploy.loops import LOOP, NOW, NOW_US, REQUESTS, Weather, declared, flight, opened, package

from loopwright.cli.terminal import rendered
from loopwright.deploy.serving.predictor import Predictor
from loopwright.records.declarations import Column, Value
from loopwright.records.package import Training
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.writer import LogWriter
from loopwright.verbs.trace import Trace, trace

NEWEST = NOW - timedelta(days=30)
TRAINED = Training(examples="0" * 64, rows=1000, as_of=NOW, first=NEWEST, last=NEWEST, sources={}, seconds=1.0)
LACKING = REQUESTS.columns | {"tail": Column("string", nullable=True, optional=True)}


def traced(home: Home, row: dict[str, Any], /, **changes: Any) -> Trace:
    """What `trace` says of the answer to a row; `changes` are of the package's manifest."""
    [prediction] = Predictor(package(home.packages, **changes), Weather(), home.clock).answer([row])
    with LogWriter(log_folder(home.path, LOOP), "predictions") as writer:
        writer.append([prediction])
    return trace(home, prediction.id)


def printed(told: Trace) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(rendered(told))
    return " ".join(captured.get().split())


def sent(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in flight(1, **changes).items() if value is not ...}


def test_trace_tells_what_the_server_filled_in_and_what_may_be_left_out(tmp_path: Path) -> None:
    """Null is missing where the contract asks for the column, and no fault where it does not."""
    with opened(tmp_path) as home:
        told = traced(home, sent(pushed_back_at=..., tail=...), request=LACKING)
        shown = told.request_shown
        assert (told.filled_in, shown["tail"]) == (["pushed_back_at"], "none (optional)")
        assert shown["pushed_back_at (filled in by the server)"] == NOW
        assert "none (optional)" in printed(told)
        assert "pushed_back_at (filled in by the server)" in printed(told)
        asked = traced(home, sent(pushed_back_at=NOW_US - 60_000_000))
        assert (asked.filled_in, asked.request_shown) == ([], asked.request)
        assert asked.request_shown["tail"] is None


@pytest.mark.parametrize(("delay", "answer"), [(3.0, "no"), (30.0, "yes")])
def test_trace_says_what_the_heuristic_would_have_answered_in_a_word(tmp_path: Path, delay: float, answer: str) -> None:
    with opened(tmp_path) as home:
        told = traced(home, flight(1, delay=delay, pushed_back_at=NOW_US))
    assert (told.rule_answer, told.heuristic) == (answer, float(answer == "yes"))
    assert f"heuristic {answer}" in printed(told)
    assert msgspec.structs.replace(told, heuristic=0.7, rule_label=True).rule_answer == "yes (score 0.7)"
    assert msgspec.structs.replace(told, heuristic=17.25, rule_label=None).rule_answer == "17.25"


def test_trace_tells_the_newest_row_of_the_training_from_the_moment_of_training(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        told = traced(home, flight(1, pushed_back_at=NOW_US), training=TRAINED)
    assert (told.trained_until, told.known_at) == (NEWEST, NOW)
    assert f"newest of {NEWEST:%Y-%m-%d %H:%M} as known at {NOW:%Y-%m-%d %H:%M}" in printed(told)


def test_trace_of_a_loop_without_a_value_table_promises_no_value(tmp_path: Path) -> None:
    with opened(tmp_path) as home:
        told = traced(home, flight(1, pushed_back_at=NOW_US))
        assert (told.valued, told.worth) == (True, "not known until the outcome is")
        loop = declared()
        free = msgspec.structs.replace(loop, scope=msgspec.structs.replace(loop.scope, value=Value()))
        home.ledger.put(free.record("loop.py"), loop=LOOP, key=LOOP)
        told = trace(home, told.id)
        assert (told.valued, told.worth) == (False, "no value table is declared")
        assert "value: no value table is declared" in printed(told)


def test_trace_of_a_package_that_is_gone_says_what_it_does_not_know(tmp_path: Path) -> None:
    """Nothing that only the package knows is shown as zero, pending or nothing."""
    with opened(tmp_path) as home:
        id = traced(home, sent(pushed_back_at=NOW_US), training=TRAINED).id
        for folder in (home.path / "packages").iterdir():
            shutil.rmtree(folder)
        told = trace(home, id)
    assert told.request["pushed_back_at"] == NOW
    assert (told.rule_answer, told.worth) == ("not known", "not known without the package")
    shown = printed(told)
    assert "no package" in shown
    for untrue in ("0 rows", "pending", "heuristic nothing"):
        assert untrue not in shown
        assert untrue not in " ".join(told._repr_html_().split())
