"""The pages as typed values: a function to a frozen struct. A template shows it; `.json` of the same URL gives it as it is."""

from typing import Protocol

import msgspec

from loopwright.console.wheel import WheelStage, stages
from loopwright.records.home import Home
from loopwright.verbs import look
from loopwright.verbs.results import LoopPage, LoopStatus, Status, Trace


class Source(Protocol):
    """Where pages get their answers: the verbs, or a sample for trying out pages."""

    def status(self) -> Status:
        """Everything at a glance."""
        ...

    def loop(self, name: str) -> LoopPage:
        """One loop. Raises LoopNotFound."""
        ...

    def trace(self, id: str) -> Trace:
        """One prediction. Raises PredictionNotFound."""
        ...


class Verbs:
    """The answers of the verbs."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def status(self) -> Status:
        """Everything at a glance."""
        return look.status(self._home)

    def loop(self, name: str) -> LoopPage:
        """One loop. Raises LoopNotFound."""
        return look.loop_page(self._home, name)

    def trace(self, id: str) -> Trace:
        """One prediction. Raises PredictionNotFound."""
        return look.trace(self._home, id)


class HomePage(msgspec.Struct, frozen=True, kw_only=True):
    """The wheel with live state, and every loop."""

    version: str
    home: str
    ledger: str
    stages: list[WheelStage]
    loops: list[LoopStatus]


class ErrorPage(msgspec.Struct, frozen=True, kw_only=True):
    """What could not be shown, and why."""

    status: int
    code: str
    message: str


def home_page(source: Source) -> HomePage:
    """The page `/`."""
    status = source.status()
    return HomePage(
        version=status.version, home=status.home, ledger=status.ledger, stages=stages(status.loops), loops=status.loops
    )


def loop_page(source: Source, loop: str) -> LoopPage:
    """The page `/loops/{loop}`."""
    return source.loop(loop)


def trace_page(source: Source, id: str) -> Trace:
    """The page `/predictions/{id}`."""
    return source.trace(id)
