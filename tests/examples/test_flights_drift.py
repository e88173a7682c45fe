"""Drift on the real data: the year of the demo raises few alarms, and a fault planted in one column is seen in its first window."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from loopwright import Home
from loopwright.base.arrays import Array
from loopwright.base.settings import Settings
from loopwright.deploy.releases import history
from loopwright.graph.columns import arrow_feed
from loopwright.loop import load_loop
from loopwright.monitor.drift.baseline import derived_features, drift_baseline
from loopwright.monitor.drift.impact import Impact
from loopwright.monitor.inputs import DriftContext, main_package, window
from loopwright.records.windows import Alert, Window
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.stores.prediction_log.read import predictions
from loopwright.tasks.metrics import answered
from loopwright.verbs.demo import demo, example

pytestmark = pytest.mark.slow

LOOP = load_loop(example("flights"))
SPRING, AUTUMN = datetime(2013, 4, 29, tzinfo=UTC), datetime(2013, 9, 9, tzinfo=UTC)
WEEK = timedelta(days=7)
IMPORTANT = ("dep_delay", "scheduled_minutes")
Fault = Callable[[Array], Array]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    with Home(Settings(home=tmp_path_factory.mktemp("demo"), by="tests")) as opened:
        demo(opened)
        yield opened


class Planted:
    """A window of the demo's year, in which a column can be broken."""

    def __init__(self, home: Home, start: datetime) -> None:
        self._start = start
        self.rows = predictions(home, LOOP.name, start=start, end=start + WEEK)
        self._package: Probed = open_probed(home.packages, main_package(self.rows))
        self._baseline = drift_baseline(home, LOOP.name, self._package, LOOP.monitor)
        windows = [e.record for e in home.ledger.find(Window, loop=LOOP.name, limit=100)]
        self._previous = sorted((w for w in windows if w.end <= start), key=lambda w: w.start, reverse=True)[:8]

    def __call__(self, column: str, fault: Fault) -> Window:
        """The window as it is judged when every value of the column went through the fault before it was answered."""
        values = fault(pc.fill_null(self.rows[column].cast(pa.float64()), float("nan")).to_numpy().copy())
        kind = self.rows.schema.field(column).type
        broken = pa.array(np.nan_to_num(values), mask=np.isnan(values)).cast(kind, safe=False)
        return self.judged(self.rows.set_column(self.rows.column_names.index(column), column, broken))

    def judged(self, rows: pa.Table) -> Window:
        """Answer the rows, flag them, and judge the window."""
        manifest, graph = self._package.manifest, self._package.graph("model.onnx")
        said = graph.run(arrow_feed(graph, self._package.columns, rows), ["score"])["score"]
        given = answered(manifest.output, said, None, manifest.threshold)
        for name, array in (("_score", pa.array(given.score)), ("_flags", self._flags(rows))):
            rows = rows.set_column(rows.column_names.index(name), name, array)
        features = {name: parts[0] for name, parts in derived_features(self._package, [rows]).items()}
        context = DriftContext(self._baseline, self._previous, features, Impact(self._package, rows))
        return window(rows, self._package, LOOP.monitor, self._start, self._start + WEEK, context)

    def _flags(self, rows: pa.Table) -> pa.Array:
        flags: list[list[str]] = [[] for _ in range(rows.num_rows)]
        for name, column in self._package.columns.items():
            if column.minimum is None or column.maximum is None:
                continue
            out = pc.or_(pc.less(rows[name], column.minimum), pc.greater(rows[name], column.maximum))
            for i in np.flatnonzero(pc.fill_null(out, False).to_numpy()):
                flags[i].append(f"out_of_range:{name}")
        return pa.array(flags, pa.list_(pa.string()))


@pytest.fixture(scope="module")
def weeks(home: Home) -> dict[datetime, Planted]:
    return {start: Planted(home, start) for start in (SPRING, AUTUMN)}


def nulls(values: Array) -> Array:
    """30 % nulls."""
    return np.where(np.random.default_rng(0).random(len(values)) < 0.3, np.nan, values)


