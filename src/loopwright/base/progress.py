"""Progress: how long-running work reports what it is doing, independent of any listener."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """A listener. Both calls are cheap and may come from the working thread only."""

    def say(self, text: str) -> None:
        """One line of the story: something happened that a person wants to know."""
        ...

    def advance(self, what: str, done: float, total: float) -> None:
        """`done` of `total` units of `what` are finished."""
        ...


class Silent:
    """A listener that listens to nothing."""

    def say(self, text: str) -> None:
        """Ignore the line."""

    def advance(self, what: str, done: float, total: float) -> None:
        """Ignore the progress."""


@contextmanager
def under_way(progress: Progress | None, what: str) -> Iterator[None]:
    """Show `what` while the block runs; for work of unknown duration."""
    listener = progress or Silent()
    listener.advance(what, 0, 1)
    yield
    listener.advance(what, 1, 1)
