"""Upkeep of releases that are under way: which loops have one, the judge, and the alerts about both."""

from datetime import datetime

from loopwright.cases import attend_pending
from loopwright.deploy import blocklist
from loopwright.deploy.controller import BY, newest_verdict, progress
from loopwright.deploy.releases import serving
from loopwright.monitor.alerts import close_alert, raise_alert, send
from loopwright.records.declarations import Loop
from loopwright.records.releases import PendingRelease, ReleaseState
from loopwright.records.verdicts import Verdict, silent_since
from loopwright.records.windows import Alert
from loopwright.stores.home import Home

SILENT = "release-silent"
"""Key of the alert that a release is under way and its judge gives no verdict."""


def loops_to_judge(home: Home) -> set[str]:
    """The loops with a plan under way, that a verdict sent back, or with a release that waits or waited: of all loops in two statements."""
    newest = (entry.record for entry in home.ledger.newest(ReleaseState))
    judged = {s.loop for s in newest if s.under_way is not None or (s.action == "rollback" and s.by == BY)}
    return judged | set(home.ledger.loops(PendingRelease))


def judge_release(home: Home, loop: Loop, at: datetime) -> Verdict | None:
    """Judge the stage of a release that is under way, and act on it; a package that is sent back raises an alert. Begin one that waits, once it may."""
    verdict = progress(home, loop, at)
    attend_pending(home, loop)
    entry = home.ledger.latest(Verdict, loop=loop.name)
    back = entry.record if entry is not None and entry.record.answer == "back" else None
    if back is not None:  # also where the process that went back died before it raised the alert
        key = f"{blocklist.SENT_BACK_ALERT}:{back.package[:12]}:{back.generation}"
        if home.ledger.latest(Alert, loop=loop.name, key=key) is None:
            title = f"Package {back.package[:12]} {'was sent back' if back.worse else 'was not shown to be better'}"
            detail = f"{back.why}. `loopwright history {loop.name}` shows what was compared"
            raise_alert(home, loop.name, key, severity="critical" if back.worse else "warning", title=title, detail=detail)
    return verdict


def watch_judge(home: Home, loop: str, at: datetime) -> None:
    """Alert once while a release is under way and its judge is silent; a silent judge holds the stage."""
    state = serving(home, loop)
    since = silent_since(state, newest_verdict(home, state), at) if state is not None else None
    entry = home.ledger.latest(Alert, loop=loop, key=SILENT)
    is_open = entry is not None and entry.record.state == "open"
    if since is not None and not is_open:
        title = "A release is under way, and its judge is silent"
        detail = f"no verdict since {since:%Y-%m-%d %H:%M} UTC: the stage holds. `loopwright status {loop}` says what fails; `loopwright rollback {loop}` ends it"
        raise_alert(home, loop, SILENT, severity="critical", title=title, detail=detail)
    elif since is None and is_open:
        close_alert(home, loop, SILENT, detail="there is a verdict again, or the plan has ended")
        send(home, loop)
