"""One package answering: context, one graph run, flags, and the heuristic when the model fails. No HTTP, no log, no clock tricks.

The server and the replay call the same `answer`, with one row or with thousands.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any, NamedTuple

from loopwright.base.clock import Clock, microseconds
from loopwright.base.errors import PackageRefused, Unavailable
from loopwright.base.ids import new_ids
from loopwright.deploy.serving.context import Contexts, ContextStore
from loopwright.deploy.serving.deadlines import Overruns
from loopwright.deploy.serving.heartbeat import Heartbeat, note_of
from loopwright.deploy.serving.prepared import Prepared
from loopwright.deploy.serving.row_checks import RowChecks
from loopwright.deploy.serving.suspects import STRIKES, Suspects, Values, encoded, fingerprints
from loopwright.graph.session import Feeder, Graph
from loopwright.records.declarations import Column
from loopwright.records.package import tolerance
from loopwright.records.prediction import Prediction, unit_text
from loopwright.stores.packages.probe import Probed

MAX_FAILURES = 64
SECONDS = 1.0
REST_SECONDS = 5.0
FAILURES = 50
"""Consecutive runs without any answer, over at least `FAILING_SECONDS`, after which a model counts as failing. An overrun counts ten."""

FAILING_SECONDS = 5.0
TRUSTED_ROWS = 3
"""After this many answered rows, a model is not bad for every input: an overrun or a death is first blamed on the input."""

DISTINCT_INPUTS = 3
"""Number of different failing inputs after which the package is blamed after all."""

QUERY_OF_DEATH = "query_of_death"
"""The flag of an answer by the heuristic, because the model overran or died on that input before (`deploy.serving.suspects`)."""


class _Numbers(NamedTuple):
    """Output of a graph for N rows: scores [N] and, by row, the values [K] (None where the package has none, or the run failed)."""

    scores: list[float]
    values: list[list[float] | None]


def _nothing(count: int) -> _Numbers:
    return _Numbers([float("nan")] * count, [None] * count)


class Predictor:
    """A package ready to answer. `online` is the store for context look-ups (`home.online`).

    With `overruns`, a graph run beyond its time limit is terminated and answered by the heuristic, and for `REST_SECONDS` the
    model is not run, unless it had less than half of the loop's `deadline` (seconds) left. `ready` prepares a graph of a package.

    With `heartbeat`, runs are noted there, and models that fail permanently; an input on which the model overruns or dies twice is
    answered by the heuristic from then on, flagged `query_of_death`; other inputs are not affected. Without its `model`, which is
    then not even loaded, the heuristic answers every row.

    Safe to use from several threads; not across a fork. Raises PackageRefused when graphs and manifest disagree.
    """

    def __init__(
        self,
        package: Probed,
        online: ContextStore,
        clock: Clock,
        overruns: Overruns | None = None,
        ready: "Callable[[Probed, str], Answerer] | None" = None,
        heartbeat: Heartbeat | None = None,
        *,
        model: bool = True,
    ) -> None:
        ready = ready or Answerer
        manifest = package.manifest
        self.package, self.digest = package, package.digest
        self.example: dict[str, Any] = {}
        """A request that it answers, for descriptions; empty outside of a server."""
        self.clock, self._overruns, self._heartbeat, self._note = clock, overruns, heartbeat, note_of(package.digest)
        self._rests_until = 0.0
        self._failures, self._failing_since, self._overran = 0, 0.0, False
        self._answered = 0
        self._failing: set[bytes] = set()
        self._slow: set[bytes] = set()
        self._model = ready(package, "model.onnx") if model else None
        self._heuristic = ready(package, "heuristic.onnx")
        self._seen = [c for c in self._model.graph.columns if c in manifest.request] if self._model is not None else []
        self._pick = itemgetter(*self._seen) if len(self._seen) > 1 else None
        self._output = manifest.output
        self._least, self._most = manifest.output.shape.score
        # Callers usually send all of the optional columns or none: the checks of both kinds of row are prepared.
        needed = {name for name, column in manifest.request.items() if not column.may_lack}
        self._checks, self._width = RowChecks.of(manifest), len(manifest.request)
        self._needed, self._fewest = self._checks.only(needed), len(needed)
        self._missing = [
            (n, frozenset(c.missing_values)) for n, c in manifest.request.items() if c.nullable and c.missing_values
        ]
        self._contexts, self._joined = Contexts(manifest.context, manifest.event_time, online), bool(manifest.context)
        self.deadline = manifest.release.get("deadline_ms", 1000) / 1000
        self._key, self._threshold = manifest.key, manifest.threshold
        self._made = [name for name, column in manifest.request.items() if column.filled == "row_id"]
        filled = [name for name, column in manifest.request.items() if column.filled or name == manifest.event_time]
        self._moment = [name for name in filled if name not in self._made]
        rule = manifest.heuristic_threshold
        self._heuristic_threshold = manifest.threshold if rule is None else rule
        self._segment = manifest.segment.value if manifest.segment is not None else None
        same = self._checks, self._needed, self._missing, self._key, self._made, self._moment, self._seen
        self._preparation = *same, manifest.context, manifest.event_time

    @property
    def graph(self) -> Graph | None:
        """The graph of the model; None if the heuristic answers alone."""
        return self._model.graph if self._model is not None else None

    def answer(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        ids: Sequence[str] | None = None,
        at_us: Sequence[int] | int | None = None,
        probability: float = 1.0,
        arm: str = "champion",
        generation: int = 0,
        seconds: float | None = None,
    ) -> list[Prediction]:
        """Answer N rows in one graph run, in order.

        A row maps every request column to its value and is modified: timestamps become int microseconds, a missing event
        time becomes `at_us`, the moment of the decision (default: now), and a key that no source has becomes the
        prediction's id. Context and aggregates are those in force at the row's event time (`deploy.serving.context`).
        `latency_us` is a row's share of the run.

        Where the model gives an invalid score (no probability, or not finite) or fails, the heuristic answers, and the answer is
        flagged `degraded`; the same after a timeout of `seconds` (default `SECONDS` and a millisecond more per row;
        with none left the model is not run). Raises Unavailable when the heuristic fails as well.
        """
        started = time.perf_counter()
        moments = self.moments(at_us, len(rows))
        names = new_ids(self.clock.now(), len(rows)) if ids is None else ids
        prepared = self.prepare(rows, names, moments, started)
        return self.answer_prepared(prepared, probability=probability, arm=arm, generation=generation, seconds=seconds)

    def prepare(
        self, rows: Sequence[dict[str, Any]], names: Sequence[str], moments: Sequence[int], started: float | None = None
    ) -> Prepared:
        """The first half of `answer`: all that does not depend on the model."""
        started = time.perf_counter() if started is None else started
        inputs = self._values(rows)
        flags = list(map(self._settle, rows, moments, names))
        contexts, ages = self._contexts.find(rows, flags)
        full = [row | context for row, context in zip(rows, contexts, strict=True)] if self._joined else rows
        key = self._key
        units = (
            [str(row[key[0]]) for row in rows] if len(key) == 1 else [unit_text([row[name] for name in key]) for row in rows]
        )
        share = (time.perf_counter() - started) * 1e6 / max(len(rows), 1)
        return Prepared(rows, inputs, names, moments, units, flags, contexts, ages, full, share)

    def prepares_as(self, other: "Predictor") -> bool:
        """Whether `prepare` of both gives the same: equal columns, checks, key and context, and models that use the same columns."""
        return self._preparation == other._preparation

    def answer_prepared(
        self,
        prepared: Prepared,
        *,
        probability: float = 1.0,
        arm: str = "champion",
        generation: int = 0,
        seconds: float | None = None,
    ) -> list[Prediction]:
        """The second half of `answer`."""
        started = time.perf_counter()
        rows, inputs, names, moments, units, flags, contexts, ages, full, share = prepared
        count = len(rows)
        scores, values = self._scores(full, flags, SECONDS + count / 1000 if seconds is None else seconds, inputs)
        latency = share + (time.perf_counter() - started) * 1e6 / max(count, 1)
        package, segment = self.digest, self._segment
        labels = self._labels(scores, values, flags)
        return [
            Prediction(
                id=id,
                at=at,
                package=package,
                arm=arm,
                probability=probability,
                request=row,
                context=context,
                context_age_s=age,
                score=score,
                label=label,
                values=numbers,
                flags=marks,
                latency_us=latency,
                unit=unit,
                segment=segment,
                generation=generation,
            )
            for id, at, row, context, age, score, label, numbers, marks, unit in zip(
                names, moments, rows, contexts, ages, scores, labels, values, flags, units, strict=True
            )
        ]

    def check_golden(self) -> None:
        """Run the golden requests. Raises PackageRefused naming the first answer that differs.

        A probability may differ by 1e-6, another number by a hundred-thousandth of itself.
        """
        golden = self.package.reference.golden
        if not golden or self._model is None:
            return
        try:
            scores, _ = self._model([{**g.request, **g.context} for g in golden])
        except Exception as error:
            raise PackageRefused(self.digest, f"the golden requests cannot be run: {type(error).__name__}") from error
        if len(scores) != len(golden):
            raise PackageRefused(self.digest, f"{len(scores)} scores for {len(golden)} golden requests")
        for i, (g, score) in enumerate(zip(golden, scores, strict=True)):
            if not abs(g.score - score) <= tolerance(self._output, g.score):
                raise PackageRefused(self.digest, f"golden request {i} gives {score!r}, not {g.score!r}")

    def warm(self) -> None:
        """Answer some golden requests one by one and forget the answers, so that the first client does not pay for first times."""
        for golden in self.package.reference.golden[:5]:
            self.answer([dict(golden.request)])
        self._answered = 0  # these are no proof: they were chosen with the model

    def _labels(
        self, scores: Sequence[float], values: Sequence[list[float] | None], flags: Sequence[list[str]]
    ) -> Sequence[bool | str | None]:
        """Labels of scores in the terms of the task; None for tasks without labels."""
        threshold, rule, classes = self._threshold, self._heuristic_threshold, self._output.classes
        if self._output.shape.has_border and rule == threshold:
            return [score >= threshold for score in scores]
        if self._output.shape.has_border:
            return [s >= (rule if "degraded" in marks else threshold) for s, marks in zip(scores, flags, strict=True)]
        if classes:
            return [classes[v.index(max(v))] if v is not None else None for v in values]
        return [None] * len(scores)

    def moments(self, at_us: Sequence[int] | int | None, count: int) -> Sequence[int]:
        """The moments of N decisions, in microseconds: as given, or now."""
        if at_us is None:
            at_us = microseconds(self.clock.now())
        return [at_us] * count if isinstance(at_us, int) else at_us

    def units(self, rows: Sequence[dict[str, Any]], ids: Sequence[str], moments: Sequence[int]) -> list[str]:
        """The unit of each row as it will be logged, including values that the server fills in."""
        found = []
        for row, id, at in zip(rows, ids, moments, strict=True):
            for name in self._key:
                if name in self._made:
                    row.setdefault(name, id)
                value = row.get(name)
                if value is None and name in self._moment:
                    row[name] = at
                elif isinstance(value, datetime):
                    row[name] = microseconds(value)
            found.append(unit_text([row[name] for name in self._key]))
        return found

    def _settle(self, row: dict[str, Any], at: int, id: str) -> list[str]:
        """Fill in values that the server sets, convert times to microseconds; returns the flags of the row."""
        for name in self._moment:
            if row.get(name) is None:
                row[name] = at
        for name in self._made:
            row.setdefault(name, id)
        width = len(row)
        checks = self._checks if width == self._width else self._needed if width == self._fewest else self._checks.only(row)
        times, ranges, categories = checks
        for name in times:
            value = row[name]
            if value is not None and type(value) is not int:
                row[name] = microseconds(value)
        for name, missing in self._missing:
            if row.get(name) in missing:
                row[name] = None
        flags = []
        for name, low, high in ranges:
            value = row[name]
            if value is not None and not low <= value <= high:
                flags.append(f"out_of_range:{name}")
        for name, known in categories:
            value = row[name]
            if value is not None and value not in known:
                flags.append(f"new_category:{name}")
        return flags

    def _values(self, rows: Sequence[Mapping[str, Any]]) -> Values:
        """The client's values that the model uses, for each row; empty without a heartbeat or a model."""
        if self._heartbeat is None or self._model is None:
            return []
        try:
            if self._pick is not None:
                return [*map(self._pick, rows)]
        except KeyError:  # columns that may be left out
            pass
        return [[row.get(name) for name in self._seen] for row in rows]

    def _fingerprints(self, inputs: Values) -> tuple[bytes, ...]:
        return fingerprints(self._note, encoded(inputs))

    def _scores(self, full: Sequence[Mapping[str, Any]], flags: list[list[str]], seconds: float, inputs: Values) -> _Numbers:
        fair = seconds >= self.deadline / 2  # a run with less time is not counted against the model
        until = time.perf_counter() + seconds
        suspects = self._heartbeat.suspects if self._heartbeat is not None and inputs else None
        if not suspects or not any(strikes := [suspects.strikes(input) for input in self._fingerprints(inputs)]):
            found, bad = self._run_model(full, until, fair=fair, inputs=inputs)
        else:
            found, bad = self._apart(full, until, suspects, strikes, fair=fair, inputs=inputs)
            for marks, count in zip(flags, strikes, strict=True):
                if count >= STRIKES:
                    marks.append(QUERY_OF_DEATH)
        if bad:
            rule = self._fall_back([full[i] for i in bad])
            for i, score, values in zip(bad, *rule, strict=True):
                found.scores[i], found.values[i] = score, values
                flags[i].append("degraded")
        return found

    def _apart(
        self,
        full: Sequence[Mapping[str, Any]],
        until: float,
        suspects: Suspects,
        strikes: Sequence[int],
        *,
        fair: bool,
        inputs: Values,
    ) -> tuple[_Numbers, list[int]]:
        """Answer rows that include suspects: run each suspect alone, and queries of death not at all."""
        found = _nothing(len(full))
        clean = [i for i, count in enumerate(strikes) if not count]
        alone = [i for i, count in enumerate(strikes) if 0 < count < STRIKES]
        for left, places in [(1, clean), *((len(alone) - n, [i]) for n, i in enumerate(alone))]:
            if not places:
                continue
            now = time.perf_counter()
            share = (until - now) / left  # so that one suspect does not take the time of the others
            some, theirs = [full[i] for i in places], [inputs[i] for i in places]
            part, wrong = self._run_model(some, now + share, fair=fair and share >= self.deadline / 2, inputs=theirs)
            for i, score, values in zip(places, *part, strict=True):
                found.scores[i], found.values[i] = score, values
            if places is not clean and not wrong:
                suspects.acquit(self._fingerprints(theirs)[0])
        return found, self._wrong(found)

    def _run_model(
        self, full: Sequence[Mapping[str, Any]], until: float, *, fair: bool, inputs: Values
    ) -> tuple[_Numbers, list[int]]:
        """Run the model on rows together: its output, and the rows without one; noted in the heartbeat in case this process dies."""
        if time.perf_counter() >= until:
            return _nothing(len(full)), list(range(len(full)))
        if self._heartbeat is None:
            found = self._run(full, [MAX_FAILURES], until, fair=fair, inputs=inputs)
            return found, self._wrong(found)
        place = self._heartbeat.began(self._note, encoded(inputs), self._answered)
        try:
            found = self._run(full, [MAX_FAILURES], until, fair=fair, inputs=inputs)
        finally:
            self._heartbeat.ended(place)
        bad = self._wrong(found)
        if len(bad) < len(full):
            self._answered += len(full) - len(bad)
            if self._failures or self._failing or self._slow:
                self._failures = 0
                self._failing.clear()
                self._slow.clear()
        elif fair:
            self._failed(inputs)
        return found, bad

    def _failed(self, inputs: Values) -> None:
        """Count a run in which the model answered no row, unless it rests."""
        now = time.perf_counter()
        if self._heartbeat is None or self._model is None or (now < self._rests_until and not self._overran):
            return
        if not self._failures:
            self._failing_since = now
        self._failures += 10 if self._overran else 1
        self._overran = False
        self._failing.update(self._fingerprints(inputs[: DISTINCT_INPUTS - len(self._failing)]))
        one_input = self._answered >= TRUSTED_ROWS and len(self._failing) < DISTINCT_INPUTS
        if self._failures >= FAILURES and now - self._failing_since >= FAILING_SECONDS and not one_input:
            self._failures = 0
            self._heartbeat.troubles.fails(self.digest)

    def _late(self, inputs: Values) -> None:
        """A run overran: the model rests, unless it may be the fault of this input alone."""
        prints = self._fingerprints(inputs)
        if self._heartbeat is not None:
            self._heartbeat.troubles.overran(self.digest, b"".join(prints), self._answered)
        if self._heartbeat is not None and prints and self._answered >= TRUSTED_ROWS:
            same = self._slow.intersection(prints)
            if same or not self._slow:
                self._slow = same or set(prints)
                return
        self._rests_until, self._overran = time.perf_counter() + REST_SECONDS, True

    def _wrong(self, numbers: _Numbers) -> list[int]:
        """Which rows have a number that cannot be."""
        least, most = self._least, self._most
        bad = [i for i, s in enumerate(numbers.scores) if not least <= s <= most]
        if self._output.names:
            wide = [i for i, row in enumerate(numbers.values) if row is None or not all(least <= v <= most for v in row)]
            bad = sorted({*bad, *wide})
        return bad

    def _run(
        self, full: Sequence[Mapping[str, Any]], failures: list[int], until: float, *, fair: bool, inputs: Values
    ) -> _Numbers:
        """Answers, NaN where the model fails. A run that fails is halved until the rows at fault are alone, within limits."""
        if self._model is None or (self._rests_until and time.perf_counter() < self._rests_until):
            return _nothing(len(full))
        run = self._overruns.begin(until) if self._overruns is not None else None
        try:
            found = self._model(full, run.options if run is not None else None)
            if len(found.scores) == len(found.values) == len(full):
                return found
        except Exception:  # noqa: BLE001, S110  # after any error of the runtime, the caller gets an answer
            pass
        finally:
            if run is not None and self._overruns is not None:
                self._overruns.end(run)
        failures[0] -= 1
        if run is not None and run.expired:
            if fair:
                self._late(inputs)
            failures[0] = 0
        if len(full) == 1 or failures[0] <= 0:
            return _nothing(len(full))
        half = len(full) // 2
        parts = [
            self._run(some, failures, until, fair=fair, inputs=inputs[place])
            for some, place in ((full[:half], slice(half)), (full[half:], slice(half, None)))
        ]
        return _Numbers(parts[0].scores + parts[1].scores, parts[0].values + parts[1].values)

    def _fall_back(self, full: Sequence[Mapping[str, Any]]) -> _Numbers:
        try:
            found = self._heuristic(full)
        except Exception as error:
            raise Unavailable(f"neither the model nor the heuristic of package {self.digest[:12]} can answer") from error
        if not len(found.scores) == len(found.values) == len(full) or self._wrong(found):
            raise Unavailable(f"neither the model nor the heuristic of package {self.digest[:12]} can answer")
        return found


