"""Context look-ups for requests: for each need of a package, the step in force at the moment of decision. See `data.examples.asof`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from loopwright.base.errors import LoopwrightError
from loopwright.records.package import ContextNeed
from loopwright.stores.online.steps import Fed, OnlineStep, Steps, key_of

MAX_KNOWN = 10_000


class ContextStore(Protocol):
    """The store of context while serving: `stores.online.Online`, or one with these methods."""

    def fed(self, store: str, /) -> Fed | None:
        """The state of a store; None when it was never fed."""
        ...

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """The steps of each key, None where there are none."""
        ...


class Contexts:
    """The context needs of a package, prepared for look-ups.

    Context that a store lacks is missing, and prediction goes on: the columns are null and the row is flagged

    missing_context:TABLE   no row is known (of an aggregate: only if the store is down, or was never fed for that moment)
    stale_context:TABLE     the newest applicable row is older than `max_age`
    late_context:TABLE      the store may lack rows that training would have had: it was not fed for longer than `lag`
    """

    def __init__(self, needs: Sequence[ContextNeed], event_time: str, online: ContextStore) -> None:
        self._needs = [_Need(need) for need in needs]
        self._event_time, self._online = event_time, online

    def find(
        self, rows: Sequence[Mapping[str, Any]], flags: Sequence[list[str]]
    ) -> tuple[list[dict[str, Any]], list[float | None]]:
        """The columns that each of N rows is joined with [N], and the age of the oldest context row used, seconds [N].

        Adds to the `flags` of each row. One look-up in the store per need, for any N.
        """
        contexts: list[dict[str, Any]] = [{} for _ in rows]
        ages: list[float | None] = [None] * len(rows)
        if self._needs:
            decided = [row[self._event_time] for row in rows]
            for need in self._needs:
                fed, steps = self._look_up(need, rows)
                need.join(decided, fed, steps, contexts, ages, flags)
        return contexts, ages

    def _look_up(self, need: "_Need", rows: Sequence[Mapping[str, Any]]) -> tuple[Fed | None, Sequence[Steps | None]]:
        """The state of the store, and the steps of each row's key."""
        try:
            fed = self._online.fed(need.store)
            if fed is None:
                return None, ()
            if len(rows) == 1:
                key = need.key(rows[0])
                return fed, (None,) if key is None else self._online.get_many(need.store, [key])
            keys = [need.key(row) for row in rows]
            asked = [key for key in dict.fromkeys(keys) if key is not None]
            found: dict[str | None, Steps | None] = dict(zip(asked, self._online.get_many(need.store, asked), strict=True))
        except LoopwrightError:  # a store that is down or damaged is context that is missing: prediction goes on
            return None, ()
        found[None] = None
        return fed, [found[key] for key in keys]


class _Need:
    """A `ContextNeed` prepared for look-ups."""

    def __init__(self, need: ContextNeed) -> None:
        self.store, self.columns = need.store or need.table, need.values or list(need.columns)
        self._by = list(need.by.values())
        self._one = self._by[0] if len(self._by) == 1 else None
        self._lag, self._aggregate = round(need.lag_s * 1e6), bool(need.empty)
        self._max_age = None if need.max_age_s is None else round(need.max_age_s * 1e6)
        self._known: dict[int, tuple[OnlineStep, dict[str, Any]]] = {}
        self._null: dict[str, Any] = dict.fromkeys(self.columns)
        self._empty = {**self._null, **need.empty}
        self._missing, self._stale, self._late = (f"{how}_context:{need.table}" for how in ("missing", "stale", "late"))

    def key(self, row: Mapping[str, Any]) -> str | None:
        """The key of a row."""
        if self._one is not None:
            value = row.get(self._one)
            return value if value is None or value.__class__ is str else str(value)
        return key_of([row.get(name) for name in self._by])

    def join(
        self,
        decided: Sequence[int],
        fed: Fed | None,
        steps: Sequence[Steps | None],
        contexts: Sequence[dict[str, Any]],
        ages: list[float | None],
        flags: Sequence[list[str]],
    ) -> None:
        """Put the columns into the context of each row, the age of the row used into `ages` if it is the oldest, and flags."""
        if fed is None:
            for context, marks in zip(contexts, flags, strict=True):
                context.update(self._null)
                _mark(marks, self._missing)
            return
        since, fresh, max_age = fed.since, fed.until + self._lag, self._max_age
        for i, at in enumerate(decided):
            found = steps[i]
            try:
                step = found.at(at) if found is not None and at >= since else None
            except LoopwrightError:  # damaged: as if the store were down
                contexts[i].update(self._null)
                _mark(flags[i], self._missing)
                continue
            if step is None:
                self._absent(at >= since, contexts[i], flags[i])
            elif step.event_at is None:
                contexts[i].update(self._named(step))
            else:
                age = at - step.event_at
                if max_age is not None and age > max_age:
                    contexts[i].update(self._null)
                    _mark(flags[i], self._stale)
                else:
                    contexts[i].update(self._named(step))
                    oldest = ages[i]
                    if oldest is None or age > oldest * 1e6:
                        ages[i] = age / 1e6
            if at > fresh and at >= since:
                _mark(flags[i], self._late)

    def _named(self, step: OnlineStep) -> dict[str, Any]:
        """The columns of a step; cached, since the same step is in force for many rows."""
        known = self._known.get(id(step))
        if known is None or known[0] is not step:
            if len(self._known) >= MAX_KNOWN:
                self._known = {}
            known = self._known[id(step)] = (step, dict(zip(self.columns, step.values, strict=True)))
        return known[1]

    def _absent(self, fed: bool, context: dict[str, Any], flags: list[str]) -> None:
        """No row is known: of an aggregate that is an answer, if the store was fed for the moment."""
        context.update(self._empty if fed else self._null)
        if not (fed and self._aggregate):
            _mark(flags, self._missing)


def _mark(flags: list[str], flag: str) -> None:
    if flag not in flags:
        flags.append(flag)
