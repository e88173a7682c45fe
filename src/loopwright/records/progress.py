"""Progress: how long work tells what it is doing, without knowing who listens."""

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
