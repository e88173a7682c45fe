"""The verb `cases`: releases that wait for people or for their moment."""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

import msgspec

from loopwright.base.errors import NotFound, PackageNotFound, PackageRefused, Refused, UsageError
from loopwright.deploy.gate import GateResult
from loopwright.deploy.guards import Check
from loopwright.deploy.pending import begin_pending, person
from loopwright.deploy.preconditions import approvals, waiting
from loopwright.parity import parity_check
from loopwright.records.declarations import Loop
from loopwright.records.releases import Approval, PendingRelease
from loopwright.records.turns import LoopRecord
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop
from loopwright.verbs.switched import check_reason


class Case(PendingRelease, frozen=True, kw_only=True):
    """A release that waits, or the newest one that waited: what it waits for, what was said, and the checks of its gate.

    `candidate` is the one that its package was trained as; `approvals` are in the order in which they were given.
    """

    candidate: str = ""
    approvals: list[Approval] = []
    checks: list[Check] = []


class Cases(msgspec.Struct, frozen=True, kw_only=True):
    """The releases that wait, the oldest first."""

    cases: list[Case]


def cases(home: Home, loop: str | None = None) -> Cases:
    """List the releases that wait: for an approval, the end of a freeze, the end of another release.

    Args:
        loop: name of a loop (default: all loops).
    """
    names = home.ledger.loops(LoopRecord) if loop is None else [known_loop(home, loop).name]
    found = [pending for name in names if (pending := waiting(home, name)) is not None]
    return Cases(cases=[_case(home, pending) for pending in sorted(found, key=lambda pending: pending.opened)])


def decide(home: Home, loop: str, package: str, answer: Literal["approve", "reject"], why: str, request: str) -> Case:
    """Record what one of the approvers says about the release that waits, and begin or end it where that decides it."""
    check_reason(why)
    declared = known_loop(home, loop)
    newest = home.ledger.latest(PendingRelease, loop=loop)
    if newest is not None and request and any(said.request == request for said in approvals(home, newest.record).values()):
        return _case(home, newest.record)
    if not why.strip():
        raise UsageError(f"{answer} needs --why REASON: it is recorded for good")
    pending = waiting(home, loop)
    if pending is None:
        raise NotFound("waiting release of loop", loop, next_step=f"`loopwright history {loop}` shows what was released")
    if package and not pending.package.startswith(package):
        raise PackageNotFound(package, [pending.package[:12]], what="package that waits")
    name = _approver(home, declared, pending)
    said = Approval(
        case=pending.case,
        loop=loop,
        package=pending.package,
        answer=answer,
        name=name,
        why=why,
        at=home.clock.now(),
        request=request,
    )
    home.ledger.put(said, loop=loop, key=pending.package)
    return _case(home, begin_pending(home, declared, partial(parity_check, home, declared)) or pending)


def _approver(home: Home, loop: Loop, pending: PendingRelease) -> str:
    """The name of the approver who acts. Raises Refused where the one who acts is none, or asked for the release."""
    name, known = person(home.by), loop.scope.approvers
    if not name:
        raise Refused(
            "an approval over HTTP needs a token of one's own (LOOPWRIGHT_TOKENS): a name that is only claimed is nobody's"
        )
    if name not in known:
        named = (
            f"the approvers of {loop.name} are {', '.join(known)}"
            if known
            else f"{loop.name} names no `Scope(approvers=[...])`"
        )
        raise Refused(f"{name} approves nothing here: {named}; on the command line LOOPWRIGHT_BY says who you are")
    if name == pending.made_by:
        raise Refused(f"{name} asked for the release of {pending.package[:12]}: somebody else must decide")
    return name


def _case(home: Home, pending: PendingRelease) -> Case:
    facts = {name: getattr(pending, name) for name in pending.__struct_fields__}
    result = home.ledger.latest(GateResult, loop=pending.loop, key=pending.package)
    candidate = ""
    with suppress(NotFound, PackageRefused):
        candidate = home.packages.manifest(pending.package).candidate
    checks: Sequence[Check] = result.record.checks if result is not None else []
    return Case(**facts, candidate=candidate, approvals=list(approvals(home, pending).values()), checks=list(checks))
