"""Doubts: what speaks against believing the report, worst first; and the one next step it recommends."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from loopwright.business.delivered import Totals, Week
from loopwright.business.promises import Promise
from loopwright.records.declarations import Scope

FEW_OUTCOMES = 1000
MISSING_OUTCOMES = 0.1
DEGRADED = 0.01


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """One doubt in a sentence, how heavy it is, and what to do about it."""

    weight: Literal["grave", "note"]
    text: str
    do: str


class Case(NamedTuple):
    """What doubts are raised from."""

    loop: str
    scope: Scope
    weeks: Sequence[Week]
    totals: Totals
    promises: Sequence[Promise]
    leaks: Sequence[str] = ()


def _silent(case: Case) -> Doubt | None:
    last = case.weeks[-1].window if case.weeks else None
    if last is None:
        return _grave(
            "no monitoring window has closed yet, so nothing was measured while serving.",
            "Let it serve until the first window is over (`Monitor(every=...)`, a week unless declared), with `loopwright tend` running.",
        )
    if not last.rows:
        return _grave(f"no prediction was asked for since {last.start:%d %B %Y}.", "Find out why requests have stopped.")
    return None


def _leaking(case: Case) -> Doubt | None:
    if not case.leaks:
        return None
    return _grave(
        f"what serves is too good to be true: {'; '.join(case.leaks)}.",
        "Find out which columns are known at the decision, leave out of the features those that are not, and run again.",
    )


def _gaps(case: Case) -> Doubt | None:
    silent = sum(not w.window.rows for w in case.weeks)
    if not silent or not case.weeks[-1].window.rows:
        return None
    return _note(f"{silent} of {len(case.weeks)} windows had no predictions at all.", "Find out why requests had stopped.")


def _unanswered(case: Case) -> Doubt | None:
    predictions, known = case.totals.predictions, case.totals.with_outcome
    if not predictions:
        return None
    if not known:
        return _grave(
            "no outcome is known, so neither quality nor value can be measured.",
            "Bring outcomes in: `loopwright outcomes LOOP FILE`.",
        )
    missing = 1 - known / predictions
    if missing > MISSING_OUTCOMES:
        return _note(
            f"{missing:.0%} of predictions have no known outcome; if those differ, the figures are off.",
            "Find out why outcomes are missing.",
        )
    return None


def _decayed(case: Case) -> Doubt | None:
    bad = [w for w in case.weeks if w.quality is not None and w.quality.state == "decayed"]
    measured = [w for w in case.weeks if w.quality is not None and w.quality.with_outcome]
    if not bad:
        return None
    text = f"quality was below what the package had promised in {len(bad)} of {len(measured)} windows, last from {bad[-1].start:%d %B %Y}."
    if bad[-1] is measured[-1]:
        return _grave(text, f"Retrain: `loopwright run {case.loop}`, and look at what changed.")
    return _note(text, "Look at what the windows of poor quality have in common.")


def _worth(case: Case) -> Doubt | None:
    over = case.totals.over_heuristic
    if not over.n:
        return None
    if not case.scope.value.given:
        return _note(
            "no value table is declared, so nobody knows what the loop is worth.",
            "Declare what right and wrong answers are worth.",
        )
    if over.high < 0:
        return _grave(
            "the model is worth less than the simple rule.",
            f"Serve the rule (`loopwright release {case.loop} heuristic --why REASON`), and ask whether a model is needed at all.",
        )
    if over.low <= 0:
        return _grave(
            "it is not shown that the model is worth more than the simple rule: the interval includes zero.",
            "Collect more outcomes before more is invested; the rule may be enough.",
        )
    return None


def _missed(case: Case) -> Doubt | None:
    missed = [p for p in case.promises if p.met == "missed"]
    if not missed:
        return None
    owners = ", ".join(dict.fromkeys(p.owner for p in missed))
    names = ", ".join(f"“{p.objective}”" for p in missed)
    return _grave(
        f"{names} {'is' if len(missed) == 1 else 'are'} missed.",
        f"Decide with {owners}: other features or data, or another target.",
    )


def _unsure(case: Case) -> Doubt | None:
    unsure = [p for p in case.promises if p.met in ("uncertain", "not measured")]
    if not unsure:
        return None
    names = ", ".join(f"“{p.objective}” ({p.met})" for p in unsure)
    return _note(f"not settled: {names}.", "Wait for more outcomes.")


def _drifting(case: Case) -> Doubt | None:
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


def _degraded(case: Case) -> Doubt | None:
    rows = sum(w.window.rows for w in case.weeks)
    share = sum(w.window.degraded * w.window.rows for w in case.weeks) / rows if rows else 0.0
    if share <= DEGRADED:
        return None
    return _grave(
        f"{share:.1%} of answers came from the fall-back, because the model failed.",
        "Look at the degraded requests, and mend the package.",
    )


def _few(case: Case) -> Doubt | None:
    known = case.totals.with_outcome
    if not 0 < known < FEW_OUTCOMES:
        return None
    return _note(f"only {known:,} outcomes are known: the figures will still move.", "Wait for more outcomes.")


def _over_budget(case: Case) -> Doubt | None:
    limit = case.scope.budget.usd_per_month
    if limit is None or not case.totals.days:
        return None
    month = case.totals.cost / case.totals.days * 30
    return (
        _grave(
            f"compute costs {month:,.2f} USD a month, over the budget of {limit:,.2f}.", "Retrain less often, or search less."
        )
        if month > limit
        else None
    )


DOUBTS: tuple[Callable[[Case], Doubt | None], ...] = (
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


def doubts(case: Case) -> list[Doubt]:
    """The doubts that apply, grave ones first."""
    found = [doubt for raised in DOUBTS if (doubt := raised(case)) is not None]
    return sorted(found, key=lambda d: d.weight != "grave")


def next_step(case: Case, found: Sequence[Doubt]) -> str:
    """The one thing to do now."""
    if found and found[0].weight == "grave":
        return found[0].do
    return "Keep it serving. " + (
        f"Meanwhile: {found[0].do[0].lower()}{found[0].do[1:]}" if found else "Look again after the next window."
    )


def _grave(text: str, do: str) -> Doubt:
    return Doubt(weight="grave", text=text[0].upper() + text[1:], do=do)


def _note(text: str, do: str) -> Doubt:
    return Doubt(weight="note", text=text[0].upper() + text[1:], do=do)
