"""Where each column of a loop's contract, and its label, comes from: columns of tables, read off the declarations.

What a value is computed from and what decides which rows count are told apart: the wind speed at push-back is *of* the
weather's wind speed, found *by* the airport and the times of both.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from loopwright.records.declarations import Aggregate, Context, Outcome, Table
from loopwright.records.package import Lineage, Origin
from loopwright.sql import expression


def lineage(requests: Table, context: Sequence[Context], aggregates: Sequence[Aggregate], outcome: Outcome) -> Lineage:
    """Where the columns and the label of a loop come from; features, heuristic and slices are for `develop` to add."""
    return Lineage(columns=column_origins(requests, context, aggregates), labels=label_origins(requests, outcome))


def column_origins(requests: Table, context: Sequence[Context], aggregates: Sequence[Aggregate]) -> dict[str, Origin]:
    """For every column that features can see, the table columns (`TABLE.COLUMN`) behind it."""
    found = {name: Origin(of=[f"{requests.name}.{name}"]) for name in requests.columns}
    for c in context:
        by = _lookup_columns(requests, c.table, c.by)
        found |= {name: Origin(of=[f"{c.table.name}.{column}"], by=by) for name, column in c.wanted.items()}
    for a in aggregates:
        of = [f"{a.table.name}.{column}" for column in expression.columns(a.of, a.table)] if a.of.strip() else []
        # Of several versions of one row the one known last counts, so the key of the table decides too.
        by = _lookup_columns(requests, a.table, a.by | dict.fromkeys(k for k in a.table.key if k not in a.by))
        how = f"{a.function}{f' of {a.of.strip()}' if a.of.strip() else ''} over {a.window}"
        found[a.name] = Origin(of=of, by=by, how=how)
    return found


def label_origins(requests: Table, outcome: Outcome) -> dict[str, Origin]:
    """For every target of the outcome, the table columns its expression is computed from."""
    by = _lookup_columns(requests, outcome.table, {k: k for k in requests.key})
    return {
        name: Origin(of=[f"{outcome.table.name}.{column}" for column in expression.columns(sql, outcome.table)], by=by, how=sql)
        for name, sql in outcome.labels.items()
    }


def _lookup_columns(requests: Table, table: Table, by: dict[str, Any]) -> list[str]:
    """Keys and times of both sides of a join, each once."""
    theirs: Iterable[str] = [*by, table.event_time, table.known]
    ours: Iterable[str] = [*(column for column in by.values() if column), requests.event_time]
    return list(dict.fromkeys([*(f"{table.name}.{c}" for c in theirs), *(f"{requests.name}.{c}" for c in ours)]))
