"""The verb `check`: errors and warnings of a loop, and a sample of its features, before anything runs."""

import re
from collections import Counter
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import DeclarationInvalid, ExamplesRefused
from loopwright.base.progress import Progress, Silent, under_way
from loopwright.base.text import count
from loopwright.data.examples.aggregates import value
from loopwright.data.examples.build import build, repeated_units
from loopwright.data.examples.time_warnings import doubts
from loopwright.data.ingest.ingestion import contract_problems
from loopwright.deploy.preconditions import LEAST_CRITICAL, tier_misses
from loopwright.develop.check import check as check_graphs
from loopwright.develop.feature_values import FeatureValues, made_up
from loopwright.develop.features import TracedFeatures
from loopwright.develop.leakage import describe, scan
from loopwright.develop.sampling import draw
from loopwright.graph.columns import ARROW_TYPES, segment_texts
from loopwright.records.conditions import framed
from loopwright.records.declarations import Fleet, Loop, Scope, Table, duration
from loopwright.sql.expression import columns
from loopwright.stores.examples import read_examples
from loopwright.stores.home import Home
from loopwright.stores.ingestions import missing_rows
from loopwright.tasks import metrics
from loopwright.tasks.label import label_sql, label_type
from loopwright.tasks.registry import TASKS
from loopwright.tasks.split import divide, divide_again, says
from loopwright.turn import used_columns
from loopwright.verbs.checked import Checked, CheckItem, SampleRow
from loopwright.verbs.loop_file import loop_with_code

SAMPLED = 3
LOOKED_AT = 100_000
"""Approximate number of the newest requests that are joined for the checks."""


class _Rows(NamedTuple):
    """Rows to check: examples (or None), requests without outcomes (or None), decisions left out by reason, and a note on them.

    `refused` is the reason why `run` would make no examples; `is_wrong`: more outcomes would not help. `sampled`: not
    all examples that `run` would make.
    """

    examples: pa.Table | None
    requests: pa.Table | None
    excluded: dict[str, int]
    note: str
    refused: str = ""
    is_wrong: bool = False
    sampled: bool = False


def check(home: Home, loop: str, *, strict: bool = False, progress: Progress | None = None) -> Checked:
    """Check a loop before it runs: declarations, contract, graph.

    With rows in its tables, warn of features that predict too well and of columns not known at the decision. Show the features of a
    few rows (without data, of made-up rows).

    Args:
        loop: path of a loop file or its folder, or the name of a loop in the ledger.
        strict: exit with 1 on a warning, too.
    """
    declared, file = loop_with_code(home, loop)
    items, refused = _contracts(home, loop, declared, file)
    with under_way(progress, "joining examples"):
        note = f"not looked for: the contract of {', '.join(refused)} cannot change like this"
        seen = _Rows(None, None, {}, note) if refused else _rows(home, declared)
    with under_way(progress, f"rehearsing features and {count(len(declared.candidates), 'candidate')}"):
        found = check_graphs(
            columns=declared.columns,
            features=declared.features,
            heuristic=declared.scope.heuristic,
            outcome=declared.outcome,
            slices=declared.slices,
            candidates=declared.candidates,
            objectives=declared.scope.objectives,
            split=declared.split,
            sampling=declared.sampling,
            seed=declared.seed,
            examples=seen.examples,
        )
    items += [CheckItem(name=n, ok=ok, detail=d, warning=n in found.doubtful) for n, ok, d in found.items]
    items += [
        _described(declared.scope),
        _watched(declared),
        *_tier(declared),
        *_moves_with_labels(declared),
        *_valued(declared),
        *_labels(declared),
    ]
    items += [] if found.used is None else [_unused(declared, found.used)]
    if declared.fleet is not None:
        items.append(_segments(home, declared.requests, declared.fleet))
    if again := repeated_units(home, declared.requests, declared.outcome):
        items.append(CheckItem(name=f"key {', '.join(declared.requests.key)}", ok=True, detail=again))
    sample: list[SampleRow] = []
    if (traced := found.traced) is not None:
        if seen.refused:
            items.append(CheckItem(name="examples", ok=not seen.is_wrong, detail=seen.refused, warning=not seen.is_wrong))
        elif seen.examples is not None:
            items += [_split(home, declared, seen), *_windows(declared, seen.examples)]
        items += _doubts(declared, traced, seen, progress or Silent())
        with under_way(progress, "computing features of sample rows"):
            sample = _sample(declared, traced, seen)
    doubtful = any(i.warning for i in items)
    return Checked(
        what=declared.name,
        ok=all(i.ok for i in items) and not (strict and doubtful),
        items=items,
        columns=declared.columns,
        features=found.features,
        sample=sample,
    )


