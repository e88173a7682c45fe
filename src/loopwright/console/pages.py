"""The pages as typed values: a function to a frozen struct. A template shows it; `.json` of the same URL gives it as it is."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import msgspec

from loopwright.console.wheel import WheelStage, stages
from loopwright.stores.home import Home
from loopwright.verbs import verb
from loopwright.verbs.loop_page import LoopPage
from loopwright.verbs.loop_page import loop_page as page_of_loop
from loopwright.verbs.loop_status import LoopStatus
from loopwright.verbs.status import Status
from loopwright.verbs.status import status as status_of_home

if TYPE_CHECKING:
    from loopwright.verbs.predictions import PredictionList
    from loopwright.verbs.trace import Trace

T = TypeVar("T")

FRESH_SECONDS = 3.0
"""Maximum age of what a page shows from outside the ledger: predictions, workers."""

MAX_HELD = 32


class PageSource(Protocol):
    """The source of the pages' data: the verbs, or a sample for trying out pages."""

    def status(self, page: int = 1) -> Status:
        """Everything at a glance, a page of the loops."""

    def loop(self, name: str) -> LoopPage:
        """One loop. Raises LoopNotFound."""

    def trace(self, id: str) -> "Trace":
        """One prediction. Raises PredictionNotFound."""

    def predictions(self, loop: str, query: Mapping[str, Any]) -> "PredictionList":
        """A loop's predictions, newest first. Raises LoopNotFound, and UsageError for an invalid query."""


class Verbs:
    """The answers of the verbs."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def status(self, page: int = 1) -> Status:
        """Everything at a glance, a page of the loops."""
        return status_of_home(self._home, page=page)

    def loop(self, name: str) -> LoopPage:
        """One loop. Raises LoopNotFound."""
        return page_of_loop(self._home, name)

    def trace(self, id: str) -> "Trace":
        """One prediction. Raises PredictionNotFound."""
        found: Trace = verb("trace").call(self._home, id)
        return found

    def predictions(self, loop: str, query: Mapping[str, Any]) -> "PredictionList":
        """A loop's predictions, newest first. Raises LoopNotFound, and UsageError for an invalid query."""
        found: PredictionList = verb("predictions").call(self._home, loop, **query)
        return found


class Cached:
    """Cache over another page source: an answer is shared until the ledger changes, at most for `FRESH_SECONDS`.

    Concurrent requests for the same page wait for one computation. Predictions are not cached: there are too many.
    """

    def __init__(self, source: PageSource, home: Home) -> None:
        self._source, self._home = source, home
        self._lock = Lock()
        self._held: OrderedDict[tuple[str, str | int], _CachedAnswer] = OrderedDict()

    def status(self, page: int = 1) -> Status:
        """Everything at a glance, a page of the loops."""
        return self._once(("status", page), lambda: self._source.status(page))

    def loop(self, name: str) -> LoopPage:
        """One loop. Raises LoopNotFound."""
        return self._once(("loop", name), lambda: self._source.loop(name))

    def trace(self, id: str) -> "Trace":
        """One prediction. Raises PredictionNotFound."""
        return self._source.trace(id)

    def predictions(self, loop: str, query: Mapping[str, Any]) -> "PredictionList":
        """A loop's predictions, newest first. Raises LoopNotFound, and UsageError for an invalid query."""
        return self._source.predictions(loop, query)

    def _once(self, key: tuple[str, str | int], make: Callable[[], T]) -> T:
        with self._lock:
            held = self._held.setdefault(key, _CachedAnswer())
            self._held.move_to_end(key)
            while len(self._held) > MAX_HELD:
                self._held.popitem(last=False)
        with held.lock:
            sequence, now = self._home.ledger.count(), self._home.clock.monotonic()
            if held.sequence != sequence or now - held.at > FRESH_SECONDS:
                held.value = make()
                held.sequence, held.at = sequence, self._home.clock.monotonic()
            return cast("T", held.value)


class _CachedAnswer:
    """One answer, when it was made, and at which entry of the ledger."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.sequence, self.at = -1, 0.0
        self.value: object = None


class HomePage(msgspec.Struct, frozen=True, kw_only=True):
    """The wheel with live state, and every loop."""

    version: str
    home: str
    ledger: str
    stages: list[WheelStage]
    loops: list[LoopStatus]
    total: int
    page: int
    pages: int


class ErrorPage(msgspec.Struct, frozen=True, kw_only=True):
    """An error page: what could not be shown, and why."""

    status: int
    code: str
    message: str


def home_page(source: PageSource, page: int = 1) -> HomePage:
    """The page `/`. The wheel shows the first page's loops, which are the worst."""
    status = source.status(page)
    worst = status if page == 1 else source.status()
    return HomePage(
        version=status.version,
        home=status.home,
        ledger=status.ledger,
        stages=stages(worst.loops),
        loops=status.loops,
        total=status.total,
        page=status.page,
        pages=status.pages,
    )
