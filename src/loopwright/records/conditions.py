"""The states of stages and loops: one table of how they are shown, and one place that derives them from facts.

Status, console, `--json` and metrics all show these states, so they cannot contradict each other. What was not
measured is `no data`, which is grey; `ok` means measured and good.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal, NamedTuple, get_args

import msgspec

from loopwright.base.text import count, money
from loopwright.records.declarations import Scope, Value
from loopwright.records.declarations.scope import is_placeholder
from loopwright.records.entries import Record
from loopwright.records.evaluation import Estimate, added
from loopwright.records.releases import ReleaseState
from loopwright.records.windows import Harm, ValueWindow, Window, span_to

Condition = Literal["alert", "watch", "running", "not yet", "no data", "ok"]
"""The state of a stage, worst first: with several loops the worst of them is shown."""

GRAVITY: tuple[Condition, ...] = get_args(Condition)


class StateStyle(NamedTuple):
    """A sign, so that colour is never the only carrier, and the style of a terminal. The console's colours are in its style sheet."""

    sign: str
    style: str


_BAD, _DOUBTFUL, _UNKNOWN, _GOOD = (
    StateStyle("▲", "bold red"),
    StateStyle("◐", "yellow"),
    StateStyle("○", "dim"),
    StateStyle("●", "green"),
)

LOOKS: dict[str, StateStyle] = {
    **dict.fromkeys(("alert", "drift", "decayed", "failed", "worse"), _BAD),
    **dict.fromkeys(("watch", "pending"), _DOUBTFUL),
    **dict.fromkeys(("no data", "too few", "not yet", "provisional", "cannot tell"), _UNKNOWN),
    **dict.fromkeys(("ok", "done", "within"), _GOOD),
    "running": StateStyle("◌", "cyan"),
}
"""Style of each state: those of stages, of windows, of quality, of outcomes and of guards."""


class Worth(msgspec.Struct, frozen=True, kw_only=True):
    """Money of the windows [start, end) that ended within the scope's horizon, added up; see `ValueWindow`."""

    start: datetime
    end: datetime
    currency: str
    predictions: int
    with_outcome: int
    over_no_model: Estimate
    over_heuristic: Estimate


class Standing(Record, frozen=True, kw_only=True):
    """Upkeep's results for a loop beyond its newest window: the newest quality that could be judged, and the loop's value."""

    kind: ClassVar[str] = "standing"
    until: datetime
    quality: Literal["ok", "decayed", "no data"] = "no data"
    quality_start: datetime | None = None
    quality_end: datetime | None = None
    since_release: Harm | None = None
    """Quality over all windows of the package that was judged."""
    worth: Worth | None = None


class Judged(NamedTuple):
    """The state of a stage, and one sentence on it."""

    state: Condition
    detail: str


NOTHING_MEASURED = "nothing measured yet"

MIN_OUTCOMES = 30
"""With fewer outcomes an interval of money is chance: resamples of a few equal rows are all equal."""

_WINDOW: dict[str, Condition] = {"drift": "alert", "watch": "watch", "no data": "no data", "ok": "ok"}
_QUALITY: dict[str, Condition] = {"decayed": "alert", "ok": "ok", "no data": "no data"}


def worst(states: Sequence[Condition]) -> Condition:
    """The gravest of some states."""
    return min(states, key=GRAVITY.index)


def framed(scope: Scope) -> Judged:
    """State of the stage `scope`: whether the problem is described, and each objective has an owner."""
    owners = {o.owner for o in scope.objectives if not is_placeholder(o.owner)}
    unnamed = [o.name for o in scope.objectives if is_placeholder(o.owner)]
    said = count(len(scope.objectives), "objective") + (f" of {count(len(owners), 'stakeholder')}" if owners else "")
    said += "; the rule to beat is declared"
    todo = ["the problem is not described: write `problem` in the loop file"] if is_placeholder(scope.problem) else []
    if unnamed:
        which = ", ".join(map(repr, unnamed)) if owners else "them" if len(unnamed) > 1 else "it"
        todo.append(f"nobody is named who wants {which}: write the `owner` in the loop file")
    return Judged("watch" if todo else "ok", "; ".join([said, *todo]))


