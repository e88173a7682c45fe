"""The charts of reports and pages: Vega-Lite specifications, turned into SVG here (by vl-convert), so that nothing needs a script."""

import functools
import json
import math
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, NamedTuple

from loopwright.base.text import spaced
from loopwright.records.evaluation import ReliabilityBin, running
from loopwright.records.windows import Quality, ValueWindow, Window

MAX_COLUMNS = 20
"""The heat map shows the columns that drifted most, at most this many."""

LIGHT = {
    "ink": "#3c4658",
    "faint": "#dfe3e8",
    "line": "#2f5fb3",
    "second": "#8a94a6",
    "ok": "#cfe3d6",
    "watch": "#e9b44c",
    "drift": "#c8453b",
    "no data": "#e8eaee",
}
DARK = {
    "ink": "#b9c2d0",
    "faint": "#2b3340",
    "line": "#7ea6f0",
    "second": "#7d8798",
    "ok": "#27463a",
    "watch": "#c9922e",
    "drift": "#dd6157",
    "no data": "#262c36",
}


class Style(NamedTuple):
    """Width of a chart in pixels, and its colours; a `narrow` one has fewer labels."""

    width: int
    colours: dict[str, str] = LIGHT
    narrow: bool = False

    @property
    def height(self) -> int:
        """Pixels of a chart of lines."""
        return 190 if self.narrow else 230


class PackageChange(NamedTuple):
    """The moment when another package began to serve."""

    at: datetime
    package: str


def quality_chart(
    quality: Sequence[Quality], changes: Sequence[PackageChange], metric: str, target: float | None, style: Style
) -> str:
    """The metric by window with its 95 % interval, the target, and changes of package; SVG, empty where nothing was measured."""
    rows = [_measured(q, metric) for q in quality]
    if all(row["value"] is None for row in rows):
        return ""
    colours, x = style.colours, _time(quality, style)
    scale = {"zero": False, "nice": True}
    y = {"type": "quantitative", "title": spaced(metric), "scale": scale, "axis": {"tickCount": 5}}
    point = {
        "transform": [{"filter": "datum.value !== null"}],
        "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1},
        "encoding": {
            "x": x,
            "y": {**y, "field": "value"},
            "color": {"condition": {"test": "datum.state === 'decayed'", "value": colours["drift"]}, "value": colours["line"]},
        },
    }
    layers = [*_changes(quality, changes, x, style), *_band(x, y, colours["line"]), point]
    if target is not None:
        data = {"values": [{"target": target, "text": f"target {target:g}"}]}
        rule = {"type": "rule", "strokeDash": [6, 4], "color": colours["watch"], "strokeWidth": 1.5}
        text = {"type": "text", "align": "left", "baseline": "bottom", "dx": 4, "dy": -3, "x": 0, "fontSize": 11}
        at = {**y, "field": "target"}
        layers.append({"data": data, "mark": rule, "encoding": {"y": at}})
        layers.append({"data": data, "mark": text, "encoding": {"y": at, "text": {"field": "text"}}})
    return _draw({"data": {"values": rows}, "height": style.height, "layer": layers}, style)


def _measured(quality: Quality, metric: str) -> dict[str, Any]:
    """The metric's value and interval; null, which breaks the line, where it was not measured, or not on all its predictions yet."""
    found = None if quality.mature_at is not None else quality.metrics.get(metric)
    ends = (math.nan,) * 3 if found is None or math.isnan(found.value) else (found.value, found.low, found.high)
    value, low, high = (None if math.isnan(end) else end for end in ends)
    return {"at": quality.end.isoformat(), "value": value, "low": low, "high": high, "state": quality.state}


def drift_chart(windows: Sequence[Window], style: Style) -> str:
    """The state of each column that reaches the model by window, the largest drift on top; SVG, empty without measurements."""
    worst: dict[str, float] = {}
    for column in (c for w in windows for c in w.columns if c.used):
        worst[column.column] = max(worst.get(column.column, 0.0), column.moved)
    if not worst:
        return ""
    shown = sorted(worst, key=lambda c: (-worst[c], c))[:MAX_COLUMNS]
    rows = [
        {"from": w.start.isoformat(), "to": w.end.isoformat(), "column": name, "state": state}
        for w in windows
        for name, state in ([(c.column, c.state) for c in w.columns] or [(name, "no data") for name in shown])
        if name in shown
    ]
    colours, states = style.colours, ["ok", "watch", "drift", "no data"]
    axis = {"ticks": False, "domain": False}
    encoding = {
        "x": {**_time(windows, style), "field": "from"},
        "x2": {"field": "to"},
        "y": {"field": "column", "type": "nominal", "title": None, "sort": shown, "axis": axis},
        "color": {"field": "state", "type": "nominal", "scale": {"domain": states, "range": [colours[s] for s in states]}},
    }
    mark = {"type": "bar", "stroke": colours["faint"], "strokeWidth": 0.5, "height": {"band": 0.9}}
    height = {"step": 20 if style.narrow else 22}
    return _draw({"data": {"values": rows}, "height": height, "mark": mark, "encoding": encoding}, style)


