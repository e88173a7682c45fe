"""The judge of a stage in which the new package answered the same rows as the old one: every comparison is of pairs.

*System* and *behaviour* as in `deploy.judge`; and *flips*, the share of rows that get another label, overall and on every slice, against
the tolerance that the stage declares. *Quality* is that of both packages on the same rows, whose outcomes are the same: the difference of
pairs is far more certain than that of two arms. It may send back, and never takes a release on.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.base.text import count, duration_text, number, share
from loopwright.deploy import judge
from loopwright.deploy.gate import slice_values
from loopwright.deploy.guards import declared_guards
from loopwright.deploy.serving.shadow import divide
from loopwright.deploy.strategies import rules_of
from loopwright.records.declarations import Guard, Loop, duration
from loopwright.records.releases import CHAMPION, ReleaseState
from loopwright.records.verdicts import GuardFinding, GuardVerdict, Layer, Verdict
from loopwright.stores.home import Home
from loopwright.stores.outcomes.labelled import known, with_truth
from loopwright.stores.packages.probe import open_probed
from loopwright.stores.prediction_log.read import predictions, stored
from loopwright.stores.prediction_log.scan import LogPart
from loopwright.tasks import metrics
from loopwright.tasks.label import unit_array
from loopwright.tasks.metrics import sequence
from loopwright.tasks.metrics.estimate import statistics_of, unit_codes
from loopwright.tasks.metrics.resample import Units
from loopwright.tasks.metrics.sequence import ArmDifference

LATE = timedelta(seconds=10)
"""A row that the shadow has not answered after so long counts as left out."""

_FALL_BACK, _FLAGGED = ("degraded", "query_of_death"), ("out_of_range", "new_category")
_ANSWER = ("_score", "_label", "_values", "_package")


class _Pairs(NamedTuple):
    """Rows that both answered [N]: of the old package (with the requests), of the shadow; how many were left out so far."""

    old: pa.Table
    new: pa.Table
    left_out: int


def judge_shadow(home: Home, loop: Loop, states: Sequence[ReleaseState], at: datetime) -> Verdict:
    """The verdict at moment `at` on the current stage, whose package answers logged requests again; `states` as in `deploy.judge`."""
    begun = home.clock.monotonic()
    return msgspec.structs.replace(_ShadowJudge(home, loop, states, at).verdict(), seconds=home.clock.monotonic() - begun)


class _PairedGuard(NamedTuple):
    """What is compared on so many rows: a metric, where slice `part[0]` is `part[1]`. `stops_only`: it sends back, and holds nothing."""

    layer: Layer
    metric: str
    tolerance: float
    rows: int
    stops_only: bool
    part: tuple[str, str] = ("", "")
    higher: bool = False

    def finding(self, difference: ArmDifference, verdict: GuardVerdict) -> GuardFinding:
        """What came out."""
        new, old, low, high = (value if math.isfinite(value) else None for value in difference[:4])
        return GuardFinding(
            layer=self.layer,
            metric=self.metric,
            higher_is_better=self.higher,
            tolerance=self.tolerance,
            verdict=verdict,
            rows=self.rows,
            control_rows=self.rows,
            slice=self.part[0],
            value=self.part[1],
            new=new,
            old=old,
            low=low,
            high=high,
            stops_only=self.stops_only,
        )


class _ShadowJudge:
    def __init__(self, home: Home, loop: Loop, states: Sequence[ReleaseState], at: datetime) -> None:
        self.home, self.loop, self.at, self.state = home, loop, at, states[-1]
        self.stage = self.state.plan[self.state.stage]
        self.rules = rules_of(self.stage)
        assert self.state.former is not None
        assert self.state.shadow is not None
        self.former, self.shadow = self.state.former, self.state.shadow
        self.flips: float | None = getattr(self.stage, "flips", None)
        self.guards: list[Guard] = list(declared_guards(loop.scope, loop.release))
        if loop.scope.value.is_set and "value_per_prediction" not in [guard.metric for guard in self.guards]:
            self.guards.append(Guard("value_per_prediction"))
        phases = {rules_of(stage).new_arm for stage in self.state.plan}
        shared = 3 + 2 * (self.flips is not None) + sum(1 + bool(guard.slices) for guard in self.guards)
        self.alpha = 2 * loop.release.alpha / len(phases) / shared  # of a two-sided sequence one side sends back
        self.planned = 4.0 * max([rules_of(stage).rows(stage) for stage in self.state.plan] + [250])
        self.unit = loop.unit or ""
        self.ids: list[str] = []

    def verdict(self) -> Verdict:
        """See `judge_shadow`."""
        pairs = self._pairs()
        flipped = _flipped(pairs)
        findings = self._technical(pairs) + self._flips(pairs, flipped)
        quality, outcomes = self._quality(pairs.new)
        findings += quality
        worse = [f for f in findings if f.verdict == "worse"]
        missing = self._missing(pairs.new.num_rows, findings)
        answer: Literal["on", "back", "hold"] = "back" if worse else "hold" if missing else "on"
        told = "" if flipped is None or not len(flipped) else f"; {share(float(flipped.mean()))} of rows have another label"
        told += f"; {pairs.left_out:,} rows were left out under load" if pairs.left_out else ""
        why = {
            "back": "; ".join(map(judge.finding_text, worse[:3])),
            "hold": f"waits for {'; '.join(missing)}",
            "on": f"{count(sum(f.verdict == 'within' for f in findings), 'guard')} within tolerance",
        }[answer]
        difference = pc.mean(pc.abs(pc.subtract(pairs.new["_score"], pairs.old["_score"]))).as_py()
        return Verdict(
            loop=self.loop.name,
            generation=self.state.generation,
            stage=self.state.stage,
            at=self.at,
            answer=answer,
            why=f"{self.rules.words(self.stage)}: {why}{told}",
            package=self.shadow.package,
            former=self.former.package,
            rows=pairs.new.num_rows,
            control_rows=pairs.new.num_rows + pairs.left_out,
            with_outcome=outcomes,
            control_with_outcome=outcomes,
            missing=missing if answer == "hold" else [],
            findings=findings,
            shown_by=self.ids[: judge.MAX_SHOWN] if worse else [],
            left_out=pairs.left_out,
            flips=None if flipped is None or not len(flipped) else float(flipped.mean()),
            score_difference=difference,
        )

    def _pairs(self) -> _Pairs:
        since = self.state.since
        columns = None if self._sliced else ["_id", "_at", "_unit", "_package", "_flags", "_latency_us", "_score", "_label", "_values",
                                             "_generation", "_of_file", *([self.unit] if self.unit else [])]  # fmt: skip
        answers = self._of_release(
            predictions(self.home, self.loop.name, start=since, end=self.at, columns=columns, arms=[CHAMPION])
        )
        begun = pc.field("_at") >= pa.scalar(since, pa.timestamp("us", tz="UTC"))
        shadows = self._of_release(stored(self.home, "shadows", self.loop.name, where=begun))
        places = pc.index_in(answers["_id"], value_set=shadows["_id"].combine_chunks())
        both = pc.is_valid(places)
        late = pc.less(answers["_at"], pa.scalar(self.at - LATE, pa.timestamp("us", tz="UTC")))
        missed = answers["_unit"].filter(pc.and_(late, pc.invert(both))).to_pylist()
        if self.shadow.share < 1:
            missed = [number for number in divide(self.shadow, self.state.salt)(missed) if number == 0]
        return _Pairs(answers.filter(both), shadows.take(places.filter(both)), len(missed))

    def _of_release(self, table: pa.Table) -> pa.Table:
        """The rows of this release that a client asked for."""
        if "_generation" not in table.column_names:
            return table.slice(0, 0)
        table = table.filter(pc.equal(table["_generation"], self.state.generation))
        return table.filter(pc.invert(pc.fill_null(table["_of_file"], False))) if "_of_file" in table.column_names else table

    @property
    def _sliced(self) -> bool:
        return self.flips is not None or any(guard.slices for guard in self.guards)

    def _technical(self, pairs: _Pairs) -> list[GuardFinding]:
        slow_us = judge.slow_us(self.loop)
        kinds: list[tuple[Layer, str, float]] = [
            ("system", "degraded_share", judge.DEGRADED_TOLERANCE),
            ("system", "slow_share", judge.SLOW_TOLERANCE),
            ("behaviour", "flagged_share", judge.FLAGGED_TOLERANCE),
        ]
        units = unit_array(pairs.old, self.unit)
        found = []
        for layer, name, tolerance in kinds:
            hits = [
                table["_latency_us"].to_numpy() > slow_us
                if name == "slow_share"
                else _has(table, _FALL_BACK if name == "degraded_share" else _FLAGGED)
                for table in (pairs.old, pairs.new)
            ]
            old, new = (sequence.share_of(sequence.unit_sums(each, units)) for each in hits)
            difference = sequence.share_difference(new, old, alpha=self.alpha)
            verdict = judge.answer_of(difference, tolerance, higher=False)
            poor = difference.value > tolerance
            found.append(_PairedGuard(layer, name, tolerance, pairs.new.num_rows, not poor).finding(difference, verdict))
            self._show(verdict, pairs.new["_id"], hits[1])
        return found

    def _flips(self, pairs: _Pairs, flipped: Array | None) -> list[GuardFinding]:
        if self.flips is None or flipped is None:
            return []
        of_unit = unit_array(pairs.old, self.unit)
        parts: list[tuple[str, str, Array, float]] = [("", "", np.ones(len(flipped), np.bool_), self.alpha)]
        package = open_probed(self.home.packages, self.former.package)
        values = (
            {n: np.asarray(v).astype(str) for n, v in slice_values(package, pairs.old, None).items()} if len(flipped) else {}
        )
        named = [(name, value) for name, each in values.items() for value in np.unique(each).tolist()]
        parts += [(name, value, values[name] == value, self.alpha / len(named)) for name, value in named]
        found = []
        for name, value, mask, alpha in parts:
            rows = int(mask.sum())
            one = sequence.share_of(sequence.unit_sums(flipped[mask], of_unit[mask]))
            if not rows:
                difference = ArmDifference(math.nan, math.nan, -math.inf, math.inf, math.inf)
            else:
                low, high = (sequence.share_end(one, alpha, upper=upper) for upper in (False, True))
                difference = ArmDifference(one.value, 0.0, low, high, 0.0)
            tell: GuardVerdict = (
                "worse" if difference.low > self.flips else "within" if difference.high < self.flips else "cannot tell"
            )
            found.append(
                _PairedGuard("behaviour", "flips", self.flips, rows, bool(name), (name, value)).finding(difference, tell)
            )
            self._show(tell, pairs.new["_id"], flipped & mask)
        return found

    def _quality(self, shadows: pa.Table) -> tuple[list[GuardFinding], int]:
        """The guards on rows whose wait for an outcome is over, and the number of those rows."""
        since = self.state.since
        if not self.guards or not shadows.num_rows or self.at < since + duration(self.loop.outcome.wait):
            return [], 0
        joined = with_truth(
            self.home,
            self.loop.name,
            self.loop.outcome,
            start=since,
            end=self.at,
            known_at=self.at,
            part=LogPart(arms=[CHAMPION]),
        )
        places = pc.index_in(joined["_id"], value_set=shadows["_id"].combine_chunks())
        old, theirs = joined.filter(pc.is_valid(places)), shadows.take(places.filter(pc.is_valid(places)))
        new = old
        for name in _ANSWER:
            if name in new.column_names and name in theirs.column_names:
                new = new.set_column(new.column_names.index(name), name, theirs[name])
        packages = {digest: open_probed(self.home.packages, digest) for digest in (self.former.package, self.shadow.package)}
        outputs = {digest: package.manifest.output for digest, package in packages.items()}
        before, after = (known(table, self.loop.outcome, outputs, self.unit) for table in (old, new))
        rows = len(before.truth)
        if not rows:
            return [], 0
        sliced = slice_values(packages[self.former.package], old, None) if any(guard.slices for guard in self.guards) else {}
        slices = {name: np.asarray(values).astype(str)[before.rows] for name, values in sliced.items()}
        ids = old["_id"].filter(pa.array(before.rows))
        found = []
        for guard in self.guards:
            if metrics.problem(guard.metric, list(slices), before.output) or ":" in guard.metric:
                continue
            parts = [(name, value) for name in guard.slices if name in slices for value in np.unique(slices[name]).tolist()]
            for part in [("", ""), *parts]:
                mask = slices[part[0]] == part[1] if part[0] else np.ones(rows, np.bool_)
                groups = None if before.groups is None else before.groups[mask]
                units = Units(unit_codes(before.units[mask], groups), int(mask.sum()))
                (was,), (now,) = (
                    statistics_of(
                        [guard.metric], one.truth[mask], one.given.at(mask), one.output, groups, self.loop.scope.value, None
                    )
                    for one in (before, after)
                )
                alpha = self.alpha / len(parts) if part[0] else self.alpha
                difference = sequence.paired_difference(now, was, units, alpha=alpha, planned=self.planned / 2)
                tolerance = judge.DEFAULT_TOLERANCE * abs(was.value) if guard.tolerance is None else guard.tolerance
                higher = metrics.metric(guard.metric).higher
                tell = judge.answer_of(difference, tolerance, higher=higher)
                found.append(
                    _PairedGuard("quality", guard.metric, tolerance, units.rows, True, part, higher).finding(difference, tell)
                )
                self._show(tell, ids, mask & (before.given.score != after.given.score))
        return found, rows

    def _show(self, verdict: GuardVerdict, ids: pa.ChunkedArray, hits: Array) -> None:
        """Keep ids of rows that show what is worse."""
        if verdict == "worse":
            self.ids += ids.filter(pa.array(hits)).slice(0, judge.MAX_SHOWN).to_pylist()

    def _missing(self, rows: int, findings: Sequence[GuardFinding]) -> list[str]:
        """What the stage still waits for."""
        found, lasts, least = [], self.rules.lasts(self.stage), self.rules.rows(self.stage)
        if self.at < self.state.since + lasts:
            found.append(f"its time, {duration_text(lasts)}, over on {self.state.since + lasts:%Y-%m-%d %H:%M} UTC")
        if rows < least:
            found.append(f"{rows:,} of {least:,} rows that both answered")
        unsure = [f for f in findings if f.verdict == "cannot tell" and not f.stops_only]
        return found + [f"{f.name}: more rows would tell ({f.rows:,} now, tolerance {number(f.tolerance)})" for f in unsure]


def _flipped(pairs: _Pairs) -> Array | None:
    """Which rows have another label; None where there are no labels."""
    if "_label" not in pairs.old.column_names or pairs.old["_label"].null_count == pairs.old.num_rows != 0:
        return None
    old, new = (table["_label"].cast(pa.string()) for table in (pairs.old, pairs.new))
    return np.asarray(pc.fill_null(pc.not_equal(old, new), True).to_numpy())


def _has(table: pa.Table, kinds: Sequence[str]) -> Array:
    """Which rows have a flag of these kinds."""
    return np.array([any(flag.partition(":")[0] in kinds for flag in flags) for flags in table["_flags"].to_pylist()], np.bool_)
