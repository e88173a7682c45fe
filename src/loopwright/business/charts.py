"""The report's charts: Vega-Lite, drawn to SVG here, so that a report needs no script, no network and prints as it looks."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import vl_convert as vlc

from loopwright.business.totals import ServedPackage, WindowTotals
from loopwright.records.declarations import Monitor

WIDTH = 820
INK, GREY, BLUE, ORANGE = "#1c2530", "#7b8794", "#1f6fb2", "#c4621a"
COLUMNS = 20

_CONFIG: dict[str, Any] = {
    "font": "Helvetica, Arial, sans-serif",
    "background": "white",
    "view": {"stroke": None},
    "axis": {
        "labelColor": GREY,
        "titleColor": GREY,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11,
        "gridColor": "#e8ecf0",
        "domainColor": "#c9d1d9",
        "tickColor": "#c9d1d9",
    },
    "legend": {"labelColor": INK, "titleColor": GREY, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
}
_TIME: dict[str, Any] = {
    "type": "temporal",
    "scale": {"type": "utc"},
    "title": None,
    "axis": {"format": "%d %b", "grid": False, "labelOverlap": True, "tickCount": 10},
}


def quality_chart(weeks: Sequence[WindowTotals], served: Sequence[ServedPackage], metric: str, target: float | None) -> str:
    """The metric by window with its 95 % interval, the target, and when another package began to serve; SVG, empty if unmeasured."""
    rows = [{"at": _at(w.start, w.end), **_measured(w, metric)} for w in weeks]
    if all(row["value"] is None for row in rows):
        return ""
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "area", "color": BLUE, "opacity": 0.15},
            "encoding": {"y": _y("low", metric), "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "color": BLUE, "strokeWidth": 2, "point": {"size": 22, "color": BLUE}},
            "encoding": {"y": _y("value", metric)},
        },
    ]
    for layer in layers:
        layer["encoding"]["x"] = {"field": "at", **_TIME}
    if target is not None:
        data = {"values": [{"target": target, "text": f"target {target:g}"}]}
        y = _y("target", metric)
        text = {"type": "text", "align": "right", "dy": -6, "color": ORANGE, "fontSize": 11, "x": WIDTH}
        layers.append({"data": data, "mark": {"type": "rule", "color": ORANGE, "strokeDash": [5, 4]}, "encoding": {"y": y}})
        layers.append({"data": data, "mark": text, "encoding": {"y": y, "text": {"field": "text"}}})
    return _draw({"data": {"values": rows}, "layer": [*layers, *_changes(weeks, served)], "height": 200})


def _measured(week: WindowTotals, metric: str) -> dict[str, float | None]:
    """The metric's value and interval; null, which breaks the line, where it was not measured."""
    found = week.quality.metrics.get(metric) if week.quality is not None else None
    if found is None or not math.isfinite(found.value):
        return {"value": None, "low": None, "high": None}
    return {"value": found.value, "low": found.low, "high": found.high}


def drift_chart(weeks: Sequence[WindowTotals], monitor: Monitor) -> str:
    """PSI of every column that reaches the model by window, beyond what is usual for it, what moved most on top; SVG, empty if nothing was measured."""
    cells = [
        {"start": w.start.isoformat(), "end": w.end.isoformat(), "column": c.column, "psi": c.beyond}
        for w in weeks
        for c in w.window.columns
        if c.used and c.psi is not None and c.state != "no data"
    ]
    if not cells:
        return ""
    most: dict[str, float] = {}
    for cell in cells:
        most[str(cell["column"])] = most.get(str(cell["column"]), 0.0) + float(str(cell["psi"]))
    names = sorted(most, key=lambda n: (-most[n], n))[:COLUMNS]
    scale = {
        "domain": [0, monitor.psi / 2, monitor.psi, 4 * monitor.psi],
        "range": ["#f1f4f7", "#f8e6d3", "#f2b27a", "#a83a10"],
    }
    encoding = {
        "x": {"field": "start", **_TIME},
        "x2": {"field": "end"},
        "y": {
            "field": "column",
            "type": "nominal",
            "sort": names,
            "title": None,
            "axis": {"domain": False, "ticks": False, "labelColor": INK},
        },
        "color": {
            "field": "psi",
            "type": "quantitative",
            "scale": {**scale, "clamp": True},
            "legend": {
                "title": f"PSI beyond the usual (drift from {monitor.psi:g})",
                "orient": "bottom",
                "gradientLength": 220,
            },
        },
    }
    mark = {"type": "rect", "stroke": "white", "strokeWidth": 1}
    values = [cell for cell in cells if cell["column"] in names]
    return _draw({"data": {"values": values}, "mark": mark, "encoding": encoding, "height": {"step": 18}})


