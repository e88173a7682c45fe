"""The verb `parity`."""

from datetime import datetime

from loopwright.base.errors import NotFound
from loopwright.base.moment import moment_option
from loopwright.deploy.releases import serving
from loopwright.parity import Parity
from loopwright.parity import parity as compare
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed
from loopwright.verbs.known_loop import known_loop


def parity(home: Home, loop: str, package: str = "", *, since: str = "", until: str = "") -> Parity:
    """Compare the context that logged requests were served with, and the one that training joins, and what that does to the answers.

    At most 10,000 of the newest requests; rows of files are left out. Exits with 1 where a column that reaches the answer differs in more
    than 1 % of them.

    Args:
        loop: name of the loop.
        package: the package that answers both ways, or the beginning of its digest (default: the one that serves).
        since: from when (ISO 8601, "30 days ago", "monday 06:00"; default: 7 days before `until`).
        until: up to when, excluded (default: now).
    """
    declared, now = known_loop(home, loop), home.clock.now()
    state = serving(home, loop) if not package else None
    if not package and state is None:
        raise NotFound("release of loop", loop, next_step="nothing serves yet: name a package")
    digest = home.packages.resolve(package) if package else state.champion.package if state is not None else ""
    start, end = _moment(since, now, "--since"), _moment(until, now, "--until")
    return compare(home, declared, open_probed(home.packages, digest), start=start, end=end)


def _moment(text: str, now: datetime, option: str) -> datetime | None:
    return moment_option(text, now, option) if text else None
