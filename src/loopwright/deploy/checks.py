"""The gate: what a package must pass before it is released.

The rules, in the order of `CHECKS`:

    probe     it loads and gives its golden answers in a confined process, in bounded time
    targets   no target of the scope is surely missed: the 95 % interval of the measure lies wholly on the wrong side.
              Where a package serves already that surely does no better on the same rows, a missed target is reported
              but does not stop the release: refusing would keep what is no nearer to it. Targets are the loop's: the package
              of a segment has none
    guards    on the same rows it is not surely worse than the serving package by more than the guard's tolerance,
              overall and on each value of the guard's slices (paired bootstrap; Efron & Tibshirani 1993, chapter 13).
              Without declared guards: the heaviest objective that is a metric of rows, with no tolerance

"Surely" keeps chance from deciding: a difference counts only when its interval excludes "no worse by the tolerance".
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loopwright.deploy.controller import serving as now_serving
from loopwright.deploy.probe import probe, probe_all
from loopwright.records import metrics
from loopwright.records.columns import arrow_feed, segment_texts
from loopwright.records.declarations import Guard, Objective, Scope, TimeSplit, duration
from loopwright.records.errors import GateFailed, PackageRefused
from loopwright.records.evaluation import Estimate
from loopwright.records.examples import Examples
from loopwright.records.graph import Graph
from loopwright.records.home import Home
from loopwright.records.label import label_array
from loopwright.records.ledger.record import Record
from loopwright.records.metrics import Answered
from loopwright.records.package import Output
from loopwright.records.packages import Package
from loopwright.records.scoring import Beside, beside_of, routed, together
from loopwright.records.split import trained_on, validates
from loopwright.records.turns import LoopRecord

SEED = 20_130_401
LEAST_ROWS = 100
ONE_ROW_US = 50_000.0

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


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks look at. `truth`, `own`, `other`, `groups` and `slices` are over the same N rows; empty without rows.

    `output` is what both packages predict: the classes of either.
    """

    package: Package
    serving: Package | None
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


def gate(
    home: Home,
    package: Package,
    *,
    scope: Scope,
    guards: Sequence[Guard] = (),
    serving: Package | None = None,
    examples: pa.Table | None = None,
    beside: Beside | None = None,
    serving_beside: Beside | None = None,
) -> GateResult:
    """Run every check on a package. `examples` are as `records.examples` describes them; those on the validation side of its split count.

    Without examples, or with fewer than 100 of them, nothing is compared with the serving package, and the result says so.
    Packages of segments `beside` the package (and beside the serving one) answer their rows where the two are compared.
    """
    case = _case(package, serving, scope, guards, examples, beside, serving_beside)
    checks = [check for judge in CHECKS for check in judge(case)]
    return GateResult(
        package=package.digest,
        serving=serving.digest if serving else "",
        rows=case.rows,
        passed=all(check.passed for check in checks),
        checks=checks,
    )


