"""The verb `rollback`."""

from contextlib import suppress

from loopwright.base.errors import LedgerUnavailable, NotFound
from loopwright.deploy.releases import BY_HAND
from loopwright.deploy.releases import rollback as go_back
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop
from loopwright.verbs.switched import Switched, check_reason, switched


def rollback(
    home: Home, loop: str, *, to: str = "", segment: str | None = None, why: str = "", force: bool = False, request_id: str = ""
) -> Switched:
    """Roll back to the package that served before, at a time, or by name, with its segment packages.

    A second rollback without `--to` returns to the package that the first one replaced, and says so; use `--to` to go further back.

    Waits for the workers here as `release` does.

    Args:
        loop: name of the loop.
        to: a package (beginning of its digest) or a time (ISO 8601, or "tuesday 09:00"); default: the previous one.
        segment: roll back only this segment; `--to global` lets the loop's own package answer it.
        why: the reason in one sentence, for the audit trail.
        force: allow a package that was marked bad.
        request_id: an idempotency key: a repeated request returns the same answer and changes nothing.
    """
    check_reason(why)
    try:
        entry = go_back(home, loop, segment=segment, to=to or None, why=why or BY_HAND, force=force, request=request_id)
        return switched(home, entry.record)
    except NotFound:
        with suppress(LedgerUnavailable):  # going back works without the ledger; only the nearest names are missed
            known_loop(home, loop)
        raise
