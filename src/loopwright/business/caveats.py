"""Doubts: what speaks against believing the report, worst first; and the one next step it recommends."""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import dropwhile
from typing import Literal, NamedTuple

import msgspec

from loopwright.business.objectives import Promise
from loopwright.business.totals import Totals, WindowTotals
from loopwright.records.conditions import MIN_OUTCOMES
from loopwright.records.declarations import Scope

FEW_OUTCOMES = 1000
MISSING_OUTCOMES = 0.1
DEGRADED = 0.01


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """One doubt in a sentence, how heavy it is, and what to do about it."""

    weight: Literal["grave", "note"]
    text: str
    do: str


class CaveatInputs(NamedTuple):
    """What doubts are raised from. `wait` is the outcome's, `every` the monitor's; `rule`: a rule serves, not a model."""

    loop: str
    scope: Scope
    weeks: Sequence[WindowTotals]
    totals: Totals
    promises: Sequence[Promise]
    leaks: Sequence[str] = ()
    wait: str = ""
    every: str = ""
    last_prediction: datetime | None = None
    rule: bool = False

    @property
    def silent(self) -> bool:
        """Whether neither the last closed window nor the time since has a prediction."""
        last = self.weeks[-1].window if self.weeks else None
        asked = self.last_prediction
        return last is not None and not last.rows and (asked is None or asked < last.start)


def _silent(case: CaveatInputs) -> Doubt | None:
    if not case.weeks:
        return _grave(
            "no monitoring window has closed yet, so nothing was measured while serving.",
            f"Let it serve until the first window of {case.every} is over, with `loopwright tend` running (`loopwright serve` runs it too).",
        )
    if case.silent:
        since = case.last_prediction or case.weeks[-1].start
        return _grave(f"no prediction was asked for since {since:%d %B %Y %H:%M} UTC.", "Find out why requests have stopped.")
    return None


def _leaking(case: CaveatInputs) -> Doubt | None:
    if not case.leaks:
        return None
    return _grave(
        f"what serves is too good to be true: {'; '.join(case.leaks)}.",
        "Find out which columns are known at the decision, leave out of the features those that are not, and run again.",
    )


def _gaps(case: CaveatInputs) -> Doubt | None:
    begun = list(dropwhile(lambda w: not w.window.rows, case.weeks))
    silent = sum(not w.window.rows for w in begun)
    if not silent or case.silent:
        return None
    return _note(
        f"{silent} of {len(begun)} windows since the first prediction had no predictions at all.",
        "Find out why requests had stopped.",
    )


def _unanswered(case: CaveatInputs) -> Doubt | None:
    known, missing = case.totals.with_outcome, case.totals.missing
    bring = f"ring outcomes in: `loopwright outcomes {case.loop} FILE`."
    if not known and missing:
        return _grave("no outcome is known, so neither quality nor value can be measured.", f"B{bring}")
    if not known and case.totals.pending:
        return _note(
            f"no outcome is known yet, and none is overdue: each may take {case.wait}.", f"As soon as they are known, b{bring}"
        )
    if missing > MISSING_OUTCOMES * (known + missing):
        return _note(
            f"{missing / (known + missing):.0%} of predictions that should have an outcome by now (wait {case.wait}) have none; "
            "if those differ, the figures are off.",
            "Find out why outcomes are missing.",
        )
    return None


def _decayed(case: CaveatInputs) -> Doubt | None:
    bad = [w for w in case.weeks if w.quality is not None and w.quality.state == "decayed"]
    judged = [w for w in case.weeks if w.quality is not None and w.quality.state != "no data"]
    if not bad:
        return None
    text = f"quality was below what the package had promised in {len(bad)} of {len(judged)} windows that could be judged, last from {bad[-1].start:%d %B %Y}."
    if bad[-1] is judged[-1]:
        return _grave(text, f"Retrain: `loopwright run {case.loop}`, and look at what changed.")
    return _note(text, "Look at what the windows of poor quality have in common.")


