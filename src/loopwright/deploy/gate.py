"""The gate: what a package must pass before it is released.

The rules, in this order; a package that fails the first is not touched by the others:

    probe     it loads and gives its golden answers in a confined process, in bounded time
    answers   it answers the examples that it is to be judged on (said only where it does not)
    plausible its quality is not practically perfect (`tasks.plausibility`), unless that of the serving package is as well:
              somebody has accepted that then (said only where it is)
    targets   no target of the scope is surely missed: the 95 % interval of the measure lies wholly on the wrong side.
              Where a package serves already that surely does no better on the same rows, a missed target is reported
              but does not stop the release: refusing would keep what is no nearer to it. Targets are the loop's: the package
              of a segment has none
    guards    on the same rows it is not surely worse than the serving package by more than the guard's tolerance,
              overall and on each value of the guard's slices (paired bootstrap; Efron & Tibshirani 1993, chapter 13).
              Without declared guards: the heaviest objective that is a metric of rows. Without a declared tolerance: one
              standard error of what the serving package reaches on these rows, or a hundredth of it where that is more.
              Where it is, and features of the serving package are gone, the answer is "cannot compare": a feature that told
              what nobody knows at the decision is always missed
    rule      the rule takes the place of a model only once these rows exclude the advantage over the rule that the model had on the
              leaderboard it went into service by, or show that the rule earns more: few rows are no reason to go back

"Surely" keeps chance from deciding: a difference counts only when its interval excludes "no worse by the tolerance".

A person may release a package despite the last four, with a reason; the release names the checks that it failed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import GateFailed, PackageNotFound, PackageRefused, RecordNotFound
from loopwright.base.text import interval
from loopwright.deploy.releases import serving as now_serving
from loopwright.deploy.serving.deadlines import Overruns, TimedRun
from loopwright.graph.columns import arrow_feed, segment_texts
from loopwright.records.declarations import Guard, Objective, Scope, TimeSplit, duration
from loopwright.records.entries import Record
from loopwright.records.evaluation import Z_95, Estimate, Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.field_rules import UNDIRECTED
from loopwright.records.package import Output
from loopwright.records.turns import LoopRecord
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import SegmentPackages, routed, segment_packages, together
from loopwright.stores.packages.probe import Probed, ProbeResult, admit, admit_all
from loopwright.stores.packages.store import Package
from loopwright.tasks import metrics
from loopwright.tasks.label import label_array
from loopwright.tasks.metrics import Answered
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect, too_good
from loopwright.tasks.split import trained_on, validates

SEED = 20_130_401
MAX_BOARDS = 50
"""So many of the newest leaderboards are searched for the one of the serving package."""

LEAST_ROWS = 100
LEAST_TOLERANCE = 0.01
ONE_ROW_US = 50_000.0
EXAMPLES_SECONDS = 60.0
"""So long, and `ONE_ROW_US` for each row, may a package take for the examples that it is judged on: it may be slow on them only."""

OVERRUNS = Overruns()

Array = np.ndarray[Any, Any]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One check: whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


class GateResult(Record, frozen=True, kw_only=True):
    """What the gate said about a package; `serving` is the one it was compared with ("" when none), on `rows` rows."""

    kind: ClassVar[str] = "gate"
    package: str
    serving: str
    rows: int
    passed: bool
    checks: list[Check]

    @property
    def failed(self) -> list[Check]:
        """The checks that it did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass."""
        return [f"{check.name}: {check.detail}" for check in self.failed]

    @property
    def may_be_overridden(self) -> bool:
        """Whether a person may release it all the same: not what does not load, or does not answer."""
        return all(check.name not in ("probe", "answers") for check in self.failed)

    @property
    def next_step(self) -> str:
        """What to do about a refusal."""
        if self.passed or not self.may_be_overridden:
            return ""
        return (
            "if it should serve all the same, `loopwright release LOOP "
            f"{self.package[:12]} --despite-guard --why REASON` releases it and records that it was refused"
        )


class Unreadable(NamedTuple):
    """A serving package that cannot be read, and why: nothing can be compared with it."""

    digest: str
    why: str


def read_serving(home: Home, digest: str) -> Package | Unreadable:
    """The package that serves; where it is gone or damaged, why: what is to replace it is judged without it."""
    try:
        return home.packages.read(digest)
    except PackageNotFound:
        return Unreadable(digest, "the package that serves is gone")
    except PackageRefused as refused:
        return Unreadable(digest, f"the package that serves is damaged: {refused.why}")


class GateInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks look at. `truth`, `own`, `other`, `groups` and `slices` are over the same N rows; empty without rows.

    `output` is what both packages predict: the classes of either. `failed` says why the package did not answer those rows.
    """

    package: Probed
    serving: Probed | None
    scope: Scope
    guards: Sequence[Guard]
    rows: int
    truth: Array
    own: Answered | None
    other: Answered | None
    groups: Array | None
    output: Output
    slices: dict[str, Array]
    note: str
    failed: str = ""
    board: Leaderboard | None = None
    """The leaderboard that the serving package won its place on, with the rule beside it."""