def monitored(window: Window | None, standing: Standing | None, alerts: int) -> Judged:
    """State of the stage `monitor`: by its newest window, the newest quality that could be judged, and the open alerts."""
    alarm: list[Condition] = ["alert"] if alerts else []
    told = count(alerts, "open alert")
    if window is None:
        return Judged(worst([*alarm, "no data"]), "; ".join([NOTHING_MEASURED, *([told] if alerts else [])]))
    said = [f"{span_to(window.start, window.end)}: {_inputs(window)}"]
    quality = standing.quality if standing is not None else "no data"
    if standing is not None and standing.quality_start is not None and standing.quality_end is not None:
        of = "" if standing.quality_start == window.start else f" ({span_to(standing.quality_start, standing.quality_end)})"
        said.append(f"quality {quality}{of}")
        if (harm := standing.since_release) is not None and harm.low is not None:
            said.append(f"{harm.text} worse than promised over {count(harm.windows, 'window')}")
    # A window too thin to judge is no reason to doubt quality that could be judged, and neither is quality that is not known yet.
    known = [state for state in (_WINDOW[window.state], _QUALITY[quality]) if state != "no data"]
    return Judged(worst([*alarm, *known] or ["no data"]), "; ".join([*said, told]))


def _inputs(window: Window) -> str:
    if window.state == "no data":
        return window.state_text.replace("no data", "too few to judge") if window.rows else "no predictions"
    drifted = f", drifted: {', '.join(window.drifted)}" if window.drifted else ""
    noted = f"; moved, but hardly moves an answer: {', '.join(window.noted)}" if window.noted else ""
    return f"inputs {window.state}{drifted}{noted}"


def earned(worth: Worth | None, value: Value, rule_since: datetime | None = None) -> Judged:
    """State of the stage `business`: by the 95 % interval of the loop's value over the horizon.

    `rule_since`: since when the heuristic serves instead of a model, None where a model does. Earlier windows do not count then,
    and the only comparison left is with doing nothing.
    """
    if rule_since is not None and (worth is None or worth.start < rule_since):
        return Judged("no data", "the heuristic serves: nothing measured since its release")
    if worth is None:
        return Judged("no data", NOTHING_MEASURED)
    span, known = span_to(worth.start, worth.end), worth.with_outcome
    if not known:
        return Judged("no data", f"{span}: no outcome is known yet of {count(worth.predictions, 'prediction')}")
    if not value.is_set:
        return Judged("no data", f"{span}: {count(known, 'outcome')} known; no value table is declared")
    compared = [("doing nothing", worth.over_no_model, "over no model")] if value.over_nothing else []
    compared += [("the heuristic", worth.over_heuristic, "over the heuristic")] if rule_since is None else []
    said = f"{span}: " + ", ".join(f"{money(over, worth.currency, sign=True)} {what}" for _, over, what in compared)
    if known < MIN_OUTCOMES or not compared:
        why = f"too few outcomes to judge ({known} of {MIN_OUTCOMES})" if compared else "nothing to compare the heuristic with"
        return Judged("no data", f"{said.rstrip(': ')}: {why}")
    if any(over.too_few for _, over, _ in compared):
        return Judged("no data", said)
    if loses := [who for who, over, _ in compared if over.high < 0]:
        return Judged("alert", f"{said}: surely worth less than {' and than '.join(loses)}")
    if doubted := [who for who, over, _ in compared if over.low <= 0]:
        return Judged("watch", f"{said}: not shown to be worth more than {' or than '.join(doubted)}")
    return Judged("ok", said)


def counted_from(state: ReleaseState) -> datetime:
    """The moment from which windows belong to a release: its start; for the first release an hour earlier, as its window may have begun."""
    return state.since if state.generation > 1 else state.since - timedelta(hours=1)


def worth_of(values: Sequence[ValueWindow]) -> Worth | None:
    """The money of some windows summed up; None without any."""
    if not values:
        return None
    return Worth(
        start=min(v.start for v in values),
        end=max(v.end for v in values),
        currency=values[-1].currency,
        predictions=sum(v.predictions for v in values),
        with_outcome=sum(v.with_outcome for v in values),
        over_no_model=added([v.over_no_model for v in values]),
        over_heuristic=added([v.over_heuristic for v in values]),
    )