def _worth(case: CaveatInputs) -> Doubt | None:
    over = case.totals.over_heuristic
    if not over.n:
        return None
    if not case.scope.value.is_set:
        return _note(
            "no value table is declared, so nobody knows what the loop is worth.",
            "Declare what right and wrong answers are worth (`Scope(value=Value(...))`).",
        )
    if case.rule or over.too_few or over.n < MIN_OUTCOMES:
        return None
    if over.high < 0:
        return _grave(
            "over its whole life the model is worth less than the simple rule.",
            f"Serve the rule (`loopwright release {case.loop} heuristic --why REASON`), and ask whether a model is needed at all.",
        )
    if over.low <= 0:
        return _grave(
            "it is not shown over its whole life that the model is worth more than the simple rule: the interval includes zero.",
            "Collect more outcomes before more is invested; the rule may be enough.",
        )
    return None


def _missed(case: CaveatInputs) -> Doubt | None:
    missed = [p for p in case.promises if p.met == "missed"]
    if not missed:
        return None
    owners = ", ".join(dict.fromkeys(p.owner for p in missed))
    names = ", ".join(f"“{p.objective}”" for p in missed)
    return _grave(
        f"{names} {'is' if len(missed) == 1 else 'are'} missed now.",
        f"Decide with {owners}: other features or data, or another target.",
    )


def _unsure(case: CaveatInputs) -> Doubt | None:
    unsure = [p for p in case.promises if not p.settled]
    if not unsure:
        return None
    names = "; ".join(f"“{p.objective}”: {p.met_text}" for p in unsure)
    return _note(f"not settled: {names}.", "Wait for more predictions, and for their outcomes.")


def _drifting(case: CaveatInputs) -> Doubt | None:
    judged = [w for w in case.weeks if w.window.state != "no data"]
    moved = [w for w in judged if w.window.state == "drift"]
    if not moved:
        return None
    text = f"inputs or scores drifted in {len(moved)} of {len(judged)} windows"
    if moved[-1] is judged[-1]:
        return _note(
            f"{text}, last {', '.join(moved[-1].window.drifted)}.", "Watch whether quality follows; a retraining adapts to it."
        )
    return _note(f"{text}; the last one did not.", "Nothing now.")


def _degraded(case: CaveatInputs) -> Doubt | None:
    rows = sum(w.window.rows for w in case.weeks)
    share = sum(w.window.degraded * w.window.rows for w in case.weeks) / rows if rows else 0.0
    if share <= DEGRADED:
        return None
    return _grave(
        f"{share:.1%} of answers came from the fall-back, because the model failed.",
        "Look at the degraded requests, and mend the package.",
    )


def _few(case: CaveatInputs) -> Doubt | None:
    known = case.totals.with_outcome
    if not 0 < known < FEW_OUTCOMES:
        return None
    few = case.scope.value.is_set and known < MIN_OUTCOMES
    chance = f", and with fewer than {MIN_OUTCOMES} an interval of money is chance" if few else ""
    return _note(f"only {known:,} outcomes are known: the figures will still move{chance}.", "Wait for more outcomes.")


def _over_budget(case: CaveatInputs) -> Doubt | None:
    limit, month = case.scope.budget.usd_per_month, case.totals.cost_per_month
    if limit is None or month is None or month <= limit:
        return None
    return _grave(
        f"compute costs {month:,.2f} USD a month, over the budget of {limit:,.2f}.", "Retrain less often, or search less."
    )


DOUBTS: tuple[Callable[[CaveatInputs], Doubt | None], ...] = (
    _leaking,
    _silent,
    _unanswered,
    _decayed,
    _worth,
    _missed,
    _degraded,
    _over_budget,
    _few,
    _unsure,
    _drifting,
    _gaps,
)
"""Every doubt there is, in order of what is done about first."""


def doubts(case: CaveatInputs) -> list[Doubt]:
    """The doubts that apply, grave ones first."""
    found = [doubt for raised in DOUBTS if (doubt := raised(case)) is not None]
    return sorted(found, key=lambda d: d.weight != "grave")


def next_step(case: CaveatInputs, doubts: Sequence[Doubt]) -> str:
    """The one thing to do now."""
    if doubts and doubts[0].weight == "grave":
        return doubts[0].do
    return "Keep it serving. " + (
        f"Meanwhile: {doubts[0].do[0].lower()}{doubts[0].do[1:]}" if doubts else "Look again after the next window."
    )


def _grave(text: str, do: str) -> Doubt:
    return Doubt(weight="grave", text=text[0].upper() + text[1:], do=do)


def _note(text: str, do: str) -> Doubt:
    return Doubt(weight="note", text=text[0].upper() + text[1:], do=do)