def _contracts(home: Home, path: str, loop: Loop, file: str) -> tuple[list[CheckItem], list[str]]:
    """The declarations and each table with its rows, and the tables whose contract would be refused."""
    items = [
        CheckItem(
            name="declarations",
            ok=True,
            detail=f"loop {loop.name!r}: {count(len(loop.candidates) + 1, 'candidate')}, {count(len(loop.tables), 'table')}",
        )
    ]
    refused: list[str] = []
    for table in loop.tables.values():
        rows = home.lake.count(table.name) if home.lake.exists(table.name) else 0
        detail = count(rows, "row") if rows else f"empty: `loopwright ingest {table.name} FILE --loop {path}`"
        if table is loop.outcome.table and table.prediction_field != "id":
            detail += f"; 'id' is a column of its own: an outcome names its prediction in the field {table.prediction_field!r}"
        problems = contract_problems(home, table, loop=loop.name, file=file)
        if lost := missing_rows(home, table.name):
            problems, detail = [("rows", lost)], "no data"
        detail += "".join(f"; {field}: {why}" for field, why in problems)
        items.append(CheckItem(name=f"table {table.name}", ok=not problems, detail=detail))
        refused += [table.name] if problems else []
    return items, refused


def _tier(loop: Loop) -> list[CheckItem]:
    """What the loop's tier requires; nothing for the least critical tier."""
    if loop.scope.tier == LEAST_CRITICAL:
        return []
    missing = tier_misses(loop)
    detail = f"requires {'; '.join(missing)}: nothing is released before" if missing else "declares all that it requires"
    return [CheckItem(name=f"tier {loop.scope.tier}", ok=not missing, detail=detail)]


def _described(scope: Scope) -> CheckItem:
    """Whether the problem and its stakeholders are described: a draft's `TODO` does not count."""
    texts = [("problem", scope.problem)]
    texts += [(f"objectives[{o.name!r}].{field}", getattr(o, field)) for o in scope.objectives for field in ("name", "owner")]
    open_ = [field for field, text in texts if re.search(r"\bTODO\b", text)]
    state, said = framed(scope)
    detail = f"{', '.join(open_)} still says TODO: write it in the loop file" if open_ else scope.problem
    doubtful = not open_ and state != "ok"
    return CheckItem(name="problem", ok=not open_, detail=f"{detail} {said}" if doubtful else detail, warning=doubtful)


def _valued(loop: Loop) -> list[CheckItem]:
    """From which score on acting pays, where the value table says so."""
    value = loop.scope.value
    if not (value.is_set and TASKS[loop.outcome.task].valued_threshold):
        return []
    border = value.threshold()
    always = "acting pays at any score: nothing that a model says changes what is done"
    detail = (
        f"acting pays from a probability of {border:.3f}; `run` calibrates scores where that surely helps" if border else always
    )
    return [CheckItem(name="value", ok=True, detail=detail, warning=not border)]


def _watched(loop: Loop) -> CheckItem:
    """Whether the metrics of guards and of the retraining trigger can be measured on rows and slices of this loop."""
    slices = [part.name for part in loop.slices]
    named = [("guard", guard.metric) for guard in loop.release.guards]
    named += [("retrain.decay_metric", loop.retrain.decay_metric)] if loop.retrain.decay_metric else []
    wrong = []
    for where, name in named:
        why = metrics.problem(name, slices, loop.outcome)
        if not why and not metrics.of_rows(name):
            why = f"{name!r} is not measured on rows"
        wrong += [f"{where}: {why}"] if why else []
    unknown = dict.fromkeys(s for guard in loop.release.guards for s in guard.slices if s not in slices)
    wrong += [f"guard: no slice {name!r}; the loop declares {', '.join(slices) or 'none'}" for name in unknown]
    decay = loop.retrain.decay_metric or metrics.decay(loop.outcome.task)
    return CheckItem(
        name="guards",
        ok=not wrong,
        detail="; ".join(wrong) or f"{len(loop.release.guards) or 'the default'} before a release; decay is that of {decay}",
    )


def _moves_with_labels(loop: Loop) -> list[CheckItem]:
    """A warning where a change of the shares of the labels alone would be decay."""
    name, task = loop.retrain.decay_metric, loop.outcome.task
    if loop.retrain.decay is None or not name or metrics.problem(name, [part.name for part in loop.slices], loop.outcome):
        return []
    if not metrics.moves_with_labels(name, task) or metrics.adjusts(name, task):
        return []
    why = f"{name} moves where only the shares of the labels change, and that would be decay; {metrics.decay(task)} does not"
    return [CheckItem(name="retrain.decay_metric", ok=True, detail=why, warning=True)]


