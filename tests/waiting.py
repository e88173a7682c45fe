"""Wait for what must happen, however busy the machine is."""

import time
from typing import Any

PATIENCE_SECONDS = 120.0
"""So long a test waits for what must happen. Nothing is measured by it: on an idle machine it takes a moment."""


def until(happened: Any, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until a function is true."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.01)
