import math
import xml.etree.ElementTree as ET
from datetime import timedelta

import msgspec
import numpy as np
import pytest
from scipy import stats
from tests.console import sample

from loopwright.console import charts
from loopwright.records.evaluation import Estimate
from loopwright.records.windows import newest_stretch


@pytest.mark.parametrize("chart", list(charts.CHARTS))
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_charts_are_drawn(chart: str, size: charts.Size) -> None:
    light = charts.svg(sample.loop_page(), chart, size=size, theme="light")
    root = ET.fromstring(light)
    assert root.tag.endswith("svg")
    assert int(float(root.attrib["width"])) <= charts.WIDTH[size] + 4
    assert charts.PALETTE["light"]["ink"] in light
    assert charts.PALETTE["dark"]["ink"] in charts.svg(sample.loop_page(), chart, size=size, theme="dark")


def test_the_quality_chart_names_target_and_packages() -> None:
    drawn = charts.svg(sample.loop_page(), "quality", size="wide", theme="light")
    assert "target 0.8" in drawn
    assert sample.PACKAGES[1][:6] in drawn


def test_the_drift_chart_names_the_worst_columns_first() -> None:
    text = [e.text for e in ET.fromstring(charts.svg(sample.loop_page(), "drift", size="wide", theme="light")).iter() if e.text]
    shown = [t for t in text if t in sample.COLUMNS]
    assert set(shown[:3]) == {"visibility", "wind_speed", "precip"}


def test_nothing_to_show_is_no_chart() -> None:
    page = msgspec.structs.replace(sample.loop_page(), windows=[], quality=[], values=[], leaderboard=None)
    assert charts.available(page) == []
    assert charts.available(sample.loop_page()) == ["quality", "drift", "value", "reliability"]


def test_one_window_is_enough() -> None:
    full = sample.loop_page()
    page = msgspec.structs.replace(full, windows=full.windows[:1], quality=full.quality[:1], values=full.values[:1])
    for chart in charts.available(page):
        assert charts.svg(page, chart, size="narrow", theme="light").startswith("<svg")


def test_names_from_data_do_not_become_markup() -> None:
    page = sample.loop_page()
    evil = "</text><script>alert(1)</script>"
    column = msgspec.structs.replace(page.windows[0].columns[0], column=evil)
    window = msgspec.structs.replace(page.windows[0], columns=[column])
    drawn = charts.svg(msgspec.structs.replace(page, windows=[window]), "drift", size="wide", theme="light")
    assert "<script" not in drawn


def test_money_adds_up_and_its_interval_is_that_of_independent_windows() -> None:
    page = sample.loop_page()
    total = charts.money(page)
    assert total is not None
    assert total.more.value == pytest.approx(total.loop - total.heuristic)
    money, rows = (np.array([getattr(v.over_heuristic, name) for v in page.values], dtype=float) for name in ("value", "n"))
    off, n = money - money.sum() * rows / rows.sum(), len(money)
    half = stats.t.ppf(0.975, n - 1) * math.sqrt(n / (n - 1) * (off**2).sum())
    assert total.more.high - total.more.value == pytest.approx(max(half, 1500 * math.sqrt(n)), rel=1e-3)


def test_money_is_shown_neither_without_a_value_table_nor_without_outcomes() -> None:
    page = sample.loop_page()
    none = [msgspec.structs.replace(v, with_outcome=0) for v in page.values]
    for silent in (
        msgspec.structs.replace(page, values=[]),
        msgspec.structs.replace(page, values=none),
        msgspec.structs.replace(page, valued=False),
    ):
        assert charts.money(silent) is None
        assert "value" not in charts.available(silent)


def test_the_metric_is_the_first_objective_that_is_measured() -> None:
    page = sample.loop_page()
    assert charts.metric_of(page) == "average_precision"
    other = [msgspec.structs.replace(q, metrics={"roc_auc": Estimate(0.9, 0.8, 1.0, 10)}) for q in page.quality]
    assert charts.metric_of(msgspec.structs.replace(page, quality=other)) == "roc_auc"
    assert charts.metric_of(msgspec.structs.replace(page, quality=[])) == ""


def test_a_silence_of_years_does_not_squeeze_the_year_before_it() -> None:
    page = sample.loop_page()
    last = page.windows[-1]
    silence = msgspec.structs.replace(
        last, start=last.end, end=last.end + timedelta(weeks=600), rows=0, state="no data", columns=[], drifted=[]
    )
    silent = msgspec.structs.replace(page, windows=[*page.windows, silence])
    again = msgspec.structs.replace(silence, start=silence.end, end=silence.end + timedelta(weeks=1), rows=900)
    for chart in charts.CHARTS:
        assert charts.svg(silent, chart, size="wide", theme="light") == charts.svg(page, chart, size="wide", theme="light")
    assert newest_stretch([*silent.windows, again]) == [again]
