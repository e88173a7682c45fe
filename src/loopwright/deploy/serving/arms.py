"""The arms of a release answering: each row goes to the arm of its unit, in one graph run for each arm."""

from collections.abc import Callable, Sequence
from typing import Any

from loopwright.base.ids import new_ids
from loopwright.deploy.serving.package_cache import PackageCache, key_of
from loopwright.deploy.serving.predictor import Predictor
from loopwright.records.prediction import Prediction
from loopwright.records.releases import Arm, ReleaseState


class Arms:
    """The predictors of the arms of `state`, by `load` (a key of the package cache to a predictor). Raises what that raises.

    Every package is loaded before the first row is answered, so that no unit is sent to one that is not ready.
    """

    def __init__(self, state: ReleaseState, package_cache: PackageCache, load: Callable[[str], Predictor]) -> None:
        self.keys = list(dict.fromkeys(map(key_of, state.arms)))
        self._state, self._package_cache = state, package_cache
        self._predictors = {key: load(key) for key in self.keys}
        self.champion = self._predictors[key_of(state.champion)]
        self._alone = None if state.is_divided else state.champion.name

    @property
    def others(self) -> list[Predictor]:
        """The predictors of other packages than the champion's."""
        return [predictor for predictor in self._predictors.values() if predictor.digest != self.champion.digest]

    def touch(self) -> None:
        """Let all other packages go before these."""
        for key in self.keys:
            self._package_cache.touch(key)

    def answer(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        ids: Sequence[str] | None = None,
        at_us: Sequence[int] | int | None = None,
        seconds: float | None = None,
    ) -> list[Prediction]:
        """Answer N rows in order. As `Predictor.answer` otherwise; `probability` is the share of the arm."""
        self.touch()
        if self._alone is not None:
            return self.champion.answer(rows, ids=ids, at_us=at_us, seconds=seconds, arm=self._alone)
        moments = self.champion.moments(at_us, len(rows))
        names = new_ids(self.champion.clock.now(), len(rows)) if ids is None else ids
        groups: dict[str, tuple[Arm, list[int]]] = {}
        for i, unit in enumerate(self.champion.units(rows, names, moments)):
            arm = self._state.arm_for(unit)
            groups.setdefault(arm.name, (arm, []))[1].append(i)
        if len(groups) == 1:
            [(arm, _)] = groups.values()
            return self._answer(arm, rows, names, moments, seconds)
        answers: list[Any] = [None] * len(rows)
        for arm, places in groups.values():
            part = self._answer(
                arm, [rows[i] for i in places], [names[i] for i in places], [moments[i] for i in places], seconds
            )
            for i, answer in zip(places, part, strict=True):
                answers[i] = answer
        return answers

    def _answer(
        self, arm: Arm, rows: Sequence[dict[str, Any]], ids: Sequence[str], at_us: Sequence[int], seconds: float | None
    ) -> list[Prediction]:
        predictor = self._predictors[key_of(arm)]
        return predictor.answer(rows, ids=ids, at_us=at_us, seconds=seconds, arm=arm.name, probability=arm.share)
