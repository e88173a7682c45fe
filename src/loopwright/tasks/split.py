"""The split of examples into training and validation, with the proof that the two are disjoint.

time     the newest decisions validate: those of the declared duration, and where they are too few to judge by (a pause, a burst
         with one label only) as many before them as it takes, at most half of all. Those within the embargo before the
         boundary are left out of both, and so are training
         rows whose outcome became known only after the boundary: a model trained at that moment could not have learnt from them, and
         their labels may describe events of the validation period (purging; López de Prado 2018, Advances in
         Financial Machine Learning, 7.4.1). Left out with them are the rows decided at the same time whose outcome was known by
         then: alone they are those of the label that becomes known sooner. So training keeps complete cohorts, as a turn at the
         boundary would have (an embargo as long as outcomes take there). Nothing is left out behind the boundary: training never
         follows validation
group    the groups with the smallest hashes validate: whole groups, never parts of them
stratum  of each stratum the rows with the smallest hashes validate: the same share of each

The hash is of loop seed and value (of the group; of a row's unit), so that a row keeps its side when others are added. Two rows may
share an outcome (two requests about one flight): no outcome is on both sides, whatever the split.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.arrays import Array
from loopwright.base.clock import microseconds, moment_at
from loopwright.base.errors import ExamplesRefused
from loopwright.base.text import count
from loopwright.records.declarations import SHAPES, GroupSplit, StratifiedSplit, Task, TimeSplit, duration
from loopwright.records.package import Partition, SplitSide
from loopwright.tasks.registry import TASKS

MIN_ROWS = 20
ENOUGH_ROWS, ENOUGH_OF_LABEL = 100, 20
"""A time split is extended back until it has this many rows, and of two labels this many each; or a tenth of all, if that is fewer."""

SEARCH_SHARE = 0.2
FOLDS, MANY_OF_LABEL = 3, 5000
"""Folds of the training rows for scores of rows not fitted on; one is enough from so many rows of each label on."""
STRATA = 5
"""Into how many equally large strata a label that is a number is cut."""

_LINES = 65_536
EMBARGO, LATE, SHARED = "in the embargo", "outcome known only after the boundary", "outcome shared with validation"
INCOMPLETE = "outcomes of other rows of the time known only after the boundary"
MAX_LATE_SHARE = 0.01
"""At most so many of the rows that could train may be left out alone, because their outcome came late, and not with their cohort."""

Split = TimeSplit | GroupSplit | StratifiedSplit


class Divided(NamedTuple):
    """Indices of the training and of the validation rows, ascending, and how it came to them."""

    training: Array
    validation: Array
    partition: Partition


def divide(examples: pa.Table, split: Split, *, seed: int, task: Task = "binary") -> Divided:
    """Training and validation rows of examples (see `records.examples`).

    Raises ExamplesRefused, with the next step, when a part is too small, or has too few kinds of outcome to fit or to judge.
    """
    if not len(examples):
        raise ExamplesRefused("there are no examples: ingest requests and outcomes first")
    divided = _divide_declared(examples, split, seed, task)
    if why := _shortfall(examples, divided, task):
        raise ExamplesRefused(f"{why}: {_advice(examples, divided, task)}")
    return divided


def divide_again(examples: pa.Table, training: Array, split: Split, *, seed: int, task: Task = "binary") -> tuple[Array, Array]:
    """Training rows (indices) split again by the same rule, for the hyper-parameter search: fitted on, judged on.

    By time the newest fifth of them is judged on, or more where that has one label only; where all earlier ones are alike, a fifth of
    each label is. Raises ExamplesRefused when too little is left to fit on, or one label only.
    """
    rows = examples.take(pa.array(training))
    boundary = None
    if isinstance(split, TimeSplit):
        decided = np.sort(_moments(rows, "_decided_at"))
        boundary = _reach_back(rows, int(decided[max(1, int(len(decided) * (1 - SEARCH_SHARE))) - 1]), task)
    fitted, judged, _ = _divide(rows, split, seed, "search", boundary)
    if boundary is not None and len(fitted) and _kinds(rows, fitted) < TASKS[task].least_kinds:
        fitted, judged, _ = _divide(rows, StratifiedSplit(), seed, "search", None)
    kinds = min(_kinds(rows, fitted), _kinds(rows, judged))
    if min(len(fitted), len(judged)) < MIN_ROWS // 4 or kinds < TASKS[task].least_kinds:
        raise ExamplesRefused(
            f"of {len(rows)} training examples {len(fitted)} can be fitted on and {len(judged)} judged on in the search over "
            f"hyper-parameters{', of one label only' if kinds == 1 else ''}: give more history, or no `trials`"
        )
    return training[fitted], training[judged]


def folds(examples: pa.Table, training: Array, split: Split, *, seed: int, task: Task = "binary") -> list[tuple[Array, Array]]:
    """Folds of training rows (indices), to fit and to score: scored rows share no outcome with fitted ones and, in time splits, are younger.

    By time the newest half is scored in FOLDS parts, else all rows; where labels are many a fifth is enough. Folds that cannot be fitted
    on are left out; empty where none can.
    """
    rows = examples.take(pa.array(training))
    label = rows.column("_label").fill_null(False)
    labels = pc.value_counts(label).field("counts").to_pylist()
    many = len(labels) > 1 and min(labels) >= MANY_OF_LABEL
    made = []
    if isinstance(split, TimeSplit):
        decided = _moments(rows, "_decided_at")
        shares = [1 - SEARCH_SHARE] if many else (0.5 + np.arange(FOLDS) / (2 * FOLDS)).tolist()
        cuts = [int(np.sort(decided)[max(int(len(decided) * share) - 1, 0)]) for share in shares]
        for start, end in zip(cuts, [*cuts[1:], int(decided.max())], strict=True):
            fitted, judged, _ = _divide(rows, split, seed, "folds", start)
            made.append((fitted, judged[decided[judged] <= end]))
    else:
        values = _texts(rows, split.column) if isinstance(split, GroupSplit) else units(rows)
        number, outcome = round(1 / SEARCH_SHARE) if many else FOLDS, _outcomes(rows)
        part = np.floor(draws(seed, "folds", values) * number)
        for k in range(1 if many else number):
            judged = part == k
            made.append((np.flatnonzero(~judged & ~np.isin(outcome, outcome[judged])), np.flatnonzero(judged)))
    well = [(f, j) for f, j in made if len(j) and len(f) >= MIN_ROWS // 4 and _kinds(rows, f) >= TASKS[task].least_kinds]
    if not well and isinstance(split, TimeSplit):
        return folds(examples, training, StratifiedSplit(), seed=seed, task=task)
    return [(training[f], training[j]) for f, j in well]


def validates(partition: Partition, examples: pa.Table) -> Array:
    """Which rows (bool [N]) of any examples are on the validation side of a partition made earlier."""
    if partition.boundary is not None:
        return _moments(examples, "_decided_at") > microseconds(partition.boundary)
    draw, stratum, names = _draw(examples, partition.split, partition.seed, "validation", partition.edges)
    return draw <= np.array([partition.cuts.get(name, _share(partition.split)) for name in names])[stratum]


def trained_on(partition: Partition, examples: pa.Table) -> Array:
    """Which rows (bool [N]) of any examples a model fitted on a partition's training side may have seen."""
    last = max(partition.training.last, partition.validation.last)
    there = _moments(examples, "_decided_at") <= microseconds(
        partition.training.last if partition.boundary is not None else last
    )
    return there & ~validates(partition, examples)


