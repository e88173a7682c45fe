"""The report that a manager reads, as Markdown or as one HTML file."""

from html import escape
from pathlib import Path
from string import Template

from loopwright.base.markdown import plain, table
from loopwright.base.text import ABSENT, amount, count, day, interval, moment, money, number, share, short, spaced
from loopwright.business.report import Report
from loopwright.business.totals import Totals
from loopwright.records.declarations import Budget
from loopwright.records.releases import CHAMPION
from loopwright.records.windows import edge, newest_stretch
from loopwright.render.charts import PackageChange, Style, drift_chart, quality_chart, value_chart

STYLE = Style(820)
PAGE = Path(__file__).with_name("report.html")
_SIGNS = {"met": "✓", "missed": "✗", "uncertain": "?", "too few": ABSENT, "not measured": ABSENT}

PROMISED = ("", "Objective", "Owner", "Promised", "When made", "Now [95 %]", "Whole life [95 %]", "Met now")
DELIVERED = ("Measure", "Whole life")
SERVED = ("Since", "Package", "Candidate", "Trained until", "Why")


def promised_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of objectives, by column of PROMISED."""
    return [
        (
            _SIGNS[p.met],
            p.objective,
            p.owner,
            f"{p.metric} {p.target}",
            number(p.expected),
            interval(p.now),
            interval(p.measured),
            p.met_text,
        )
        for p in report.promised
    ]


def delivered_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of totals, by column of DELIVERED."""
    t = report.totals
    earned: list[tuple[str, ...]] = [
        ("Money over no model", money(t.model, t.currency)),
        ("The simple rule alone", money(t.heuristic, t.currency)),
        ("Model over the simple rule", money(t.over_heuristic, t.currency, sign=True)),
        ("Money per prediction", f"{t.model.value / t.with_outcome:,.2f} {t.currency}" if t.with_outcome else ABSENT),
    ]
    changes = max(len({s.since for s in report.served}) - 1, 0)
    predictions = (
        f"{report.logged:,}; {t.predictions:,} in windows accounted for: {t.with_outcome:,} with a known outcome, "
        f"{t.pending:,} not known yet (wait {report.wait}), {t.missing:,} missing"
        if report.logged
        else "none yet"
    )
    rows: list[tuple[str, ...]] = [
        ("Predictions", predictions),
        *(earned if report.earned else []),
        ("Compute", _compute(t, report.budget)),
        ("Packages in service", f"{len({s.package for s in report.served})}, {count(changes, 'change')}"),
    ]
    rows += [("What serves", report.serves)] if report.serves else []
    rows += [("Newest turn's winner", report.other_winner)] if report.other_winner else []
    return [*rows, *(("Too few rows to show", few) for few in _small_groups(report))]


def _small_groups(report: Report) -> list[str]:
    """The values of each slice that are too small to be shown by themselves."""
    return [
        f"{name}: {', '.join(f'{value} ({rows:,})' for value, rows in values.items())}"
        for name, values in report.small_groups.items()
    ]


def now_text(report: Report) -> str:
    """What now means."""
    return f"Now means the {report.now}." if report.now else "No window has complete outcomes yet."


def _compute(totals: Totals, budget: Budget) -> str:
    """The cost of compute, its unit price, and the projected cost of a month if there is enough data."""
    if not totals.days:
        return "not accounted for yet: no window has closed"
    month = totals.cost_per_month
    pace = f"{_cents(month)} a month" if month is not None else "no figure for a month before a day is accounted for"
    if budget.usd_per_month is not None:
        pace += f" (budget {budget.usd_per_month:,.2f})"
    default = "the default price, " if budget.usd_per_hour == Budget().usd_per_hour else ""
    return f"{_cents(totals.cost)} USD, {pace}; at {default}{budget.usd_per_hour:,.2f} USD a machine hour"


def _cents(value: float) -> str:
    return "less than 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def served_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of packages that served, by column of SERVED."""
    return [
        (
            moment(s.since),
            short(s.package) + (f" ({s.arm}, {share(s.share)})" if s.share < 1 else ""),
            s.candidate or ABSENT,
            day(s.trained_until),
            f"{s.action}: {s.why} ({s.by})",
        )
        for s in report.served
    ]


def by_week(report: Report) -> tuple[str, ...]:
    """The columns of the table of windows."""
    metric = f"{spaced(report.metric)} [95 %]"
    return ("From", "Predictions", "Outcomes", "Drift", metric.capitalize(), "Over no model", "Over the rule")


