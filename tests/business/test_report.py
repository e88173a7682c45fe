import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from tests.console import sample
from tests.traffic import LOOP, OUTCOME, SCOPE, START, WAIT, WEEK, World, package, rows, truths

from loopwright.business.caveats import DOUBTS, CaveatInputs, doubts, next_step
from loopwright.business.objectives import Met, Promise
from loopwright.business.report import Report, report
from loopwright.business.totals import Totals, WindowTotals, weeks
from loopwright.business.value import account
from loopwright.monitor.windows import watch
from loopwright.records.declarations import Budget, Heuristic, Monitor, Objective, Retrain, Scope, Value
from loopwright.records.evaluation import Estimate, added
from loopwright.records.windows import Quality, Window
from loopwright.render.report import html, markdown
from loopwright.stores.outcomes.labelled import with_truth
from loopwright.stores.prediction_log.summary import summary
from loopwright.tasks.metrics import intervals


def keep(world: World) -> None:
    """What upkeep does at the end of a week."""
    now = world.clock.now()
    retrain = Retrain(decay=0.04)
    seen = watch(world.home, loop_name=LOOP, monitor=Monitor(), retrain=retrain, outcome=OUTCOME, until=now)
    for quality in seen.qualities:
        found = account(
            world.home, loop_name=LOOP, scope=SCOPE, outcome=OUTCOME, start=quality.start, end=quality.end, known_at=now
        )
        if found is not None:
            world.home.ledger.put(found, loop=LOOP, key=quality.start.isoformat())


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Four weeks: quiet, quiet with another package, silent, drifted."""
    world = World(tmp_path_factory.mktemp("lived"))
    for number in range(4):
        if number == 1:
            world.release(package(world.home, weight=0.17, as_of=world.clock.now()))
        if number == 2:
            world.clock.advance(WEEK)
        else:
            world.week(number, shift=20.0 if number == 3 else 0.0)
        keep(world)
    return world


def build(world: World, scope: Scope = SCOPE, monitor: Monitor = Monitor()) -> Report:  # noqa: B008  # a frozen value
    return report(world.home, loop_name=LOOP, scope=scope, outcome=OUTCOME, monitor=monitor)


def test_every_objective_has_its_target_its_measure_and_a_verdict(lived: World) -> None:
    told = {p.objective: p for p in build(lived).promised}
    assert list(told) == ["catch late flights", "answer at once", "no airport left out"]
    caught = told["catch late flights"]
    assert (caught.owner, caught.target, caught.met) == ("operations", "at least 0.6", "met")
    assert caught.expected == pytest.approx(lived.package.evaluation.metrics["average_precision"].value)
    assert caught.measured is not None
    assert caught.measured.low < caught.measured.value < caught.measured.high
    latency, newest = told["answer at once"].measured, told["answer at once"].now
    assert latency is not None
    assert newest is not None
    assert latency.value == newest.value == pytest.approx(0.04)
    assert (latency.n, newest.n) == (3000, 1000)
    gap = told["no airport left out"].measured
    assert gap is not None
    assert 0 <= gap.value < 0.3


def test_life_is_of_all_rows_together_and_now_of_the_newest_window(lived: World) -> None:
    found = build(lived)
    caught = found.promised[0]
    rows = with_truth(lived.home, LOOP, OUTCOME, start=START, end=START + 4 * WEEK, known_at=lived.clock.now())
    rows = rows.filter(rows["_truth"].is_valid())
    qualities = [w.quality.metrics["average_precision"] for w in found.weeks if w.quality is not None and w.quality.metrics]
    assert caught.measured is not None
    assert caught.now is not None
    truth, score = rows["_truth"].to_numpy(), rows["_score"].to_numpy()
    assert caught.measured.value == pytest.approx(average_precision_score(truth, score))
    assert caught.measured.value != pytest.approx(np.mean([q.value for q in qualities]), abs=1e-3), "no mean of weekly ones"
    assert caught.measured.high - caught.measured.low > caught.now.high - caught.now.low, "what weeks differ by is in it"
    assert caught.now.value == pytest.approx(qualities[-1].value)
    assert (caught.when, found.now) == ("week to 2024-04-01", "week to 2024-04-01")


def test_gap_between_slices_is_of_all_rows_together(lived: World) -> None:
    found = build(lived)
    gap = next(p for p in found.promised if p.metric == "recall_gap:origin")
    rows = with_truth(lived.home, LOOP, OUTCOME, start=START, end=START + 4 * WEEK, known_at=lived.clock.now())
    rows = rows.filter(rows["_truth"].is_valid())
    truth, score, label, origin, unit = (rows[n].to_numpy() for n in ("_truth", "_score", "_label", "origin", "_unit"))
    slices = {"origin": origin.astype(str)}
    assert gap.measured is not None
    assert gap.now is not None
    assert gap.measured.value == pytest.approx(
        intervals([gap.metric], truth, score, label.astype(bool), slices=slices, units=unit, seed=0)[gap.metric].value, abs=1e-9
    )
    assert (gap.measured.n, gap.now.n) == (3000, 2000), "one week has too few rows of an airport"


def test_objective_that_is_missed_now_is_not_met_by_its_life(lived: World) -> None:
    caught = build(lived).promised[0]
    assert caught.measured is not None
    assert caught.now is not None
    between = (caught.measured.value + caught.now.value) / 2
    bound = {"at_most": between} if caught.now.value > between else {"at_least": between}
    scope = msgspec.structs.replace(SCOPE, objectives=[Objective("kept once", "x", "average_precision", **bound)])
    found = build(lived, scope)
    assert scope.objectives[0].met(caught.measured.value)
    assert found.promised[0].met == "missed"
    assert found.headline.startswith("0 of 1 objective are met now (week to 2024-04-01)")
    assert "“kept once” is missed now." in [d.text for d in found.doubts]


def test_ladder_names_what_serves_and_apart_who_won_and_does_not(lived: World) -> None:
    serving = build(lived).served[-1].package
    old = sample.leaderboard()
    rows = [msgspec.structs.replace(old.rows[0], package=serving), *old.rows[1:]]
    lived.home.ledger.put(
        msgspec.structs.replace(old, rows=rows, winner=serving, verdict="it won its place"), loop=LOOP, key="t1"
    )
    found = build(lived)
    assert (found.serves.partition(", as of")[0], found.other_winner) == (
        f"{found.served[-1].candidate} ({serving[:12]}) serves",
        "",
    )
    assert found.serves.endswith("it won its place")
    lived.home.ledger.put(msgspec.structs.replace(old, turn="t2", verdict="a larger comparison"), loop=LOOP, key="t2")
    found = build(lived)
    assert found.serves.endswith("it won its place")
    assert found.other_winner.startswith(f"lightgbm ({old.winner[:12]}) of ")
    assert "does not serve" in found.other_winner
    assert "larger comparison" not in markdown(found)
    assert "Newest turn&#x27;s winner" in html(found)


def test_values_with_too_few_rows_to_be_shown_are_named(lived: World) -> None:
    last = lived.home.ledger.find(Quality, loop=LOOP)[0].record
    few = msgspec.structs.replace(last, small_groups={"origin": {"TEB": 7}})
    lived.home.ledger.put(few, loop=LOOP, key=last.start.isoformat())
    found = build(lived)
    lived.home.ledger.put(last, loop=LOOP, key=last.start.isoformat())
    assert "| Too few rows to show | origin: TEB (7) |" in markdown(found)


def test_a_target_inside_the_interval_is_uncertain_and_one_beyond_it_missed(lived: World) -> None:
    measured = build(lived).promised[0].now
    assert measured is not None
    inside = Objective("a", "x", "average_precision", at_least=measured.value + 0.0001)
    beyond = Objective("b", "x", "average_precision", at_least=measured.high + 0.001)
    below = Objective("c", "x", "average_precision", at_most=measured.low - 0.001)
    worth = Objective("d", "x", "value_per_prediction", at_least=-1000)  # three weeks, one drifted: the interval is wide
    size = Objective("e", "x", "size_bytes", at_most=10)
    slow = Objective("f", "x", "latency_p50_us", at_most=39)
    unknown = Objective("g", "x", "recall_gap:nothing", at_most=0.1)
    scope = msgspec.structs.replace(SCOPE, objectives=[inside, beyond, below, worth, size, slow, unknown])
    found = {p.objective: p.met for p in build(lived, scope).promised}
    assert found == {
        "a": "uncertain",
        "b": "missed",
        "c": "missed",
        "d": "met",
        "e": "missed",
        "f": "missed",
        "g": "not measured",
    }


def test_objectives_are_too_few_to_judge_below_the_minimum_of_monitoring(lived: World) -> None:
    """Also where one slice alone would be under it; what is measured on the package needs no rows."""
    size = Objective("small", "x", "size_bytes", at_most=10**9)
    night = Objective("nights too", "x", "recall_gap:night", at_most=1)
    scope = msgspec.structs.replace(SCOPE, objectives=[*SCOPE.objectives, size, night])
    found = build(lived, scope, Monitor(minimum_rows=3001))
    assert [p.met for p in found.promised] == ["too few", "too few", "too few", "met", "too few"]
    assert [p.met_text for p in found.promised[:2]] == ["too few (1,000 of 3,001)", "too few (1,000 of 3,001)"]
    assert found.headline.startswith("1 of 5 objectives is met now (week to 2024-04-01), 4 are not settled yet")
    assert "“catch late flights”: too few (1,000 of 3,001)" in markdown(found)
    assert "| too few (1,000 of 3,001) |" in markdown(found)
    nights = found.promised[4].rows
    assert 0 < nights < 900
    assert build(lived, scope, Monitor(minimum_rows=nights)).promised[4].met == "met"
    assert build(lived, scope, Monitor(minimum_rows=nights + 1)).promised[4].met == "too few"
    assert [p.met for p in build(lived, scope, Monitor(minimum_rows=nights + 1)).promised[:2]] == ["met"] * 2


def test_windows_with_too_few_outcomes_do_not_add_up_to_enough(lived: World) -> None:
    """Twenty windows of four rows, each without a spread, are no 80 rows: the window that monitoring cannot judge does not count."""
    last = lived.home.ledger.find(Quality, loop=LOOP)[0].record
    lived.home.ledger.put(msgspec.structs.replace(last, with_outcome=900), loop=LOOP, key=last.start.isoformat())
    found = build(lived)
    known = [w.quality for w in found.weeks if w.quality is not None and w.quality.with_outcome]
    assert [q.with_outcome for q in known] == [1000, 1000, 900]
    thin = build(lived, monitor=Monitor(minimum_rows=901)).promised[0].measured
    lived.home.ledger.put(last, loop=LOOP, key=last.start.isoformat())
    assert thin is not None
    assert (thin.n, found.promised[0].rows) == (2000, 900)


def test_four_outcomes_meet_no_objective(tmp_path: Path) -> None:
    world = World(tmp_path)
    asked = rows(4, START)
    world.predict(asked)
    world.tell(asked, truths(asked))
    world.clock.advance(WEEK)
    keep(world)
    found = build(world, monitor=Monitor(minimum_rows=20))
    assert found.totals.with_outcome == 4
    assert {p.met_text for p in found.promised if p.metric != "recall_gap:origin"} == {"too few (4 of 20)"}
    assert found.headline.startswith("0 of 3 objectives are met now (week to 2024-03-11), 3 are not settled yet. ")
    assert not any("worth less" in d.text or "includes zero" in d.text for d in found.doubts), "money of four rows is chance"


def test_outcomes_within_their_wait_are_not_known_yet_and_later_ones_missing(tmp_path: Path) -> None:
    """Of the first week every second outcome comes; the last hours of the third are still waited for, and no objective rests on it."""
    world = World(tmp_path)
    first = rows(1000, START)
    world.predict(first)
    world.tell(first[::2], truths(first[::2]))
    world.clock.advance(2 * WEEK)
    last = rows(800, START + 2 * WEEK, seed=2)
    world.predict(last)
    world.tell(last[:700], truths(last)[:700])
    world.clock.advance(WEEK)
    keep(world)
    found = build(world)
    pending = sum(r["at"] > (world.clock.now() - WAIT).timestamp() * 1e6 for r in last)
    assert pending > 10
    assert (found.totals.with_outcome, found.totals.pending) == (1200, pending)
    assert found.totals.missing == 500 + 100 - pending
    assert f"1,200 with a known outcome, {pending} not known yet (wait 3h), {600 - pending} missing" in markdown(found)
    assert [d.text for d in found.doubts if "% of predictions" in d.text]
    quality = found.weeks[-1].quality
    assert quality is not None
    assert (quality.with_outcome, quality.state, quality.state_text) == (700, "no data", "provisional (until 2024-03-25)")
    assert found.promised[0].rows == 500, "the provisional window does not count"


def test_totals_are_the_sums_of_the_newest_accounts(lived: World) -> None:
    found = build(lived)
    values = [w.value for w in found.weeks if w.value is not None]
    assert len(values) == 3
    assert found.totals.predictions == 3000
    assert found.totals.model.value == pytest.approx(sum(v.over_no_model.value for v in values))
    assert found.totals.over_heuristic.value == pytest.approx(found.totals.model.value - found.totals.heuristic.value)
    assert found.totals.days == 28


def test_a_report_counts_predictions_as_status_does_and_shows_no_money_before_outcomes(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.predict(rows(40, START))
    found = build(world)
    assert found.logged == summary(world.home, LOOP)[0] == 40
    text = markdown(found)
    assert "40; 0 in windows accounted for: 0 with a known outcome, 0 not known yet (wait 3h), 0 missing" in text
    assert "Money" not in text
    assert "Over no model" not in html(found).partition("Window by window")[0]


def test_the_newest_revision_of_each_window_counts(lived: World) -> None:
    found = weeks(lived.home, LOOP)
    assert [w.start for w in found] == [START + n * WEEK for n in range(4)]
    assert found[0].quality is not None
    assert found[0].quality.with_outcome == 1000
    assert {w.quality.mature_at for w in found if w.quality is not None} == {None}


def test_adding_keeps_the_interval_of_independent_parts() -> None:
    assert added([Estimate(10.0, 8.0, 12.0, 100)] * 4) == Estimate(40.0, 36.0, 44.0, 400)


def quiet(**changes: Any) -> Window:
    base = Window(
        start=START,
        end=START + WEEK,
        rows=5000,
        state="ok",
        reference="p",
        packages={"p": 5000},
        degraded=0.0,
        flags={},
        columns=[],
        drifted=[],
    )
    return msgspec.structs.replace(base, **changes)


def measured(state: str = "ok") -> Quality:
    return Quality(
        start=START,
        end=START + WEEK,
        known_at=START + WEEK,
        rows=5000,
        with_outcome=4900,
        state=state,  # type: ignore[arg-type]  # each state in turn
        metrics={},
        slices={},
        by_package={},
    )


def case(
    window: Window | None = None,
    quality: Quality | None = None,
    met: Met = "met",
    worth: Value = Value(true_positive=1),  # noqa: B008  # a frozen value
    **totals: Any,
) -> CaveatInputs:
    sums = Totals(
        currency="USD",
        predictions=5000,
        with_outcome=4900,
        pending=0,
        model=Estimate(900.0, 800.0, 1000.0, 4900),
        heuristic=Estimate(500.0, 400.0, 600.0, 4900),
        over_heuristic=Estimate(400.0, 300.0, 500.0, 4900),
        cost=0.1,
        days=7.0,
    )
    promise = Promise(
        objective="goal",
        owner="desk",
        metric="recall",
        target="",
        expected=None,
        now=None,
        measured=None,
        met=met,
    )
    scope = Scope(
        problem="p", objectives=SCOPE.objectives, heuristic=Heuristic("x"), value=worth, budget=Budget(usd_per_month=10)
    )
    week = WindowTotals(start=START, end=START + WEEK, window=window or quiet(), quality=quality or measured(), value=None)
    return CaveatInputs("late", scope, [week], msgspec.structs.replace(sums, **totals), [promise])


RAISED: list[tuple[CaveatInputs, str, str]] = [
    (case()._replace(weeks=[]), "grave", "no monitoring window"),
    (case(quiet(rows=0, state="no data")), "grave", "no prediction was asked for"),
    (case(with_outcome=0), "grave", "no outcome is known"),
    (case(with_outcome=0, pending=5000), "note", "no outcome is known yet, and none is overdue"),
    (case(with_outcome=4000), "note", "20% of predictions that should have an outcome by now"),
    (case(quality=measured("decayed")), "grave", "1 of 1 windows that could be judged"),
    (case(over_heuristic=Estimate(-9.0, -12.0, -6.0, 4900)), "grave", "worth less than the simple rule"),
    (case(over_heuristic=Estimate(9.0, -1.0, 19.0, 4900)), "grave", "includes zero"),
    (case(worth=Value()), "note", "no value table"),
    (case(met="missed"), "grave", "“goal” is missed now"),
    (case(met="uncertain"), "note", "“goal”: uncertain"),
    (case(quiet(degraded=0.02)), "grave", "2.0% of answers"),
    (case(cost=50.0), "grave", "over the budget"),
    (case(predictions=600, with_outcome=590), "note", "only 590 outcomes"),
    (case(quiet(state="drift", drifted=["wind"])), "note", "1 of 1 windows, last wind"),
]


@pytest.mark.parametrize(("given", "weight", "text"), RAISED, ids=[text for _, _, text in RAISED])
def test_each_doubt_is_raised_by_what_it_is_about_and_says_what_to_do(given: CaveatInputs, weight: str, text: str) -> None:
    found = [d for d in doubts(given) if text.lower() in d.text.lower()]
    assert [d.weight for d in found] == [weight]
    assert found[0].do
    if weight == "grave":
        assert next_step(given, doubts(given)) == doubts(given)[0].do


def test_pending_outcomes_are_not_missing() -> None:
    assert doubts(case(with_outcome=4000, pending=1000)) == []
    assert [d.weight for d in doubts(case(with_outcome=0, pending=4999)) if "no outcome is known" in d.text.lower()] == [
        "grave"
    ]


def test_silence_is_not_said_while_predictions_come() -> None:
    empty = case(quiet(rows=0, state="no data"))
    silent = empty._replace(last_prediction=START - timedelta(minutes=5))
    [doubt] = [d for d in doubts(silent) if "was asked for" in d.text]
    assert "since 03 March 2024 23:55 UTC" in doubt.text
    asked = empty._replace(last_prediction=START + WEEK + timedelta(minutes=5))
    assert not any("no predictions" in d.text or "was asked for" in d.text for d in doubts(asked)), "nor before it began"
    paused = asked._replace(weeks=[case().weeks[0], *asked.weeks])
    assert "1 of 2 windows since the first prediction had no predictions at all." in [d.text for d in doubts(paused)]


def test_a_month_is_not_told_from_less_than_a_day() -> None:
    """Three minutes of training in a quarter of an hour are no 1,000 USD a month."""
    few = case(cost=50.0, days=0.01)
    assert few.totals.cost_per_month is None
    assert not any("budget" in d.text for d in doubts(few))
    assert case(cost=50.0, days=1.0).totals.cost_per_month == 1500


def test_compute_names_its_price_and_a_month_only_of_a_day(lived: World) -> None:
    found = build(lived)
    assert "a month (budget 10.00); at the default price, 0.10 USD a machine hour" in markdown(found)
    short = msgspec.structs.replace(
        found, totals=msgspec.structs.replace(found.totals, days=0.5), budget=Budget(usd_per_hour=2.5)
    )
    assert "USD, no figure for a month before a day is accounted for; at 2.50 USD a machine hour" in markdown(short)


def test_a_loop_that_serves_its_rule_is_not_told_to_serve_it() -> None:
    loses = case(over_heuristic=Estimate(-9.0, -12.0, -6.0, 4900))
    assert any("less than the simple rule" in d.text for d in doubts(loses))
    assert doubts(loses._replace(rule=True)) == []


def test_when_all_is_well_nothing_is_doubted_and_grave_doubts_come_first() -> None:
    assert doubts(case()) == []
    assert next_step(case(), []).startswith("Keep it serving")
    both = doubts(case(quiet(state="drift", drifted=["wind"]), met="missed"))
    assert [d.weight for d in both] == ["grave", "note"]
    assert len(DOUBTS) >= 10


def test_markdown_has_the_four_parts_and_the_figures(lived: World) -> None:
    found = build(lived)
    text = markdown(found)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE)[:4] == ["Promised", "Delivered", "Doubts", "Next step"]
    assert f"{found.totals.model.value:,.0f} USD" in text
    assert "1 of 4 windows since the first prediction had no predictions" in text
    assert "| Drift | Average precision " in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line in rows:
        assert line.count("|") - line.count("\\|") in (3, 6, 8, 9), line


class Page(HTMLParser):
    """The tags of a page, and whether each that is opened is closed."""

    VOID = ("meta", "link", "br", "img", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_one_well_formed_file_with_three_charts_and_needs_nothing_from_elsewhere(lived: World) -> None:
    text = html(build(lived))
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    addresses = [v for k, v in page.attributes if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
    assert addresses == []
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(svg)
    assert "$" not in re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)


def test_what_users_write_is_shown_and_never_run(tmp_path: Path) -> None:
    world = World(tmp_path)
    evil = "<script>alert(1)</script> | [x](javascript:y) $loop ${made}"
    objectives = [Objective(evil, owner=evil, metric="average_precision", at_least=0.5)]
    found = build(world, msgspec.structs.replace(SCOPE, problem=evil, objectives=objectives))
    page = html(found)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "$loop ${made}" in page
    line = next(x for x in markdown(found).splitlines() if x.startswith("| –"))
    assert line.count("|") - line.count("\\|") == 9
    assert "[x](" not in line


def test_before_anything_happened_the_report_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    found = build(world)
    assert found.doubts[0].weight == "grave"
    assert "until the first window of 7d is over" in found.next_step
    assert "| Predictions | none yet |" in markdown(found)
    assert "not accounted for yet" in markdown(found), "no cost of 0.00 where nobody looked"
    assert {p.met for p in found.promised} == {"not measured"}
    assert "Nothing to draw yet" in html(found)
    assert "No window has closed yet" in markdown(found)


@pytest.mark.parametrize("form", [markdown, html])
def test_the_same_ledger_gives_the_same_report(lived: World, form: Callable[[Report], str]) -> None:
    first, second = (re.sub(r"gradient_\d+", "gradient", form(build(lived))) for _ in range(2))
    assert first == second