def says(split: Split) -> str:
    """The rule of a split in words."""
    if isinstance(split, TimeSplit):
        return f"the newest {split.validation} validate" + (f", embargo {split.embargo}" if duration(split.embargo) else "")
    if isinstance(split, GroupSplit):
        return f"{split.validation:.0%} of the groups by {split.column} validate"
    return f"{split.validation:.0%} of each stratum{f' of label and {split.column}' if split.column else ''} validate"


def overlap(examples: pa.Table, training: Array, validation: Array, split: Split, boundary: datetime | None) -> dict[str, int]:
    """Training rows that share something with validation: the row itself, its outcome, its group, or the time beyond the boundary."""
    decided, known = _moments(examples, "_decided_at"), _known(examples)
    outcome = _outcomes(examples)
    found = {
        "rows": int(np.isin(training, validation).sum()),
        "outcomes": int(np.isin(outcome[training], outcome[validation]).sum()),
    }
    if isinstance(split, GroupSplit):
        group, _ = _codes(_texts(examples, split.column))
        found["groups"] = int(np.isin(group[training], group[validation]).sum())
    if isinstance(split, TimeSplit) and boundary is not None:
        border = microseconds(boundary)
        late = (known[training] > border) & (split.late_outcomes == "leave out")
        found["moments"] = int(((decided[training] > border - _microseconds(duration(split.embargo))) | late).sum())
        found["moments"] += int((decided[validation] <= border).sum())
    return found


