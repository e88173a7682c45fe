"""The leakage scan of a loop: its features, and the columns that no feature uses, judged by `tasks.leakage`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from loopwright.base.arrays import Array, spread_rows
from loopwright.base.progress import Progress, Silent
from loopwright.develop.feature_values import FeatureValues
from loopwright.develop.features import TracedFeatures
from loopwright.develop.lineage import feature_columns
from loopwright.graph.columns import arrow_feed
from loopwright.records.declarations import Task
from loopwright.records.evaluation import Suspect
from loopwright.tasks.leak_measures import LEAST, Values
from loopwright.tasks.leakage import (
    ROWS,
    ScanData,
    alone,
    by_group,
    by_value,
    group_suspect,
    missing,
    of_columns,
    targets,
    together,
    too_few,
    values_of,
)
from loopwright.tasks.split import draws, units

CELLS, WIDE_ROWS = 2_000_000, 5_000
"""Wide tables are scanned on fewer rows: this many values in all, and at least this many rows."""


class Scanned(NamedTuple):
    """The suspects, and why nothing could be named for want of rows ("" where rows are enough)."""

    suspects: list[Suspect]
    too_few: str


def scan(
    traced: TracedFeatures, examples: pa.Table, *, task: Task, key: Sequence[str], progress: Progress | None = None
) -> Scanned:
    """Leak suspects in (at most ROWS of) examples as described in `records.examples`; `key` is that of the requests.

    Suspects that reach features come first. Unused columns that leak the label are reported too (not `used`), as a warning to anyone
    who makes a feature of one later.
    """
    progress = progress or Silent()
    rows = examples.filter(examples.column("_label").is_valid())
    most = min(ROWS, max(WIDE_ROWS, CELLS // max(len(traced.columns), 1)))
    if len(rows) > most:
        rows = rows.take(pa.array(spread_rows(len(rows), most)))
    aims = targets(rows.column("_label"), task) if len(rows) else []
    if len(rows) < LEAST:
        return Scanned([], too_few(aims))
    decided = rows.column("_decided_at").cast(pa.int64()).to_numpy()
    look = ScanData(aims, draws(0, "leakage", units(rows)) < 0.5, decided, task)
    parts = {name: part for name in traced.columns if (part := values_of(rows.column(name))) is not None}
    found = [s for name in traced.used for s in missing(name, rows.column(name).is_null().to_numpy(), look)]
    of_features, single = _features(traced, rows, look, key, {s.feature for s in found}, progress)
    found += of_features
    doubted = {column for s in found for column in s.columns}
    found += [s for name in traced.used if name in parts and name not in doubted for s in by_value(name, parts[name], look)]
    unused = {name: rows.column(name) for name in traced.columns if name not in traced.used and name not in key}
    found += [msgspec.structs.replace(s, used=False) for s in of_columns(unused, look)]
    made_of = feature_columns(traced)
    doubted = {s.feature for s in found if s.kind not in ("order", "names")}
    single = {name: part for name, part in single.items() if name not in doubted}
    spare = {name: part for name, part in parts.items() if name in unused and name not in doubted | single.keys()}
    rest = single | spare
    found += _together(rest, made_of, look)
    told = {column for s in found if s.kind == "together" for column in s.columns}
    rest = {name: part for name, part in rest.items() if not told & set(made_of.get(name, [name]))}
    for name, kind, leak in by_group(rest, parts, look):
        suspect = group_suspect(name, made_of.get(name, [name]), kind, leak)
        found.append(msgspec.structs.replace(suspect, used=name in made_of))
    return Scanned(found, too_few(aims))


def _features(
    traced: TracedFeatures, rows: pa.Table, look: ScanData, key: Sequence[str], doubted: set[str], progress: Progress
) -> tuple[list[Suspect], dict[str, Values]]:
    """Find suspects among the features, with the values of scalar features."""
    values = FeatureValues(traced)
    computed = values.graph.run(arrow_feed(values.graph, values.columns, rows))
    made_of, found, single = feature_columns(traced), list[Suspect](), dict[str, Values]()
    for i, name in enumerate(traced.order):
        columns = made_of[name]
        parts = list(_parts(computed[f"value.{name}"], computed.get(f"null.{name}")))
        of_key = set(columns) <= set(key)
        of_parts = [s for part in parts for s in alone(name, columns, part, look, identifies=of_key)]
        worst = {kind: max((s for s in of_parts if s.kind == kind), key=lambda s: s.low) for kind in {s.kind for s in of_parts}}
        found += [worst[kind] for kind in sorted(worst) if kind != "tells" or not set(columns) <= doubted]
        if len(parts) == 1 and not set(columns) <= doubted:
            single[name] = parts[0]
        progress.advance("leakage scan", i + 1, len(traced.order))
    return found, single


def _parts(array: Array, null: Array | None) -> Iterator[Values]:
    """Each number of a feature (one, or the elements of an array), with its null mask."""
    flat = array.reshape(len(array), -1).T
    hidden = (
        np.zeros_like(flat, dtype=np.bool_) if null is None else np.broadcast_to(null.reshape(len(array), -1).T, flat.shape)
    )
    for part, gone in zip(flat, hidden, strict=True):
        if part.dtype == object:
            yield Values(part, gone)
        else:
            numbers = part.astype(np.float64)
            yield Values(numbers, gone | np.isnan(numbers))


def _together(parts: dict[str, Values], made_of: dict[str, list[str]], look: ScanData) -> Iterator[Suspect]:
    """Sets of features, and of unused columns, that leak the label together."""
    for names, why, measure in together(parts, look):
        columns = list(dict.fromkeys(column for name in names for column in made_of.get(name, [name])))
        used = all(name in made_of for name in names)
        what = " + ".join(names)
        yield Suspect(feature=what, columns=columns, kind="together", why=why, measure=measure, low=measure, used=used)


def describe(suspect: Suspect) -> str:
    """Why a suspect is one, and the columns behind it."""
    plain = not suspect.used or suspect.kind in ("missing", "decides")
    made = "" if plain or suspect.kind == "together" else f"; it is made of {', '.join(suspect.columns) or 'no column'}"
    return f"{suspect.why}{made}{'' if suspect.used else '; no feature uses it'}"


def leaks(suspects: Sequence[Suspect]) -> list[Suspect]:
    """Suspects that leak the label; identifiers, row counters and features that are perfect on few rows are not reported."""
    return [s for s in suspects if s.kind not in ("names", "order", "perfect")]
