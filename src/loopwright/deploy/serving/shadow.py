"""Shadows: a new package answers logged requests again, in a process of its own, and logs its answers apart.

The prediction log is the queue: requests are answered and logged whatever becomes of the shadow, and cost nothing more. What comes faster
than the shadow answers it is left out, oldest first; the judge counts it from both logs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loopwright.base.errors import LoopwrightError
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.deadlines import Overruns
from loopwright.deploy.serving.package_cache import Shared
from loopwright.deploy.serving.predictor import Predictor
from loopwright.records.prediction import Prediction
from loopwright.records.releases import CHAMPION, Arm, Division, ReleaseState
from loopwright.stores.home import Home
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.segment import log_folder
from loopwright.stores.prediction_log.tail import LogTail
from loopwright.stores.prediction_log.writer import LogWriter

MAX_BATCH = 256
MAX_ROWS = 4096
"""Rows of a loop that wait at most; of more the oldest are left out."""


class ShadowCounts(msgspec.Struct):
    """Rows that were answered again, and that were left out."""

    answered: int = 0
    dropped: int = 0


class Repeater:
    """The shadow of one release state: answers the rows that fall to it."""

    def __init__(self, state: ReleaseState, shadow: Arm, predictor: Predictor) -> None:
        self._state, self._shadow, self._predictor = state, shadow, predictor
        self._divide = divide(shadow, state.salt)

    def due(self, rows: Sequence[Prediction]) -> list[Prediction]:
        """The rows that the release answered for clients and that fall to the shadow."""
        mine = [row for row in rows if row.generation == self._state.generation and row.arm == CHAMPION and not row.of_file]
        return [row for row, number in zip(mine, self._divide([row.unit for row in mine]), strict=True) if number == 0]

    def answer(self, rows: Sequence[Prediction]) -> list[Prediction]:
        """The shadow's answers to rows that are due, under the same ids; the requests are those of the rows. Raises Unavailable."""
        answers = self._predictor.answer(
            [dict(row.request) for row in rows],
            ids=[row.id for row in rows],
            at_us=[row.at for row in rows],
            arm=self._shadow.name,
            probability=self._shadow.share,
            generation=self._state.generation,
        )
        return [msgspec.structs.replace(answer, request={}) for answer in answers]


def divide(shadow: Arm, salt: str) -> Division:
    """The division of keys that gives number 0 to those whose requests are answered again."""
    return Division([shadow, *([Arm(package="", share=1 - shadow.share)] if shadow.share < 1 else [])], salt)


class _Loop:
    """One loop that has a shadow now: its log, and the log of the shadow."""

    def __init__(self, home: Home, state: ReleaseState, repeater: Repeater, *, at_end: bool) -> None:
        self.state, self.repeater = state, repeater
        folder = log_folder(home.path, state.loop)
        self._tail, self._log = LogTail(folder / "predictions", "predictions", at_end=at_end), LogWriter(folder, "shadows")

    def round(self) -> ShadowCounts:
        """Answer what was logged since the last round. Raises LogUnavailable, Unavailable; those rows are left out."""
        rows, dropped = self._tail.new(MAX_ROWS)
        due = self.repeater.due(rows)
        for first in range(0, len(due), MAX_BATCH):
            self._log.append(self.repeater.answer(due[first : first + MAX_BATCH]))
        self._log.tick()
        return ShadowCounts(answered=len(due), dropped=dropped)

    def close(self) -> None:
        self._tail.close()
        self._log.close()


class Shadows:
    """All loops of a home that have a shadow now. Call `round` again and again.

    `run` is a folder of the server: a shadow that died over a row does not begin again before that row. `report` gets what cannot be loaded.
    """

    def __init__(
        self, home: Home, run: Path, counted: Callable[[str, ShadowCounts], None], report: Callable[[str], None]
    ) -> None:
        self._home, self._run, self._counted, self._report = home, run, counted, report
        self._changes = release_files.Changes(home.path / "served", home.clock)
        self._overruns, self._shared = Overruns(), Shared(home.settings.threads)
        self._loops: dict[str, _Loop] = {}

    def round(self) -> bool:
        """Follow the releases, then answer what is new; whether there was anything. Errors of one loop do not stop the others."""
        for loop in self._changes():
            self._follow(loop)
        some = False
        for loop, each in self._loops.items():
            try:
                counts = each.round()
            except LoopwrightError as error:
                self._report(f"loop {loop}: rows were not answered by the shadow: {error}")
                continue
            some |= bool(counts.answered)
            if counts.answered or counts.dropped:
                self._counted(loop, counts)
        return some

    def _follow(self, loop: str) -> None:
        copy = release_files.read_intact(self._home.path / "served" / f"{loop}.json")
        state = copy.state if copy is not None else None
        if (held := self._loops.get(loop)) is not None and held.state == state:
            return
        if held is not None:
            self._loops.pop(loop).close()
        if state is None or state.shadow is None:
            return
        begun = self._run / f"{loop}.{state.generation}.shadow"
        again = begun.exists()
        begun.touch()
        try:
            package = open_probed(self._home.packages, state.shadow.package)
            predictor = Predictor(package, self._home.online, self._home.clock, self._overruns, self._shared.graph)
        except LoopwrightError as error:
            self._report(f"loop {loop}: the shadow {state.shadow.package[:12]} cannot be loaded: {error}")
            return
        self._loops[loop] = _Loop(self._home, state, Repeater(state, state.shadow, predictor), at_end=again)

    def close(self) -> None:
        """Seal the logs."""
        for each in self._loops.values():
            each.close()
        self._loops.clear()


class ShadowWatch:
    """Tells whether any loop of a home has a shadow now, at the cost of what has changed."""

    def __init__(self, home: Home) -> None:
        self._home, self._changes = home, release_files.Changes(home.path / "served", home.clock)
        self._with = set[str]()

    def __call__(self) -> bool:
        """Whether there is one."""
        for loop in self._changes():
            copy = release_files.read_intact(self._home.path / "served" / f"{loop}.json")
            (self._with.add if copy is not None and copy.state.shadow is not None else self._with.discard)(loop)
        return bool(self._with)