def _labels(loop: Loop) -> list[CheckItem]:
    """Faults in the SQL of labels and aggregates, else a warning for each column of a binary label that could hold any word."""
    table = loop.outcome.table
    try:
        label_sql(loop.outcome)
        for aggregate in loop.aggregates:
            value(aggregate)
    except DeclarationInvalid as error:
        return [CheckItem(name="label", ok=False, detail=str(error))]
    if not pa.types.is_boolean(label_type(loop.outcome)):
        return []
    named = [n for sql in loop.outcome.labels.values() for n in columns(sql, table) if n not in table.key]
    why = "has no categories: a word that is not expected counts as no; name them, and such a row goes to quarantine"
    return [
        CheckItem(name=f"column {n}", ok=True, detail=f"of table {table.name} {why}", warning=True)
        for n in dict.fromkeys(named)
        if table.columns[n].type == "string" and table.columns[n].categories is None
    ]


def _unused(loop: Loop, used: set[str]) -> CheckItem:
    """The columns that feed nothing; requests may leave them out."""
    request = [n for n, c in loop.requests.columns.items() if n not in used | loop.named_columns and not c.filled]
    joined = [n for n in loop.context_columns if n not in used]
    leave_out = f"requests may leave out {', '.join(request)}: nothing uses them"
    said = leave_out if request else "nothing is asked for that is not used"
    said += f"; joined for nothing: {', '.join(joined)}" if joined else ""
    return CheckItem(name="columns", ok=True, detail=said)


def _segments(home: Home, requests: Table, fleet: Fleet) -> CheckItem:
    """Number of segments with enough rows for a model of their own; a warning if there is none."""
    name = f"fleet by {fleet.by}"
    if not home.lake.exists(requests.name) or not home.lake.count(requests.name):
        return CheckItem(name=name, ok=True, detail="not counted: there are no rows yet")
    values: Counter[str | None] = Counter()
    for batch in home.lake.dataset(requests.name).to_batches(columns=[fleet.by]):
        found, counts = batch.column(0).value_counts().flatten()
        values.update(dict(zip(segment_texts(found), counts.to_pylist(), strict=True)))
    rows = {value: n for value, n in values.items() if value is not None}
    large = min(sum(n >= fleet.minimum_rows for n in rows.values()), fleet.most)
    most = max(rows, key=lambda value: rows[value], default="")
    detail = f"{large:,} of {len(rows):,} segments have {fleet.minimum_rows:,} rows in table {requests.name!r} or more"
    detail += f"; the largest is {most[:40]!r} with {rows[most]:,}" if rows else ""
    return CheckItem(name=name, ok=True, detail=detail, warning=not large)


def _rows(home: Home, loop: Loop) -> _Rows:
    """Examples of about the newest LOOKED_AT requests, made in a temporary folder; only requests if there are none."""
    if not home.lake.exists(loop.requests.name) or not home.lake.count(loop.requests.name):
        return _Rows(None, None, {}, "not looked for: there are no rows yet")
    declared, newest = duration(loop.retrain.window) if loop.retrain.window else None, _window(home, loop.requests)
    sampled = newest is not None and (declared is None or newest < declared)
    try:
        examples, excluded = _examples(home, loop, newest if sampled else declared)
    except (ExamplesRefused, DeclarationInvalid) as error:
        rows = home.lake.dataset(loop.requests.name).head(SAMPLED)
        for name, column in loop.context_columns.items():
            rows = rows.append_column(name, pa.nulls(len(rows), ARROW_TYPES[column.type]))
        outcomes = loop.outcome.table.name
        is_wrong = isinstance(error, DeclarationInvalid) or (home.lake.exists(outcomes) and home.lake.count(outcomes) > 0)
        return _Rows(None, rows, {}, f"not looked for: {error}", str(error), is_wrong)
    return _Rows(examples, None, excluded, count(len(examples), "example"), sampled=sampled)


def _examples(home: Home, loop: Loop, window: timedelta | None, *, narrow: bool = False) -> tuple[pa.Table, dict[str, int]]:
    """The examples that `run` would build, in a folder that is gone afterwards, and decisions left out by reason.

    `narrow` leaves out the columns that no split looks at, so that all of a large table can be had in a moment.
    """
    requests = loop.requests
    if narrow:
        needed = {*requests.key, requests.event_time, getattr(loop.split, "column", None)}
        requests = msgspec.structs.replace(requests, columns={n: c for n, c in requests.columns.items() if n in needed})
    with TemporaryDirectory(dir=home.path, prefix=".check-") as folder:
        where = {"home": Path(folder), "ledger": home.settings.ledger_url, "lake": home.settings.lake_root}
        with Home(msgspec.structs.replace(home.settings, **where), home.clock) as scratch:
            made = build(
                scratch,
                loop_name=loop.name,
                requests=requests,
                context=[] if narrow else loop.context,
                aggregates=[] if narrow else loop.aggregates,
                outcome=loop.outcome,
                as_of=home.clock.now(),
                window=window,
                used=partial(used_columns, loop),
            )
            return read_examples(scratch, made.digest), made.excluded


