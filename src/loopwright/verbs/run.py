"""The verb `run`."""

from collections.abc import Sequence
from contextlib import suppress

import msgspec

from loopwright.base.errors import PackageNotFound, PackageRefused, UsageError
from loopwright.base.moment import moment_option
from loopwright.base.progress import Progress
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.turns import STAGES, Stage, Step, Turn
from loopwright.stores.home import Home
from loopwright.turn import turn
from loopwright.verbs.loop_file import check_declared, loop_with_code
from loopwright.verbs.switched import check_reason

CAUSES = ("manual", "schedule", "drift", "decay")


class TurnReport(msgspec.Struct, frozen=True, kw_only=True):
    """One turn: its steps, its leaderboard and its release.

    `left_out` maps each candidate that could not be fitted or converted to the reason; `rows_left_out` counts decisions without example,
    and examples in neither part of the split, by reason; `serves_already`: nothing was released
    because the winner already serves.
    """

    loop: str
    turn: str
    state: str
    steps: list[tuple[str, str, float]]
    verdict: str
    winner: str
    released: bool
    reasons: list[str]
    left_out: dict[str, str] = {}
    rows_left_out: dict[str, int] = {}
    next_step: str = ""
    serves_already: bool = False


def run(
    home: Home,
    loop: str,
    *,
    until: str = "business",
    as_of: str = "",
    refit: bool = False,
    cause: str = "manual",
    why: str = "",
    no_release: bool = False,
    despite_guard: bool = False,
    fresh: bool = False,
    named: str = "",
    progress: Progress | None = None,
) -> TurnReport:
    """Run one turn of the loop, or resume an interrupted one.

    A new turn starts if the declaration, the code that it uses, library versions or, until its candidates are trained, the rows of
    its tables have changed since the interruption. If an earlier turn trained on the same examples with the same code, its packages are reused.

    Args:
        loop: path of a loop file, or the name of a loop in the ledger.
        until: the last stage to run: scope, data, develop, deploy, monitor or business.
        as_of: train only on what was known then (ISO 8601, "tuesday 09:00" or "30 days ago"; default: now).
        refit: retrain the serving candidate with its hyper-parameters instead of comparing all candidates.
        cause: cause of the turn: manual, schedule, drift or decay.
        why: the reason in one sentence, for the audit trail.
        no_release: stop before the release; a turn with `--as-of` never replaces a serving package by itself.
        despite_guard: release the winner even if it misses a target, is worse than what serves, or is too good to be true;
            requires `--why`.
        fresh: start a new turn and train, even if one was interrupted or nothing changed.
        named: refuse a file that declares a loop of another name.
    """
    if until not in STAGES:
        raise UsageError(f"no stage {until!r}: one of {', '.join(STAGES)}")
    if cause not in CAUSES:
        raise UsageError(f"no cause {cause!r}: one of {', '.join(CAUSES)}")
    check_reason(why, despite_guard=despite_guard)
    ahead = "nothing can be known of it yet; leave the option off to learn from all that is known"
    moment = moment_option(as_of, home.clock.now(), "--as-of", ahead=ahead) if as_of else None
    declared, file = loop_with_code(home, loop)
    if named:
        check_declared(declared, file, named)
    steps = turn(
        home,
        declared,
        file=file,
        as_of=moment,
        until=until,
        cause=cause,  # type: ignore[arg-type]  # narrowed above
        why=why,
        refit=refit,
        release=not no_release,
        despite_guard=despite_guard,
        fresh=fresh,
        progress=progress,
    )
    return _report(home, declared.name, until, steps)


def _report(home: Home, loop: str, until: Stage, steps: Sequence[Step]) -> TurnReport:
    entry = home.ledger.latest(Turn, loop=loop)
    this = steps[-1].turn if steps else entry.record.turn if entry is not None else ""
    board = home.ledger.latest(Leaderboard, loop=loop, key=this)
    verdict = board.record.verdict if board else ""
    if board and board.record.fleet is not None:
        verdict = f"{verdict}; {board.record.fleet.verdict}"
    deployed = next((s for s in steps if s.stage == "deploy"), None)
    return TurnReport(
        loop=loop,
        turn=this,
        state="done" if until == STAGES[-1] else f"stopped after {until}",
        steps=[(s.stage, s.summary, s.seconds) for s in steps],
        verdict=verdict,
        winner=board.record.winner if board else "",
        released=bool(deployed and deployed.output.get("released")),
        serves_already=bool(deployed and deployed.output.get("already")),
        reasons=list(deployed.output.get("reasons", [])) if deployed else [],
        left_out=board.record.left_out if board else {},
        rows_left_out=_rows_left_out(home, loop, this, board.record.winner if board else ""),
        next_step=str(deployed.output.get("next_step", "")) if deployed else "",
    )


def _rows_left_out(home: Home, loop: str, turn: str, winner: str) -> dict[str, int]:
    """The decisions that are no examples of a turn, and the examples in neither part of its split, by reason."""
    step = home.ledger.latest(Step, loop=loop, key=f"{turn}:data")
    if step is None or step.record.state != "done":
        return {}
    reasons = dict(home.ledger.get(step.record.output["examples"], Examples).record.excluded)
    with suppress(PackageNotFound, PackageRefused):
        split = home.packages.manifest(winner).split if winner else None
        reasons |= split.left_out if split is not None else {}
    return {why: count for why, count in reasons.items() if count}
