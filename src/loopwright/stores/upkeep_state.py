"""Results of the last round of upkeep, in a file that workers export as metrics without the ledger."""

from pathlib import Path

import msgspec

from loopwright.base.files import replace_file

LEASE_SECONDS = 60.0
"""The lease of who tends; it is renewed three times in that."""

MAX_LOOPS = 256
"""So many loops are told of by name."""

_FILE = "upkeep.json"


class LoopState(msgspec.Struct, frozen=True, kw_only=True):
    """One loop: windows closed so far, the end of the newest one (seconds since 1970), its drift, its quality, and what is open or failed.

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
    """The last round: when it ended (seconds since 1970), its loops, and the open alerts and failed steps that belong to none."""

    at: float
    loops: dict[str, LoopState] = {}
    alerts: dict[str, int] = {}
    failed: int = 0


def write_upkeep_state(folder: Path, state: UpkeepState) -> None:
    """Tell the workers. Raises OSError."""
    replace_file(folder / _FILE, msgspec.json.encode(state), durable=False)


def read_upkeep_state(folder: Path) -> UpkeepState | None:
    """The state that upkeep wrote last, None if it cannot be read."""
    try:
        return msgspec.json.decode((folder / _FILE).read_bytes(), type=UpkeepState)
    except (OSError, msgspec.DecodeError):
        return None
