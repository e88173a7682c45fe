"""The verb `approve`."""

from loopwright.stores.home import Home
from loopwright.verbs.cases import Case, decide


def approve(home: Home, loop: str, package: str = "", *, why: str = "", request_id: str = "") -> Case:
    """Approve a release that waits for it, as one of the approvers of the loop's scope; it begins once nothing keeps it from beginning.

    Nobody approves what they asked for themselves. A second word of the same person replaces the first.

    Args:
        loop: name of the loop.
        package: the package, or the beginning of its digest (default: the one that waits).
        why: the reason in one sentence, for the audit trail (required).
        request_id: an idempotency key: a repeated request returns the same answer and changes nothing.
    """
    return decide(home, loop, package, "approve", why, request_id)
