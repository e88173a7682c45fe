"""Facts become states in one place: what was not measured is `no data`, and money is judged by its interval."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from loopwright.records.conditions import LOOKS, Condition, Standing, Worth, earned, framed, monitored, worst, worth_of
from loopwright.records.declarations import Heuristic, Objective, Scope, Value
from loopwright.records.evaluation import Estimate, t_95
from loopwright.records.windows import ValueWindow, Window, span_to

START = datetime(2024, 3, 4, tzinfo=UTC)
WEEK = timedelta(days=7)
VALUED, COSTS = Value(true_positive=10, false_positive=-1), Value(under=-2, over=-1)


def worth(nothing: tuple[float, float], heuristic: tuple[float, float], known: int = 500) -> Worth:
    over = [Estimate((low + high) / 2, low, high, known) for low, high in (nothing, heuristic)]
    return Worth(
        start=START,
        end=START + 4 * WEEK,
        currency="USD",
        predictions=600,
        with_outcome=known,
        over_no_model=over[0],
        over_heuristic=over[1],
    )


def scope(*owners: str, problem: str = "Call those who leave.") -> Scope:
    objectives = [Objective(f"wish {i}", owner, "average_precision", at_least=0.4) for i, owner in enumerate(owners)]
    return Scope(problem=problem, objectives=objectives, heuristic=Heuristic("f.x > 1"))


@pytest.mark.parametrize(
    ("found", "state", "said"),
    [
        (scope("retention", "product"), "ok", "2 objectives of 2 stakeholders; the rule to beat is declared"),
        (scope("retention"), "ok", "1 objective of 1 stakeholder; the rule"),
        (scope("TODO", "TODO"), "watch", "2 objectives; the rule to beat is declared; nobody is named who wants them: write the"),
        (scope("not named yet"), "watch", "1 objective; the rule to beat is declared; nobody is named who wants it: write the"),
        (scope("retention", "TODO: who?"), "watch", "2 objectives of 1 stakeholder; the rule to beat is declared; nobody is named who wants 'wish 1'"),
        (scope("retention", "?"), "watch", "nobody is named"),
        (scope("Todor Todorov"), "ok", "1 stakeholder"),
        (scope("retention", problem="TODO: say which."), "watch", "the problem is not described"),
    ],
)  # fmt: skip
def test_scope_of_a_draft_is_watched_until_owners_are_named(found: Scope, state: Condition, said: str) -> None:
    judged = framed(found)
    assert (judged.state, said in judged.detail) == (state, True), judged


@pytest.mark.parametrize(
    ("found", "value", "state", "said"),
    [
        (None, VALUED, "no data", "nothing measured yet"),
        (None, Value(), "no data", "nothing measured yet"),
        (worth((0, 0), (0, 0), known=0), VALUED, "no data", "no outcome is known yet of 600 predictions"),
        (worth((0, 0), (0, 0), known=0), Value(), "no data", "no outcome is known yet of 600 predictions"),
        (worth((0, 0), (0, 0)), Value(), "no data", "500 outcomes known; no value table is declared"),
        (worth((5, 5), (5, 5), known=3), VALUED, "no data", "too few outcomes to judge (3 of 30)"),
        (worth((100, 300), (10, 90)), VALUED, "ok", "4 weeks to 2024-04-01: +200 USD [100, 300] over no model"),
        (worth((100, 300), (-797, -407)), VALUED, "alert", "-602 USD [-797, -407] over the heuristic: surely worth less than"),
        (worth((-9, -1), (1, 5)), VALUED, "alert", "surely worth less than doing nothing"),
        (worth((100, 300), (-5, 20)), VALUED, "watch", "not shown to be worth more than the heuristic"),
        (worth((-1, 3), (10, 90)), VALUED, "watch", "not shown to be worth more than doing nothing"),
        (worth((-900, -800), (10, 90)), COSTS, "ok", "over the heuristic"),
    ],
)
def test_business_is_judged_by_the_interval_and_never_ok_without_facts(
    found: Worth | None, value: Value, state: Condition, said: str
) -> None:
    judged = earned(found, value)
    assert (judged.state, said in judged.detail) == (state, True), judged


def test_the_heuristic_in_service_is_judged_against_doing_nothing_from_its_release_on() -> None:
    money = worth((100, 300), (0, 0))
    assert earned(money, VALUED, START).state == "ok"
    assert earned(worth((-3, -1), (0, 0)), VALUED, START).state == "alert"
    later = earned(worth((100, 300), (-797, -407)), VALUED, START + 2 * WEEK)
    assert (later.state, "nothing measured since its release" in later.detail) == ("no data", True)
    assert earned(worth((-9, -5), (0, 0)), COSTS, START).state == "no data"


def window(state: str = "ok", rows: int = 900, drifted: tuple[str, ...] = ()) -> Window:
    whole: dict[str, Any] = {"start": START, "end": START + WEEK, "rows": rows, "state": state, "drifted": list(drifted)}
    return msgspec.convert(
        {**whole, "minimum_rows": 500, "reference": "", "packages": {}, "degraded": 0.0, "flags": {}, "columns": []}, Window
    )


def standing(quality: str, start: datetime = START) -> Standing:
    return msgspec.convert({"until": START, "quality": quality, "quality_start": start, "quality_end": start + WEEK}, Standing)


@pytest.mark.parametrize(
    ("found", "known", "alerts", "state", "said"),
    [
        (None, None, 0, "no data", "nothing measured yet"),
        (None, None, 1, "alert", "nothing measured yet; 1 open alert"),
        (window("no data", rows=7), None, 0, "no data", "week to 2024-03-11: too few (7 of 500); 0 open alerts"),
        (window("no data", rows=0), None, 0, "no data", "no predictions"),
        (window(), None, 0, "ok", "inputs ok"),
        (window("watch"), standing("ok"), 0, "watch", "inputs watch; quality ok; "),
        (window("drift", drifted=("wind",)), standing("ok"), 0, "alert", "inputs drift, drifted: wind; quality ok"),
        (window(), standing("decayed"), 0, "alert", "inputs ok; quality decayed; 0 open alerts"),
        (window(), standing("decayed", START - WEEK), 0, "alert", "quality decayed (week to 2024-03-04)"),
        (window("no data"), standing("ok", START - WEEK), 0, "ok", "quality ok (week to 2024-03-04)"),
        (window(), standing("ok"), 2, "alert", "2 open alerts"),
    ],
)
def test_monitor_is_judged_by_inputs_quality_and_alerts_together(
    found: Window | None, known: Standing | None, alerts: int, state: Condition, said: str
) -> None:
    judged = monitored(found, known, alerts)
    assert (judged.state, said in judged.detail) == (state, True), judged


def test_ok_is_green_and_what_was_not_measured_is_not() -> None:
    assert {word for word, look in LOOKS.items() if look.style == "green"} == {"ok", "done", "within"}
    assert {LOOKS[word].style for word in ("no data", "not yet")} == {"dim"}
    assert worst(["ok", "no data"]) == "no data", "one loop that is well does not hide one that was not measured"


@pytest.mark.parametrize(
    ("length", "said"),
    [
        (timedelta(days=7), "week to 2024-03-11"),
        (timedelta(days=1), "day to 2024-03-05"),
        (timedelta(days=30), "30 days to 2024-04-03"),
        (timedelta(days=28), "4 weeks to 2024-04-01"),
        (timedelta(hours=1), "hour to 2024-03-04 01:00"),
        (timedelta(minutes=1), "minute to 2024-03-04 00:01"),
        (timedelta(minutes=90), "90 minutes to 2024-03-04 01:30"),
        (timedelta(seconds=30), "30 seconds to 2024-03-04 00:00:30"),
    ],
)
def test_a_window_is_named_by_its_real_length(length: timedelta, said: str) -> None:
    assert span_to(START, START + length) == said


def test_money_of_windows_adds_up_and_windows_are_what_is_independent() -> None:
    def account(i: int, value: float) -> ValueWindow:
        over, start = Estimate(value, value - 30, value + 30, 100), START + i * WEEK
        return ValueWindow(
            start=start,
            end=start + WEEK,
            known_at=start,
            currency="USD",
            predictions=110,
            with_outcome=100,
            model=over,
            heuristic=over,
            no_model=0.0,
            over_no_model=over,
            over_heuristic=over,
            cost=0.0,
            counts={},
        )

    found = worth_of([account(0, -100), account(1, -90), account(2, 10), account(3, -20)])
    assert found is not None
    assert (found.start, found.end, found.predictions, found.with_outcome) == (START, START + 4 * WEEK, 440, 400)
    sums = np.array([-100, -90, 10, -20])
    half = float(stats.t.ppf(0.975, 3) * sums.std(ddof=1) * 4**0.5)
    assert (found.over_heuristic.value, found.over_heuristic.high) == pytest.approx((-200, -200 + half), rel=1e-4)
    alike = worth_of([account(i, -50) for i in range(4)])
    assert alike is not None
    assert alike.over_heuristic.high == pytest.approx(-200 + 60), "never narrower than rows make it"
    assert worth_of([account(0, -50)]).over_heuristic.high == -20  # type: ignore[union-attr]  # there is one
    assert worth_of([]) is None


@pytest.mark.parametrize("freedom", [1, 2, 5, 6, 10, 30, 200])
def test_student_t_is_that_of_scipy(freedom: int) -> None:
    assert t_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-4)
