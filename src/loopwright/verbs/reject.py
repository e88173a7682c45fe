"""The verb `reject`."""

from loopwright.stores.home import Home
from loopwright.verbs.cases import Case, decide


def reject(home: Home, loop: str, package: str = "", *, why: str = "", request_id: str = "") -> Case:
    """Reject a release that waits, as one of the approvers of the loop's scope; it never begins.

    Args:
        loop: name of the loop.
        package: the package, or the beginning of its digest (default: the one that waits).
        why: the reason in one sentence, for the audit trail (required).
        request_id: an idempotency key: a repeated request returns the same answer and changes nothing.
    """
    return decide(home, loop, package, "reject", why, request_id)
