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
    guards    on the same rows it is not worse than the serving package by more than the guard's tolerance, overall and on each
              value of the guard's slices, nor than the best package of the last year (`deploy.guards`; paired bootstrap, Efron &
              Tibshirani 1993, chapter 13). Without declared guards: the heaviest objective that is a metric of rows. Without a
              declared tolerance: one standard error of what the serving package reaches on these rows, or a hundredth of it where
              that is more. Where it is worse, and features of the serving package are gone, the answer is "cannot compare": a feature that told
              what nobody knows at the decision is always missed
    rule      the rule takes the place of a model only once these rows exclude the advantage over the rule that the model had on the
              leaderboard it went into service by, or show that the rule earns more: few rows are no reason to go back

"Surely" keeps chance from deciding: a difference counts only when its interval excludes "no worse by the tolerance".

    parity    logged requests are answered the same with the context that was served and with the one that training joins: no column that
              reaches the answer differs in more than 1 % of them (`loopwright.parity`; said only where enough were logged)

A person may release a package despite the last five, with a reason; the release names the checks that it failed.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import GateFailed, PackageNotFound, PackageRefused, RecordNotFound
from loopwright.deploy.gate_checks import CHECKS
from loopwright.deploy.guards import ANCHOR_AGE, MIN_ROWS, Anchor, Check, GateInputs, features_gone, is_better
from loopwright.deploy.releases import serving as now_serving
from loopwright.deploy.serving.deadlines import Overruns, TimedRun
from loopwright.graph.columns import arrow_feed, segment_texts
from loopwright.records.declarations import Release, Scope, TimeSplit, duration
from loopwright.records.entries import Record
from loopwright.records.evaluation import Leaderboard
from loopwright.records.examples import Examples
from loopwright.records.package import Output
from loopwright.records.turns import LoopRecord
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.outcomes.rescore import SegmentPackages, routed, segment_packages, together
from loopwright.stores.packages.probe import Probed, ProbeResult, admit, admit_all
from loopwright.stores.packages.store import Package
from loopwright.tasks.label import label_array, unit_array
from loopwright.tasks.metrics import Answered
from loopwright.tasks.plausibility import practically_perfect
from loopwright.tasks.split import trained_on, validates

MAX_BOARDS = 50
"""So many of the newest leaderboards are searched for the one of the serving package."""

ONE_ROW_US = 50_000.0
EXAMPLES_SECONDS = 60.0
"""So long, and `ONE_ROW_US` for each row, may a package take for the examples that it is judged on: it may be slow on them only."""

OVERRUNS = Overruns()

Array = np.ndarray[Any, Any]


MoreChecks = Callable[[Probed], list[Check]]
"""Checks of a package that passed the probe, by stages that the gate does not know."""


class GateResult(Record, frozen=True, kw_only=True):
    """Result of the gate for a package, compared with `serving` ("" where nothing serves) on `rows` rows.

    `anchor` is the package that the next one is compared with beside this one, once this one serves: the newest that was better than
    the anchor before it, at `anchored_at`. "" in results of earlier versions.
    """

    kind: ClassVar[str] = "gate"
    package: str
    serving: str
    rows: int
    passed: bool
    checks: list[Check]
    anchor: str = ""
    anchored_at: datetime | None = None

    @property
    def unsure(self) -> list[str]:
        """Checks that could not be decided for a package that passed, and why."""
        return [f"{check.name}: {check.detail}" for check in self.checks if check.passed and check.verdict == "cannot tell"]

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
    """The serving package, or why it cannot be read: the new package is then judged without it."""
    try:
        return home.packages.read(digest)
    except PackageNotFound:
        return Unreadable(digest, "the package that serves is gone")
    except PackageRefused as refused:
        return Unreadable(digest, f"the package that serves is damaged: {refused.why}")


def gate(
    home: Home,
    package: Package,
    *,
    scope: Scope,
    release: Release | None = None,
    serving: Package | Unreadable | None = None,
    examples: pa.Table | None = None,
    segments: SegmentPackages | None = None,
    serving_segments: SegmentPackages | None = None,
    more: MoreChecks | None = None,
) -> GateResult:
    """Run every check on a package, and `more` of other stages. `examples` are as `records.examples` describes them; those on the validation side of its split count.

    Without examples, or with fewer than 100 of them, nothing is compared with the serving package, and the result says so; nor is it
    where the serving package cannot be read.
    Packages of segments `segments` beside the package (and `serving_segments` beside the serving one) answer their rows where the two are compared.
    """
    try:
        probed, measured = admit(home.packages, package)
    except PackageRefused as refused:  # nothing of it is run here, so nothing else can be said of it
        return _result(package, serving, 0, [Check(name="probe", passed=False, detail=refused.why)])
    case = _case(home, probed, serving, scope, release or Release(), examples, segments, serving_segments)
    checks = [_probe(measured), *(check for judge in CHECKS for check in judge(case)), *(more(probed) if more else [])]
    if serving is None or is_better(checks):
        anchored = package.digest, home.clock.now()
    else:
        anchored = (case.anchor.package.digest, case.anchor.since) if case.anchor else (serving.digest, home.clock.now())
    return _result(package, serving, case.rows, checks, *anchored)


