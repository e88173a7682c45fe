"""The report a manager reads: promised, delivered, doubts, next step. Facts first, then as Markdown or as one HTML file."""

from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

import msgspec

from loopwright.base.errors import NotFound, PackageRefused
from loopwright.base.markdown import plain, table
from loopwright.business.caveats import CaveatInputs, Doubt, doubts, next_step
from loopwright.business.charts import drift_chart, quality_chart, value_chart
from loopwright.business.objectives import Promise, promises
from loopwright.business.totals import ServedPackage, Totals, WindowTotals, served, totals, weeks
from loopwright.records.conditions import LEAST_OUTCOMES
from loopwright.records.declarations import Budget, Monitor, Outcome, Scope, Task
from loopwright.records.evaluation import Estimate, Leaderboard
from loopwright.records.windows import edge, newest_stretch
from loopwright.stores.home import Home
from loopwright.stores.packages.store import Package
from loopwright.stores.prediction_log.summary import summary
from loopwright.tasks import metrics
from loopwright.tasks.plausibility import too_good

PAGE = Path(__file__).with_name("report.html")
_SIGNS = {"met": "✓", "missed": "✗", "uncertain": "?", "too few": "–", "not measured": "–"}


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a report says. `metric` is the scope's weightiest metric of rows, the one that is charted.

    Money is left out where nobody said what an answer is worth (not `valued`). `logged` are all predictions, as `status` counts them;
    `totals` are over windows that have closed.
    """

    loop: str
    problem: str
    made_at: datetime
    headline: str
    metric: str
    target: float | None
    verdict: str
    promised: list[Promise]
    totals: Totals
    weeks: list[WindowTotals]
    served: list[ServedPackage]
    budget: Budget
    wait: str
    doubts: list[Doubt]
    next_step: str
    monitor: Monitor
    valued: bool
    logged: int

    @property
    def earned(self) -> bool:
        """Whether there is money to tell of: a value table, and outcomes."""
        return self.valued and self.totals.with_outcome > 0


def report(home: Home, *, loop_name: str, scope: Scope, outcome: Outcome, monitor: Monitor) -> Report:
    """Gather the report of a loop from the ledger, the prediction log and the package that serves."""
    found = weeks(home, loop_name)
    releases = served(home, loop_name)
    package = _package(home, releases[-1].package) if releases else None
    sums = totals(home, loop_name, found, scope.value.currency, outcome)
    logged, last = summary(home, loop_name)
    promised = promises(home, loop_name, scope, found, sums, package, task=outcome.task, minimum_rows=monitor.minimum_rows)
    leaks = too_good(package.evaluation, package.manifest.output.task) if package is not None else []
    case = CaveatInputs(
        loop=loop_name,
        scope=scope,
        weeks=found,
        totals=sums,
        promises=promised,
        leaks=leaks,
        wait=outcome.wait,
        every=monitor.every,
        last_prediction=last,
        rule=bool(releases) and releases[-1].rule,
    )
    raised = doubts(case)
    metric, target = _charted(scope, found, outcome.task)
    board = home.ledger.find(Leaderboard, loop=loop_name)
    return Report(
        loop=loop_name,
        problem=scope.problem,
        made_at=home.clock.now(),
        headline=_headline(scope, promised, sums, raised),
        metric=metric,
        target=target,
        verdict=max(board, key=lambda e: (len(e.record.rows) > 2, e.sequence)).record.verdict if board else "",
        promised=promised,
        totals=sums,
        weeks=found,
        served=releases,
        budget=scope.budget,
        wait=outcome.wait,
        doubts=raised,
        next_step=next_step(case, raised),
        monitor=monitor,
        valued=scope.value.given,
        logged=logged,
    )


def _package(home: Home, digest: str) -> Package | None:
    try:
        return home.packages.read(digest)
    except (NotFound, PackageRefused):
        return None


def _charted(scope: Scope, found: list[WindowTotals], task: Task) -> tuple[str, float | None]:
    """The weightiest objective whose metric is measured by window, with its target; the task's own metric where there is none."""
    measured = {name for w in found if w.quality is not None for name in w.quality.metrics}
    for objective in sorted(scope.objectives, key=lambda o: -o.weight):
        if objective.metric in measured:
            return objective.metric, objective.at_least if objective.at_least is not None else objective.at_most
    return metrics.primary(task), None


def _headline(scope: Scope, promised: list[Promise], sums: Totals, raised: list[Doubt]) -> str:
    """The whole report in a sentence or two."""
    met, open_ = sum(p.met == "met" for p in promised), sum(not p.settled for p in promised)
    unsettled = f", {open_} {'is' if open_ == 1 else 'are'} not settled yet" if open_ else ""
    parts = [f"{met} of {len(promised)} objectives {'is' if met == 1 else 'are'} met{unsettled}"]
    if sums.with_outcome >= LEAST_OUTCOMES and scope.value.given:
        parts.append(
            f"the loop made {_money(sums.model, sums.currency)} over no model, "
            f"{_money(sums.over_heuristic, sums.currency, signed=True)} against the simple rule"
        )
    grave = sum(d.weight == "grave" for d in raised)
    tail = f"{grave} grave {'doubt' if grave == 1 else 'doubts'}" if grave else "No grave doubt"
    return "; ".join(parts) + f". {tail}."


# --- words and numbers -------------------------------------------------------------------------------------------


def _money(e: Estimate, currency: str, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{e.value:{sign},.0f} {currency} [{e.low:,.0f}, {e.high:,.0f}]"


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}" if size >= 10 or 0 < size < 0.001 else f"{value:.3f}"


def _cents(value: float) -> str:
    return "less than 0.01" if 0 < value < 0.01 else f"{value:,.2f}"