def week_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of windows, by column of `by_week`."""
    return [
        (
            edge(w.start, w.end - w.start),
            f"{w.window.rows:,}",
            ABSENT
            if w.quality is None
            else f"{w.quality.with_outcome:,}" + " (provisional)" * (w.quality.mature_at is not None),
            w.window.state_text + (f" ({len(w.window.drifted)})" if w.window.drifted else ""),
            interval(w.quality.metrics.get(report.metric) if w.quality is not None else None),
            amount(w.value.over_no_model.value) if w.value is not None and report.valued else ABSENT,
            amount(w.value.over_heuristic.value, sign=True) if w.value is not None and report.valued else ABSENT,
        )
        for w in report.weeks
    ]


def _period(report: Report) -> str:
    if not report.weeks:
        return "nothing measured yet"
    first, last = report.weeks[0], report.weeks[-1]
    return f"{edge(first.start, first.end - first.start)} to {edge(last.end, last.end - last.start)}"


# --- Markdown ----------------------------------------------------------------------------------------------------


def markdown(report: Report) -> str:
    """The report as Markdown text."""
    doubted = [f"- {'**Grave.** ' if d.weight == 'grave' else ''}{plain(d.text)} {plain(d.do)}" for d in report.doubts]
    parts = [
        f"# {plain(report.loop)}: report",
        f"{plain(report.problem)}",
        f"Period: {_period(report)}. Made {moment(report.made_at)} UTC. Figures in brackets are 95 % intervals.",
        f"**{plain(report.headline)}**",
        "## Promised",
        now_text(report),
        table(PROMISED, promised_rows(report)),
        "## Delivered",
        table(DELIVERED, delivered_rows(report)),
        "## Doubts",
        "\n".join(doubted) or "None of the checks raised one.",
        "## Next step",
        plain(report.next_step),
        "## Who served",
        table(SERVED, served_rows(report)) if report.served else "Nothing was released yet.",
        "## Window by window",
        table(by_week(report), week_rows(report)) if report.weeks else "No window has closed yet.",
    ]
    return "\n\n".join(parts) + "\n"


# --- HTML --------------------------------------------------------------------------------------------------------


def html(report: Report) -> str:
    """The report as one HTML file that needs nothing else: styles and charts (SVG) are inside, no script."""
    shown = {w.start for w in newest_stretch([w.window for w in report.weeks])}
    recent = [w for w in report.weeks if w.start in shown]
    changes = [PackageChange(s.since, s.package) for s in report.served if s.arm == CHAMPION]
    charts = [
        (
            f"Quality: {spaced(report.metric)} by window",
            quality_chart([w.quality for w in recent if w.quality], changes, report.metric, report.target, STYLE),
            "The band is the 95 % interval; dotted lines are changes of package.",
        ),
        (
            "Money over no model, added up",
            value_chart([w.value for w in recent if w.value], changes, STYLE) if report.valued else "",
            "What the loop made, beside what the heuristic alone would have made on the same predictions; the band is the 95 % interval.",
        ),
        (
            "Drift of inputs and scores",
            drift_chart([w.window for w in recent], STYLE),
            "The state of each column in each window against the package that served: most drifted first.",
        ),
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{report.loop}: report"),
        loop=escape(report.loop),
        problem=escape(report.problem),
        period=escape(_period(report)),
        made=f"{moment(report.made_at)} UTC",
        headline=escape(report.headline),
        tiles=_tiles(report),
        now=escape(now_text(report)),
        promised=_html_table(PROMISED, promised_rows(report), "promised"),
        delivered=_html_table(DELIVERED, delivered_rows(report), "pairs"),
        charts="\n".join(_figure(*chart) for chart in charts if chart[1])
        or "<p>Nothing to draw yet: no window has closed.</p>",
        doubts=_doubts(report),
        next=escape(report.next_step),
        served=_html_table(SERVED, served_rows(report), "served") if report.served else "<p>Nothing was released yet.</p>",
        weeks=_html_table(by_week(report), week_rows(report), "weeks") if report.weeks else "<p>No window has closed yet.</p>",
    )


def _tiles(report: Report) -> str:
    t = report.totals
    met = sum(p.met == "met" for p in report.promised)
    earned = [
        ("Over no model, whole life", *money(t.model, t.currency).split(" ", 1)),
        ("Over the simple rule, whole life", *money(t.over_heuristic, t.currency, sign=True).split(" ", 1)),
    ]
    tiles = [
        (
            "Objectives met now",
            f"{met} of {len(report.promised)}",
            f"{sum(not p.settled for p in report.promised)} not settled yet",
        ),
        *(earned if report.earned else []),
        ("Predictions, whole life", f"{report.logged:,}", f"{t.with_outcome:,} with outcome"),
    ]
    return "\n".join(
        f'<div class="tile"><span>{escape(name)}</span><strong>{escape(value)}</strong><small>{escape(note)}</small></div>'
        for name, value, note in tiles
    )


def _html_table(head: tuple[str, ...], rows: list[tuple[str, ...]], kind: str) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "\n".join(
        f'<tr class="{escape(row[-1].replace(" ", "-"))}">' * (kind == "promised")
        + "<tr>" * (kind != "promised")
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _figure(title: str, svg: str, caption: str) -> str:
    picture = f'<div class="scroll" role="img" aria-label="{escape(title)}">{svg}</div>'
    return f"<figure><h3>{escape(title)}</h3>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _doubts(report: Report) -> str:
    if not report.doubts:
        return "<p>None of the checks raised one.</p>"
    items = [f'<li class="{d.weight}"><strong>{escape(d.text)}</strong> {escape(d.do)}</li>' for d in report.doubts]
    return "<ul>" + "\n".join(items) + "</ul>"
