"""Loops whose declared package cannot be loaded: workers write a file for each, the supervisor raises an alert from it."""

from contextlib import suppress
from pathlib import Path

import msgspec

from loopwright.base.holder import encode_holder, this_process
from loopwright.deploy.blocklist import DAMAGED_ALERT
from loopwright.deploy.serving.registry import StandIn
from loopwright.monitor.alerts import close_alert, decide
from loopwright.stores.home import Home


class StandIns:
    """The alerts about them. `record` opens one for each file in the folder, and closes it once the file is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, StandIn] = {}

    def record(self, home: Home) -> None:
        """Decide on the alerts, which upkeep sends. Raises LedgerUnavailable; the next time goes on where this one ended."""
        found: dict[str, StandIn] = {}
        for path in self._folder.glob("[!.]*.json"):
            with suppress(OSError, ValueError):  # it serves again since just now
                found[path.stem] = msgspec.json.decode(path.read_bytes(), type=StandIn)
        for loop, before in list(self._open.items()):
            if loop not in found or found[loop].package != before.package:
                close_alert(home, loop, _key(before), detail="what is declared can be loaded again, or is another package")
                del self._open[loop]
        for loop, one in found.items():
            if self._open.get(loop) != one:
                now = f"package {one.instead[:12]}, which served before it, answers" if one.instead else "nothing answers"
                title = f"Package {one.package[:12]}, which is to serve, cannot be loaded"
                detail = f"{one.why}. Until it can, {now}. Restore the package, or release another one."
                holder = encode_holder(this_process("server", 0.0))
                decide(home, loop, _key(one), severity="critical", title=title, detail=detail, holder=holder)
                self._open[loop] = one


def _key(one: StandIn) -> str:
    return f"{DAMAGED_ALERT}:{one.package[:12]}"
