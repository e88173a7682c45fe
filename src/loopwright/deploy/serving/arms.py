"""The arms of a release answering: each row goes to the arm of its unit, in one graph run for each arm.

Where the packages prepare a row in the same way (as those of two turns of one loop file mostly do), that is done once for all rows.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, TypeVar

from loopwright.base.ids import new_ids
from loopwright.deploy.serving.package_cache import PackageCache, key_of
from loopwright.deploy.serving.predictor import Predictor
from loopwright.deploy.serving.prepared import Prepared
from loopwright.records.prediction import Prediction, unit_text
from loopwright.records.releases import Division, ReleaseState

G = TypeVar("G", bound=Hashable)
Rows = Sequence[dict[str, Any]]
Ids = Sequence[str] | None
Moments = Sequence[int] | int | None


class Arms:
    """Predictors of the arms of `state`, loaded with `load` (package cache key -> predictor). Raises what `load` raises.

    Every package is loaded before the first row is answered, so that no unit is routed to one that is not ready.
    """

    def __init__(self, state: ReleaseState, package_cache: PackageCache, load: Callable[[str], Predictor]) -> None:
        self.keys = list(dict.fromkeys(map(key_of, state.arms)))
        self._state, self._package_cache = state, package_cache
        self._predictors = {key: load(key) for key in self.keys}
        self.champion = self._predictors[key_of(state.champion)]
        self._alone = None if state.is_divided else state.champion.name
        self._generation = state.generation
        self._divide, self._unit = Division(state.arms, state.salt), state.unit
        self._numbered = [(self._predictors[key_of(arm)], arm) for arm in state.arms]
        self._alike = all(map(self.champion.prepares_as, self._predictors.values()))

    @property
    def others(self) -> list[Predictor]:
        """The predictors of other packages than the champion's."""
        return [predictor for predictor in self._predictors.values() if predictor.digest != self.champion.digest]

    def touch(self) -> None:
        """Let all other packages go before these."""
        for key in self.keys:
            self._package_cache.touch(key)

    def answer(self, rows: Rows, *, ids: Ids = None, at_us: Moments = None, seconds: float | None = None) -> list[Prediction]:
        """Answer N rows in order. As `Predictor.answer` otherwise; `probability` is the share of the arm."""
        self.touch()
        if self._alone is not None:
            return self.champion.answer(
                rows, ids=ids, at_us=at_us, seconds=seconds, arm=self._alone, generation=self._generation
            )
        moments = self.champion.moments(at_us, len(rows))
        names = new_ids(self.champion.clock.now(), len(rows)) if ids is None else ids
        own = [row.get(self._unit) for row in rows] if self._unit else None
        if not self._alike:
            units = self.champion.units(rows, names, moments)
            return in_groups(self._arms_of(units, own), rows, names, moments, partial(self._answer, seconds))
        prepared = self.champion.prepare(rows, names, moments)
        numbers = self._divide(prepared.units) if own is None else self._arms_of(prepared.units, own)
        places = {} if len(rows) == 1 else places_of(numbers)
        if len(places) < 2:
            return self._answer_prepared(seconds, numbers[0], prepared)
        answers: list[Any] = [None] * len(rows)
        for number, some in places.items():
            for i, one in zip(some, self._answer_prepared(seconds, number, prepared.part(some)), strict=True):
                answers[i] = one
        return answers

    def _arms_of(self, units: Sequence[str], own: Sequence[Any] | None) -> list[int]:
        """The number of each row's arm: by its `own` unit where it has one, else by its key."""
        if own is not None:
            units = [key if value is None else unit_text([value]) for key, value in zip(units, own, strict=True)]
        return self._divide(units)

    def _answer_prepared(self, seconds: float | None, number: int, rows: Prepared) -> list[Prediction]:
        predictor, arm = self._numbered[number]
        return predictor.answer_prepared(
            rows, seconds=seconds, arm=arm.name, probability=arm.share, generation=self._generation
        )

    def _answer(self, seconds: float | None, number: int, rows: Rows, ids: Ids, at_us: Moments) -> list[Prediction]:
        predictor, arm = self._numbered[number]
        return predictor.answer(
            rows, ids=ids, at_us=at_us, seconds=seconds, arm=arm.name, probability=arm.share, generation=self._generation
        )


def places_of(groups: Sequence[G]) -> dict[G, list[int]]:
    """The positions of each group."""
    places: dict[G, list[int]] = {}
    for i, group in enumerate(groups):
        places.setdefault(group, []).append(i)
    return places


def in_groups(
    groups: Sequence[G], rows: Rows, ids: Ids, at_us: Moments, answer: Callable[[G, Rows, Ids, Moments], list[Prediction]]
) -> list[Prediction]:
    """Answer N rows in order, the rows of a group in one run."""
    places = places_of(groups)
    if len(places) == 1:
        return answer(groups[0], rows, ids, at_us)
    answers: list[Any] = [None] * len(rows)
    for group, some in places.items():
        part_ids = None if ids is None else [ids[i] for i in some]
        part_at = at_us if at_us is None or isinstance(at_us, int) else [at_us[i] for i in some]
        for i, one in zip(some, answer(group, [rows[i] for i in some], part_ids, part_at), strict=True):
            answers[i] = one
    return answers