FAULTS: dict[str, Fault] = {
    "Fahrenheit as Celsius": lambda v: (v - 32) / 1.8,
    "stuck": lambda v: np.full_like(v, v[np.isfinite(v)][0]),
    "sign flipped": lambda v: -v,
    "miles per hour as metres per second": lambda v: v * 0.44704,
    "15 more": lambda v: v + 15,
    "minutes as seconds": lambda v: v * 60,
    "miles as kilometres": lambda v: v * 1.609,
}


def test_year_of_the_demo_raises_three_alarms_of_drift_at_most(home: Home) -> None:
    states = [e.record.state for e in home.ledger.find(Alert, loop=LOOP.name, key="drift", newest=False, limit=1000)]
    raised = sum(now == "open" and before != "open" for before, now in zip(["closed", *states], states, strict=False))
    assert 1 <= raised <= 3


def test_weeks_are_judged_as_the_demo_judged_them(home: Home, weeks: dict[datetime, Planted]) -> None:
    for start, planted in weeks.items():
        recorded = home.ledger.latest(Window, loop=LOOP.name, key=start.isoformat())
        assert recorded is not None
        again = planted.judged(planted.rows)
        assert [(c.column, c.state, c.measures) for c in again.columns] == [
            (c.column, c.state, c.measures) for c in recorded.record.columns
        ]
        assert again.state != "drift", "or a fault shows nothing"


@pytest.mark.parametrize("start", [SPRING, AUTUMN])
@pytest.mark.parametrize("column", IMPORTANT)
@pytest.mark.parametrize("name", FAULTS)
def test_fault_in_an_important_column_is_drift_in_one_window(
    weeks: dict[datetime, Planted], name: str, column: str, start: datetime
) -> None:
    found = weeks[start](column, FAULTS[name])
    assert found.state == "drift"
    assert column in found.drifted


@pytest.mark.parametrize("start", [SPRING, AUTUMN])
def test_nulls_in_an_important_column_are_drift_in_one_window(weeks: dict[datetime, Planted], start: datetime) -> None:
    found = weeks[start]("carrier_delay", nulls)
    assert (found.state, found.drifted[0]) == ("drift", "carrier_delay")
    assert {f.measure for c in found.columns if c.column == "carrier_delay" for f in c.findings} >= {"nulls"}


UNIMPORTANT = [
    ("humidity", "Fahrenheit as Celsius"),
    ("humidity", "stuck"),
    ("humidity", "sign flipped"),
    ("humidity", "15 more"),
    ("humidity", "miles per hour as metres per second"),
    ("wind_speed", "stuck"),
    ("hour", "Fahrenheit as Celsius"),
    ("hour", "15 more"),
    ("temperature", "minutes as seconds"),
]


@pytest.mark.parametrize(("column", "name"), UNIMPORTANT)
def test_fault_in_an_unimportant_column_is_a_note(weeks: dict[datetime, Planted], column: str, name: str) -> None:
    found = weeks[AUTUMN](column, FAULTS[name])
    assert column in found.noted
    assert column not in found.drifted
    assert found.state != "drift"


@pytest.mark.parametrize("column", ["humidity", "temperature", "visibility"])
def test_nulls_in_an_unimportant_column_are_a_note(weeks: dict[datetime, Planted], column: str) -> None:
    found = weeks[AUTUMN](column, nulls)
    assert (found.state, found.noted) == ("watch", [column])


def test_retrained_packages_take_over_step_by_step(home: Home) -> None:
    states = [entry.record for entry in history(home, LOOP.name)]
    retrained = [state for state in states if state.action == "release"][1:]
    assert len(retrained) >= 2
    assert all(state.shadow is not None and not state.is_divided for state in retrained)
    ended = [state for state in states if state.plan and state.under_way is None and state.action == "advance"]
    assert {state.champion.package for state in ended} <= {state.shadow.package for state in retrained if state.shadow}
    assert len(ended) >= len(retrained) - 1, "the last one is under way when the data end"