def _split(home: Home, loop: Loop, seen: _Rows) -> CheckItem:
    """Whether `run` can divide the examples, sample them and search on them, by the very functions that it does so with."""
    window = duration(loop.retrain.window) if loop.retrain.window else None
    examples = _examples(home, loop, window, narrow=True)[0] if seen.sampled else seen.examples
    assert examples is not None
    try:
        training, validation, partition = divide(examples, loop.split, seed=loop.seed, task=loop.outcome.task)
        draw(examples, training, loop.sampling, seed=loop.seed)
        if any(candidate.takes_trial for candidate in loop.candidates):
            divide_again(examples, training, loop.split, seed=loop.seed, task=loop.outcome.task)
    except (ExamplesRefused, DeclarationInvalid) as error:
        return CheckItem(name="split", ok=False, detail=str(error))
    detail = f"{count(len(training), 'example')} train, {len(validation):,} validate; {partition.extended or says(loop.split)}"
    return CheckItem(name="split", ok=True, detail=detail, warning=bool(partition.extended))


def _windows(loop: Loop, examples: pa.Table) -> list[CheckItem]:
    """A warning where windows would hold too few rows to be judged, at the pace of the middle half of the examples."""
    decided = examples.column("_decided_at").cast(pa.int64()).to_numpy()
    low, high = np.quantile(decided, [0.25, 0.75])
    if high == low:
        return []
    every, least = loop.monitor.every, loop.monitor.minimum_rows
    rows = len(decided) / 2 * (duration(every) / timedelta(microseconds=float(high - low)))
    why = f"a window of {every} holds about {rows:,.0f} rows, and minimum_rows is {least:,}: no window would be judged. Change either"
    return [CheckItem(name="monitor", ok=True, detail=why, warning=True)] if rows < least else []


def _window(home: Home, requests: Table) -> timedelta | None:
    """The newest time span that holds about LOOKED_AT requests; None if there are no more than that."""
    count = home.lake.count(requests.name)
    if count <= LOOKED_AT:
        return None
    ends: list[datetime] = []
    for batch in home.lake.dataset(requests.name).to_batches(columns=[requests.event_time]):
        low, high = (moment.as_py() for moment in pc.min_max(batch.column(0)).values())
        ends += [low, high] if low is not None else []
    return (max(ends) - min(ends)) * (LOOKED_AT / count) if ends else None


def _doubts(loop: Loop, traced: TracedFeatures, seen: _Rows, progress: Progress) -> list[CheckItem]:
    """Columns not known at the decision, and features that leak the label; one item if there are none, or if it cannot be checked."""
    found = doubts(
        loop.requests,
        loop.context,
        loop.aggregates,
        loop.outcome,
        used=traced.used,
        examples=seen.examples,
        excluded=seen.excluded,
    )
    few, unused = "", list[CheckItem]()
    if seen.examples is not None:
        scanned = scan(traced, seen.examples, task=loop.outcome.task, key=loop.requests.key, progress=progress)
        few = scanned.too_few
        found += [(s.what, describe(s)) for s in scanned.suspects if s.used]
        unused = [CheckItem(name=s.what, ok=True, detail=describe(s)) for s in scanned.suspects if not s.used]
    items = [CheckItem(name=name, ok=True, detail=why, warning=True) for name, why in found]
    if seen.examples is None or few:
        why = f"could not look for features that tell too much: {few} ({seen.note})" if few else seen.note
        items.append(CheckItem(name="leakage", ok=True, detail=why, checked=False))
    elif not items:
        detail = f"no feature tells too much, no column was known too late ({seen.note})"
        items = [CheckItem(name="leakage", ok=True, detail=detail)]
    return [*items, *unused]


def _sample(loop: Loop, traced: TracedFeatures, seen: _Rows) -> list[SampleRow]:
    """A few rows with their features: the first, the middle and the newest example, or requests, or made-up rows."""
    values = FeatureValues(traced)
    given: list[dict[str, Any]]
    rows = seen.examples if seen.examples is not None and len(seen.examples) else seen.requests
    if rows is None:
        given, source = made_up(loop.columns), "made up"
        computed = values.of_rows(given)
    else:
        places = sorted({0, len(rows) // 2, len(rows) - 1})
        part, source = rows.take(places), f"table {loop.requests.name}"
        given = part.select(list(loop.columns)).to_pylist()
        computed = values.of_table(part)
    used = [name for name in loop.columns if name in traced.used]
    return [
        SampleRow(source=source, columns={n: row[n] for n in used}, features=made)
        for row, made in zip(given, computed, strict=True)
    ]
