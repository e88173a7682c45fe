"""The lines that server processes write to standard error: time, level and process; repeated lines are counted.

A line that repeats (a log that cannot be written, a thread that fails each time) is written once, and then once
per `INTERVAL_SECONDS` with the number of repetitions.
"""

import logging
import sys
import time
from threading import Lock
from typing import NamedTuple, TextIO

from loopwright.base.printable import printable

LOG = logging.getLogger("loopwright")
INTERVAL_SECONDS = 60.0
MAX_KEYS = 1024
"""Different lines that are counted at a time; further ones are written as they come."""


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to the `sys.stderr` of the moment."""

    def __init__(self, process: str) -> None:
        super().__init__(sys.stderr)
        formatter = logging.Formatter(
            f"%(asctime)s.%(msecs)03dZ %(levelname)s loopwright{f' {process}' if process else ''}: %(message)s",
            "%Y-%m-%dT%H:%M:%S",
        )
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def format(self, record: logging.LogRecord) -> str:
        """The line, without characters that a terminal would obey."""
        return printable(super().format(record), newlines=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def set_up(process: str = "") -> None:
    """Write the lines of this process with time, level and its name; to be called once, at the entry of a process."""
    for handler in [h for h in LOG.handlers if isinstance(h, StandardError)]:
        LOG.removeHandler(handler)
    LOG.addHandler(StandardError(process))
    LOG.setLevel(logging.INFO)


class _RepeatedLine(NamedTuple):
    since: float
    level: int
    line: str
    repeats: int


_seen: dict[str, _RepeatedLine] = {}
_lock = Lock()


def say(key: str, line: str, level: int = logging.WARNING) -> None:
    """Write a line that may come often; lines of the same `key` within `INTERVAL_SECONDS` are only counted."""
    now = time.monotonic()
    with _lock:
        seen = _seen.get(key)
        if seen is not None and now - seen.since < INTERVAL_SECONDS:
            _seen[key] = seen._replace(line=line, level=level, repeats=seen.repeats + 1)
            return
        if seen is not None or len(_seen) < MAX_KEYS:
            _seen[key] = _RepeatedLine(now, level, line, 0)
    LOG.log(level, "%s", line)
    if seen is not None and seen.repeats:
        LOG.log(level, "%d more lines like this one in the %.0f s before", seen.repeats, now - seen.since)


def flush() -> None:
    """Write the counts of repeated lines whose interval is over; call it regularly, and at the end of a process."""
    now = time.monotonic()
    with _lock:
        over = [(key, seen) for key, seen in _seen.items() if now - seen.since >= INTERVAL_SECONDS]
        for key, _ in over:
            del _seen[key]
    for _, seen in over:
        if seen.repeats:
            LOG.log(seen.level, "%d more lines in %.0f s, the last one: %s", seen.repeats, now - seen.since, seen.line)


def forget() -> None:
    """Reset: the next line of every key is written."""
    with _lock:
        _seen.clear()