def _estimate(e: Estimate | None) -> str:
    if e is None:
        return "–"
    return _number(e.value) if e.low == e.high else f"{_number(e.value)} [{_number(e.low)}, {_number(e.high)}]"


def _day(moment: datetime | None) -> str:
    return f"{moment:%d %b %Y}" if moment is not None else "–"


PROMISED = ("", "Objective", "Owner", "Promised", "When made", "Measured [95 %]", "Met")
DELIVERED = ("Measure", "So far")
SERVED = ("Since", "Package", "Candidate", "Trained until", "Why")


def promised_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of objectives, by column of PROMISED."""
    return [
        (
            _SIGNS[p.met],
            p.objective,
            p.owner,
            f"{p.metric} {p.target}",
            "–" if p.expected is None else _number(p.expected),
            _estimate(p.measured),
            p.met_text,
        )
        for p in report.promised
    ]


def delivered_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of totals, by column of DELIVERED."""
    t = report.totals
    money: list[tuple[str, ...]] = [
        ("Money over no model", _money(t.model, t.currency)),
        ("The simple rule alone", _money(t.heuristic, t.currency)),
        ("Model over the simple rule", _money(t.over_heuristic, t.currency, signed=True)),
        ("Money per prediction", f"{t.model.value / t.with_outcome:,.2f} {t.currency}" if t.with_outcome else "–"),
    ]
    changes = max(len(report.served) - 1, 0)
    predictions = (
        f"{report.logged:,}; {t.predictions:,} in windows accounted for: {t.with_outcome:,} with a known outcome, "
        f"{t.pending:,} not known yet (wait {report.wait}), {t.missing:,} missing"
        if report.logged
        else "none yet"
    )
    rows: list[tuple[str, ...]] = [
        ("Predictions", predictions),
        *(money if report.earned else []),
        ("Compute", _compute(t, report.budget)),
        (
            "Packages in service",
            f"{len({s.package for s in report.served})}, {changes} {'change' if changes == 1 else 'changes'}",
        ),
    ]
    return [*rows, ("Candidates compared", report.verdict)] if report.verdict else rows


def _compute(totals: Totals, budget: Budget) -> str:
    """What compute cost, at which price, and a month of it where there is enough to tell."""
    if not totals.days:
        return "not accounted for yet: no window has closed"
    month = totals.cost_per_month
    pace = f"{_cents(month)} a month" if month is not None else "no figure for a month before a day is accounted for"
    if budget.usd_per_month is not None:
        pace += f" (budget {budget.usd_per_month:,.2f})"
    default = "the default price, " if budget.usd_per_hour == Budget().usd_per_hour else ""
    return f"{_cents(totals.cost)} USD, {pace}; at {default}{budget.usd_per_hour:,.2f} USD a machine hour"


def served_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of who served, by column of SERVED."""
    return [
        (
            f"{s.since:%d %b %Y %H:%M}",
            s.package[:12],
            s.candidate or "–",
            _day(s.trained_until),
            f"{s.action}: {s.why} ({s.by})",
        )
        for s in report.served
    ]


def by_week(report: Report) -> tuple[str, ...]:
    """The columns of the table of windows."""
    metric = f"{report.metric.replace('_', ' ')} [95 %]"
    return ("From", "Predictions", "Outcomes", "Drift", metric.capitalize(), "Over no model", "Over the rule")


def week_rows(report: Report) -> list[tuple[str, ...]]:
    """The table of windows, by column of `by_week`."""
    return [
        (
            edge(w.start, w.end - w.start),
            f"{w.window.rows:,}",
            f"{w.quality.with_outcome:,}" if w.quality is not None else "–",
            w.window.state_text + (f" ({len(w.window.drifted)})" if w.window.drifted else ""),
            _estimate(w.quality.metrics.get(report.metric)) if w.quality is not None else "–",
            f"{w.value.over_no_model.value:,.0f}" if w.value is not None and report.valued else "–",
            f"{w.value.over_heuristic.value:+,.0f}" if w.value is not None and report.valued else "–",
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
        f"Period: {_period(report)}. Made {report.made_at:%Y-%m-%d %H:%M} UTC. Figures in brackets are 95 % intervals.",
        f"**{plain(report.headline)}**",
        "## Promised",
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
    charts = [
        (
            f"Quality: {report.metric.replace('_', ' ')} by window",
            quality_chart(recent, report.served, report.metric, report.target),
            "The band is the 95 % interval. ▾ another package began to serve.",
        ),
        (
            "Money over no model, added up",
            value_chart(recent, report.served, report.totals.currency) if report.valued else "",
            "What the loop made, beside what the simple rule alone would have made on the same predictions.",
        ),
        (
            "Drift of inputs and scores",
            drift_chart(recent, report.monitor),
            "How far each column was from what the package had seen, beyond what is usual for it. A gap is a window without data.",
        ),
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{report.loop}: report"),
        loop=escape(report.loop),
        problem=escape(report.problem),
        period=escape(_period(report)),
        made=f"{report.made_at:%d %b %Y %H:%M} UTC",
        headline=escape(report.headline),
        tiles=_tiles(report),
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
    money = [
        ("Over no model", f"{t.model.value:,.0f}", f"{t.currency} [{t.model.low:,.0f}, {t.model.high:,.0f}]"),
        (
            "Over the simple rule",
            f"{t.over_heuristic.value:+,.0f}",
            f"{t.currency} [{t.over_heuristic.low:,.0f}, {t.over_heuristic.high:,.0f}]",
        ),
    ]
    tiles = [
        (
            "Objectives met",
            f"{met} of {len(report.promised)}",
            f"{sum(not p.settled for p in report.promised)} not settled yet",
        ),
        *(money if report.earned else []),
        ("Predictions", f"{report.logged:,}", f"{t.with_outcome:,} with outcome"),
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
