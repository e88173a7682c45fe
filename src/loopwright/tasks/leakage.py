"""Columns that predict too well to be true (Kaufman, Rosset, Perlich & Stitelman 2012, Leakage in data mining).

Alone. A column predicts the label by its rank, and by its bins (at most 64 of equal size, or its words, and missing
values), where the label rates of bins from one half of the rows are tested on the other half, so that identifiers and noise predict nothing.
The measure is the area under the ROC curve (each class against the rest), for numbers the R² of their ranks; over all rows, and for
columns with nulls also over the rows that have a value. It is a suspect when it is surely above its task's leak limit: the lower end of the
interval, three standard errors below (DeLong, DeLong & Clarke-Pearson 1988, on the scale of log odds; Fisher's z), but never above
what so few rows can show. Legitimate predictors rarely reach it: the best single measurement of a tumour
(Wisconsin) has an area of 0.975, the delay at push-back 0.90 for a late arrival; the end of a table that was filled in afterwards
has 0.99 and more. One legitimate feature in 700 at the limit itself is flagged by chance, far below it none.

By a value, or by being missing. It is a suspect when nearly all of its rows have one label (surely above 95 %, for a value 99.5 % of the
rows, or 97 % where they are also half of the rarer label's rows) and others do not; of several classes only "is this class" counts, not
"is not this class". Where the other label is rare, exceptions must be rarer in proportion: with 10 % late, a flag that is right in
95 % of late and of punctual flights is 99.4 % pure. A number at the end of a monotone trend of the label is not one: see `_at_end`.

Together. Up to MAX_TOGETHER columns that leave a thousandth of the label unexplained, although none does alone: linear models,
for numbers also of logarithms (products, ratios); for a class the larger of two numbers, and pairs of words or codes. Of a class they
must also be TIMES closer than columns are that only are good one by one: four independent ones of area .95 have .9995 together.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special, stats

from loopwright.base.arrays import Array, spread_rows
from loopwright.records.declarations import SHAPES, Task
from loopwright.records.evaluation import Suspect
from loopwright.tasks.group_leaks import MAX_JUDGED, GroupLeak, encoding, groupings, in_part, parts_of, quarters
from loopwright.tasks.leak_measures import LEAST, LeakTarget, Values, bins, ends, measured, other_half
from loopwright.tasks.registry import TASKS

ROWS = 50_000
"""Maximum number of rows scanned, spread evenly over the examples."""

ENOUGH_OF_A_CLASS, ENOUGH_NUMBERS = 150, 300
"""With fewer rows (of each class) nothing can be surely above the limit."""

MIN_PERFECT = 10
"""With so few rows of a class a column that tells it without an error is named: hardly by chance, but perhaps an easy problem."""

CLASSES = 20
VALUES, OFTEN = 20, 0.05
"""Maximum number of values of a column that are tested separately; for numbers, values that at least this share of rows has."""

STEPS = 4
"""Number of steps in which the label rate is tested for a monotone trend towards the end of a scale."""

MIN_ORDERED, IN_ORDER = 20, 0.99
"""Distinct values, and the rank correlation with time, from which a column is in order of time."""

COPY_VALUES, COPY_LIMIT = 4, 0.95
"""Columns of so few values may be a copy of the label with errors: they are suspects from a lower limit."""

FILLED = 0.2
"""A number in so many rows may stand for an unknown one."""

PERFECT, MAX_TOGETHER, TIMES = 0.999, 4, 10
TOGETHER_ROWS, TOGETHER_COLUMNS, TOGETHER_CLASSES, PAIRED = 2000, 60, 3, 25

_PURE, _PURE_VALUE, _PURE_COPY, _MIXED = 0.95, 0.995, 0.97, 0.8
_COPIED = 0.5
_UNIQUE = 0.9


class ScanData(NamedTuple):
    """Data of a scan: the targets, the rows of one half [N], their decision times [N], the task."""

    targets: Sequence[LeakTarget]
    half: Array
    decided: Array
    task: Task


def values_of(column: pa.ChunkedArray) -> Values | None:
    """A column of a table as values; None for times and arrays."""
    kind = column.type
    if pa.types.is_string(kind):
        texts = column.fill_null("").to_pylist()
        return Values(np.array(texts, dtype=object), column.is_null().to_numpy())
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    numbers = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan")).to_numpy()
    return Values(numbers, np.isnan(numbers))


def targets(label: pa.ChunkedArray, task: Task) -> list[LeakTarget]:
    """The targets of a label without nulls: the label, each class, or each number."""
    shape = SHAPES[task]
    if shape.label == "boolean":
        truth = label.to_numpy()
        return [LeakTarget("the label", truth, truth.astype(np.float64))]
    if shape.label == "string":
        values = np.array(label.to_pylist(), dtype=object).astype(str)
        words, counts = np.unique(values, return_counts=True)
        common = words[np.argsort(-counts, kind="stable")][:CLASSES]
        return [LeakTarget(f"class {str(w)!r}", values == w, (values == w).astype(np.float64)) for w in common]
    numbers = np.array(label.to_pylist(), dtype=np.float64).reshape(len(label), -1)
    return [
        LeakTarget(
            "the label" if numbers.shape[1] == 1 else f"target {i + 1}", (stats.rankdata(column) - 0.5) / len(column), column
        )
        for i, column in enumerate(numbers.T)
    ]


def of_columns(columns: Mapping[str, pa.ChunkedArray], look: ScanData) -> list[Suspect]:
    """Columns of a table that leak the label: one reason each, whether or not a feature uses them."""
    found = list[Suspect]()
    for name, column in columns.items():
        reasons = list(missing(name, column.is_null().to_numpy(), look))
        if not reasons and (part := values_of(column)) is not None:
            reasons = [s for s in alone(name, [name], part, look, identifies=False) if s.kind == "tells"]
            reasons = reasons or list(by_value(name, part, look))
        found += reasons[:1]
    return found


def group_suspect(name: str, columns: list[str], kind: str, leak: GroupLeak) -> Suspect:
    """A leak by groups of rows as a suspect."""
    return Suspect(feature=name, columns=columns, kind=kind, why=leak.why, measure=leak.measure, low=leak.low)


def too_few(targets: Sequence[LeakTarget]) -> str:
    """Why nothing can be named; empty where rows are enough for that."""
    most = max((t.rarer for t in targets), default=0)
    if targets and not targets[0].is_class:
        return "" if most >= ENOUGH_NUMBERS else f"{most:,} rows with an outcome: {ENOUGH_NUMBERS} or more are needed"
    return "" if most >= ENOUGH_OF_A_CLASS else f"{most:,} rows of the rarer label: {ENOUGH_OF_A_CLASS} or more are needed"


def alone(name: str, columns: list[str], part: Values, look: ScanData, *, identifies: bool) -> Iterator[Suspect]:
    """Why one number or text is suspicious: it leaks a target, identifies rows (`identifies`: it is part of the key), or grows with time."""
    there = part.array[~part.missing]
    distinct = len(np.unique(there.astype(str) if part.is_text else there))
    unique = len(there) >= 100 and distinct >= _UNIQUE * len(there)
    is_name = unique and (part.is_text or identifies)
    if is_name:
        why = f"{distinct:,} different values in {len(there):,} rows: a name of the row, from which nothing is learnt for the next"
        share = distinct / len(there)
        yield Suspect(feature=name, columns=columns, kind="names", why=why, measure=share, low=share)
    yield from _tells(name, columns, part, look)
    if distinct >= MIN_ORDERED and not part.missing.any() and np.ptp(look.decided) > 0:  # else all were decided when ingested
        order = abs(float(stats.spearmanr(_in_order(part), look.decided).statistic))
        drifts = "".join(_drifts(look)[:1]) if order > IN_ORDER else ""
        if order > IN_ORDER and (drifts or not is_name):  # a name is told once, unless its order tells the label too
            how = "row by row: every" if unique else "so that nearly every"
            why = f"grows with time, {how} future row is outside the range that was trained on; take the hour or the weekday{drifts}"
            yield Suspect(feature=name, columns=columns, kind="order", why=why, measure=order, low=order)


def _in_order(part: Values) -> Array:
    """Numbers as they are; texts as their rank, numbers within them by size (`W9` before `W10`)."""
    if not part.is_text:
        return part.array
    words, code = np.unique(part.array.astype(str), return_inverse=True)
    padded = [re.sub(r"\d+", lambda digits: digits.group().zfill(20), word) for word in words.tolist()]
    place = np.empty(len(words))
    place[np.array(sorted(range(len(words)), key=padded.__getitem__))] = np.arange(len(words))
    return np.asarray(place[code])


def _drifts(look: ScanData) -> list[str]:
    """What the time of a row tells of each target, in words, where that is surely more than chance."""
    found = []
    for target in look.targets:
        measure, low = measured(look.decided.astype(np.float64), target.truth)
        if target.rarer >= LEAST and low > (0.5 if target.is_class else 0.0):
            what = f"AUC {measure:.2f}" if target.is_class else f"R² of ranks {measure:.2f}"
            found.append(
                f"; {target.name} changes with time ({what}), which it tells of the rows trained on and of no later one"
            )
    return found


def _tells(name: str, columns: list[str], part: Values, look: ScanData) -> Iterator[Suspect]:
    code, limit = bins(part), TASKS[look.task].leak_limit
    distinct = np.unique(code[~part.missing], return_counts=True)
    copy = len(distinct[0]) <= COPY_VALUES
    for target in look.targets:
        if target.is_class and target.rarer < MIN_PERFECT:
            continue
        least = min(limit, COPY_LIMIT) if copy and target.is_class else limit
        where = ""
        measure, low = _best(part, code, target, look, np.ones(len(code), dtype=np.bool_))
        for rows, text in _rest(part, code, few=copy) if low <= least else ():
            truth = target.truth[rows]
            if target.rarer >= LEAST and (not target.is_class or min(truth.sum(), (~truth).sum()) >= LEAST) and low <= least:
                measure, low = _best(part, code, target, look, rows)
                where = f", {text} (in {rows.mean():.0%} of the rows)"
        unit = "AUC" if target.is_class else "R² of ranks"
        if low > least:
            almost = "" if low > limit else ", like a copy of it with errors"
            why = f"tells {target.name} by itself{where}, {unit} {measure:.4f} (at least {low:.3f}){almost}"
            yield Suspect(feature=name, columns=columns, kind="tells", why=why, measure=measure, low=low)
        elif measure > 1 - 1e-9:
            rows_text = f"{len(target.truth):,} rows{f', {target.rarer} of the rarer label' if target.is_class else ''}"
            why = f"tells {target.name} without an error{where} ({rows_text}): too few to tell an easy problem from a copy of the label"
            yield Suspect(feature=name, columns=columns, kind="perfect", why=why, measure=measure, low=low)


def _best(part: Values, code: Array, target: LeakTarget, look: ScanData, rows: Array) -> tuple[float, float]:
    """How well a column predicts a target among some rows, by its bins and by its order: the measure and the lower end of its interval."""
    there, values, truth = ~part.missing[rows], part.array[rows], target.truth[rows]
    ordered = [] if part.is_text else [np.where(there, values, end) for end in ends(values[there])]
    guesses = [other_half(code[rows], truth, look.half[rows]), *(ordered[:1] if there.all() else ordered)]
    return max((measured(guess, truth) for guess in guesses), key=lambda found: found[1])


def _rest(part: Values, code: Array, *, few: bool) -> Iterator[tuple[Array, str]]:
    """Parts of the rows [N] of which alone a column may have the answer: those with a value, those without the value that stands for none."""
    there = ~part.missing
    if not there.all():
        yield there, "where it is given"
    if few or part.is_text or not there.any():
        return
    distinct, counts = np.unique(part.array[there], return_counts=True)
    if FILLED * there.sum() <= counts.max() < there.sum():
        value = distinct[counts.argmax()]
        yield there & (part.array != value), f"where it is not {value + 0.0:g}"


def missing(name: str, hidden: Array, look: ScanData) -> Iterator[Suspect]:
    """Whether missing values of a column leak a class, whatever features replace them with."""
    yield from _decided(name, "missing", [_Part(hidden, "missing", "given")], look, _PURE, often=0.0)


def by_value(name: str, part: Values, look: ScanData) -> Iterator[Suspect]:
    """Whether single values of a column decide a class: the commonest words or codes, and repeated numbers."""
    there = part.array[~part.missing]
    distinct, counts = np.unique(there.astype(str) if part.is_text else there, return_counts=True)
    chosen = [i for i in np.argsort(-counts, kind="stable")[:VALUES] if counts[i] >= LEAST]
    parts = []
    for i in chosen:
        shown = repr(str(distinct[i])[:40]) if part.is_text else f"{distinct[i] + 0.0:g}"
        mask = ~part.missing & (part.array == distinct[i])
        parts.append(_Part(mask, shown, f"another than {shown}", None if part.is_text else part.array))
    often = 0.0 if part.is_text else OFTEN  # the end of a scale may be pure in all honesty
    yield from _decided(name, "decides", parts, look, _PURE_VALUE, often=often)


class _Part(NamedTuple):
    """A part of the rows [N], names of it and of the rest, and the numbers [N] of which it is one value, if it is."""

    mask: Array
    said: str
    others: str
    numbers: Array | None = None


def _decided(name: str, kind: str, parts: Sequence[_Part], look: ScanData, least: float, *, often: float) -> Iterator[Suspect]:
    """The first of these parts of the rows that decides a class, in at least this share of its rows."""
    for part, target in itertools.product(parts, look.targets):
        if target.is_class and (found := _pure(part, target, least, often, either=len(look.targets) == 1)):
            why, share, low = found
            yield Suspect(feature=name, columns=[name], kind=kind, why=why, measure=share, low=low)
            return


def _pure(part: _Part, target: LeakTarget, least: float, often: float, *, either: bool) -> tuple[str, float, float] | None:
    """Whether nearly all rows of a part (or of the rest) are of a class (or, `either`, not of it), and the others are not."""
    for mask, said in ((part.mask, part.said), (~part.mask, part.others)):
        n = int(mask.sum())
        if min(n, len(mask) - n) < LEAST:
            return None
        for value in (True, False) if either else (True,):
            of_value = target.truth == value
            hits, rest, all_hits = int(of_value[mask].sum()), float(of_value[~mask].mean()), int(of_value.sum())
            rare = min(1.0, 2 * (1 - all_hits / len(mask)))
            common = n >= often * len(mask) and n - hits <= (1 - least) * rare * n
            copy = 2 * all_hits <= len(mask) and hits >= _PURE_COPY * n and hits >= _COPIED * all_hits
            low = float(stats.beta.ppf(0.001, hits, n - hits + 1)) if hits else 0.0
            if 1 - low < (1 - _PURE) * rare and (common or copy) and rest < _MIXED:
                if mask is part.mask and part.numbers is not None and _at_end(part.numbers, mask, of_value):
                    continue
                why = f"where it is {said} {target.name} is {str(value).lower()} in {hits / n:.1%} of {n:,} rows, elsewhere in {rest:.1%}"
                return why, hits / n, low
    return None


def _at_end(numbers: Array, mask: Array, hit: Array) -> bool:
    """Whether a value is (near) the end of a scale along which hits become more and more: a strong feature, and no mark of the outcome.

    All values beyond it are as pure. The other rows, in up to STEPS steps of equal size, come nearer to it in log odds by as much as is
    then left between the last of them and it, or more.
    """
    value = numbers[mask][0]
    for sign in (1, -1):
        beyond = sign * numbers <= sign * value  # missing values are on neither side
        n, hits = int(beyond.sum()), int(hit[beyond].sum())
        if hits < _PURE_COPY * n:
            continue
        rest = sign * numbers[sign * numbers > sign * value]
        ends = np.unique(np.quantile(rest, np.linspace(0, 1, STEPS + 1)[1:], method="lower")) if len(rest) else rest
        step = np.searchsorted(ends, rest)
        counts, of_hit = np.bincount(step), np.bincount(step, weights=hit[sign * numbers > sign * value])
        odds = np.log((of_hit + 0.5) / (counts - of_hit + 0.5))
        surely = special.logit(stats.beta.ppf(0.001, hits, n - hits + 1))
        if len(odds) > 1 and surely - odds[0] <= odds[0] - odds[-1]:
            return True
    return False


# --- columns by groups of rows ----------------------------------------------------------------------------------------


def by_group(parts: Mapping[str, Values], among: Mapping[str, Values], look: ScanData) -> Iterator[tuple[str, str, GroupLeak]]:
    """Columns of `parts` that leak a target by groups of rows, which the columns `among` make: name, kind, how; one reason each."""
    numbers = {name: part for name, part in itertools.islice(parts.items(), MAX_JUDGED) if not part.is_text}
    limit, named = TASKS[look.task].leak_limit, set[str]()
    sets = [*groupings(among), quarters(look.decided)]
    for target in [t for t in look.targets if t.rarer >= ENOUGH_OF_A_CLASS][:TOGETHER_CLASSES]:
        for of in sets:
            masks = list(parts_of(of))
            for name, part in numbers.items():
                if name in named or name == of.name:
                    continue
                leak, kind = encoding(part, of, target), "encodes"
                if leak is None:
                    leaks = [in_part(part, of, code, target, limit) for code in masks]
                    leak, kind = next((each for each in leaks if each is not None), None), "tells"
                if leak is not None:
                    named.add(name)
                    yield name, kind, leak


# --- columns together -------------------------------------------------------------------------------------------------


def together(parts: Mapping[str, Values], look: ScanData) -> list[tuple[list[str], str, float]]:
    """Sets of two to MAX_TOGETHER columns that leak a target only together: their names, how, and the measure."""
    found: list[tuple[list[str], str, float]] = []
    for target in [t for t in look.targets if t.rarer >= ENOUGH_OF_A_CLASS][:TOGETHER_CLASSES]:
        rows = _some(target)
        few = ScanData(
            [LeakTarget(target.name, target.truth[rows], target.raw[rows])], look.half[rows], look.decided[rows], look.task
        )
        some = {name: Values(part.array[rows], part.missing[rows]) for name, part in parts.items()}
        for tell in (_sums, _logarithms, _differences, _pairs):
            rest = {n: p for n, p in some.items() if not any(n in names for names, _, _ in found)}
            while len(rest) > 1 and (one := tell(rest, few)) is not None:
                names, how, measure = one
                unit = "AUC" if target.is_class else "R²"
                found.append((names, f"tell {target.name} together ({how}), {unit} {measure:.4f}", measure))
                rest = {n: p for n, p in rest.items() if n not in names}
    return found


def _some(target: LeakTarget) -> Array:
    """A sample of rows, evenly over time, to test many sets of columns: as many rows of a class as of the others, if there are enough."""
    sides = [np.flatnonzero(target.truth), np.flatnonzero(~target.truth)] if target.is_class else [np.arange(len(target.truth))]
    return np.sort(np.concatenate([side[spread_rows(len(side), TOGETHER_ROWS)] for side in sides]))


def _numbers(parts: Mapping[str, Values]) -> dict[str, Array]:
    """Numeric columns that vary, with nulls replaced by the median."""
    found = {}
    for name, part in parts.items():
        if not part.is_text and not part.missing.all():
            filled = np.where(part.missing, np.median(part.array[~part.missing]), part.array)
            if np.isfinite(filled).all() and filled.min() < filled.max():
                found[name] = filled
    return found


def _sums(parts: Mapping[str, Values], look: ScanData) -> tuple[list[str], str, float] | None:
    return _linear(_numbers(parts), look.targets[0], look.half, "a weighted sum")


def _logarithms(parts: Mapping[str, Values], look: ScanData) -> tuple[list[str], str, float] | None:
    target = look.targets[0]
    if target.is_class or target.raw.min() <= 0:
        return None
    logs = {name: np.log(numbers) for name, numbers in _numbers(parts).items() if numbers.min() > 0}
    return _linear(logs, target._replace(raw=np.log(target.raw)), look.half, "a product or ratio")


def _linear(columns: Mapping[str, Array], target: LeakTarget, half: Array, how: str) -> tuple[list[str], str, float] | None:
    """Least squares on one half, judged on the other; then every column is taken out that is not needed."""
    names = list(columns)[:TOGETHER_COLUMNS]
    if len(names) < 2:
        return None
    matrix = np.column_stack([columns[name] / np.abs(columns[name]).max() for name in names])  # so that no square overflows
    matrix = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)

    def judged(of: list[int]) -> float:
        score = np.empty(len(matrix))
        for side in (half, ~half):
            x, y = matrix[~side][:, of], target.raw[~side]
            middle, centred = x.mean(axis=0), x - x.mean(axis=0)
            weights = np.linalg.solve(centred.T @ centred + 1e-9 * len(x) * np.eye(len(of)), centred.T @ (y - y.mean()))
            score[side] = (matrix[side][:, of] - middle) @ weights + y.mean()
        return _exact(score, target)

    kept = list(range(len(names)))
    measure = judged(kept)
    if measure < PERFECT:
        return None
    order = np.argsort([abs(float(np.corrcoef(matrix[:, i], target.raw)[0, 1])) for i in kept])
    for i in order.tolist():
        fewer = [k for k in kept if k != i]
        if len(kept) > 1 and 1 - (without := judged(fewer)) <= min(1 - PERFECT, 10 * (1 - measure) + 1e-6):
            kept, measure = fewer, without
    if not 2 <= len(kept) <= MAX_TOGETHER or _each_strong(measure, [matrix[:, i] for i in kept], target):
        return None
    return [names[i] for i in kept], how, measure


def _differences(parts: Mapping[str, Values], look: ScanData) -> tuple[list[str], str, float] | None:
    """A class that is the larger of two numbers."""
    target, numbers = look.targets[0], _numbers(parts)
    if not target.is_class:
        return None
    nearest = sorted(numbers, key=lambda n: -abs(_exact(numbers[n], target) - 0.5))[:PAIRED]
    few = {name: numbers[name] for name in nearest}
    return _first_pair(few, lambda a, b: numbers[a] - numbers[b], target, "one less the other")


def _pairs(parts: Mapping[str, Values], look: ScanData) -> tuple[list[str], str, float] | None:
    """Pairs of words or codes of which each combination has its own label."""
    codes = {name: bins(part) for name, part in parts.items()}
    few = [name for name, code in codes.items() if len(np.unique(code)) <= VALUES][:PAIRED]
    target = look.targets[0]
    guesses = {name: other_half(codes[name], target.raw, look.half) for name in few}
    return _first_pair(
        guesses, lambda a, b: other_half(codes[a] * 64 + codes[b], target.raw, look.half), target, "by combination"
    )


def _first_pair(
    alone: Mapping[str, Array], combine: Callable[[str, str], Array], target: LeakTarget, how: str
) -> tuple[list[str], str, float] | None:
    """The first two columns whose combination leaks the target; `alone` is what each column tells of it [N]."""
    for a, b in itertools.combinations(alone, 2):
        measure = _exact(combine(a, b), target)
        if measure >= PERFECT and not _each_strong(measure, [alone[a], alone[b]], target):
            return [a, b], how, measure
    return None


def _each_strong(measure: float, alone: Sequence[Array], target: LeakTarget) -> bool:
    """Whether columns of these areas would come near this one together, each with errors of its own (normal scores)."""
    if not target.is_class:
        return False
    distance = special.ndtri([_exact(column, target) for column in alone])
    return 1 - measure > float(special.ndtr(-np.sqrt((distance**2).sum()))) / TIMES


def _exact(score: Array, target: LeakTarget) -> float:
    """Area under the ROC curve either way, or the share of variance that the score leaves unexplained taken from 1."""
    if target.is_class:
        n, m = int(target.truth.sum()), int((~target.truth).sum())
        area = float((stats.rankdata(score)[target.truth].sum() - n * (n + 1) / 2) / (n * m))
        return max(area, 1 - area)
    spread = float(((target.raw - target.raw.mean()) ** 2).sum())
    return 1 - float(((target.raw - score) ** 2).sum()) / spread if spread else 0.0
