"""Training: every candidate on the same rows, each converted to one graph, checked, measured, packaged and ranked.

The package holds the model that was fitted on the training part and judged on the validation part: it is never refitted
afterwards, so the measured model is the one that serves.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array, spread_rows
from loopwright.base.errors import ConversionRefused, DeclarationInvalid, LoopwrightError
from loopwright.base.progress import Progress, Silent
from loopwright.base.text import count, interval, spaced
from loopwright.develop.calibrate import Unseen, calibrates_itself, choose, threshold, unseen
from loopwright.develop.card import card
from loopwright.develop.evaluate import LATENCY_RUNS, evaluate, latency, loading, measures
from loopwright.develop.examples import load as load_examples
from loopwright.develop.examples import matrices, middle, split_examples
from loopwright.develop.features import TracedFeatures, Vocabulary, trace, trace_rule, trace_slices
from loopwright.develop.fit import TrainingData, fit, fixed, make, search
from loopwright.develop.leaderboard import climb, compared, doubt, primary_metric, rank, shrink, verdict
from loopwright.develop.leakage import describe, leaks, scan
from loopwright.develop.lineage import columns_used
from loopwright.develop.lineage import lineage as trace_lineage
from loopwright.develop.mlmodel import mlmodel, requirements
from loopwright.develop.onnx.convert import convert
from loopwright.develop.onnx.explanation import Files, explanation
from loopwright.develop.onnx.parity import agreed, load
from loopwright.develop.output import Answers, Goal
from loopwright.develop.provenance import commit, environment
from loopwright.develop.reference import golden, histograms, served_rows
from loopwright.develop.rehearsal import attempt, reason, refuse_none_left, rehearsed
from loopwright.develop.sampling import Drawn
from loopwright.graph.columns import arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Candidate, Column, Loop, Release, Scope, declaration_digest, to_builtins
from loopwright.records.evaluation import Detail, Evaluation, Leaderboard, LeaderboardRow, Suspect
from loopwright.records.examples import Examples
from loopwright.records.package import (
    Calibration,
    ContextNeed,
    Conversion,
    Explained,
    Lineage,
    Manifest,
    Partition,
    Reference,
    Segment,
    Training,
    unused_optional,
)
from loopwright.stores.home import Home
from loopwright.stores.packages.environments import environment_files
from loopwright.stores.packages.store import FORMAT, check_files, encode_json
from loopwright.tasks import metrics
from loopwright.tasks.label import unit_array
from loopwright.tasks.metrics import Answered
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect
from loopwright.tasks.registry import TASKS
from loopwright.tasks.split import divide_again, folds

_LATENCY_ROWS = 200
_EXPLAINED_ROWS = 50
_MONEY = "value_per_prediction"


class _Fitted(msgspec.Struct, kw_only=True):
    """A candidate as a graph, with the manifest facts about its fitting."""

    name: str
    phase: int
    graph: bytes
    features: list[str]
    vocabulary: dict[str, list[str]]
    params: dict[str, Any]
    conversion: Conversion
    seconds: float
    explained: Files
    calibration: Calibration | None = None


class Measured(msgspec.Struct, kw_only=True):
    """A packaged candidate and its answers on the validation rows whose truth is known.

    `perfect`: it is too good to be true; `perfect_on_few`: it looks so, on too few rows to tell.
    """

    row: LeaderboardRow
    given: Answered
    perfect: str = ""
    perfect_on_few: str = ""


class _Evaluated(NamedTuple):
    """A candidate as measured, before its package is written: the card, which names the candidates left out, comes last."""

    manifest: Manifest
    evaluation: Evaluation
    files: dict[str, bytes]
    given: Answered
    importance: dict[str, float]


class Work(msgspec.Struct, kw_only=True):
    """Shared by all candidates of one turn: the rows, their split, and the matrices of their features.

    `failed` are the candidates that are left out already, by name. `calibrates`: scores may be calibrated, and thresholds chosen.
    """

    home: Home
    loop: Loop
    candidates: list[Candidate]
    examples: Examples
    columns: dict[str, Column]
    request: dict[str, Column]
    context: list[ContextNeed]
    parent: str
    commit: str
    table: pa.Table
    truth: Array
    known: Array
    groups: Array | None
    training: Array
    validation: Array
    partition: Partition
    drawn: Drawn
    goal: Goal
    traced: TracedFeatures
    heuristic: bytes
    slices: bytes | None
    slice_values: dict[str, Array]
    vocabulary: dict[str, Vocabulary]
    matrices: dict[str, Array]
    wanted: list[str]
    lineage: Lineage
    progress: Progress
    suspects: list[Suspect]
    failed: dict[str, LoopwrightError] = {}
    segment: Segment | None = None
    latency_runs: int = LATENCY_RUNS
    calibrates: bool = True

    @property
    def units(self) -> Array:
        """The unit of each row [N]."""
        return unit_array(self.table, self.loop.unit or "")

    @property
    def validation_table(self) -> pa.Table:
        """The validation rows."""
        return self.table.take(pa.array(self.validation))

    @property
    def positive_share(self) -> float:
        """Share of the training rows with a true label; 0 for tasks without a threshold."""
        return float(self.truth[self.training].mean()) if self.goal.output.shape.has_border else 0.0

    @property
    def judged(self) -> Array:
        """The rows (indices) for judging candidates: validation rows with known truth; only anomalies have others."""
        return self.validation[self.known[self.validation]]


def prepare(
    home: Home,
    loop: Loop,
    examples: Examples,
    *,
    context: list[ContextNeed],
    candidates: list[Candidate] | None = None,
    parent: str = "",
    lineage: Lineage | None = None,
    window: timedelta | None = None,
    progress: Progress | None = None,
) -> Work:
    """Trace the code, load and split the examples, and compute the matrices: everything before fitting.

    Args:
        context: Context needs of the package's requests.
        candidates: Candidates to train; default: all declared ones. One that fails in its rehearsal is left out.
        parent: The serving package, "" without one.
        window: Train and validate only on the newest history of this length.

    Request columns that neither declarations nor graphs use become optional.

    Raises DeclarationInvalid for code that cannot be traced, ExamplesRefused when there is too little to learn from; where no
    candidate is left, the error of the only one, or CandidatesFailed.
    """
    progress = progress or Silent()
    candidates = loop.candidates if candidates is None else candidates
    _check_metrics(loop)
    columns, key = loop.columns, loop.requests.key
    traced = trace(loop.features, columns)
    slice_graph = trace_slices(loop.slices, columns)
    table = load_examples(home, examples, window)
    parts = split_examples(table, loop.split, loop.sampling, loop.outcome, seed=loop.seed)
    training, goal, truth = parts.training, parts.goal, parts.truth
    heuristic = trace_rule(loop.scope.heuristic.rule, columns, goal.output, middle(goal, truth[training]))
    vocabulary, made = matrices(traced, table, training, {c.encoding for c in candidates})
    work = Work(
        home=home,
        loop=loop,
        candidates=candidates,
        examples=examples,
        columns=columns,
        request=unused_optional(loop.requests.columns, {*loop.named_columns, *columns_used(traced, heuristic, slice_graph)}),
        context=context,
        parent=parent,
        commit=commit(loop.features),
        table=table,
        truth=truth,
        known=parts.known,
        groups=parts.groups,
        training=training,
        validation=parts.validation,
        partition=parts.partition,
        drawn=parts.drawn,
        goal=goal,
        traced=traced,
        heuristic=heuristic,
        slices=slice_graph,
        slice_values={},
        vocabulary=vocabulary,
        matrices=made,
        wanted=_wanted(loop.scope, loop.release),
        lineage=trace_lineage(traced, heuristic, loop.slices, lineage),
        suspects=leaks(scan(traced, table, task=loop.outcome.task, key=key, progress=progress).suspects),
        progress=progress,
    )
    _leave_out_failing(work)
    if slice_graph is not None:
        graph = Graph(slice_graph)
        work.slice_values = graph.run(arrow_feed(graph, columns, work.validation_table))
    _say_rows(work)
    return work


def _leave_out_failing(work: Work) -> None:
    """Rehearse every candidate; failing ones are left out and named. Raises the errors of `prepare` if none is left."""
    for suspect in work.suspects:
        work.progress.say(f"leak suspected: {suspect.what} {describe(suspect)}")
    weighed = work.drawn.weight is not None
    work.failed = rehearsed(
        work.candidates, lambda c: _training_data(work, c).at(work.drawn.rows), work.goal, seed=work.loop.seed, weighed=weighed
    )
    for name, error in work.failed.items():
        work.progress.say(f"{name} is left out: {reason(error)}")
    left = [c for c in work.candidates if c.name not in work.failed]
    if work.candidates and not left:
        refuse_none_left(work.failed)
    work.candidates = left


def _say_rows(work: Work) -> None:
    work.progress.say(
        f"training on {count(len(work.drawn.rows), 'example')}"
        f"{f' sampled of {len(work.training):,}' if len(work.drawn.rows) < len(work.training) else ''}, "
        f"judging on {len(work.validation):,} {'younger' if work.partition.boundary else 'other'} ones"
        + "".join(f"; {n:,} left out: {why}" for why, n in work.partition.left_out.items())
        + (f"; {work.partition.extended}" if work.partition.extended else "")
    )


def develop(work: Work, *, params: Mapping[str, Mapping[str, Any]] | None = None, turn: str = "") -> Leaderboard:
    """Train the heuristic and every candidate on the same rows, package each, and return the leaderboard (not yet in the ledger).

    `params` fixes hyper-parameters by candidate and so skips their search. A candidate that fails with any error is left
    out and named in the verdict, the leaderboard and every card; the others go on.

    Raises the error of the only candidate, or CandidatesFailed, if none is left.
    """
    measured, contests, left_out = _train(work, params or {})
    return _board(work, measured, contests, left_out, turn)


def _check_metrics(loop: Loop) -> None:
    names = [s.name for s in loop.slices]
    asked = [(f"objectives[{o.name!r}].metric", o.metric) for o in loop.scope.objectives]
    asked += [(f"release.guards[{g.metric!r}].metric", g.metric) for g in loop.release.guards]
    wrong = [(where, why) for where, name in asked if (why := metrics.problem(name, names, loop.outcome))]
    if wrong:
        raise DeclarationInvalid("the loop", wrong)


def _wanted(scope: Scope, release: Release) -> list[str]:
    return list(dict.fromkeys([*(o.metric for o in scope.objectives), *(g.metric for g in release.guards)]))


def _train(
    work: Work, params: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Measured], dict[str, metrics.Contest], dict[str, str]]:
    """All packages, their comparison, and the omitted candidates with reasons."""
    made, failed = [_evaluated(work, _heuristic(work))], dict(work.failed)
    for candidate in work.candidates:

        def fitted(candidate: Candidate = candidate) -> _Evaluated:
            return _evaluated(work, fit_candidate(work, candidate, params.get(candidate.name)))

        found, error = attempt(candidate.name, fitted)
        if found is not None:
            made.append(found)
        elif error is not None:
            failed[candidate.name] = error
            work.progress.say(f"{candidate.name} is left out: {reason(error)}")
    if failed and len(made) == 1:
        refuse_none_left(failed)
    left_out = {name: reason(error) for name, error in failed.items()}
    contests = _contests(work, [each.given for each in made])
    shrunk = shrink([each.evaluation for each in made], contests)
    made = [each._replace(evaluation=evaluation) for each, evaluation in zip(made, shrunk, strict=True)]
    return [_packaged(work, each, left_out) for each in made], contests, left_out


def _heuristic(work: Work) -> _Fitted:
    return _Fitted(
        name=work.loop.scope.heuristic.name,
        phase=1,
        graph=work.heuristic,
        features=[],
        vocabulary={},
        params={},
        conversion=Conversion(rows=0, max_difference=0.0),
        seconds=0.0,
        explained=Files(Explained(why="a rule has no contributions: read it in the loop file")),
    )


def _training_data(work: Work, candidate: Candidate) -> TrainingData:
    return TrainingData(work.matrices[candidate.encoding], work.truth, group=work.groups, weight=work.drawn.weight)


def _searched(work: Work, candidate: Candidate, training_data: TrainingData) -> dict[str, Any]:
    """The hyper-parameters that do best on the newer training rows when fitted on the older ones."""
    loop = work.loop
    minutes = loop.scope.budget.train_minutes
    name = primary_metric(loop.scope.objectives, loop.outcome.task)

    def judge(rows: Array, answers: Answers) -> float:
        border = threshold(loop.scope, loop.outcome, answers.score, work.positive_share)
        known = work.known[rows]
        given = metrics.answered(work.goal.output, answers.score, answers.values, border).at(known)
        rows = rows[known]
        return metrics.compute(
            name,
            work.truth[rows],
            *given,
            output=work.goal.output,
            groups=None if work.groups is None else work.groups[rows],
            value=loop.scope.value,
        )

    older, newer = divide_again(work.table, work.training, work.partition.split, seed=loop.seed, task=loop.outcome.task)
    return search(
        candidate,
        training_data,
        older[np.isin(older, work.drawn.rows)],
        newer,
        judge=judge,
        higher=metrics.metric(name).higher,
        goal=work.goal,
        seed=loop.seed,
        seconds=minutes * 60 if minutes else None,
        progress=work.progress,
    )


def fit_candidate(work: Work, candidate: Candidate, params: Mapping[str, Any] | None) -> _Fitted:
    """Search, fit, convert and check one candidate."""
    clock, loop = work.home.clock, work.loop
    training_data = _training_data(work, candidate)
    start = clock.monotonic()
    found = _searched(work, candidate, training_data) if candidate.takes_trial and params is None else dict(params or {})
    unfitted = make(candidate, fixed(candidate, found) if candidate.takes_trial else None, loop.seed)
    estimator, warned = fit(candidate, unfitted, training_data.at(work.drawn.rows), work.goal)
    seconds = clock.monotonic() - start
    for text in warned:
        work.progress.say(f"{candidate.name}: {text[:200]}")

    def build(goal: Goal, exact: bool) -> bytes:  # `agreed` calls it
        model = convert(candidate.name, estimator, training_data.matrix.shape[1], goal, exact=exact)
        return work.traced.model_graph(work.vocabulary, candidate.encoding, model, goal)

    graph, conversion, exact = agreed(candidate.name, estimator, work.goal, build, work.traced.columns, work.validation_table)
    calibration = _calibration(work, candidate, unfitted, training_data)
    goal = msgspec.structs.replace(work.goal, calibration=calibration)
    names = work.traced.names(work.vocabulary, candidate.encoding)
    some = work.validation_table.take(pa.array(spread_rows(len(work.validation_table), _EXPLAINED_ROWS)))
    tried = load(candidate.name, graph)
    explained = explanation(
        estimator, goal, names, training_data.matrix, work.drawn.rows, tried.run(arrow_feed(tried, work.columns, some))
    )
    if explained.about.why:
        work.progress.say(f"{candidate.name}: its answers cannot be explained: {explained.about.why}")
    return _Fitted(
        name=candidate.name,
        phase=candidate.phase,
        graph=build(goal, exact) if calibration is not None and calibration.method else graph,
        features=names,
        vocabulary={name: v.words for name, v in work.vocabulary.items()},
        params=found,
        conversion=conversion,
        seconds=seconds,
        explained=explained,
        calibration=calibration,
    )


def _calibration(work: Work, candidate: Candidate, estimator: Any, training_data: TrainingData) -> Calibration | None:
    """How scores become probabilities, and the threshold (see `calibrate`); None where no value table sets one."""
    loop, clock = work.loop, work.home.clock
    if not (work.calibrates and loop.scope.value.is_set and TASKS[loop.outcome.task].valued_threshold):
        return None
    start, border = clock.monotonic(), threshold(loop.scope, loop.outcome, np.zeros(0), work.positive_share)
    made = Calibration(why="its estimator is a CalibratedClassifierCV", threshold=border)
    if not calibrates_itself(estimator):
        pairs = folds(work.table, work.training, work.partition.split, seed=loop.seed, task=loop.outcome.task)
        pairs = [(fitted[np.isin(fitted, work.drawn.rows)], judged) for fitted, judged in pairs]
        try:
            rows, score = unseen(candidate, estimator, training_data, pairs, work.goal)
            made = choose(Unseen(score, work.truth[rows], work.units[rows]), loop.scope.value, border, seed=loop.seed)
        except DeclarationInvalid as error:
            made = Calibration(
                why=f"not every fold of the training rows can be fitted and scored: {reason(error)}", threshold=border
            )
    made = msgspec.structs.replace(made, seconds=clock.monotonic() - start)
    work.progress.say(f"{candidate.name}: {made.words}; that took {made.seconds:.1f} s")
    return made


def make_package(work: Work, fitted: _Fitted) -> Measured:
    """Score the validation rows with the graph, measure, write the package."""
    return _packaged(work, _evaluated(work, fitted), {})


def _evaluated(work: Work, fitted: _Fitted) -> _Evaluated:
    """Score the validation rows with the graph and measure. Raises ConversionRefused where it gives no numbers, PackageRefused."""
    table, output = work.validation_table, work.goal.output
    graph, judged = Graph(fitted.graph), work.known[work.validation]
    score, values = answers_of(graph, work.columns, table)
    if not np.isfinite(score).all():
        raise ConversionRefused(fitted.name, f"{int((~np.isfinite(score)).sum())} validation rows give no number")
    border = _border(work, graph, score) if fitted.calibration is None else fitted.calibration.threshold
    whole = metrics.answered(output, score, values, border)
    sample = spread_rows(len(table), _LATENCY_ROWS)
    evaluation = evaluate(
        work.truth[work.judged],
        whole.at(judged),
        output=output,
        threshold=border,
        slices={name: of[judged] for name, of in work.slice_values.items()},
        groups=None if work.groups is None else work.groups[work.judged],
        units=work.units[work.judged],
        value=work.loop.scope.value,
        wanted=work.wanted,
        seed=work.loop.seed,
        latency=latency(graph, work.columns, served_rows(work.columns, table, sample), work.home.clock, runs=work.latency_runs),
        loading=loading(fitted.graph, work.home.clock),
        size=len(fitted.graph),
        seconds=fitted.seconds,
    )
    manifest = _manifest(work, fitted, evaluation)
    reaching = [s for s in work.suspects if any(manifest.lineage.reaches_model(column) for column in s.columns)]
    evaluation = msgspec.structs.replace(evaluation, suspects=reaching)
    context = {name: column for need in work.context for name, column in need.columns.items()}
    reference = Reference(
        columns=histograms(work.request, context, table, whole),
        golden=golden(graph, work.columns, work.request, context, table),
    )
    files = {
        "model.onnx": fitted.graph,
        "heuristic.onnx": work.heuristic,
        **({"slices.onnx": work.slices} if work.slices is not None else {}),
        **fitted.explained.files,
        "evaluation.json": encode_json(evaluation),
        "reference.json": encode_json(reference),
        "MLmodel": mlmodel(work.columns, graph.columns, output, manifest.environment["python"], manifest.created_at),
        **environment_files(manifest.environment["python"], requirements(manifest.environment["loopwright"])),
    }
    check_files(files)
    primary = primary_metric(work.loop.scope.objectives, output.task)
    shown = evaluation.metrics[primary]
    work.progress.say(
        f"{fitted.name}: {spaced(primary)} {interval(shown)}, "
        f"{evaluation.latency_p50_us:.0f} µs a row, fitted in {fitted.seconds:.1f} s"
    )
    return _Evaluated(manifest, evaluation, files, whole.at(judged), fitted.explained.importance)


def _packaged(work: Work, made: _Evaluated, left_out: Mapping[str, str]) -> Measured:
    """Write the package, with a card that names the candidates left out."""
    manifest, evaluation, truth = made.manifest, made.evaluation, work.truth[work.judged]
    text = card(manifest, work.loop.scope, evaluation, measures(evaluation), left_out)
    files = {**made.files, "evaluation.json": encode_json(evaluation), "card.md": text.encode()}
    package = work.home.packages.write(manifest, files)
    row = LeaderboardRow(
        rank=0,
        candidate=manifest.candidate,
        phase=manifest.phase,
        package=package.digest,
        measures=measures(evaluation),
        intervals=evaluation.metrics,
        met={},
        score=0.0,
        shrunk=evaluation.shrunk,
        may_be_best=evaluation.may_be_best,
        detail=Detail(
            importance=made.importance,
            confusion=metrics.confusion(manifest.output, truth, made.given),
            trade=metrics.trade(manifest.output, truth, made.given, evaluation.threshold, work.loop.scope.value),
            reliability=evaluation.reliability,
            calibration=manifest.calibration,
        ),
    )
    judged = made.evaluation, made.manifest.output.task
    return Measured(row=row, given=made.given, perfect=practically_perfect(*judged), perfect_on_few=perfect_on_few(*judged))


def answers_of(graph: Graph, columns: Mapping[str, Column], table: pa.Table) -> tuple[Array, Array | None]:
    """Score [N] and, where the graph has them, values [N, K]."""
    found = graph.run(arrow_feed(graph, columns, table), [o for o in ("score", "values") if o in graph.outputs])
    return found["score"], found.get("values")


def _border(work: Work, graph: Graph, score: Array) -> float:
    """The threshold for a graph whose scores of the validation rows are `score`.

    For anomalies it comes from the training rows. For positives it does not: trees overfit their training rows, and a threshold of
    those scores would be too high for new rows.
    """
    if TASKS[work.loop.outcome.task].learns_unjudged:
        score = answers_of(graph, work.columns, work.table.take(pa.array(work.drawn.rows)))[0]
    return threshold(work.loop.scope, work.loop.outcome, score, work.positive_share)


def _heuristic_threshold(work: Work, border: float) -> float | None:
    """The heuristic's own threshold if it differs from the model's, `border`: its scores have another scale."""
    task = TASKS[work.loop.outcome.task]
    if task.threshold is None:
        return None
    if task.valued_threshold and work.loop.scope.value.is_set:
        own = threshold(work.loop.scope, work.loop.outcome, np.zeros(0), work.positive_share)
        return None if own == border else own
    graph = Graph(work.heuristic)
    return _border(work, graph, answers_of(graph, work.columns, work.validation_table)[0])


def _manifest(work: Work, fitted: _Fitted, evaluation: Evaluation) -> Manifest:
    decided = work.table.column("_decided_at").take(pa.array(work.training))
    first, last = (moment.as_py().astimezone(UTC) for moment in pc.min_max(decided).values())
    return Manifest(
        format=FORMAT,
        loop=work.loop.name,
        candidate=fitted.name,
        phase=fitted.phase,
        created_at=work.home.clock.now(),
        by=work.home.by,
        declaration=declaration_digest(work.loop),
        request=work.request,
        key=work.loop.requests.key,
        event_time=work.loop.requests.event_time,
        context=work.context,
        features=fitted.features,
        vocabulary=fitted.vocabulary,
        slices=list(work.slice_values),
        threshold=evaluation.threshold,
        heuristic_threshold=_heuristic_threshold(work, evaluation.threshold),
        output=work.goal.output,
        group=work.loop.outcome.group or "",
        unit=work.loop.unit or "",
        params=fitted.params,
        seed=work.loop.seed,
        training=Training(
            examples=work.examples.digest,
            rows=len(work.training),
            as_of=work.examples.as_of,
            first=first,
            last=last,
            sources={s.table: s.version for s in work.examples.sources},
            seconds=fitted.seconds,
        ),
        conversion=fitted.conversion,
        commit=work.commit,
        environment=environment(),
        parent=work.parent,
        release=to_builtins(work.loop.release),
        files={},
        segment=work.segment,
        lineage=work.lineage if fitted.features else msgspec.structs.replace(work.lineage, features={}),
        split=work.partition,
        sampling=work.drawn.sampled if fitted.features else None,
        explained=fitted.explained.about,
        calibration=fitted.calibration,
    )


def _board(
    work: Work,
    measured: Sequence[Measured],
    contests: Mapping[str, metrics.Contest],
    left_out: Mapping[str, str],
    turn: str,
) -> Leaderboard:
    objectives = work.loop.scope.objectives
    weights = {o.name: o.weight for o in objectives}
    rows = rank([m.row for m in measured], objectives, weights)
    primary = next(iter(contests))
    comparisons = compared(primary, [m.row for m in measured], contests[primary], contests.get(_MONEY))
    winner = climb(rows, comparisons)[0]
    won = next(m for m in measured if m.row.package == winner.package)
    doubted = doubt(winner.candidate, won.perfect, work.suspects)
    few = f"; its {won.perfect_on_few}" if won.perfect_on_few else ""
    return Leaderboard(
        turn=turn,
        as_of=work.examples.as_of,
        examples=work.examples.digest,
        rows=rows,
        comparisons=comparisons,
        weights=weights,
        verdict=doubted + verdict(rows, comparisons, left_out) + few,
        left_out=dict(left_out),
        winner=winner.package,
        suspects=work.suspects,
        doubt=doubted,
    )


def _contests(work: Work, answers: Sequence[Answered]) -> dict[str, metrics.Contest]:
    """What candidates are compared by: the primary metric, and money where it is declared."""
    name = primary_metric(work.loop.scope.objectives, work.loop.outcome.task)
    return {each: contest(work, each, answers) for each in (name, *([_MONEY] if work.loop.scope.value.is_set else []))}


def contest(work: Work, name: str, answers: Sequence[Answered]) -> metrics.Contest:
    """Answers to the rows that `work` judges on, side by side in a metric."""
    return metrics.contest(
        name,
        work.truth[work.judged],
        answers,
        seed=work.loop.seed,
        output=work.goal.output,
        groups=None if work.groups is None else work.groups[work.judged],
        units=work.units[work.judged],
        value=work.loop.scope.value,
    )