def value_chart(values: Sequence[ValueWindow], changes: Sequence[PackageChange], style: Style) -> str:
    """Money over no model, added up: the loop's with its 95 % interval, and the heuristic's; SVG, empty without accounts."""
    if not values:
        return ""
    start = values[0].start.isoformat()
    rows = [{"at": start, "who": who, "value": 0.0, "low": 0.0, "high": 0.0} for who in ("loop", "heuristic")]
    sums = running([v.over_no_model for v in values])
    alone = accumulate(v.heuristic.value - v.no_model for v in values)
    for i, (window, rule) in enumerate(zip(values, alone, strict=True)):
        loop, at = sums[i], window.end.isoformat()
        rows.append({"at": at, "who": "loop", "value": loop.value, "low": loop.low, "high": loop.high})
        rows.append({"at": at, "who": "heuristic", "value": rule, "low": rule, "high": rule})
    x, colours = _time(values, style), [style.colours["line"], style.colours["second"]]
    y = {
        "type": "quantitative",
        "title": f"{values[-1].currency} over no model, added up",
        "axis": {"format": "~s", "tickCount": 5},
    }
    legend = {"symbolType": "stroke", "symbolStrokeWidth": 3, "symbolOpacity": 1}
    scale = {"domain": ["loop", "heuristic"], "range": colours}
    color = {"color": {"field": "who", "type": "nominal", "scale": scale, "legend": legend}}
    layers = [*_changes(values, changes, x, style), *_band(x, y, None, **color)]
    return _draw({"data": {"values": rows}, "height": style.height, "layer": layers}, style)


def reliability_chart(curve: Sequence[ReliabilityBin], style: Style) -> str:
    """Share of positives by score with its 95 % interval, and the diagonal on which probabilities lie; SVG, empty without a curve."""
    if not curve:
        return ""
    rows = [{"score": b.score, "value": b.share.value, "low": b.share.low, "high": b.share.high} for b in curve]
    top = min(1.0, 1.05 * max(max(row["score"], row["high"]) for row in rows))
    scale = {"domain": [0, top], "nice": False}
    x = {"field": "score", "type": "quantitative", "title": "score", "scale": scale}
    y = {"field": "value", "type": "quantitative", "title": "share positive", "scale": scale}
    colours = style.colours
    diagonal = {
        "data": {"values": [{"score": end, "value": end} for end in (0, top)]},
        "mark": {"type": "line", "strokeDash": [6, 4], "color": colours["second"], "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y},
    }
    ends = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    layers = [
        diagonal,
        {"mark": {"type": "rule", "color": colours["line"], "strokeWidth": 1.5}, "encoding": ends},
        {
            "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1, "color": colours["line"]},
            "encoding": {"x": x, "y": y},
        },
    ]
    return _draw({"data": {"values": rows}, "height": style.height, "layer": layers}, style)


def _band(x: dict[str, Any], y: dict[str, Any], colour: str | None, **encoding: Any) -> list[dict[str, Any]]:
    """A line with its interval."""
    mark = {} if colour is None else {"color": colour}
    ends = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, **encoding}
    line = {"x": x, "y": {**y, "field": "value"}, **encoding}
    return [
        {"mark": {"type": "area", "opacity": 0.16, **mark}, "encoding": ends},
        {"mark": {"type": "line", "strokeWidth": 2, **mark}, "encoding": line},
    ]


def _changes(
    windows: Sequence[Quality | ValueWindow], changes: Sequence[PackageChange], x: dict[str, Any], style: Style
) -> list[dict[str, Any]]:
    """A thin line where another package began to serve, within the time that the windows cover."""
    start, end, colour = windows[0].start, windows[-1].end, style.colours["second"]
    late = start + (end - start) * 0.8  # a name to the right of its line would leave the picture there: put it to the left
    rows = [{"at": c.at.isoformat(), "package": c.package[:6], "late": c.at > late} for c in changes if start < c.at <= end]
    if not rows:
        return []
    data, text = {"values": rows}, {"type": "text", "baseline": "top", "y": 0, "fontSize": 10, "color": colour}
    named = {"x": x, "text": {"field": "package"}}
    sides = (("!datum.late", {"align": "left", "dx": 4}), ("datum.late", {"align": "right", "dx": -4}))
    return [
        {"data": data, "mark": {"type": "rule", "color": colour, "strokeDash": [2, 3]}, "encoding": {"x": x}},
        *({"data": data, "transform": [{"filter": test}], "mark": text | side, "encoding": named} for test, side in sides),
    ]


def _time(windows: Sequence[Quality | ValueWindow | Window], style: Style) -> dict[str, Any]:
    """The time axis: days, or months where a year must fit a narrow screen."""
    months = style.narrow and (windows[-1].end - windows[0].start).days > 120
    axis = {
        "format": "%b" if months else "%b %d",
        "tickCount": 8 if months else 4 if style.narrow else 10,
        "grid": False,
        "labelOverlap": "greedy",
        "labelSeparation": 10,
    }
    return {"field": "at", "type": "temporal", "title": None, "scale": {"type": "utc"}, "axis": axis}


def _draw(spec: dict[str, Any], style: Style) -> str:
    colours = style.colours
    axis = {
        **dict.fromkeys(("labelColor", "titleColor"), colours["ink"]),
        **dict.fromkeys(("gridColor", "domainColor", "tickColor"), colours["faint"]),
        **dict.fromkeys(("labelFontSize", "titleFontSize"), 11),
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelLimit": 110 if style.narrow else 180,
    }
    legend = {"labelColor": colours["ink"], "labelFontSize": 12, "orient": "top", "title": None, "symbolType": "square"}
    config = {"font": "system-ui, sans-serif", "axis": axis, "legend": {**legend, "offset": 4}, "view": {"stroke": None}}
    frame = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": style.width,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": "transparent",
        "padding": {"left": 10, "right": 4, "top": 2, "bottom": 2},
        "config": {**config, "text": {"color": colours["ink"]}},
    }
    return _svg(json.dumps({**spec, **frame}, sort_keys=True))


@functools.lru_cache(maxsize=64)
def _svg(spec: str) -> str:
    import vl_convert  # here and not above: an engine of 40 MB that only drawing needs

    drawn: str = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    return drawn