def value_chart(weeks: Sequence[WindowTotals], served: Sequence[ServedPackage], currency: str) -> str:
    """Money over no model, added up: the model's with its 95 % interval, and the simple rule's; SVG, empty without accounts."""
    rows: list[dict[str, Any]] = []
    model = rule = variance = 0.0
    if any(w.value for w in weeks):
        rows += [
            {"at": weeks[0].start.isoformat(), "who": who, "value": 0.0, "low": 0.0, "high": 0.0}
            for who in ("model", "simple rule")
        ]
    for week in weeks:
        if week.value is None:
            continue
        over = week.value.over_no_model
        model += over.value
        rule += week.value.heuristic.value - week.value.no_model
        variance += ((over.high - over.low) / 2) ** 2
        at, spread = week.end.isoformat(), variance**0.5
        rows.append({"at": at, "who": "model", "value": model, "low": model - spread, "high": model + spread})
        rows.append({"at": at, "who": "simple rule", "value": rule, "low": rule, "high": rule})
    if not rows:
        return ""
    x = {"field": "at", **_TIME}
    color = {
        "field": "who",
        "type": "nominal",
        "scale": {"domain": ["model", "simple rule"], "range": [BLUE, GREY]},
        "legend": {
            "title": None,
            "orient": "top-left",
            "offset": 8,
            "symbolType": "stroke",
            "symbolStrokeWidth": 3,
            "symbolOpacity": 1,
        },
    }
    axis = {"title": f"{currency} over no model, added up", "axis": {"format": "~s"}, "type": "quantitative"}
    layers = [
        {
            "mark": {"type": "area", "opacity": 0.15},
            "encoding": {"x": x, "y": {"field": "low", **axis}, "y2": {"field": "high"}, "color": color},
        },
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": {"field": "value", **axis}, "color": color}},
    ]
    return _draw({"data": {"values": rows}, "layer": [*layers, *_changes(weeks, served)], "height": 220})


def _changes(weeks: Sequence[WindowTotals], served: Sequence[ServedPackage]) -> list[dict[str, Any]]:
    """Thin lines where another package began to serve."""
    inside = [s for s in served if weeks[0].start < s.since < weeks[-1].end]
    if not inside:
        return []
    data = {"values": [{"at": s.since.isoformat(), "text": f"▾ {s.package[:6]}"} for s in inside]}
    x = {"field": "at", **_TIME}
    rule = {"data": data, "mark": {"type": "rule", "color": GREY, "opacity": 0.6, "strokeDash": [2, 3]}, "encoding": {"x": x}}
    label = {"type": "text", "y": -8, "color": GREY, "fontSize": 10}
    return [rule, {"data": data, "mark": label, "encoding": {"x": x, "text": {"field": "text"}}}]


def _at(start: datetime, end: datetime) -> str:
    return (start + (end - start) / 2).isoformat()


def _y(field: str, title: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": title.replace("_", " "), "scale": {"zero": False, "nice": True}}


def _draw(spec: dict[str, Any]) -> str:
    whole = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "width": WIDTH, "config": _CONFIG, **spec}
    return vlc.vegalite_to_svg(whole)