def gate(
    home: Home,
    package: Package,
    *,
    scope: Scope,
    guards: Sequence[Guard] = (),
    serving: Package | Unreadable | None = None,
    examples: pa.Table | None = None,
    beside: SegmentPackages | None = None,
    serving_beside: SegmentPackages | None = None,
) -> GateResult:
    """Run every check on a package. `examples` are as `records.examples` describes them; those on the validation side of its split count.

    Without examples, or with fewer than 100 of them, nothing is compared with the serving package, and the result says so; nor is it
    where the serving package cannot be read.
    Packages of segments `beside` the package (and beside the serving one) answer their rows where the two are compared.
    """
    try:
        probed, measured = admit(home.packages, package)
    except PackageRefused as refused:  # nothing of it is run here, so nothing else can be said of it
        return _result(package, serving, 0, [Check(name="probe", passed=False, detail=refused.why)])
    case = _case(home, probed, serving, scope, guards, examples, beside, serving_beside)
    return _result(package, serving, case.rows, [_probe(measured), *(check for judge in CHECKS for check in judge(case))])


def _result(package: Package, serving: Package | Unreadable | None, rows: int, checks: list[Check]) -> GateResult:
    return GateResult(
        package=package.digest,
        serving=serving.digest if serving else "",
        rows=rows,
        passed=all(check.passed for check in checks),
        checks=checks,
    )


def check_release(
    home: Home, package: Package, *, loop: str, scope: Scope, beside: SegmentPackages | None = None, despite_guard: bool = False
) -> GateResult:
    """The gate for a release by hand, with what the ledger knows of the loop: guards, the package's own examples.

    The package of a segment is compared with the one that serves the segment now, on the segment's rows.

    The result is put into the ledger. Raises GateFailed with the reasons; with `despite_guard` only where it does not load or answer.
    """
    entry = home.ledger.latest(LoopRecord, loop=loop)
    declared = entry.record.declaration if entry else {}
    state = now_serving(home, loop)
    segment = package.manifest.segment
    digest = state.package_of(segment.value if segment else None) if state else ""
    examples = _examples(home, loop, package)
    if examples is not None and segment is not None:
        examples = examples.filter(pa.array([text == segment.value for text in segment_texts(examples[segment.column])]))
    result = gate(
        home,
        package,
        scope=scope,
        guards=msgspec.convert(declared.get("release", {}).get("guards", []), list[Guard]),
        serving=read_serving(home, digest) if digest and digest != package.digest else None,
        examples=examples,
        beside=beside,
        serving_beside=segment_packages(home, state) if segment is None else None,
    )
    home.ledger.put(result, loop=loop, key=package.digest, links=[(package.digest, "checked")])
    if not result.passed and not (despite_guard and result.may_be_overridden):
        raise GateFailed(package.digest, result.reasons, result.next_step.replace("LOOP", loop))
    return result


