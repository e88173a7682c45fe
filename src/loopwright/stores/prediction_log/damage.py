"""Damage in the prediction logs: counts of quarantined segments, in a file that workers read without scanning every folder."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from loopwright.base.files import replace_file
from loopwright.stores.prediction_log.segment import KINDS, log_folder

_FILE = "damaged.json"


def set_aside(home: Path, loop: str) -> list[str]:
    """The damaged or missing segments of a loop, by kind and name; they stay until an operator has removed them."""
    return sorted(
        f"{kind}/{path.name}"
        for kind in KINDS
        for path in (log_folder(home, loop) / kind / "quarantine").glob("*")
        if path.suffix in (".damaged", ".missing")
    )


def note(home: Path, counts: Mapping[str, int]) -> None:
    """Publish the number of quarantined segments of each loop to the workers. Raises OSError."""
    folder = home / "log"
    if not folder.is_dir() or counts == noted(home):
        return
    replace_file(folder / _FILE, msgspec.json.encode(counts), durable=False)


def noted(home: Path) -> dict[str, int]:
    """Counts of the last upkeep by loop, loops without damage left out."""
    try:
        return msgspec.json.decode((home / "log" / _FILE).read_bytes(), type=dict[str, int])
    except (OSError, msgspec.DecodeError):
        return {}