def draws(seed: int, purpose: str, values: Any) -> Array:
    """A number in [0, 1) for each value (Arrow strings [N]), float64: the same for the same seed, purpose and value, else as good as random."""
    codes, words = _codes(values)
    drawn = [hashlib.blake2b(f"{seed}|{purpose}|{word}".encode(), digest_size=8).digest() for word in words]
    return np.array([(int.from_bytes(d) >> 11) / 2**53 for d in drawn], dtype=np.float64)[codes]


def units(examples: pa.Table) -> Any:
    """The unit of each row, as Arrow strings [N]: its unit, or its prediction's id, or its position."""
    named = [pc.if_else(pc.equal(examples.column(n), ""), None, examples.column(n)) for n in ("_unit", "_prediction")]
    place = pc.binary_join_element_wise("row ", pa.array(np.arange(len(examples))).cast(pa.string()), "")
    return pc.coalesce(*named, place)


def _divide(examples: pa.Table, split: Split, seed: int, purpose: str, boundary: int | None) -> Divided:
    cuts: dict[str, float] = {}
    edges: list[float] = []
    left_out: dict[str, Array] = {}
    if isinstance(split, TimeSplit) and boundary is not None:
        decided = _moments(examples, "_decided_at")
        judged = decided > boundary
        fitted = decided <= boundary - _microseconds(duration(split.embargo))
        left_out[EMBARGO] = ~judged & ~fitted
        if split.late_outcomes == "leave out":
            left_out[LATE] = fitted & (_known(examples) > boundary)
            judged_alone = _incomplete(decided, fitted, left_out[LATE]) & examples.column("_label").is_valid().to_numpy()
            left_out[INCOMPLETE] = fitted & judged_alone & ~left_out[LATE]
            fitted &= ~(left_out[LATE] | left_out[INCOMPLETE])
    else:
        edges = _edges(examples.column("_label")) if isinstance(split, StratifiedSplit) else []
        draw, stratum, names = _draw(examples, split, seed, purpose, edges)
        cut = _cuts(draw, stratum, len(names), _share(split))
        cuts = dict(zip(names, cut.tolist(), strict=True))
        judged = draw <= cut[stratum]
        fitted = ~judged
    outcome = _outcomes(examples)
    left_out[SHARED] = fitted & np.isin(outcome, outcome[judged])
    training, validation = np.flatnonzero(fitted & ~left_out[SHARED]), np.flatnonzero(judged)
    moment = None if boundary is None else moment_at(boundary)
    partition = Partition(
        split=split,
        seed=seed,
        boundary=moment,
        training=_part(examples, training, split),
        validation=_part(examples, validation, split),
        left_out={why: int(rows.sum()) for why, rows in left_out.items() if rows.any()},
        overlap=overlap(examples, training, validation, split, moment),
        cuts=cuts,
        edges=edges,
    )
    return Divided(training, validation, partition)


