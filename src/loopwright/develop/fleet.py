"""One declaration, many models: after the global candidates are judged, the winner is fitted again for every segment.

A segment's model is the winner's candidate with the winner's hyper-parameters, fitted on the segment's training rows and
judged on its validation rows, those of the same split; features, vocabulary and contract are the loop's. It is packaged like
any other.

Which of them serve. On the segment's validation rows the own model is compared with the global one, in pairs, by the primary
metric. A gain has a p-value that is right far into the tail on a hundred rows (`metrics.Contest.p`), and of all segments together those are taken that the procedure of Benjamini &
Hochberg (1995, Controlling the false discovery rate) takes at 5 %: of the segments that get a model of their own at most one
in twenty, on average, is no better off, and where segments do not differ at all the chance that any gets one is 5 %. With
hundreds of segments a test at 5 % for each would put fifteen useless models into service in every turn. If the whole fleet is
surely worse than the global model alone on all validation rows (chosen by segment, it may still rank badly between them), none
serves.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base import failpoints
from loopwright.base.arrays import Array
from loopwright.base.progress import Silent
from loopwright.base.text import interval
from loopwright.develop.leaderboard import primary_metric
from loopwright.develop.reference import histograms
from loopwright.develop.rehearsal import attempt, reason
from loopwright.develop.train import Measured, Work, answers_of, contest, fit_candidate, make_package
from loopwright.graph.columns import segment_texts
from loopwright.records.declarations import Candidate, Fleet
from loopwright.records.evaluation import Estimate, FleetBoard, Leaderboard, SegmentModel, moved
from loopwright.records.package import Segment
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.tasks import metrics
from loopwright.tasks.metrics import Answered
from loopwright.tasks.registry import TASKS

MIN_JUDGED = 100
"""Minimum number of validation rows of a segment: below it chance cannot be distinguished from merit."""

FALSE_SHARE = 0.05
LATENCY_RUNS = 40
LONGEST = 200
"""Longer texts name no segment: such rows are the global model's."""


def develop_fleet(
    work: Work,
    board: Leaderboard,
    fleet: Fleet,
    *,
    serving: Mapping[str, str],
    done: Mapping[str, SegmentModel],
    keep: Callable[[SegmentModel], None],
) -> FleetBoard:
    """Fit, package and evaluate the model of every segment, the largest first, and decide which of them are to serve.

    `serving` are the packages that serve now by segment (a new one's parent). `done` are those of an interrupted run,
    which are not fitted again; `keep` is called with each new one. Fitting ends when the budget's `train_minutes` are
    spent (counted separately here); the global model answers the remaining segments, and those that cannot be fitted or converted.
    """
    winner = open_probed(work.home.packages, board.winner)
    name = primary_metric(work.loop.scope.objectives, work.loop.outcome.task)
    candidate = next((c for c in work.candidates if c.name == winner.manifest.candidate), None)
    texts = np.array(segment_texts(work.table.column(fleet.by)), dtype=object)
    counted = _counts(texts[work.training])
    large = [s for s, n in counted.items() if n >= fleet.minimum_rows and len(s) <= LONGEST][: fleet.most]
    whole = _answered(work, winner, work.judged)
    trainer = _Trainer(work, winner, candidate, fleet.by, texts, name, board.turn, whole)
    models: list[SegmentModel] = []
    minutes, start = work.loop.scope.budget.train_minutes, work.home.clock.monotonic()
    for i, segment in enumerate(large if candidate is not None else []):
        model = done.get(segment)
        if model is None:
            spent = minutes is not None and work.home.clock.monotonic() - start > minutes * 60
            model = trainer.skipped(segment, "the time to train was spent") if spent else trainer.model(segment, serving)
            keep(model)
            failpoints.hit("turn.segment.kept")
        models.append(model)
        work.progress.advance("fleet", i + 1, len(large))
    models = _expected(models)
    chosen = choose(models)
    together = trainer.together(chosen)
    none = Estimate(0.0, 0.0, 0.0, len(work.judged))
    gain = contest(work, name, [together, whole]).differences([(0, 1)])[0] if chosen else none
    if _surely_worse(name, gain):
        chosen = {}
    reached, luck = _reached(work, together) if chosen else {}, gain.value * _luck(models, chosen)
    if chosen:
        gain, reached = moved(gain, -luck), {**reached, name: moved(reached[name], -luck)}
    made = FleetBoard(
        by=fleet.by,
        metric=name,
        as_of=work.examples.as_of,
        segments=models,
        serving=chosen,
        gain=gain,
        rest=len(work.training) - sum(counted[s] for s in large),
        verdict="",
        metrics=reached,
        outputs=histograms({}, {}, work.table, together) if chosen else [],
    )
    reason = "the heuristic wins, and there is nothing to fit for a segment" if candidate is None else ""
    return msgspec.structs.replace(made, verdict=reason or _verdict(made, counted, fleet))


