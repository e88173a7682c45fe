"""The charts of a loop's page: Vega-Lite specifications, turned into SVG here (by vl-convert), so a page needs no script.

Each chart comes in two sizes (wide and narrow screens) and two themes; a browser fetches the one that it needs.
"""

import functools
import json
import math
from typing import Any, Literal

import msgspec

from loopwright.records.evaluation import Estimate, added
from loopwright.records.windows import newest_stretch
from loopwright.verbs.results import LoopPage

Size = Literal["wide", "narrow"]
Theme = Literal["light", "dark"]

PALETTE: dict[str, dict[str, str]] = {
    "light": {
        "ink": "#3c4658",
        "faint": "#dfe3e8",
        "line": "#2f5fb3",
        "second": "#8a94a6",
        "ok": "#cfe3d6",
        "watch": "#e9b44c",
        "drift": "#c8453b",
        "no data": "#e8eaee",
    },
    "dark": {
        "ink": "#b9c2d0",
        "faint": "#2b3340",
        "line": "#7ea6f0",
        "second": "#7d8798",
        "ok": "#27463a",
        "watch": "#c9922e",
        "drift": "#dd6157",
        "no data": "#262c36",
    },
}
WIDTH: dict[Size, int] = {"wide": 1060, "narrow": 330}
MOST_COLUMNS = 16
"""The heat map shows the columns that drifted most, at most this many."""


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Value so far, in `currency`, over no model: the loop's and the heuristic's, and what the loop earned more."""

    currency: str
    windows: int
    loop: float
    heuristic: float
    more: Estimate


def money(page: LoopPage) -> Money | None:
    """Sums over windows, which are independent; None where no value table is declared, or no outcome is known."""
    values = page.values
    if not page.valued or not any(v.with_outcome for v in values):
        return None
    return Money(
        currency=values[-1].currency,
        windows=len(values),
        loop=sum(v.over_no_model.value for v in values),
        heuristic=sum(v.heuristic.value - v.no_model for v in values),
        more=added([v.over_heuristic for v in values]),
    )


def metric_of(page: LoopPage) -> str:
    """The metric of quality over time: that of the first objective which is measured on outcomes, else the first measured."""
    measured = list(dict.fromkeys(name for q in page.quality for name in q.metrics))
    wanted = [str(o["metric"]) for o in page.objectives]
    return next((name for name in wanted if name in measured), measured[0] if measured else "")


def available(page: LoopPage) -> list[str]:
    """The charts that there is something to show in."""
    has = {
        "quality": bool(metric_of(page)),
        "drift": any(w.columns for w in page.windows),
        "value": money(page) is not None,
    }
    return [name for name in CHARTS if has[name]]


def svg(page: LoopPage, chart: str, *, size: Size, theme: Theme) -> str:
    """One chart as an SVG document, of the time since predictions last fell silent for long. KeyError for an unknown chart."""
    spec = CHARTS[chart](_stretch(page), PALETTE[theme], narrow=size == "narrow")
    return _drawn(
        json.dumps({**spec, **_frame(size), "config": _config(PALETTE[theme], narrow=size == "narrow")}, sort_keys=True)
    )


def _stretch(page: LoopPage) -> LoopPage:
    windows = newest_stretch(page.windows)
    if len(windows) == len(page.windows):
        return page
    start, end = windows[0].start, windows[-1].end
    return msgspec.structs.replace(
        page,
        windows=windows,
        quality=[q for q in page.quality if start <= q.start < end],
        values=[v for v in page.values if start <= v.start < end],
    )


@functools.lru_cache(maxsize=64)
def _drawn(spec: str) -> str:
    import vl_convert

    drawn: str = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return drawn


def _frame(size: Size) -> dict[str, Any]:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": WIDTH[size],
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": "transparent",
        "padding": {"left": 10, "right": 4, "top": 2, "bottom": 2},
    }


def _config(colours: dict[str, str], *, narrow: bool) -> dict[str, Any]:
    axis = {
        "labelColor": colours["ink"],
        "titleColor": colours["ink"],
        "gridColor": colours["faint"],
        "domainColor": colours["faint"],
        "tickColor": colours["faint"],
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelLimit": 110 if narrow else 180,
    }
    legend = {
        "labelColor": colours["ink"],
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "symbolType": "square",
        "offset": 4,
    }
    return {
        "font": "system-ui, sans-serif",
        "axis": axis,
        "legend": legend,
        "view": {"stroke": None},
        "text": {"color": colours["ink"]},
    }


def _weeks(page: LoopPage, *, narrow: bool) -> dict[str, Any]:
    """The time axis: days, or months where a year must fit a narrow screen."""
    spans = page.windows or page.values
    months = narrow and bool(spans) and (spans[-1].end - spans[0].start).days > 120
    axis = {
        "format": "%b" if months else "%b %d",
        "tickCount": 8 if months else 4 if narrow else 10,
        "grid": False,
        "labelOverlap": "greedy",
        "labelSeparation": 10,
    }
    return {"field": "at", "type": "temporal", "title": None, "scale": {"type": "utc"}, "axis": axis}


def _quality(page: LoopPage, colours: dict[str, str], *, narrow: bool) -> dict[str, Any]:
    metric = metric_of(page)
    rows = []
    for quality in page.quality:
        found = quality.metrics.get(metric)
        known = found is not None and not math.isnan(found.value)
        rows.append(
            {
                "at": quality.end.isoformat(),
                "value": found.value if found and known else None,
                "low": found.low if found and known and not math.isnan(found.low) else None,
                "high": found.high if found and known and not math.isnan(found.high) else None,
                "state": quality.state,
            }
        )
    x = _weeks(page, narrow=narrow)
    y = {
        "type": "quantitative",
        "title": metric.replace("_", " "),
        "scale": {"zero": False, "nice": True},
        "axis": {"tickCount": 5},
    }
    layers: list[dict[str, Any]] = [
        *_release_rules(page, colours, x),
        {
            "mark": {"type": "area", "opacity": 0.16, "color": colours["line"]},
            "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "color": colours["line"], "strokeWidth": 2},
            "encoding": {"x": x, "y": {**y, "field": "value"}},
        },
        {
            "transform": [{"filter": "datum.value !== null"}],
            "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
            "encoding": {
                "x": x,
                "y": {**y, "field": "value"},
                "color": {
                    "condition": {"test": "datum.state === 'decayed'", "value": colours["drift"]},
                    "value": colours["line"],
                },
            },
        },
    ]
    wanted = next((o for o in page.objectives if o["metric"] == metric), {})
    target = wanted.get("at_most") if wanted.get("at_least") is None else wanted["at_least"]
    if target is not None:
        layers += [
            {
                "data": {"values": [{"target": target}]},
                "mark": {"type": "rule", "strokeDash": [6, 4], "color": colours["watch"], "strokeWidth": 1.5},
                "encoding": {"y": {**y, "field": "target"}},
            },
            {
                "data": {"values": [{"target": target, "text": f"target {target:g}"}]},
                "mark": {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -3, "x": 0, "fontSize": 11},
                "encoding": {"y": {**y, "field": "target"}, "text": {"field": "text"}},
            },
        ]
    return {"data": {"values": rows}, "height": 190 if narrow else 230, "layer": layers}


def _release_rules(page: LoopPage, colours: dict[str, str], x: dict[str, Any]) -> list[dict[str, Any]]:
    """A thin line at each change of who serves, within the time that the windows cover."""
    if not page.windows:
        return []
    start, end = page.windows[0].start, page.windows[-1].end
    rows = [{"at": r.since.isoformat(), "package": r.champion.package[:6]} for r in page.releases if start < r.since <= end]
    if not rows:
        return []
    data = {"values": rows}
    return [
        {"data": data, "mark": {"type": "rule", "color": colours["second"], "strokeDash": [2, 3]}, "encoding": {"x": x}},
        {
            "data": data,
            "mark": {
                "type": "text",
                "align": "left",
                "baseline": "top",
                "dx": 4,
                "y": 0,
                "fontSize": 10,
                "color": colours["second"],
            },
            "encoding": {"x": x, "text": {"field": "package"}},
        },
    ]


def _drift(page: LoopPage, colours: dict[str, str], *, narrow: bool) -> dict[str, Any]:
    worst: dict[str, float] = {}
    for window in page.windows:
        for column in (c for c in window.columns if c.used):
            worst[column.column] = max(worst.get(column.column, 0.0), column.beyond)
    shown = sorted(worst, key=lambda c: -worst[c])[:MOST_COLUMNS]
    rows = []
    for window in page.windows:
        span = {"from": window.start.isoformat(), "to": window.end.isoformat()}
        if not window.columns:
            rows += [{**span, "column": name, "state": "no data"} for name in shown]
        rows += [
            {**span, "column": c.column, "state": c.state} for c in window.columns if c.column in worst and c.column in shown
        ]
    states = ["ok", "watch", "drift", "no data"]
    return {
        "data": {"values": rows},
        "height": {"step": 20 if narrow else 22},
        "mark": {"type": "bar", "stroke": colours["faint"], "strokeWidth": 0.5, "height": {"band": 0.9}},
        "encoding": {
            "x": {**_weeks(page, narrow=narrow), "field": "from"},
            "x2": {"field": "to"},
            "y": {
                "field": "column",
                "type": "nominal",
                "title": None,
                "sort": shown,
                "axis": {"ticks": False, "domain": False},
            },
            "color": {"field": "state", "type": "nominal", "scale": {"domain": states, "range": [colours[s] for s in states]}},
        },
    }


def _value(page: LoopPage, colours: dict[str, str], *, narrow: bool) -> dict[str, Any]:
    rows = []
    for i in range(len(page.values)):
        more = added([v.over_heuristic for v in page.values[: i + 1]])
        rows.append({"at": page.values[i].end.isoformat(), "value": more.value, "low": more.low, "high": more.high})
    currency = page.values[-1].currency if page.values else ""
    x = _weeks(page, narrow=narrow)
    title = f"{currency} more than the heuristic"
    y = {"type": "quantitative", "title": title, "axis": {"format": "~s", "tickCount": 5}}
    return {
        "data": {"values": rows},
        "height": 190 if narrow else 230,
        "layer": [
            *_release_rules(page, colours, x),
            {
                "data": {"values": [{"zero": 0}]},
                "mark": {"type": "rule", "color": colours["second"]},
                "encoding": {"y": {**y, "field": "zero"}},
            },
            {
                "mark": {"type": "area", "opacity": 0.16, "color": colours["line"]},
                "encoding": {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "mark": {"type": "line", "color": colours["line"], "strokeWidth": 2.2},
                "encoding": {"x": x, "y": {**y, "field": "value"}},
            },
        ],
    }


CHARTS = {"quality": _quality, "drift": _drift, "value": _value}
"""The charts by the name that their URL has."""