def sound(home: Home, packages: Mapping[str, Package]) -> tuple[dict[str, Probed], dict[str, str]]:
    """The packages (by segment) that pass the probe, and why the others do not."""
    passed, problems = admit_all(home.packages, packages.values(), most_us=ONE_ROW_US)
    refused = {segment: problems[p.digest] for segment, p in packages.items() if p.digest in problems}
    return {segment: passed[p.digest] for segment, p in packages.items() if segment not in refused}, refused


def _examples(home: Home, loop: str, package: Package) -> pa.Table | None:
    for entry in home.ledger.find(Examples, loop=loop):
        if entry.record.digest == package.manifest.training.examples:
            with suppress(RecordNotFound):
                return read_examples(home, entry.record.digest)
    return None


def _case(
    home: Home,
    package: Probed,
    serving: Package | Unreadable | None,
    scope: Scope,
    guards: Sequence[Guard],
    examples: pa.Table | None,
    beside: SegmentPackages | None,
    serving_beside: SegmentPackages | None,
) -> GateInputs:
    none = np.array([], dtype=np.bool_)
    passed, refused = admit_all(home.packages, [serving] if isinstance(serving, Package) else [], again=False)
    served = next(iter(passed.values()), None)
    note = "".join(f"cannot be compared: the serving package is refused: {why}" for why in refused.values())
    if isinstance(serving, Unreadable):
        note = f"cannot be compared: {serving.why}"
    case = GateInputs(
        package=package,
        serving=served,
        scope=scope,
        guards=guards,
        rows=0,
        truth=none,
        own=None,
        other=None,
        groups=None,
        output=package.manifest.output,
        slices={},
        note=note,
        board=None if served is None else _board(home, served),
    )
    if examples is None or not examples.num_rows:
        return case
    rows, seen = _validation(examples, package, served)
    rows = rows.filter(rows["_label"].is_valid())
    if rows.num_rows < LEAST_ROWS:
        return case
    note = case.note or seen
    other, output, group = None, package.manifest.output, package.manifest.group
    if served is not None and served.manifest.output.task != output.task:
        note = f"not compared: the serving package is of another task, {served.manifest.output.task}"
    elif served is not None:
        output = together([output, served.manifest.output])
        with _bounded(rows.num_rows) as run:
            try:
                other = routed(served, rows, serving_beside, onto=output, options=run.options)
            except Exception as error:  # noqa: BLE001  # the runtime raises many kinds
                why = "it does not answer them in bounded time" if run.expired else _why(error)
                note = f"not compared: the serving package cannot be run on these rows ({why})"
    with _bounded(rows.num_rows) as run:
        try:
            own, slices = routed(package, rows, beside, onto=output, options=run.options), _slices(package, rows, run.options)
        except Exception as error:  # noqa: BLE001  # the runtime raises many kinds
            if run.expired:
                return msgspec.structs.replace(case, failed="it does not answer the loop's examples in bounded time")
            return msgspec.structs.replace(case, failed=f"it cannot be run on the loop's examples ({_why(error)})")
    return msgspec.structs.replace(
        case,
        rows=rows.num_rows,
        truth=label_array(rows["_label"]),
        own=own,
        other=other,
        groups=np.array(rows[group].to_pylist(), dtype=object).astype(str) if group else None,
        output=output,
        slices=slices,
        note=note,
    )


def _board(home: Home, serving: Package) -> Leaderboard | None:
    """The newest leaderboard that a package stands on."""
    boards = (entry.record for entry in home.ledger.find(Leaderboard, loop=serving.manifest.loop, limit=MAX_BOARDS))
    return next((board for board in boards if any(row.package == serving.digest for row in board.rows)), None)