def choose(models: Sequence[SegmentModel], share: float = FALSE_SHARE) -> dict[str, str]:
    """The segments whose own model serves, with their packages: Benjamini & Hochberg's step-up procedure at `share`."""
    judged = sorted((m for m in models if m.package), key=lambda m: m.chance)
    last = max((i for i, m in enumerate(judged, 1) if m.chance <= share * i / len(judged)), default=0)
    taken = {m.segment for m in judged[:last]}
    return {m.segment: m.package for m in models if m.segment in taken}


def _expected(models: Sequence[SegmentModel]) -> list[SegmentModel]:
    """The models with the difference that is to be expected of each on other rows."""
    judged = [m for m in models if m.package and np.isfinite(m.difference.value) and not m.difference.too_few]
    found = {m.segment: e for m, e in zip(judged, metrics.pooled([m.difference for m in judged]), strict=True)}
    return [msgspec.structs.replace(m, expected=found.get(m.segment, m.difference)) for m in models]


def _luck(models: Sequence[SegmentModel], chosen: Mapping[str, str]) -> float:
    """The share of the fleet's gain that segments have only because they were chosen for it."""
    served = [m for m in models if m.segment in chosen]
    measured = sum(m.difference.value * m.judged for m in served)
    return float(np.clip(1 - sum(m.expected.value * m.judged for m in served) / measured, 0, 1)) if measured else 0.0


class _Trainer:
    """Makes the models of segments, one after the other."""

    def __init__(
        self,
        work: Work,
        winner: Probed,
        candidate: Candidate | None,
        by: str,
        texts: Array,
        name: str,
        turn: str,
        whole: Answered,
    ) -> None:
        self.work, self.winner, self.candidate, self.by = work, winner, candidate, by
        self.texts, self.name, self.turn, self.whole = texts, name, turn, whole
        self._given: dict[str, Answered] = {}
        whole_made = (
            winner.manifest.calibration
        )  # where the global model's scores are right as they are, a segment's are not looked at
        self.calibrates = whole_made is not None and bool(whole_made.method)

    def skipped(self, segment: str, why: str) -> SegmentModel:
        """A segment without a model of its own."""
        mine = self.texts == segment
        rows, judged = int(mine[self.work.training].sum()), int(mine[self.work.judged].sum())
        return SegmentModel(turn=self.turn, segment=segment, package="", rows=rows, judged=judged, why=why)

    def model(self, segment: str, serving: Mapping[str, str]) -> SegmentModel:
        """Fit, package and judge one segment."""
        assert self.candidate is not None
        work, start = self.work, self.work.home.clock.monotonic()
        part = self._part(segment, serving)
        if len(part.judged) < MIN_JUDGED:
            return self.skipped(segment, f"too few validation rows to judge it: {len(part.judged)}, at least {MIN_JUDGED}")
        if missing := _missing_kinds(work, part):
            return self.skipped(segment, missing)
        candidate = self.candidate
        measured, failed = attempt(
            candidate.name, lambda: make_package(part, fit_candidate(part, candidate, self.winner.manifest.params))
        )
        if measured is None:
            return self.skipped(segment, reason(failed) if failed is not None else "")
        self._given[segment] = measured.given
        return self._compared(segment, part, measured, work.home.clock.monotonic() - start)

    def together(self, chosen: Mapping[str, str]) -> Answered:
        """The fleet's answers on all validation rows: each segment by its chosen package, all others by the global one."""
        parts = [None if part is None else part.copy() for part in self.whole]
        of = self.texts[self.work.judged]
        for segment, digest in chosen.items():
            rows = np.flatnonzero(of == segment)
            given = self._given.get(segment)
            if given is None:
                given = _answered(self.work, open_probed(self.work.home.packages, digest), self.work.judged[rows])
            for mine, theirs in zip(parts, given, strict=True):
                if mine is not None and theirs is not None:
                    mine[rows] = theirs
        return Answered(*parts)  # type: ignore[arg-type]  # score is never None

    def _part(self, segment: str, serving: Mapping[str, str]) -> Work:
        """The work of one segment: its rows only, silently."""
        work, mine = self.work, self.texts == segment
        inside = mine[work.validation]
        return msgspec.structs.replace(
            work,
            training=work.training[mine[work.training]],
            validation=work.validation[inside],
            drawn=work.drawn._replace(rows=work.drawn.rows[mine[work.drawn.rows]]),
            slice_values={name: of[inside] for name, of in work.slice_values.items()},
            parent=serving.get(segment, ""),
            segment=Segment(column=self.by, value=segment),
            calibrates=self.calibrates,
            latency_runs=LATENCY_RUNS,
            progress=Silent(),
        )

    def _compared(self, segment: str, part: Work, measured: Measured, seconds: float) -> SegmentModel:
        place = np.flatnonzero(self.texts[self.work.judged] == segment)
        whole = self.whole.at(place)
        found = contest(part, self.name, [measured.given, whole])
        estimate = metrics.intervals(
            [self.name],
            part.truth[part.judged],
            *whole,
            seed=part.loop.seed,
            output=part.goal.output,
            groups=None if part.groups is None else part.groups[part.judged],
            units=part.units[part.judged],
            value=part.loop.scope.value,
        )[self.name]
        return SegmentModel(
            turn=self.turn,
            segment=segment,
            package=measured.row.package,
            rows=len(part.training),
            judged=len(part.judged),
            own=measured.row.intervals[self.name],
            whole=estimate,
            difference=found.differences([(0, 1)])[0],
            chance=found.p(0, 1),
            seconds=seconds,
        )


