"""The charts of a loop's page, in two sizes (wide and narrow screens) and two themes: a browser loads the one that fits."""

from typing import Literal

import msgspec

from loopwright.records.evaluation import Estimate, ReliabilityBin, added
from loopwright.records.windows import newest_stretch
from loopwright.render.charts import (
    DARK,
    LIGHT,
    PackageChange,
    Style,
    drift_chart,
    quality_chart,
    reliability_chart,
    value_chart,
)
from loopwright.verbs.loop_page import LoopPage

Size = Literal["wide", "narrow"]
Theme = Literal["light", "dark"]

PALETTE: dict[Theme, dict[str, str]] = {"light": LIGHT, "dark": DARK}
WIDTH: dict[Size, int] = {"wide": 1060, "narrow": 330}


class Money(msgspec.Struct, frozen=True, kw_only=True):
    """Value so far, in `currency`, over no model: the loop's and the heuristic's, and their difference."""

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
        "drift": any(c.used for w in page.windows for c in w.columns),
        "value": money(page) is not None,
        "reliability": bool(_curve(page)),
    }
    return [name for name in CHARTS if has[name]]


def svg(page: LoopPage, chart: str, *, size: Size, theme: Theme) -> str:
    """One chart as an SVG document, of the time since predictions last fell silent for long. KeyError for an unknown chart."""
    return CHARTS[chart](_stretch(page), Style(WIDTH[size], PALETTE[theme], narrow=size == "narrow"))


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


def _quality(page: LoopPage, style: Style) -> str:
    metric = metric_of(page)
    wanted = next((o for o in page.objectives if o["metric"] == metric), {})
    target = wanted.get("at_most") if wanted.get("at_least") is None else wanted["at_least"]
    return quality_chart(page.quality, _served(page), metric, target, style)


def _drift(page: LoopPage, style: Style) -> str:
    return drift_chart(page.windows, style)


def _value(page: LoopPage, style: Style) -> str:
    return value_chart(page.values, _served(page), style)


def _curve(page: LoopPage) -> list[ReliabilityBin]:
    """The reliability curve of the newest leaderboard's winner."""
    board = page.leaderboard
    rows = [] if board is None else [row.detail for row in board.rows if row.package == board.winner and row.detail is not None]
    return rows[0].reliability if rows else []


def _reliability(page: LoopPage, style: Style) -> str:
    return reliability_chart(_curve(page), style)


def _served(page: LoopPage) -> list[PackageChange]:
    return [PackageChange(r.since, r.champion.package) for r in page.releases]


CHARTS = {"quality": _quality, "drift": _drift, "value": _value, "reliability": _reliability}
"""The charts by the name that their URL has."""
