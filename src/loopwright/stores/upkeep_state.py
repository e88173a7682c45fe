"""Results of the last round of upkeep, in a file that workers export as metrics without the ledger."""

from pathlib import Path

import msgspec

from loopwright.base.files import replace_file

LEASE_SECONDS = 60.0
"""Duration of the lease on upkeep; it is renewed three times in that."""

MAX_LOOPS = 256
"""Maximum number of loops reported by name."""

_FILE = "upkeep.json"


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: closed windows, the end of the newest (seconds since 1970), its drift, its quality, open alerts and failed steps.

    `stages` are the states of the stages that upkeep knows, as `status` shows them.
    """

    windows: int = 0
    window_end: float = 0.0
    state: str = "no data"
    drifted: int = 0
    quality: str = "no data"
    alerts: dict[str, int] = {}
    failed: int = 0
    stages: dict[str, str] = {}


class UpkeepState(msgspec.Struct, frozen=True, kw_only=True):
    """The last round: its end (seconds since 1970), its loops, and the open alerts and failed steps without a loop."""

    at: float
    loops: dict[str, LoopState] = {}
    alerts: dict[str, int] = {}
    failed: int = 0


def write_upkeep_state(folder: Path, state: UpkeepState) -> None:
    """Publish the state to the workers. Raises OSError."""
    replace_file(folder / _FILE, msgspec.json.encode(state), durable=False)


def read_upkeep_state(folder: Path) -> UpkeepState | None:
    """The state that upkeep wrote last, None if it cannot be read."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=UpkeepState)
    except (OSError, msgspec.DecodeError):
        return None
