"""What the labels of the examples look like, in words; and whether there is anything to learn from them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from loopwright.base.errors import ExamplesRefused
from loopwright.records.declarations import Outcome
from loopwright.sql.engine import quoted

MOST_CLASSES = 1000
SHOWN = 5


class Labels(NamedTuple):
    """How many are true (0 where that is not the question), and a few words."""

    positives: int
    summary: str


def describe(database: Any, outcome: Outcome, rows: int, excluded: Mapping[str, int]) -> Labels:
    """The labels in table `kept` of `rows` rows. Raises ExamplesRefused when there is nothing to learn from."""
    found, alike = {"multiclass": _classes, "regression": _numbers, "ranking": _relevance}.get(outcome.task, _truths)(
        database, outcome, rows
    )
    if not rows:
        alike = "no outcome is known"
    if alike:
        left_out = ", ".join(f"{count:,} x {reason}" for reason, count in excluded.items())
        raise ExamplesRefused(f"there is nothing to learn from: {alike}" + (f" (left out: {left_out})" if left_out else ""))
    return found


def _truths(database: Any, outcome: Outcome, rows: int) -> tuple[Labels, str]:
    [(positives, known)] = database.execute("SELECT count(*) FILTER (_label), count(_label) FROM kept").fetchall()
    if outcome.task == "anomaly":
        return Labels(positives, f"{known:,} with a known outcome, {positives:,} of them anomalies"), ""
    alike = "" if 0 < positives < rows else f"all {rows:,} outcomes are {'true' if positives else 'false'}"
    return Labels(positives, f"{positives / max(rows, 1):.1%} positive"), alike


def _classes(database: Any, outcome: Outcome, rows: int) -> tuple[Labels, str]:
    del outcome
    counted = database.execute("SELECT _label, count(*) AS n FROM kept GROUP BY _label ORDER BY n DESC, _label").fetchall()
    shown = ", ".join(f"{name} {n / max(rows, 1):.1%}" for name, n in counted[:SHOWN])
    more = f" and {len(counted) - SHOWN} more" if len(counted) > SHOWN else ""
    alike = f"all {rows:,} outcomes are {counted[0][0]!r}" if len(counted) == 1 else ""
    if len(counted) > MOST_CLASSES:
        alike = f"the label has {len(counted):,} different values, more than {MOST_CLASSES:,} classes: does it name things?"
    return Labels(0, f"{len(counted)} classes: {shown}{more}"), alike


def _numbers(database: Any, outcome: Outcome, rows: int) -> tuple[Labels, str]:
    names = list(outcome.labels)
    columns = ["_label"] if len(names) == 1 else [f"_label[{i + 1}]" for i in range(len(names))]
    parts, alike = [], ""
    for name, column in zip(names, columns, strict=True):
        [(low, high, mean)] = database.execute(
            f"SELECT min({column}), max({column}), avg({column}) FROM kept"  # noqa: S608 - a name of ours and a whole number
        ).fetchall()
        if rows and low == high:
            alike = f"all {rows:,} values of {name!r} are {low:g}"
        if rows:
            parts.append(f"{name} {mean:.4g} on average, from {low:.4g} to {high:.4g}")
    return Labels(0, "; ".join(parts)), alike


def _relevance(database: Any, outcome: Outcome, rows: int) -> tuple[Labels, str]:
    [(groups, relevant, low, high)] = database.execute(
        f"SELECT count(DISTINCT {quoted(outcome.group or '')}), count(*) FILTER (_label > 0), min(_label), max(_label) FROM kept"  # noqa: S608 - a declared column, quoted
    ).fetchall()
    alike = ""
    if rows and low == high:
        alike = f"all {rows:,} rows are equally relevant"
    elif rows and low < 0:
        alike = f"relevance is 0 or more, and there is {low:g}"
    return Labels(0, f"{groups:,} groups, {relevant / max(rows, 1):.1%} of their rows relevant"), alike
