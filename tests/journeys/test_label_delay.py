"""A stationary world in which positives are known the same day and negatives after a week: nothing is promised or judged too well or too ill."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import average_precision_score
from tests.traffic import LOOP, OUTCOME, START, WEEK, World, rows, truths

from loopwright import Column, Home, Outcome, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import DeclarationInvalid
from loopwright.base.settings import Settings
from loopwright.data.examples.build import build
from loopwright.data.ingest.ingestion import ingest
from loopwright.graph.columns import arrow_schema
from loopwright.monitor.windows import watch
from loopwright.records.declarations import Monitor, Retrain
from loopwright.records.windows import Alert, Quality, Trigger
from loopwright.stores.examples import read_examples

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RENEWALS = Table(
    "renewals",
    {"customer": Column("string"), "asked_at": Column("timestamp"), "idle": Column("float")},
    key=["customer"],
    event_time="asked_at",
)
LEFT = Table(
    "cancellations",
    {"customer": Column("string"), "known_at": Column("timestamp"), "left": Column("boolean")},
    key=["customer"],
    event_time="known_at",
)


def renewals(
    home: Home, *, count: int = 6000, events_only: bool = False, until: datetime = NOW
) -> tuple[np.ndarray, np.ndarray]:
    """Ingest 60 days of renewals; the feature [N] and the truth [N] of all. `events_only`: who stays has no row.

    Of what became known after `until` then nothing arrives.
    """
    rng = np.random.default_rng(7)
    idle = rng.normal(size=count)
    left = rng.random(count) < 1 / (1 + np.exp(2.0 - 1.2 * idle))
    at = [NOW - timedelta(days=float(d)) for d in np.sort(rng.uniform(0, 60, count))[::-1]]
    asked = [{"customer": f"c{i}", "asked_at": t, "idle": float(x)} for i, (t, x) in enumerate(zip(at, idle, strict=True))]
    came = [t + (timedelta(hours=2) if x else timedelta(days=7)) for t, x in zip(at, left, strict=True)]
    known = [
        {"customer": f"c{i}", "known_at": t, "left": bool(x)}
        for i, (t, x) in enumerate(zip(came, left, strict=True))
        if not events_only or (x and t <= until)
    ]
    for table, given in ((RENEWALS, asked), (LEFT, known)):
        ingest(home, table, pa.Table.from_pylist(given, arrow_schema(table.columns)))
    return idle, left


@pytest.mark.parametrize("events_only", [False, True])
def test_promise_on_the_newest_examples_is_that_of_the_world(tmp_path: Path, events_only: bool) -> None:
    """Without the wait the newest fortnight had twice as many leavers, and an average precision far above the truth."""
    outcome = Outcome(LEFT, '"left"', wait="8d", absent="false" if events_only else None)
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(NOW)) as home:
        idle, left = renewals(home, events_only=events_only)
        made = build(home, loop_name="churn", requests=RENEWALS, context=[], outcome=outcome, as_of=NOW)
        found = read_examples(home, made.digest)
    decided = found["_decided_at"].to_pylist()
    assert max(decided) <= NOW - timedelta(days=8)
    assert made.excluded == {"outcome pending": len(left) - made.rows}
    newest = [i for i, t in enumerate(decided) if t > max(decided) - timedelta(days=14)]
    label, score = (np.array(found[n].to_pylist())[newest] for n in ("_label", "idle"))
    truth = average_precision_score(left, idle)
    rng = np.random.default_rng(0)
    drawn = [average_precision_score(label[i], score[i]) for i in (rng.integers(0, len(label), len(label)) for _ in range(200))]
    assert np.quantile(drawn, 0.005) < truth < np.quantile(drawn, 0.995)
    assert abs(label.mean() - left.mean()) < 3 * np.sqrt(left.mean() * (1 - left.mean()) / len(label))


@pytest.mark.parametrize("days", [3, 20])
def test_absence_is_no_label_of_an_example_once_outcomes_stop_to_arrive(tmp_path: Path, days: int) -> None:
    """The label of every later decision was "false": a scheduled retraining learnt that nobody leaves any more."""
    outcome, stop = Outcome(LEFT, '"left"', wait="8d", absent="false"), NOW - timedelta(days=days)
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(NOW)) as home:
        _, left = renewals(home, events_only=True, until=stop)
        made = build(home, loop_name="churn", requests=RENEWALS, context=[], outcome=outcome, as_of=NOW)
        found = read_examples(home, made.digest)
        early = build(home, loop_name="churn", requests=RENEWALS, context=[], outcome=outcome, as_of=stop + timedelta(hours=1))
    assert set(early.excluded) == {"outcome pending"}, "an hour without one is nothing"
    assert made.excluded["outcomes stopped to arrive"] > 0
    assert made.rows + sum(made.excluded.values()) == len(left)
    assert max(found["_decided_at"].to_pylist()) <= stop - timedelta(days=8), "of later ones only those who left were known"
    label = np.array(found["_label"].to_pylist())
    assert label.mean() == pytest.approx(left.mean(), abs=3 * np.sqrt(left.var() / len(label)))


def test_stationary_weeks_start_no_retraining(tmp_path: Path) -> None:
    """Each window was measured on those known by then, nearly all positives, and decayed at once."""
    world = World(tmp_path)
    outcome, retrain = msgspec.structs.replace(OUTCOME, wait="8d"), Retrain(decay=0.05, cooldown="0s", every=None)
    for number in range(6):
        given = rows(700, START + number * WEEK)
        world.predict(given)
        delays = truths(given)
        for late, after in ((True, timedelta(hours=2)), (False, timedelta(days=7))):
            part = [(r, d) for r, d in zip(given, delays, strict=True) if (d > 15) == late]
            world.tell([r for r, _ in part], [d for _, d in part], after=after)
        world.clock.advance_to(START + (number + 1) * WEEK)
        until = world.clock.now()
        watch(world.home, loop_name=LOOP, monitor=Monitor(), retrain=retrain, outcome=outcome, until=until)
    newest: dict[str, Quality] = {e.key: e.record for e in world.home.ledger.find(Quality, loop=LOOP, newest=False)}
    states = [newest[key].state_text for key in sorted(newest)]
    assert states == ["ok"] * 4 + ["provisional (until 2024-04-16)", "provisional (until 2024-04-23)"]
    assert [newest[key].with_outcome for key in sorted(newest)[:4]] == [700] * 4
    assert world.home.ledger.find(Trigger, loop=LOOP) == []
    assert world.home.ledger.find(Alert, loop=LOOP, key="decay") == []


@pytest.mark.parametrize(
    ("absent", "more"),
    [("no", {}), ("1", {}), ("inf", {"task": "regression"}), ("0", {"task": "regression", "label": {"a": "1", "b": "2"}})],
)
def test_absent_that_is_no_label_of_the_task_is_refused(absent: str, more: dict[str, Any]) -> None:
    with pytest.raises(DeclarationInvalid, match="absent"):
        msgspec.structs.replace(Outcome(LEFT, '"left"'), absent=absent, **more)
