"""Releases that wait, in upkeep: begun once they may, and told to those who must approve them."""

from functools import partial

from loopwright.deploy import blocklist
from loopwright.deploy.pending import begin_pending
from loopwright.deploy.preconditions import APPROVAL
from loopwright.monitor.alerts import close_alert, raise_alert, send
from loopwright.parity import parity_check
from loopwright.records.declarations import Loop
from loopwright.records.windows import Alert
from loopwright.stores.home import Home


def attend_pending(home: Home, loop: Loop) -> None:
    """Begin the release that waits, if it may. Alert while it waits for an approval, and where it will not begin."""
    pending = begin_pending(home, loop, partial(parity_check, home, loop))
    if pending is None:
        return
    name, package = loop.name, pending.package[:12]
    wanted = next((b.detail for b in pending.waits_for if b.name == APPROVAL), "") if pending.state == "waiting" else ""
    entry = home.ledger.latest(Alert, loop=name, key=blocklist.APPROVAL_ALERT)
    before = entry.record if entry is not None and entry.record.state == "open" else None
    title = f"Package {package} waits for an approval"
    if wanted and (before is None or before.title != title):
        if before is not None:
            close_alert(home, name, blocklist.APPROVAL_ALERT, detail="another package waits")
        raise_alert(home, name, blocklist.APPROVAL_ALERT, severity="warning", title=title, detail=wanted)
    elif before is not None and not wanted:
        close_alert(home, name, blocklist.APPROVAL_ALERT, detail=f"{pending.state}: {pending.detail}".rstrip(": "))
        send(home, name)
    key = f"{blocklist.NOT_BEGUN_ALERT}:{package}:{pending.case}"
    if pending.state in ("refused", "expired") and home.ledger.latest(Alert, loop=name, key=key) is None:
        title, detail = f"The release of {package} that waited does not begin", f"{pending.state}: {pending.detail}"
        raise_alert(home, name, key, severity="warning", title=title, detail=detail)