class Answerer:
    """A prepared graph of a package (`lean`, `threads`: see `Graph`). Raises PackageRefused when graph and manifest disagree.

    `feeder` makes its inputs of rows.
    """

    def __init__(
        self,
        package: Probed,
        name: str,
        *,
        lean: bool = False,
        threads: int = 1,
        feeder: Callable[[Graph, Mapping[str, Column]], Feeder] = Feeder,
    ) -> None:
        graph, self._wide = package.graph(name, lean=lean, threads=threads), bool(package.manifest.output.names)
        if problems := graph.problems(package.columns):
            raise PackageRefused(package.digest, f"{name}: {problems[0]}")
        for output in ("score", "values") if self._wide else ("score",):
            if output not in graph.outputs:
                raise PackageRefused(package.digest, f"{name} has no output `{output}`")
        self.graph, self._feed = graph, feeder(graph, package.columns)
        self._width = len(package.manifest.output.names)

    def __call__(self, full: Sequence[Mapping[str, Any]], options: Any = None) -> _Numbers:
        """The answers for rows. Raises the errors of the runtime."""
        if not self._wide:
            return _Numbers(self.graph.score(self._feed(full), options).tolist(), [None] * len(full))
        score, values = self.graph.answers(self._feed(full), options)
        if values.shape != (len(full), self._width):
            raise ValueError(f"`values` has the shape {values.shape}")
        return _Numbers(score.tolist(), values.tolist())