@contextmanager
def _bounded(rows: int) -> Iterator[TimedRun]:
    """A run over so many examples, with its end."""
    run = OVERRUNS.begin(time.perf_counter() + EXAMPLES_SECONDS + rows * ONE_ROW_US / 1e6)
    try:
        yield run
    finally:
        OVERRUNS.end(run)


def _why(error: Exception) -> str:
    """What our own code says of rows that do not fit, in words; of the runtime's errors the kind only, for they hold values."""
    own = isinstance(error, KeyError | ValueError) and error.args
    return str(error.args[0])[:300] if own else type(error).__name__


def _validation(examples: pa.Table, package: Package, serving: Package | None) -> tuple[pa.Table, str]:
    """The rows that the package was judged on; of these, where there are enough, only those that the serving package was not trained on."""
    split = package.manifest.split
    if split is None:  # made before packages said
        newest = pc.max(examples["_decided_at"]).as_py() - duration(TimeSplit().validation)
        rows = examples.filter(pc.greater(examples["_decided_at"], pa.scalar(newest, examples["_decided_at"].type)))
    else:
        rows = examples.filter(pa.array(validates(split, examples)))
    if serving is None:
        return rows, ""
    known = serving.manifest.split
    if known is None:
        last = pa.scalar(serving.manifest.training.last, rows["_decided_at"].type)
        unseen = rows.filter(pc.greater(rows["_decided_at"], last))
    else:
        unseen = rows.filter(pa.array(~trained_on(known, rows)))
    if unseen.num_rows >= max(LEAST_ROWS, rows.num_rows // 2):
        return unseen, ""
    seen = rows.num_rows - unseen.num_rows
    return rows, f"the serving package was trained on {seen:,} of these rows, which favours it" if seen else ""


def _slices(package: Probed, rows: pa.Table, options: Any) -> dict[str, Array]:
    if "slices.onnx" not in package.files:
        return {}
    graph = package.graph("slices.onnx")
    return graph.run(arrow_feed(graph, package.columns, rows), package.manifest.slices, options)


# --- the checks --------------------------------------------------------------------------------------------------


def _probe(found: ProbeResult) -> Check:
    quick = found.one_row_us <= ONE_ROW_US
    detail = f"{found.golden} golden answers right; loads in {found.load_ms:.0f} ms, one row in {found.one_row_us:.0f} us"
    return Check(name="probe", passed=quick, detail=detail if quick else f"{detail}: more than {ONE_ROW_US / 1000:g} ms")


def _answers(case: GateInputs) -> list[Check]:
    return [Check(name="answers", passed=False, detail=case.failed)] if case.failed else []


def _plausible(case: GateInputs) -> list[Check]:
    judged = case.package.evaluation, case.package.manifest.output.task
    why, few = practically_perfect(*judged), perfect_on_few(*judged)
    if not why:
        return [Check(name="plausible", passed=True, detail=few)] if few else []
    if case.serving is not None and practically_perfect(case.serving.evaluation, case.serving.manifest.output.task):
        return [Check(name="plausible", passed=True, detail=f"{why}; that of what serves is as well")]
    named = "; ".join(f"{s.what} {s.why}" for s in case.package.evaluation.suspects if s.used)
    where = named or "no column does it alone: look for one that is known only after the decision"
    return [Check(name="plausible", passed=False, detail=f"{why}. Look for a leak: {where}")]


def _targets(case: GateInputs) -> list[Check]:
    if case.package.manifest.segment is not None:
        return []
    return [_target(case, objective) for objective in case.scope.objectives]


def _target(case: GateInputs, objective: Objective) -> Check:
    name = f"target {objective.name}"
    measured = _measure(case, objective.metric)
    if measured is None or np.isnan(measured.value):
        return Check(name=name, passed=False, detail=f"{objective.metric} was not measured")
    wanted = f"at least {objective.at_least:g}" if objective.at_least is not None else f"at most {objective.at_most:g}"
    detail = f"{objective.metric} {interval(measured)}, wanted {wanted}"
    best = measured.high if objective.at_least is not None else measured.low
    if objective.met(measured.value if np.isnan(best) else best):
        return Check(name=name, passed=True, detail=detail)
    if case.other is not None and metrics.of_rows(objective.metric):
        difference = _difference(case, objective.metric, np.ones(case.rows, dtype=np.bool_))
        if not _surely_worse(objective.metric, difference, 0.0):
            return Check(
                name=name,
                passed=True,
                detail=f"{detail}: missed, but what serves does no better (difference {interval(difference)})",
            )
    return Check(name=name, passed=False, detail=f"{detail}: surely missed")


def _measure(case: GateInputs, name: str) -> Estimate | None:
    """A measure of the package: from its own evaluation, else from the rows at hand."""
    evaluation = case.package.evaluation
    if name in evaluation.metrics:
        return evaluation.metrics[name]
    measured = {
        "latency_p50_us": evaluation.latency_p50_us,
        "latency_p99_us": evaluation.latency_p99_us,
        "latency_p50_ms": evaluation.latency_p50_us / 1000,
        "latency_p99_ms": evaluation.latency_p99_us / 1000,
        "size_bytes": float(evaluation.size_bytes),
        "train_seconds": evaluation.train_seconds,
        "load_ms": evaluation.load_ms,
        "memory_bytes": evaluation.memory_bytes,
        "value_per_prediction": evaluation.value_per_prediction,
    }
    if (value := measured.get(name)) is not None:
        return Estimate(value, value, value, evaluation.rows)
    if case.own is None or metrics.problem(name, case.slices, case.output):
        return None
    found = metrics.intervals(
        [name],
        case.truth,
        *case.own,
        output=case.output,
        groups=case.groups,
        seed=SEED,
        value=case.scope.value,
        slices=case.slices,
    )
    return found[name]


def _guards(case: GateInputs) -> list[Check]:
    if case.serving is None and not case.note:
        return []
    if case.other is None:
        return [Check(name="guards", passed=True, detail=case.note or "not compared: too few rows with a known outcome")]
    checks = []
    for guard in _declared_guards(case):
        checks.append(_guard(case, guard, "", np.ones(case.rows, dtype=np.bool_)))
        for slice_name in guard.slices:
            values = case.slices.get(slice_name)
            if values is None:
                checks.append(
                    Check(name=f"guard {guard.metric} on {slice_name}", passed=False, detail="the package has no such slice")
                )
                continue
            for value in sorted(set(values.tolist())):
                mask = values == value
                if mask.sum() >= LEAST_ROWS:
                    checks.append(_guard(case, guard, f" on {slice_name}={value}", mask))
    return checks


def _declared_guards(case: GateInputs) -> list[Guard]:
    """The guards of the loop, else one of its heaviest objective that is a metric of rows."""
    of_rows = [o for o in case.scope.objectives if metrics.of_rows(o.metric) and o.metric not in UNDIRECTED]
    return list(case.guards) or ([Guard(max(of_rows, key=lambda o: o.weight).metric)] if of_rows else [])


def _guard(case: GateInputs, guard: Guard, where: str, mask: Array) -> Check:
    difference = _difference(case, guard.metric, mask)
    tolerance = _noise(case, guard.metric, mask) if guard.tolerance is None else guard.tolerance
    worse = _surely_worse(guard.metric, difference, tolerance)
    detail = f"{interval(difference, sign=True)} against what serves, on {int(mask.sum()):,} rows (tolerance {tolerance:.3g})"
    if worse and (gone := _features_gone(case)):
        detail = (
            f"cannot compare: the set of features changed (without {', '.join(gone[:10])}{' and more' if gone[10:] else ''}), and "
            f"what they told is missed whether or not it was known at the decision; {detail}"
        )
    return Check(
        name=f"guard {guard.metric}{where}", passed=not worse, detail=f"{detail}; {case.note}" if case.note else detail
    )


def _features_gone(case: GateInputs) -> list[str]:
    """The features of the serving model that the package does not have, nor their columns by another name.

    A rule has no features: of what it lacks only suspects of a leak are named.
    """
    if case.serving is None:
        return []
    mine, before = case.package.manifest.lineage, case.serving.manifest.lineage.features
    if not mine.features:
        doubted = {column for suspect in case.serving.evaluation.suspects for column in suspect.columns}
        before = {name: columns for name, columns in before.items() if doubted & set(columns)}
    return [
        name
        for name, columns in before.items()
        if name not in mine.features and not (columns and all(mine.reaches_model(column) for column in columns))
    ]


def _difference(case: GateInputs, name: str, mask: Array) -> Estimate:
    """Package minus serving package on the rows of `mask`."""
    assert case.own is not None
    assert case.other is not None
    return metrics.differences(
        [name],
        case.truth[mask],
        case.own.at(mask),
        case.other.at(mask),
        output=case.output,
        groups=None if case.groups is None else case.groups[mask],
        seed=SEED,
        value=case.scope.value,
        slices={n: v[mask] for n, v in case.slices.items()},
    )[name]


def _noise(case: GateInputs, name: str, mask: Array) -> float:
    """By how much the serving package's own number differs by chance on other rows like these: one standard error, at least 1 %."""
    assert case.other is not None
    found = metrics.intervals(
        [name],
        case.truth[mask],
        *case.other.at(mask),
        output=case.output,
        groups=None if case.groups is None else case.groups[mask],
        seed=SEED,
        value=case.scope.value,
        slices={n: v[mask] for n, v in case.slices.items()},
    )[name]
    return float(np.nan_to_num(max((found.high - found.low) / (2 * Z_95), LEAST_TOLERANCE * abs(found.value))))


def _surely_worse(name: str, difference: Estimate, tolerance: float) -> bool:
    if metrics.metric(name).higher:
        return difference.high < -tolerance
    return difference.low > tolerance


def _back_to_rule(case: GateInputs) -> list[Check]:
    """The rule replaces a model only once these rows exclude the advantage over it with which the model went into service."""
    replaces = case.serving is not None and case.package.manifest.is_rule and not case.serving.manifest.is_rule
    advantage = _advantage(case) if replaces else None
    if advantage is None or (case.other is None and case.note):
        return []
    name, least = advantage
    if case.other is None:
        return [
            Check(
                name="rule",
                passed=False,
                detail=f"too few rows to say whether the model that serves, which beat the rule by {least:.3f} ({name}), still does",
            )
        ]
    every = np.ones(case.rows, dtype=np.bool_)
    difference = _difference(case, name, every)
    holds = difference.low <= -least if metrics.metric(name).higher else difference.high >= least
    if holds and case.scope.value.is_set:
        holds = not _difference(case, "value_per_prediction", every).low > 0
    detail = f"{name} {interval(difference, sign=True)} against the model that serves, on {case.rows:,} rows; it beat the rule by {least:.3f}"
    return [Check(name="rule", passed=not holds, detail=detail + (", which these rows do not exclude" if holds else ""))]


def _advantage(case: GateInputs) -> tuple[str, float] | None:
    """The metric of the first guard, and by how much the serving model was better than the rule in it; None where it was not."""
    guards = _declared_guards(case)
    if case.board is None or case.serving is None or not guards:
        return None
    if too_good(case.serving.evaluation, case.output.task):  # its advantage was never true
        return None
    name = guards[0].metric
    of = {row.package: row.measures.get(name) for row in case.board.rows}
    rule = next((row.measures.get(name) for row in case.board.rows if row.phase == 1), None)
    own = of[case.serving.digest]
    if own is None or rule is None:
        return None
    advantage = own - rule if metrics.metric(name).higher else rule - own
    return (name, advantage) if advantage > 0 else None


CHECKS: tuple[Callable[[GateInputs], list[Check]], ...] = (_answers, _plausible, _targets, _guards, _back_to_rule)
"""What is checked once the probe has passed."""