def check_release(home: Home, package: Package, *, loop: str, scope: Scope, beside: Beside | None = None) -> GateResult:
    """The gate for a release by hand, with what the ledger knows of the loop: guards, the package's own examples.

    The package of a segment is compared with the one that serves the segment now, on the segment's rows.

    The result is put into the ledger. Raises GateFailed with the reasons.
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
        serving=home.packages.read(digest) if digest and digest != package.digest else None,
        examples=examples,
        beside=beside,
        serving_beside=beside_of(home, state) if segment is None else None,
    )
    home.ledger.put(result, loop=loop, key=package.digest, links=[(package.digest, "checked")])
    if not result.passed:
        raise GateFailed(package.digest, [f"{c.name}: {c.detail}" for c in result.checks if not c.passed])
    return result


def sound(packages: Mapping[str, Package]) -> tuple[dict[str, Package], dict[str, str]]:
    """The packages (by segment) that pass the probe, and why the others do not."""
    problems = probe_all(list(packages.values()), most_us=ONE_ROW_US)
    refused = {segment: problems[p.digest] for segment, p in packages.items() if p.digest in problems}
    return {segment: p for segment, p in packages.items() if segment not in refused}, refused


def _examples(home: Home, loop: str, package: Package) -> pa.Table | None:
    for entry in home.ledger.find(Examples, loop=loop):
        path = home.path / "examples" / f"{entry.record.digest}.parquet"
        if entry.record.digest == package.manifest.training.examples and path.is_file():
            return pq.read_table(path)
    return None


def _case(
    package: Package,
    serving: Package | None,
    scope: Scope,
    guards: Sequence[Guard],
    examples: pa.Table | None,
    beside: Beside | None,
    serving_beside: Beside | None,
) -> Case:
    none = np.array([], dtype=np.bool_)
    case = Case(
        package=package,
        serving=serving,
        scope=scope,
        guards=guards,
        rows=0,
        truth=none,
        own=None,
        other=None,
        groups=None,
        output=package.manifest.output,
        slices={},
        note="",
    )
    if examples is None or not examples.num_rows:
        return case
    rows, note = _validation(examples, package, serving)
    rows = rows.filter(rows["_label"].is_valid())
    if rows.num_rows < LEAST_ROWS:
        return case
    other, output, group = None, package.manifest.output, package.manifest.group
    if serving is not None and serving.manifest.output.task != output.task:
        note = f"not compared: the serving package is of another task, {serving.manifest.output.task}"
    elif serving is not None:
        output = together([output, serving.manifest.output])
        try:
            other = routed(serving, rows, serving_beside, onto=output)
        except (KeyError, ValueError) as error:
            note = f"not compared: the serving package cannot be run on these rows ({error})"
    return msgspec.structs.replace(
        case,
        rows=rows.num_rows,
        truth=label_array(rows["_label"]),
        own=routed(package, rows, beside, onto=output),
        other=other,
        groups=np.array(rows[group].to_pylist(), dtype=object).astype(str) if group else None,
        output=output,
        slices=_slices(package, rows),
        note=note,
    )


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


def _slices(package: Package, rows: pa.Table) -> dict[str, Array]:
    if "slices.onnx" not in package.files:
        return {}
    graph = Graph(package.files["slices.onnx"])
    return graph.run(arrow_feed(graph, package.columns, rows), package.manifest.slices)


# --- the checks --------------------------------------------------------------------------------------------------


def _probe(case: Case) -> list[Check]:
    try:
        found = probe(case.package)
    except PackageRefused as refused:
        return [Check(name="probe", passed=False, detail=refused.why)]
    quick = found.one_row_us <= ONE_ROW_US
    detail = f"{found.golden} golden answers right; loads in {found.load_ms:.0f} ms, one row in {found.one_row_us:.0f} us"
    return [Check(name="probe", passed=quick, detail=detail if quick else f"{detail}: more than {ONE_ROW_US / 1000:g} ms")]


def _targets(case: Case) -> list[Check]:
    if case.package.manifest.segment is not None:
        return []
    return [_target(case, objective) for objective in case.scope.objectives]


def _target(case: Case, objective: Objective) -> Check:
    name = f"target {objective.name}"
    measured = _measure(case, objective.metric)
    if measured is None or np.isnan(measured.value):
        return Check(name=name, passed=False, detail=f"{objective.metric} was not measured")
    wanted = f"at least {objective.at_least:g}" if objective.at_least is not None else f"at most {objective.at_most:g}"
    detail = f"{objective.metric} {_show(measured)}, wanted {wanted}"
    best = measured.high if objective.at_least is not None else measured.low
    if objective.met(measured.value if np.isnan(best) else best):
        return Check(name=name, passed=True, detail=detail)
    if case.other is not None and metrics.of_rows(objective.metric):
        difference = _difference(case, objective.metric, np.ones(case.rows, dtype=np.bool_))
        if not _surely_worse(objective.metric, difference, 0.0):
            return Check(
                name=name,
                passed=True,
                detail=f"{detail}: missed, but what serves does no better (difference {_show(difference)})",
            )
    return Check(name=name, passed=False, detail=f"{detail}: surely missed")


def _measure(case: Case, name: str) -> Estimate | None:
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


def _guards(case: Case) -> list[Check]:
    if case.serving is None:
        return []
    if case.other is None:
        return [Check(name="guards", passed=True, detail=case.note or "not compared: too few rows with a known outcome")]
    guards = list(case.guards) or _default_guards(case.scope)
    checks = []
    for guard in guards:
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


def _default_guards(scope: Scope) -> list[Guard]:
    of_rows = [o for o in scope.objectives if metrics.of_rows(o.metric)]
    return [Guard(max(of_rows, key=lambda o: o.weight).metric)] if of_rows else []


def _guard(case: Case, guard: Guard, where: str, mask: Array) -> Check:
    difference = _difference(case, guard.metric, mask)
    worse = _surely_worse(guard.metric, difference, guard.tolerance)
    detail = f"{_show(difference, sign=True)} against what serves, on {int(mask.sum()):,} rows (tolerance {guard.tolerance:g})"
    return Check(
        name=f"guard {guard.metric}{where}", passed=not worse, detail=f"{detail}; {case.note}" if case.note else detail
    )


def _difference(case: Case, name: str, mask: Array) -> Estimate:
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


def _surely_worse(name: str, difference: Estimate, tolerance: float) -> bool:
    if metrics.metric(name).higher:
        return difference.high < -tolerance
    return difference.low > tolerance


def _show(estimate: Estimate, *, sign: bool = False) -> str:
    number = "+.3f" if sign else ".3f" if abs(estimate.value) < 1000 else ",.0f"
    if estimate.low == estimate.high == estimate.value:
        return format(estimate.value, number)
    return f"{estimate.value:{number}} [{estimate.low:{number}}, {estimate.high:{number}}]"


CHECKS: tuple[Callable[[Case], list[Check]], ...] = (_probe, _targets, _guards)
