"""Warn about times and columns that may not be known at the decision, from declarations and examples."""

import re
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Aggregate, Context, Outcome, Table, duration

LEAST = 100
"""With fewer examples nothing is said about columns that are always null."""

_OFTEN, _MANY = 0.5, 0.01
_FEWEST, _ALIKE = 30, 0.1


class Later(NamedTuple):
    """How long after the event time a column is, never before it: the median and the longest delay, and whether it is always there."""

    middle: timedelta
    longest: timedelta
    always: bool
    constant: bool

    @property
    def after(self) -> str:
        """The longest delay as a duration, rounded up."""
        seconds = -(-self.longest // timedelta(seconds=1))
        size, unit = next(
            (u for u in ((86_400, "d"), (3600, "h"), (60, "m")) if seconds % u[0] == 0 or seconds >= 50 * u[0]), (1, "s")
        )
        return f"{-(-seconds // size)}{unit}"

    def __str__(self) -> str:
        """In words."""
        return f"{_span(self.middle)}{'' if self.constant else f' in the median, {_span(self.longest)} at most,'}"


def later(frame: pa.Table, event_time: str, names: Collection[str]) -> dict[str, Later]:
    """Times among `names` of a table [N] that are never before the event time, and mostly after it."""
    found = {}
    for name in names:
        delays = pc.subtract(frame[name].cast(pa.int64()), frame[event_time].cast(pa.int64())).drop_null().to_numpy()
        if len(delays) < _FEWEST or delays.min() < 0 or not (middle := int(np.median(delays))):
            continue
        longest, alike = int(delays.max()), bool(np.ptp(delays) <= _ALIKE * middle)
        found[name] = Later(timedelta(microseconds=middle), timedelta(microseconds=longest), not frame[name].null_count, alike)
    return found


def doubts(
    requests: Table,
    context: Sequence[Context],
    aggregates: Sequence[Aggregate],
    outcome: Outcome,
    *,
    used: Collection[str],
    examples: pa.Table | None = None,
    excluded: dict[str, int] | None = None,
) -> list[tuple[str, str]]:
    """List pairs of a doubtful table or column and the reason; empty when there are none.

    `used` are the columns that features use; `examples` are as `records.examples` describes them, `excluded` counts the
    decisions that are none by reason.
    """
    found = _of_requests(requests, examples)
    for c in context:
        found += _never(c.table, c.lag, c.max_age, "older than max_age", f"context {', '.join(c.wanted)}")
    for a in aggregates:
        found += _never(a.table, a.lag, a.window, "before its window", f"aggregate {a.name}")
    found += _of_label(requests, context, outcome, used) + _too_late(outcome)
    if examples is not None:
        joined = [n for c in context for n in c.wanted] + [
            a.name for a in aggregates if a.function not in ("count", "distinct")
        ]
        found += _of_columns(requests, joined, examples, used)
    if examples is not None:
        found += _at_once(outcome, examples)
    before = (excluded or {}).get("outcome known before the decision", 0)
    if examples is not None and before > _MANY * (len(examples) + before):
        why = f"{before:,} outcomes were known before the decision they belong to, and were left out: is {requests.event_time} when it was taken?"
        found.append((f"table {outcome.table.name}", why))
    return found


def _of_requests(requests: Table, examples: pa.Table | None) -> list[tuple[str, str]]:
    name = f"table {requests.name}"
    if delay := duration(requests.known_after):
        return [
            (
                name,
                f"its rows become known {_span(delay)} after the decision (known_after), so nothing in them was there to decide by",
            )
        ]
    if requests.known == requests.event_time or examples is None or not len(examples):
        return []
    late = pc.subtract(
        examples.column(requests.known).cast(pa.int64()),
        examples.column("_decided_at").cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()),
    )
    count = pc.sum(pc.greater(late, 0)).as_py() or 0
    if not count:
        return []
    most = timedelta(microseconds=pc.max(late).as_py())
    why = f"{count:,} of {len(examples):,} rows became known after their decision ({requests.known} is up to {_span(most)} after {requests.event_time})"
    return [(name, f"{why}: what they say was not there to decide by")]


def _never(table: Table, lag: str, limit: str | None, what: str, name: str) -> list[tuple[str, str]]:
    """A join that can never find anything: its rows are known too late to count."""
    delay = duration(table.known_after) + duration(lag)
    if limit is None or table.known != table.event_time or delay <= duration(limit):
        return []
    why = f"never there: a row of {table.name} is known {_span(delay)} after it happened at the earliest (known_after and lag)"
    return [(name, f"{why}, and is then {what} ({limit})")]


def _of_label(requests: Table, context: Sequence[Context], outcome: Outcome, used: Collection[str]) -> list[tuple[str, str]]:
    """Columns that features use and the label is computed from."""
    words = {w for expression in outcome.labels.values() for w in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", expression)}
    named = {n: n for n in requests.columns if n not in requests.key and n != requests.event_time}
    named |= {n: column for c in context if c.table.name == outcome.table.name for n, column in c.wanted.items()}
    return [
        (
            f"column {name}",
            f"features use it, and the label is computed from {outcome.table.name}.{column}: is it known at the decision?",
        )
        for name, column in named.items()
        if name in used and column in words and column in outcome.table.columns
    ]


def _of_columns(requests: Table, joined: Sequence[str], examples: pa.Table, used: Collection[str]) -> list[tuple[str, str]]:
    found, rows = [], len(examples)
    for name in joined:
        if rows >= LEAST and examples.column(name).null_count == rows:
            why = f"null in all of {rows:,} examples: its keys match no row, or its rows become known too late"
            found.append((f"column {name}", why))
    known = examples.column("_known_at").cast(pa.timestamp("us", tz="UTC"))
    for name, column in requests.columns.items():
        if column.type != "timestamp" or name not in used or name == requests.event_time or not rows:
            continue
        same = pc.sum(pc.equal(examples.column(name), known)).as_py() or 0
        if same > _OFTEN * rows:
            why = f"in {same / rows:.1%} of the examples it is the very moment at which the outcome became known"
            found.append((f"column {name}", f"{why}: it was not known at the decision"))
    return found


def _too_late(outcome: Outcome) -> list[tuple[str, str]]:
    """Outcomes that become known only when nobody waits for them any more."""
    after = outcome.table.known_after
    if duration(after) <= duration(outcome.wait):
        return []
    why = f"an outcome is known {after} after it happened (known_after), and a decision waits for it no longer than {outcome.wait}"
    return [(f"table {outcome.table.name}", f"{why} (wait): none counts that names no prediction; declare a longer `wait`")]


def _at_once(outcome: Outcome, examples: pa.Table) -> list[tuple[str, str]]:
    """Outcomes that are taken as known when the decision is taken, which they hardly ever are."""
    known, decided = (examples.column(n).cast(pa.timestamp("us", tz="UTC")) for n in ("_known_at", "_decided_at"))
    same = pc.sum(pc.equal(known, decided)).as_py() or 0
    if len(examples) < LEAST or same <= _OFTEN * len(examples):
        return []
    why = f"{same:,} of {len(examples):,} outcomes are taken as known at the very moment of the decision: say after how long they are"
    return [(f"table {outcome.table.name}", f'{why} (known_after="30d"), or the newest decisions count as settled')]


def _span(length: timedelta) -> str:
    seconds = length.total_seconds()
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.3g}{unit}"
    return f"{seconds:.3g}s"
