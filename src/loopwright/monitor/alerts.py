"""Alerts: records with a key, one open at a time, and the sinks they go to (a structured log line, a webhook).

An alert is decided (recorded as not sent), then sent, then recorded as sent: after a crash in between it is sent again,
so each goes out at least once, and its `id` in the message lets a receiver drop doubles.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import AddressRefused
from loopwright.base.outbound_http import post, receiver
from loopwright.records.entries import Entry
from loopwright.records.windows import Alert
from loopwright.stores.home import Home

Severity = Literal["info", "warning", "critical"]

LOG = logging.getLogger("loopwright.alerts")
DETAIL = 2000
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


def raise_alert(
    home: Home, loop: str, key: str, *, severity: Severity, title: str, detail: str, holds_releases: bool = False
) -> Alert:
    """Raise the alert `key` of a loop and send it; while it is open, raising it again only counts a repeat."""
    decided = decide(home, loop, key, severity=severity, title=title, detail=detail, holds_releases=holds_releases)
    send(home, loop)
    return decided


def decide(
    home: Home,
    loop: str,
    key: str,
    *,
    severity: Severity,
    title: str,
    detail: str,
    holder: str = "",
    holds_releases: bool = False,
) -> Alert:
    """Record the alert without sending it; `send` does. An open one of that key and severity is recorded as repeated."""
    entry = home.ledger.latest(Alert, loop=loop, key=key)
    alert = Alert(
        key=key,
        severity=severity,
        title=title[:200],
        detail=detail[:DETAIL],
        state="open",
        holder=holder,
        holds_releases=holds_releases,
    )
    if entry is not None and entry.record.state == "open" and entry.record.severity == severity:
        before = entry.record
        alert = msgspec.structs.replace(alert, repeats=before.repeats + 1, sent=before.sent)
    home.ledger.put(alert, loop=loop, key=key)
    return alert


def close_alert(home: Home, loop: str, key: str, *, detail: str) -> Alert | None:
    """Close the alert `key` of a loop with the reason; None when none is open. `send` notifies the sinks."""
    entry = home.ledger.latest(Alert, loop=loop, key=key)
    if entry is None or entry.record.state == "closed":
        return None
    closed = msgspec.structs.replace(entry.record, state="closed", detail=detail[:DETAIL], sent=False)
    home.ledger.put(closed, loop=loop, key=key)
    return closed


def open_alerts(home: Home, loop: str) -> list[Alert]:
    """The open alerts of a loop, oldest first."""
    return [e.record for e in _newest(home, loop) if e.record.state == "open"]


def send(home: Home, loop: str) -> list[Alert]:
    """Send every unsent alert of a loop; mark and return the alerts that all sinks accepted.

    A sink that fails is logged and tried again the next time.
    """
    sent = []
    for entry in _newest(home, loop):
        if entry.record.sent:
            continue
        failpoints.hit("alert.decided")
        if _deliver(home, entry):
            failpoints.hit("alert.sent")
            done = msgspec.structs.replace(entry.record, sent=True)
            home.ledger.put(done, loop=loop, key=entry.key)
            sent.append(done)
    return sent


def message(entry: Entry[Alert]) -> dict[str, object]:
    """The message to a sink: the alert with its loop, its moment and an id."""
    told = {name: value for name, value in msgspec.structs.asdict(entry.record).items() if name != "holder"}
    return {"id": entry.id, "loop": entry.loop, "at": entry.at.isoformat(), **told}


def _newest(home: Home, loop: str) -> Sequence[Entry[Alert]]:
    newest = {e.key: e for e in home.ledger.find(Alert, loop=loop, newest=False)}
    return list(newest.values())


def _deliver(home: Home, entry: Entry[Alert]) -> bool:
    text = msgspec.json.encode(message(entry))
    LOG.log(_LEVELS[entry.record.severity] if entry.record.state == "open" else logging.INFO, "%s", text.decode())
    if not home.settings.webhook:
        return True
    try:
        post(receiver(home.settings, "webhook"), text)
    except (AddressRefused, OSError) as error:
        LOG.warning("%s", msgspec.json.encode({"loop": entry.loop, "key": entry.key, "webhook": str(error)[:200]}).decode())
        return False
    return True
