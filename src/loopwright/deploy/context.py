"""What a request is joined with: for each need of a package, the step in force at the moment of decision. See `data.steps`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from loopwright.records.errors import LoopwrightError
from loopwright.records.online.steps import Fed, Steps, key_of
from loopwright.records.package import ContextNeed


class ContextStore(Protocol):
    """Where context is looked up while serving: `records.online.Online`, or anything like it."""

    def fed(self, store: str, /) -> Fed | None:
        """What a store has; None when it was never fed."""
        ...

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """The steps of each key, None where there are none."""
        ...


class Contexts:
    """The needs of a package made ready.

    What a store does not have is missing, and prediction goes on: the columns are null and the row is flagged

    missing_context:TABLE   no row is known (of an aggregate: only if the store is down, or was never fed for that moment)
    stale_context:TABLE     the row that counts is older than `max_age`
    late_context:TABLE      the store may lack rows that training would have had: it was not fed for longer than `lag`
    """

    def __init__(self, needs: Sequence[ContextNeed], event_time: str, online: ContextStore) -> None:
        self._needs = [_Need(need) for need in needs]
        self._event_time, self._online = event_time, online

    def find(
        self, rows: Sequence[Mapping[str, Any]], flags: Sequence[list[str]]
    ) -> tuple[list[dict[str, Any]], list[float | None]]:
        """The columns that each of N rows is joined with [N], and the age of the oldest context row used, seconds [N].

        Adds to the `flags` of each row. One question to the store per need, whatever N.
        """
        contexts: list[dict[str, Any]] = [{} for _ in rows]
        ages: list[float | None] = [None] * len(rows)
        for need in self._needs:
            keys = [need.key(row) for row in rows]
            fed, steps = self._look_up(need, keys)
            for i, (row, key) in enumerate(zip(rows, keys, strict=True)):
                age, flag = need.join(row[self._event_time], fed, steps.get(key), contexts[i])
                if age is not None and (ages[i] is None or age > ages[i]):  # type: ignore[operator]  # None is told apart first
                    ages[i] = age
                for mark in flag:
                    if mark not in flags[i]:
                        flags[i].append(mark)
        return contexts, ages

    def _look_up(self, need: "_Need", keys: list[str | None]) -> tuple[Fed | None, dict[str | None, Steps | None]]:
        asked = [key for key in dict.fromkeys(keys) if key is not None]
        try:
            fed = self._online.fed(need.store)
            found = self._online.get_many(need.store, asked) if fed is not None else []
        except LoopwrightError:  # a store that is down or damaged is context that is missing: prediction goes on
            return None, {}
        return fed, dict(zip(asked, found, strict=False))


class _Need:
    """A `ContextNeed` made ready."""

    def __init__(self, need: ContextNeed) -> None:
        self.store, self.columns = need.store or need.table, need.values or list(need.columns)
        self._by = list(need.by.values())
        self._lag, self._aggregate = round(need.lag_s * 1e6), bool(need.empty)
        self._max_age = None if need.max_age_s is None else round(need.max_age_s * 1e6)
        self._null: dict[str, Any] = dict.fromkeys(self.columns)
        self._empty = {**self._null, **need.empty}
        self._missing, self._stale, self._late = ([f"{how}_context:{need.table}"] for how in ("missing", "stale", "late"))

    def key(self, row: Mapping[str, Any]) -> str | None:
        return key_of([row[name] for name in self._by])

    def join(
        self, decided: int, fed: Fed | None, steps: Steps | None, context: dict[str, Any]
    ) -> tuple[float | None, list[str]]:
        """Put the columns into `context`; return the age of the row used, and flags."""
        if fed is None or decided < fed.since:
            context.update(self._null)
            return None, self._missing
        late = self._late if decided - self._lag > fed.until else []
        try:
            step = steps.at(decided) if steps is not None else None
        except LoopwrightError:  # damaged: as if the store were down
            context.update(self._null)
            return None, self._missing
        if step is None:
            context.update(self._empty)
            return None, late if self._aggregate else [*self._missing, *late]
        age = None if step.event_at is None else decided - step.event_at
        if age is not None and self._max_age is not None and age > self._max_age:
            context.update(self._null)
            return None, [*self._stale, *late]
        context.update(zip(self.columns, step.values, strict=True))
        return None if age is None else age / 1e6, late