def _result(
    package: Package,
    serving: Package | Unreadable | None,
    rows: int,
    checks: list[Check],
    anchor: str = "",
    anchored_at: datetime | None = None,
) -> GateResult:
    return GateResult(
        package=package.digest,
        serving=serving.digest if serving else "",
        rows=rows,
        passed=all(check.passed for check in checks),
        checks=checks,
        anchor=anchor,
        anchored_at=anchored_at,
    )


def _anchor(home: Home, package: Package, serving: Package | Unreadable | None) -> Anchor | None:
    """The best package of the last year where that does not serve and can be compared: of the same task, without a feature that is gone."""
    if not isinstance(serving, Package):
        return None
    entry = home.ledger.latest(GateResult, loop=package.manifest.loop, key=serving.digest)
    result = entry.record if entry is not None else None
    if result is None or not result.passed or result.anchored_at is None or result.anchor in (serving.digest, package.digest):
        return None
    anchor = read_serving(home, result.anchor)
    if isinstance(anchor, Unreadable) or result.anchored_at < home.clock.now() - ANCHOR_AGE:
        return None
    task = anchor.manifest.output.task
    if task != package.manifest.output.task or practically_perfect(anchor.evaluation, task) or features_gone(package, anchor):
        return None
    return Anchor(anchor, result.anchored_at)


def check_release(
    home: Home,
    package: Package,
    *,
    loop: str,
    scope: Scope,
    segments: SegmentPackages | None = None,
    despite_guard: bool = False,
    more: MoreChecks | None = None,
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
        release=msgspec.convert(declared.get("release", {}), Release),
        serving=read_serving(home, digest) if digest and digest != package.digest else None,
        examples=examples,
        segments=segments,
        serving_segments=segment_packages(home, state) if segment is None else None,
        more=more,
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
    release: Release,
    examples: pa.Table | None,
    segments: SegmentPackages | None,
    serving_segments: SegmentPackages | None,
) -> GateInputs:
    passed, refused = admit_all(home.packages, [serving] if isinstance(serving, Package) else [], again=False)
    served = next(iter(passed.values()), None)
    anchor = _anchor(home, package, serving)
    anchored = next(iter(admit_all(home.packages, [anchor.package], again=False)[0].values()), None) if anchor else None
    note = "".join(f"cannot be compared: the serving package is refused: {why}" for why in refused.values())
    if isinstance(serving, Unreadable):
        note = f"cannot be compared: {serving.why}"
    case = GateInputs(
        package=package,
        serving=served,
        scope=scope,
        release=release,
        rows=0,
        truth=np.array([], dtype=np.bool_),
        output=package.manifest.output,
        note=note,
        anchor=anchor,
        board=None if served is None else _board(home, served),
    )
    if examples is None or not examples.num_rows:
        return case
    rows, seen = _validation(examples, package, served)
    rows = rows.filter(rows["_label"].is_valid())
    if rows.num_rows < MIN_ROWS:
        return case
    output, group = package.manifest.output, package.manifest.group
    best_answers, output, _ = _serving_answers(anchored, rows, output, None)
    other, output, why_not = _serving_answers(served, rows, output, serving_segments)
    note = why_not or case.note or seen
    with _bounded(rows.num_rows) as run:
        try:
            own = routed(package, rows, segments, onto=output, options=run.options)
            slices = slice_values(package, rows, run.options)
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
        units=unit_array(rows, package.manifest.unit),
        output=output,
        slices=slices,
        note=note,
        anchor_answers=best_answers,
    )


def _serving_answers(
    served: Probed | None, rows: pa.Table, output: Output, segments: SegmentPackages | None
) -> tuple[Answered | None, Output, str]:
    """The serving package's answers to the rows, the outputs of both packages, and why they are not compared, if so."""
    if served is None:
        return None, output, ""
    if served.manifest.output.task != output.task:
        return None, output, f"not compared: the serving package is of another task, {served.manifest.output.task}"
    both = together([output, served.manifest.output])
    with _bounded(rows.num_rows) as run:
        try:
            return routed(served, rows, segments, onto=both, options=run.options), both, ""
        except Exception as error:  # noqa: BLE001  # the runtime raises many kinds
            why = "it does not answer them in bounded time" if run.expired else _why(error)
            return None, both, f"not compared: the serving package cannot be run on these rows ({why})"


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
    """Validation rows of the package, without the serving package's training rows if enough remain."""
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
    if unseen.num_rows >= max(MIN_ROWS, rows.num_rows // 2):
        return unseen, ""
    seen = rows.num_rows - unseen.num_rows
    return rows, f"the serving package was trained on {seen:,} of these rows, which favours it" if seen else ""


def slice_values(package: Probed, rows: pa.Table, options: Any) -> dict[str, Array]:
    """Slice name -> its value on every row [N], by the package's own slice graph."""
    if "slices.onnx" not in package.files:
        return {}
    graph = package.graph("slices.onnx")
    return graph.run(arrow_feed(graph, package.columns, rows), package.manifest.slices, options)


def _probe(result: ProbeResult) -> Check:
    quick = result.one_row_us <= ONE_ROW_US
    detail = f"{result.golden} golden answers right; loads in {result.load_ms:.0f} ms, one row in {result.one_row_us:.0f} us"
    return Check(name="probe", passed=quick, detail=detail if quick else f"{detail}: more than {ONE_ROW_US / 1000:g} ms")
