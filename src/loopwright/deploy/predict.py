"""One package answering: context, one graph run, flags, and the heuristic when the model fails. No HTTP, no log, no clock tricks.

The server and the replay call the same `answer`, with one row or with thousands.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from loopwright.deploy.overrun import Overruns
from loopwright.records.clock import Clock
from loopwright.records.errors import LoopwrightError, PackageRefused, Unavailable
from loopwright.records.graph import Feeder, Graph, microseconds
from loopwright.records.ids import new_ids
from loopwright.records.package import ContextNeed
from loopwright.records.packages import Package
from loopwright.records.predictions.record import Prediction

GOLDEN_TOLERANCE = 1e-6
MOST_FAILURES = 64
SECONDS = 1.0
REST_SECONDS = 5.0
_LEAST, _MOST = -1e-6, 1 + 1e-6


class ContextRow(Protocol):
    """A row of context as the online store gives it: times in microseconds since 1970 (UTC)."""

    @property
    def event_at(self) -> int:
        """When it happened."""
        ...

    @property
    def values(self) -> Mapping[str, Any]:
        """Column to value."""
        ...


class ContextStore(Protocol):
    """Where context is looked up while serving: `records.online.Online`, or anything like it."""

    def get(self, table: str, key: str, /) -> ContextRow | None:
        """The newest row known of a table for a key ("|" between its parts), or None."""
        ...


class Predictor:
    """A package made ready to answer. `online` is where context is looked up (`home.online`).

    With `overruns`, a graph run may take `SECONDS` and a millisecond more per row; one that takes longer is stopped and
    answered by the heuristic, and for `REST_SECONDS` the model is not asked again.

    Safe to use from several threads; not across a fork. Raises PackageRefused when graphs and manifest disagree.
    """

    def __init__(self, package: Package, online: ContextStore, clock: Clock, overruns: Overruns | None = None) -> None:
        manifest = package.manifest
        self.package, self.digest = package, package.digest
        self._online, self._clock, self._overruns = online, clock, overruns
        self._rests_until = 0.0
        self._model = Graph(package.files["model.onnx"])
        self._heuristic = Graph(package.files["heuristic.onnx"])
        columns = package.columns
        for name, graph in (("model.onnx", self._model), ("heuristic.onnx", self._heuristic)):
            if problems := graph.problems(columns):
                raise PackageRefused(package.digest, f"{name}: {problems[0]}")
            if "score" not in graph.outputs:
                raise PackageRefused(package.digest, f"{name} has no output `score`")
        self._feed, self._feed_heuristic = Feeder(self._model, columns), Feeder(self._heuristic, columns)
        self._times = [name for name, column in manifest.request.items() if column.type == "timestamp"]
        self._ranges = [
            (name, -float("inf") if c.minimum is None else c.minimum, float("inf") if c.maximum is None else c.maximum)
            for name, c in manifest.request.items()
            if c.minimum is not None or c.maximum is not None
        ]
        self._categories = [
            (name, frozenset(known))
            for name, c in manifest.request.items()
            if c.type == "string" and (known := c.categories if c.categories is not None else manifest.vocabulary.get(name))
        ]
        self._needs = [_Need(need) for need in manifest.context]
        self._key, self._event_time, self._threshold = manifest.key, manifest.event_time, manifest.threshold
        self._segment = manifest.segment.value if manifest.segment is not None else None

    def answer(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        ids: Sequence[str] | None = None,
        at_us: Sequence[int] | int | None = None,
        probability: float = 1.0,
        arm: str = "champion",
    ) -> list[Prediction]:
        """Answer N rows in one graph run, in order.

        A row maps every request column to its value and is taken over: timestamps become int microseconds, and an event
        time that was left out becomes `at_us`, the moment of the decision (now when not given). Context older than its
        `max_age` at the row's event time is missing. `latency_us` is a row's share of the run.

        A score that is no probability, or an error, is answered by the heuristic and flagged `degraded`. Raises
        Unavailable when the heuristic fails as well.
        """
        started = time.perf_counter()
        count = len(rows)
        moments, names = self._moments(at_us, count), ids
        if names is None:
            names = new_ids(self._clock.now(), count)
        contexts: list[dict[str, Any]] = []
        ages: list[float | None] = []
        flags: list[list[str]] = []
        found: dict[tuple[int, str], ContextRow | None] = {}
        for row, at in zip(rows, moments, strict=True):
            self._settle(row, at)
            marks = self._flags(row)
            context, age = self._context(row, marks, found) if self._needs else ({}, None)
            contexts.append(context)
            ages.append(age)
            flags.append(marks)
        full = [{**row, **context} for row, context in zip(rows, contexts, strict=True)] if self._needs else rows
        scores = self._scores(full, flags)
        latency = (time.perf_counter() - started) * 1e6 / max(count, 1)
        package, threshold, key = self.digest, self._threshold, self._key
        return [
            Prediction(
                id=names[i],
                at=moments[i],
                package=package,
                arm=arm,
                probability=probability,
                request=row,
                context=contexts[i],
                context_age_s=ages[i],
                score=scores[i],
                label=scores[i] >= threshold,
                flags=flags[i],
                latency_us=latency,
                unit=unit_of(row, key),
                segment=self._segment,
            )
            for i, row in enumerate(rows)
        ]

    def check_golden(self) -> None:
        """Run the golden requests. Raises PackageRefused naming the first answer that differs by more than 1e-6."""
        golden = self.package.reference.golden
        if not golden:
            return
        try:
            scores = self._model.score(self._feed([{**g.request, **g.context} for g in golden])).tolist()
        except Exception as error:
            raise PackageRefused(self.digest, f"the golden requests cannot be run: {type(error).__name__}") from error
        if len(scores) != len(golden):
            raise PackageRefused(self.digest, f"{len(scores)} scores for {len(golden)} golden requests")
        for i, (g, score) in enumerate(zip(golden, scores, strict=True)):
            if not abs(g.score - score) <= GOLDEN_TOLERANCE:
                raise PackageRefused(self.digest, f"golden request {i} gives {score!r}, not {g.score!r}")

    def warm(self) -> None:
        """Answer some golden requests one by one and forget the answers, so that the first client does not pay for first times."""
        for golden in self.package.reference.golden[:5]:
            self.answer([dict(golden.request)])

    def _moments(self, at_us: Sequence[int] | int | None, count: int) -> Sequence[int]:
        if at_us is None:
            at_us = microseconds(self._clock.now())
        return [at_us] * count if isinstance(at_us, int) else at_us

    def _settle(self, row: dict[str, Any], at: int) -> None:
        if row.get(self._event_time) is None:
            row[self._event_time] = at
        for name in self._times:
            value = row[name]
            if value is not None and type(value) is not int:
                row[name] = microseconds(value)

    def _flags(self, row: Mapping[str, Any]) -> list[str]:
        flags = []
        for name, low, high in self._ranges:
            value = row[name]
            if value is not None and not low <= value <= high:
                flags.append(f"out_of_range:{name}")
        for name, known in self._categories:
            value = row[name]
            if value is not None and value not in known:
                flags.append(f"new_category:{name}")
        return flags

    def _context(
        self, row: Mapping[str, Any], flags: list[str], found: dict[tuple[int, str], ContextRow | None]
    ) -> tuple[dict[str, Any], float | None]:
        """Context columns of one row and the age of the oldest row used; what is missing is None and flagged."""
        context: dict[str, Any] = {}
        oldest: float | None = None
        decided = row[self._event_time]
        for i, need in enumerate(self._needs):
            key = need.key(row)
            if (i, key) not in found:
                found[i, key] = self._look_up(need.table, key)
            match = found[i, key]
            age = (decided - match.event_at) / 1e6 if match is not None else None
            if match is None or age is None or abs(age) > need.max_age_s:
                context.update(need.nothing)
                flags.append(f"{'missing' if match is None else 'stale'}_context:{need.table}")
                continue
            values = match.values
            for name in need.columns:
                context[name] = values.get(name)
            oldest = age if oldest is None or age > oldest else oldest
        return context, oldest

    def _look_up(self, table: str, key: str) -> ContextRow | None:
        try:
            return self._online.get(table, key)
        except LoopwrightError:  # a store that is down or damaged is context that is missing: prediction goes on
            return None

    def _scores(self, full: Sequence[Mapping[str, Any]], flags: list[list[str]]) -> list[float]:
        scores = self._run(full, [MOST_FAILURES])
        bad = [i for i, s in enumerate(scores) if not _LEAST <= s <= _MOST]
        if bad:
            for i, s in zip(bad, self._fall_back([full[i] for i in bad]), strict=True):
                scores[i] = s
                flags[i].append("degraded")
        return scores

    def _run(self, full: Sequence[Mapping[str, Any]], failures: list[int]) -> list[float]:
        """Scores, NaN where the model fails. A run that fails is halved until the rows at fault are alone, within limits."""
        if self._rests_until and time.perf_counter() < self._rests_until:
            return [float("nan")] * len(full)
        run = self._overruns.begin(SECONDS + len(full) / 1000) if self._overruns is not None else None
        try:
            scores: list[float] = self._model.score(self._feed(full), run.options if run is not None else None).tolist()
            if len(scores) == len(full):
                return scores
        except Exception:  # noqa: BLE001, S110  # whatever the runtime raises, the caller gets an answer
            pass
        finally:
            if run is not None and self._overruns is not None:
                self._overruns.end(run)
        failures[0] -= 1
        if run is not None and run.expired:
            self._rests_until = time.perf_counter() + REST_SECONDS
            failures[0] = 0
        if len(full) == 1 or failures[0] <= 0:
            return [float("nan")] * len(full)
        half = len(full) // 2
        return self._run(full[:half], failures) + self._run(full[half:], failures)

    def _fall_back(self, full: Sequence[Mapping[str, Any]]) -> list[float]:
        try:
            scores: list[float] = self._heuristic.score(self._feed_heuristic(full)).tolist()
        except Exception as error:
            raise Unavailable(f"neither the model nor the heuristic of package {self.digest[:12]} can answer") from error
        if len(scores) != len(full) or not all(_LEAST <= s <= _MOST for s in scores):
            raise Unavailable(f"neither the model nor the heuristic of package {self.digest[:12]} can answer")
        return scores


class _Need:
    """A `ContextNeed` made ready."""

    def __init__(self, need: ContextNeed) -> None:
        self.table, self.columns = need.table, list(need.columns)
        self.by = list(need.by.values())
        self.max_age_s = float("inf") if need.max_age_s is None else need.max_age_s
        self.nothing: dict[str, Any] = dict.fromkeys(self.columns)

    def key(self, row: Mapping[str, Any]) -> str:
        return unit_of(row, self.by)


def unit_of(row: Mapping[str, Any], key: Sequence[str]) -> str:
    """The key of a row as text: its values joined by "|"."""
    if len(key) == 1:
        return text_of(row[key[0]])
    return "|".join(text_of(row[name]) for name in key)


def text_of(value: Any) -> str:
    """One key value as text, as everywhere: what Python's `str` gives, timestamps as microseconds."""
    return str(value)