def _incomplete(decided: Array, fitted: Array, late: Array) -> Array:
    """Rows [N] (bool) decided since a moment from which more than MAX_LATE_SHARE of all rows so far are late."""
    rows = np.flatnonzero(fitted)
    rows = rows[np.argsort(decided[rows], kind="stable")]
    complete = np.flatnonzero(late[rows].cumsum() <= MAX_LATE_SHARE * np.arange(1, len(rows) + 1))
    first = complete[-1] + 1 if len(complete) else 0
    return decided >= decided[rows[first]] if first < len(rows) else np.zeros(len(decided), dtype=np.bool_)


def _share(split: Split) -> float:
    return SEARCH_SHARE if isinstance(split, TimeSplit) else split.validation


def _cuts(draw: Array, stratum: Array, count: int, share: float) -> Array:
    """For each stratum the draw up to which values validate, so that their share is `share`, and one of several at least."""
    order = np.lexsort((draw, stratum))
    of, values = stratum[order], draw[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (of[1:] != of[:-1]) | (values[1:] != values[:-1])
    of, values = of[new], values[new]
    first, end = np.searchsorted(of, np.arange(count), side="left"), np.searchsorted(of, np.arange(count), side="right")
    size = end - first
    judged = np.minimum(np.maximum(np.rint(share * size).astype(np.int64), 1), size - 1)
    return np.where(judged > 0, values[np.maximum(first + judged - 1, 0)], -1.0)


def _draw(examples: pa.Table, split: Split, seed: int, purpose: str, edges: Sequence[float]) -> tuple[Array, Array, list[str]]:
    """A draw [N] per row, the same for rows that stay together, and the stratum [N] it is compared within, as places among names."""
    if isinstance(split, GroupSplit):
        return draws(seed, purpose, _texts(examples, split.column)), np.zeros(len(examples), dtype=np.int64), [""]
    stratum = _label_strata(examples.column("_label"), edges)
    if isinstance(split, StratifiedSplit) and split.column is not None:
        stratum = pc.binary_join_element_wise(stratum, _texts(examples, split.column), " ")
    return draws(seed, purpose, units(examples)), *_codes(stratum)


def _numbers(label: pa.ChunkedArray) -> Array | None:
    """Numeric labels (of several the first), float64 [N]; None for others."""
    if pa.types.is_boolean(label.type) or pa.types.is_string(label.type):
        return None
    number = pc.list_element(label, 0) if pa.types.is_list(label.type) else label
    return np.asarray(number.to_numpy(zero_copy_only=False), dtype=np.float64)


def _edges(label: pa.ChunkedArray) -> list[float]:
    """Upper ends of the fifths of numeric labels; empty for others."""
    numbers = _numbers(label)
    cuts = np.linspace(0, 1, STRATA + 1)[1:-1]
    return [] if numbers is None else np.unique(np.quantile(numbers, cuts)).tolist()


def _label_strata(label: pa.ChunkedArray, edges: Sequence[float]) -> Any:
    """The stratum of each label, Arrow strings [N]: a value, or of a number the fifth it lies in."""
    numbers = _numbers(label)
    if numbers is None:
        return pc.coalesce(label.cast(pa.string()), "none")
    return pa.array([f"part {i + 1}" for i in range(STRATA)]).take(
        pa.array(np.searchsorted(np.array(edges), numbers, side="left"))
    )


def _texts(examples: pa.Table, column: str) -> Any:
    return pc.coalesce(pc.binary_join_element_wise("=", examples.column(column).cast(pa.string()), ""), "null")


def _codes(texts: Any) -> tuple[Array, list[str]]:
    """Arrow strings (or a sequence of strings) [N] as places among the different ones, int64 [N], and those."""
    given = pa.chunked_array(
        [texts] if isinstance(texts, pa.Array) else texts.chunks if isinstance(texts, pa.ChunkedArray) else [pa.array(texts)]
    )
    encoded = given.cast(pa.large_string()).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _outcomes(examples: pa.Table) -> Array:
    """A number per outcome, int64 [N]: equal for rows of one unit whose outcome became known at the same moment."""
    unit, _ = _codes(units(examples))
    moments, known = np.unique(_known(examples), return_inverse=True)
    return np.asarray(unit * len(moments) + known)


def _part(examples: pa.Table, rows: Array, split: Split) -> SplitSide:
    part = examples.take(pa.array(rows))
    unit, decided = units(part), _moments(part, "_decided_at")
    prediction = pc.coalesce(part.column("_prediction"), "")
    identity = pc.binary_join_element_wise(unit, pa.array(decided).cast(pa.string()), prediction, "|")
    found = hashlib.sha256()
    for start in range(0, len(rows), _LINES):
        found.update("".join(f"{line}\n" for line in identity.slice(start, _LINES).to_pylist()).encode())
    group = split.column if isinstance(split, GroupSplit) else None
    return SplitSide(
        rows=len(rows),
        units=pc.count_distinct(unit).as_py(),
        groups=pc.count_distinct(_texts(part, group)).as_py() if group else 0,
        first=moment_at(int(decided.min())) if len(rows) else moment_at(0),
        last=moment_at(int(decided.max())) if len(rows) else moment_at(0),
        digest=found.hexdigest(),
    )


def _divide_declared(examples: pa.Table, split: Split, seed: int, task: Task) -> Divided:
    """The parts by a split, a boundary in time moved back where that is needed; whether they are large enough is not judged."""
    if not isinstance(split, TimeSplit):
        return _divide(examples, split, seed, "validation", None)
    span = _microseconds(duration(split.validation))
    declared = int(_moments(examples, "_decided_at").max()) - span
    boundary = _reach_back(examples, declared, task, span)
    divided = _divide(examples, split, seed, "validation", boundary)
    if boundary == declared:
        return divided
    extended = _extension(examples, split, declared, boundary, task)
    return divided._replace(partition=msgspec.structs.replace(divided.partition, extended=extended))


def _reach_back(examples: pa.Table, declared: int, task: Task, span: int = 0) -> int:
    """The boundary (microseconds): the `declared` one, or an earlier one where too few rows, or too few of a label, are newer.

    First it is sought with enough rows, then with the fewest that are accepted, before half of all rows validate. After a pause with too
    few rows behind it, the last `span` before the pause validates too: a single row must not replace thousands.
    """
    decided = _moments(examples, "_decided_at")
    order = np.argsort(-decided, kind="stable")
    label, inside = examples.column("_label").take(pa.array(order)), int((decided > declared).sum())
    for rows, of_label in ((max(MIN_ROWS, min(ENOUGH_ROWS, len(order) // 10)), ENOUGH_OF_LABEL), (MIN_ROWS, 1)):
        needed = max(rows, _needed_for_labels(label, of_label, task))
        if needed <= inside:
            break
        if (
            inside < min(rows, len(order))
            and (before := int((decided > decided[order[inside]] - span).sum())) <= len(order) // 2
        ):
            needed = max(needed, before)
        if needed <= len(order) // 2:
            return int(decided[order[needed - 1]]) - 1
    return declared


def _needed_for_labels(label: pa.ChunkedArray, of_label: int, task: Task) -> int:
    """Number of leading labels that contain `of_label` (or a tenth of them, at least 1) of as many labels as the task needs."""
    kinds = TASKS[task].least_kinds
    if kinds:
        codes, names = _codes(pc.coalesce(label.cast(pa.string()), ""))
        places = [np.flatnonzero(codes == i) for i, name in enumerate(names) if name]
    else:
        places = [np.flatnonzero(label.is_valid().to_numpy())]
    ends = sorted(int(place[max(1, min(of_label, len(place) // 10)) - 1]) + 1 for place in places if len(place))
    return ends[max(kinds, 1) - 1] if len(ends) >= max(kinds, 1) else 0


def _extension(examples: pa.Table, split: TimeSplit, declared: int, boundary: int, task: Task) -> str:
    """The reason why validation was extended back, in words."""
    decided, label = _moments(examples, "_decided_at"), examples.column("_label")
    newer = [np.flatnonzero(decided > moment) for moment in (declared, boundary)]
    few, enough = (f"{count(len(rows), 'example')}{_labels(label, rows, task)}" for rows in newer)
    return f"the newest {split.validation} hold {few}: validation reaches back to {moment_at(boundary + 1):%Y-%m-%d %H:%M}, {enough}"


def _labels(label: pa.ChunkedArray, rows: Array, task: Task) -> str:
    part = label.take(pa.array(rows)).drop_null()
    if not TASKS[task].least_kinds:
        return ""
    return (
        f", {pc.sum(part).as_py() or 0:,} of them positive"
        if pa.types.is_boolean(part.type)
        else f" of {len(part.unique())} kinds"
    )


def _kinds(examples: pa.Table, rows: Array) -> int:
    """Number of different labels of rows."""
    return len(examples.column("_label").take(pa.array(rows)).drop_null().unique())


def _shortfall(examples: pa.Table, divided: Divided, task: Task) -> str:
    """The part that is too small, or has too few labels; empty without any."""
    label, partition, kinds = examples.column("_label"), divided.partition, TASKS[task].least_kinds
    for name, rows in (("training", divided.training), ("validation", divided.validation)):
        if len(rows) < MIN_ROWS or (kinds and _kinds(examples, rows) < kinds):
            first, last = (f"{moment_at(m):%Y-%m-%d %H:%M}" for m in _ends(examples))
            return (
                f"the {name} part has {len(rows)} examples{_labels(label, rows, task)}: at least {MIN_ROWS}"
                f"{' with both outcomes' if kinds else ''} are needed (examples from {first} to {last}, {says(partition.split)}"
                f"{''.join(f'; {n} left out: {why}' for why, n in partition.left_out.items())})"
            )
    return ""


def _ends(examples: pa.Table) -> tuple[int, int]:
    decided = _moments(examples, "_decided_at")
    return int(decided.min()), int(decided.max())


def _advice(examples: pa.Table, divided: Divided, task: Task) -> str:
    """Advice when a split is impossible. Splits that it names were tried on these examples."""
    partition = divided.partition
    for other in _others(examples, partition, task):
        if not _shortfall(examples, _divide_declared(examples, other, partition.seed, task), task):
            return f"declare `split={_written(other)}`, which these examples allow"
    return "ingest more examples with outcomes, or wait for more"


def _others(examples: pa.Table, partition: Partition, task: Task) -> list[Split]:
    """Splits to try instead, the nearest to the declared one first."""
    split, (first, last) = partition.split, _ends(examples)
    if isinstance(split, GroupSplit):
        return [msgspec.structs.replace(split, validation=share) for share in (0.3, 0.4, 0.5)]
    if isinstance(split, StratifiedSplit):
        return []
    near = [split, msgspec.structs.replace(split, validation=fifth(timedelta(microseconds=last - first)))]
    return [
        *near,
        *(msgspec.structs.replace(each, late_outcomes="train") for each in near),
        *([] if SHAPES[task].grouped else [StratifiedSplit()]),
    ]


def _written(split: Split) -> str:
    """A split as it is declared, without its defaults."""
    fields = ((f.name, getattr(split, f.name)) for f in msgspec.structs.fields(split) if getattr(split, f.name) != f.default)
    named = ", ".join(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in fields)
    return f"{type(split).__name__}({named})"


def fifth(span: timedelta) -> str:
    """A fifth of a span as a duration, in whole days, hours, minutes or seconds: the largest unit of which it has two at least."""
    part = span / 5
    for unit in ("d", "h", "m"):
        if (whole := part // duration(f"1{unit}")) >= 2:
            return f"{whole}{unit}"
    return f"{max(part // timedelta(seconds=1), 1)}s"


def _moments(examples: pa.Table, column: str) -> Array:
    return np.asarray(examples.column(column).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy())


def _known(examples: pa.Table) -> Array:
    """The time when each outcome became known; for anomalies without one, the decision."""
    known = examples.column("_known_at")
    return _moments(
        examples.append_column("_known", pc.coalesce(known, examples.column("_decided_at").cast(known.type))), "_known"
    )


def _microseconds(length: timedelta) -> int:
    return length // timedelta(microseconds=1)