def _counts(texts: Array) -> dict[str, int]:
    """Rows by segment, the most frequent first."""
    counts = Counter(text for text in texts.tolist() if text is not None)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _answered(work: Work, made: Probed, rows: Array) -> Answered:
    """Answers of a package on rows (indices)."""
    score, values = answers_of(made.graph("model.onnx", threads=2), work.columns, work.table.take(pa.array(rows)))
    return metrics.answered(work.goal.output, score, values, made.manifest.threshold)


def _reached(work: Work, predictions: Answered) -> dict[str, Estimate]:
    """Every metric of answers on all validation rows."""
    output, inside = work.goal.output, work.known[work.validation]
    return metrics.intervals(
        list(dict.fromkeys([*metrics.measured(output), *(name for name in work.wanted if metrics.of_rows(name))])),
        work.truth[work.judged],
        *predictions,
        seed=work.loop.seed,
        output=output,
        groups=None if work.groups is None else work.groups[work.judged],
        units=work.units[work.judged],
        value=work.loop.scope.value,
        slices={name: of[inside] for name, of in work.slice_values.items()},
    )


def _missing_kinds(work: Work, part: Work) -> str:
    """Why a segment's rows cannot be learnt from or judged by; empty when they can."""
    if not work.loop.outcome.shape.answer:
        return ""
    everywhere = len(set(work.truth[work.drawn.rows].tolist()))
    there = len(set(part.truth[part.drawn.rows].tolist()))
    if not TASKS[work.loop.outcome.task].learns_unjudged and there < everywhere:
        return f"only {there} of {everywhere} kinds of outcome among its training rows"
    if len(set(part.truth[part.judged].tolist())) < 2:
        return "only one kind of outcome among its validation rows"
    return ""


def _surely_worse(name: str, gain: Estimate) -> bool:
    return not gain.too_few and (gain.high < 0 if metrics.metric(name).higher else gain.low > 0)


def _verdict(board: FleetBoard, counted: Mapping[str, int], fleet: Fleet) -> str:
    """The fleet in a sentence."""
    made = [m for m in board.segments if m.package]
    metric = board.metric.replace("_", " ")
    text = (
        f"{len(made)} of {len(counted)} segments by {board.by} got a model" if made else f"no segment by {board.by} got a model"
    )
    small = sum(1 for rows in counted.values() if rows < fleet.minimum_rows)
    beyond = len(counted) - small - len(board.segments)
    why = [f"{small:,} have fewer than {fleet.minimum_rows:,} training rows"] if small else []
    why += [f"{beyond:,} are beyond the {fleet.most:,} largest"] if beyond > 0 else []
    parts = [f"{text} ({', '.join(why)})" if why else text]
    left = len(board.segments) - len(made)
    parts += [f"{left} could not be fitted or judged"] if left else []
    if not board.serving:
        parts += ["none is surely better than the global model"] if made and board.gain.value == 0 else []
        parts += ["together they are surely worse than the global model, so none serves"] if board.gain.value else []
        return "; ".join(parts)
    gain, one = board.gain, len(board.serving) == 1
    parts.append(
        f"{len(board.serving)} {'is surely better and serves' if one else 'are surely better and serve'}: "
        f"{interval(gain, sign=True)} {metric} of the fleet over the global model alone"
    )
    return "; ".join(parts)
