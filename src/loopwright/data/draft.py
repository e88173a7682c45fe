"""The text of a first loop.py: everything filled in that the data show, everything else marked for a person to decide."""

from datetime import timedelta
from typing import Any, NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.records.declarations import Column, Table
from loopwright.records.errors import UsageError

MOST_WORDS = 50
"""A string column with more values than this is left out of the features: a name or an id, not a category."""

_YES = ("yes", "true", "y", "t", "1", "positive", "good", "won", "churned")

Flags = npt.NDArray[np.bool_]


_IMPORTS = """\
from typing import Any

import lightgbm as lgb
{nde}from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from loopwright import (
    Budget,
    Candidate,
    Column,
    Heuristic,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Retrain,
    Scope,
    Slice,
    Table,
    TimeSplit,
    Value,
)
"""

_CANDIDATES = """\
def logistic_regression() -> Pipeline:
    \"""The simplest model that learns.\"""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))


def lightgbm(trial: Any) -> lgb.LGBMClassifier:
    \"""Boosted trees, searched by Optuna.\"""
    return lgb.LGBMClassifier(
        n_estimators=trial.suggest_int("n_estimators", 40, 240, step=20),
        num_leaves=trial.suggest_int("num_leaves", 7, 47),
        learning_rate=trial.suggest_float("learning_rate", 0.03, 0.2, log=True),
        random_state=0,
        n_jobs=2,
        deterministic=True,
        force_row_wise=True,
        verbose=-1,
    )
"""

_FILE = (
    """\
\"""{name}: a first draft, written by `loopwright init`. Correct what the data could not say; `TODO` marks it.\"""

"""
    + _IMPORTS
    + """
# What was seen, a little wider. Rows outside of this go to quarantine when they are ingested.
{requests}

{outcome}


def features(f: Any) -> dict[str, Any]:
    \"""Array API code, traced once into ONNX: the same bytes compute it in training and while serving.\"""
    return {{
{features}
    }}


"""
    + _CANDIDATES
    + """

loop = Loop(
    name="{name}",
    scope=Scope(
        problem="TODO: say in one sentence which problem this solves, for whom.",
        objectives=[
            # {share} is what guessing reaches. TODO: whose wish is it, and how good is good enough?
            Objective("find them", owner="TODO", metric="average_precision", at_least={share}, weight=3),
            Objective("answer at once", owner="TODO", metric="latency_p99_ms", at_most=20, weight=1),
        ],
        budget=Budget(train_minutes=10),
        # {why}
        heuristic=Heuristic(lambda f: {rule}),
        value=Value(currency="USD", true_positive=10, false_positive=-1, false_negative=-5),  # TODO: what is it worth?
    ),
    requests=requests,
    outcome=Outcome(outcomes, label={label}, wait="30d"),  # over the columns {judged} of the outcomes
    features=features,
    slices=[{slices}],
    candidates=[
        Candidate("logistic-regression", logistic_regression, phase=2),
        Candidate("lightgbm", lightgbm, phase=3, encoding="ordinal", trials=8),
    ],
    split=TimeSplit(validation="{validation}"),
    monitor=Monitor(every="7d"),
    retrain=Retrain(every="90d", drift=3, decay=0.05, cooldown="14d"),
)
"""
)


def blank_file(name: str) -> str:
    """The text of a loop.py without data: a made-up loop that passes `check`, to be written over."""
    requests = Table(
        name=f"{name}-requests",
        columns={
            "id": Column("string"),
            "asked_at": Column("timestamp"),
            "amount": Column("float", minimum=0),
            "country": Column("string", nullable=True),
        },
        key=["id"],
        event_time="asked_at",
    )
    outcome = Table(
        name=f"{name}-outcomes",
        columns={"id": Column("string"), "known_at": Column("timestamp"), "happened": Column("boolean")},
        key=["id"],
        event_time="known_at",
    )
    return _FILE.format(
        name=name,
        nde="",
        requests=_table("requests", requests, "TODO: one row per decision, as the server will see it."),
        outcome=_table("outcomes", outcome, "TODO: how it came out."),
        judged="happened",
        features='        "amount": f.amount,\n        "country": f.country,',
        share="0.5",
        rule="f.amount > 100",
        why="TODO: the rule that people use today",
        label=_text("happened"),
        slices='Slice("country", lambda f: f.country)',
        validation="14d",
    )


class Drafted(NamedTuple):
    """What a loop file is written from. `positive` [N] is the label of the rows at hand (None where there is none)."""

    name: str
    requests: Table
    outcome: Table
    label: str
    positive: Flags | None


def positive_sql(name: str, values: pa.ChunkedArray) -> tuple[str, Flags]:
    """An SQL expression for "the label is positive" and its value [N] per row (false where null).

    Booleans as they are, of two numbers the larger, of two words the one that says yes (else the rarer), of many numbers
    those above the median. Raises UsageError for a label that is none of these.
    """
    column = _sql_name(name)
    if pa.types.is_boolean(values.type):
        return column, _flags(values)
    kinds = [v for v in pc.unique(values).to_pylist() if v is not None]
    if pa.types.is_string(values.type):
        if len(kinds) != 2:
            raise UsageError(f"column {name!r} has {len(kinds)} different words; a label has two")
        said = [k for k in kinds if k.lower() in _YES]
        word = said[0] if len(said) == 1 else min(kinds, key=lambda k: (pc.sum(pc.equal(values, k)).as_py(), k))
        return f"{column} = '{word.replace(chr(39), chr(39) * 2)}'", _flags(pc.equal(values, word))
    if pa.types.is_timestamp(values.type) or len(kinds) < 2:
        raise UsageError(f"column {name!r} cannot be a label: it needs two values, or numbers with a threshold")
    if len(kinds) == 2:
        return f"{column} = {max(kinds):g}", _flags(pc.equal(values, pa.scalar(max(kinds), values.type)))
    middle = float(np.median(values.drop_null().to_numpy()))
    return f"{column} > {middle:g}", _flags(pc.greater(values.cast(pa.float64()), middle))


def _sql_name(name: str) -> str:
    with duckdb.connect(":memory:") as database:
        query = "SELECT count(*) FROM duckdb_keywords() WHERE keyword_name = ? AND keyword_category <> 'unreserved'"
        [(taken,)] = database.execute(query, [name.lower()]).fetchall()
    return f'"{name}"' if taken else name


def loop_file(drafted: Drafted, frame: pa.Table) -> str:
    """The text of loop.py. `frame` [N] has the rows of the requests table, which medians and thresholds are taken from.

    Raises UsageError when no column can be a feature.
    """
    requests = drafted.requests
    usable = {n: c for n, c in requests.columns.items() if _is_feature(n, c, requests, frame)}
    if not usable:
        raise UsageError("no column can be a feature: all are keys, times, constants or names")
    rule, why = _rule(usable, frame, drafted.positive)
    share = 0.5 if drafted.positive is None else float(drafted.positive.mean())
    left_out = [n for n in requests.columns if n not in usable and n not in requests.key and n != requests.event_time]
    sliced = [n for n, c in usable.items() if c.type == "boolean" or (c.categories and len(c.categories) <= 10)][:3]
    judged = [n for n in drafted.outcome.columns if n not in drafted.outcome.key and n != drafted.outcome.event_time]
    lines = [f'        "{n}": {_feature(n, c, frame)},' for n, c in usable.items()]
    lines += [f"        # {n}: a time, a constant, or too many different values" for n in left_out]
    nde = "import ndonnx.extensions as nde\n" if any("nde." in text for text in [rule, *lines]) else ""
    return _FILE.format(
        name=drafted.name,
        nde=nde,
        requests=_table("requests", requests, "One row per decision, as the server will see it."),
        outcome=_table("outcomes", drafted.outcome, "How it came out."),
        judged=", ".join(judged),
        features="\n".join(lines),
        share=f"{max(share, 0.001):.3g}",
        rule=rule,
        why=why,
        label=_text(drafted.label),
        slices="".join(f'\n        Slice("{n.lower()}", lambda f: f.{n}),' for n in sliced) + ("\n    " if sliced else ""),
        validation=_fifth(frame[requests.event_time]),
    )


def _is_feature(name: str, column: Column, table: Table, frame: pa.Table) -> bool:
    if name in table.key or column.type == "timestamp":
        return False
    return bool(1 < pc.count_distinct(frame[name]).as_py() <= (MOST_WORDS if column.type == "string" else 2**62))


def _feature(name: str, column: Column, frame: pa.Table) -> str:
    if not column.nullable or column.type == "string":
        return f"f.{name}"
    return f"nde.fill_null(f.{name}, {_filler(column, frame[name])})"


def _filler(column: Column, values: pa.ChunkedArray) -> str:
    """What stands for a missing value: the median, false, no text."""
    if column.type in ("float", "integer"):
        middle = float(np.median(values.drop_null().to_numpy()))
        return repr(float(f"{middle:.4g}")) if column.type == "float" else repr(int(middle))
    return "False" if column.type == "boolean" else '""'


def _rule(usable: dict[str, Column], frame: pa.Table, positive: Flags | None) -> tuple[str, str]:
    """The best rule on one column as code, and a comment: the cut of greatest Youden's J (true minus false positive rate)."""
    best = (-1.0, "", "")
    for name, column in usable.items():
        f = f"f.{name}" if not column.nullable else f"nde.fill_null(f.{name}, {_filler(column, frame[name])})"
        for holds, code in _cuts(f, column, frame[name]):
            j = (
                0.0
                if positive is None or positive.all() or not positive.any()
                else float(holds[positive].mean() - holds[~positive].mean())
            )
            best = max(best, (j, code, name), key=lambda b: b[0])
    return best[
        1
    ], "the best rule on one column, by the data" if positive is not None else "a guess: replace it by your own rule"


def _cuts(f: str, column: Column, values: pa.ChunkedArray) -> list[tuple[Flags, str]]:
    """Rules on one column: which rows [N] they hold for, and their code."""
    if column.type == "boolean":
        flags = _flags(values)
        return [(flags, f), (~flags, f"~{f}")]
    if column.type == "string":
        words = column.categories or sorted(w for w in pc.unique(values).to_pylist() if w is not None)
        return [(_flags(pc.equal(values, w)), f"{f} == {_text(w)}") for w in words]
    numbers = values.to_numpy().astype(np.float64)
    numbers = np.where(np.isnan(numbers), np.nanmedian(numbers), numbers)
    cuts = np.unique(np.quantile(numbers, np.arange(0.1, 0.95, 0.1)))
    shown = [repr(float(f"{c:.4g}")) if column.type == "float" else repr(int(c)) for c in cuts]
    return [(numbers > float(c), f"{f} > {c}") for c in shown] + [(numbers < float(c), f"{f} < {c}") for c in shown]


def _table(variable: str, table: Table, description: str) -> str:
    columns = "\n".join(f"        {_text(n)}: {_column(c)}," for n, c in table.columns.items())
    return (
        f"{variable} = Table(\n    name={_text(table.name)},\n    description={_text(description)},\n    columns={{\n{columns}\n    }},\n"
        f"    key=[{', '.join(_text(k) for k in table.key)}],\n    event_time={_text(table.event_time)},\n)"
    )


def _column(column: Column) -> str:
    parts = [_text(column.type)]
    if column.nullable:
        parts.append("nullable=True")
    parts += [f"{side}={getattr(column, side):g}" for side in ("minimum", "maximum") if getattr(column, side) is not None]
    if column.categories is not None:
        parts.append(f"categories=[{', '.join(_text(c) for c in column.categories)}]")
    return f"Column({', '.join(parts)})"


def _text(value: str) -> str:
    """A Python string literal in double quotes; JSON's is one."""
    return msgspec.json.encode(value).decode()


def _flags(values: Any) -> Flags:
    return np.asarray(pc.fill_null(values, False).to_numpy(), dtype=bool)


def _fifth(times: pa.ChunkedArray) -> str:
    """A fifth of the time that the rows span, as a duration."""
    moments = times.cast(pa.int64()).drop_null().to_numpy()
    span = timedelta(microseconds=int(moments.max() - moments.min())) / 5
    if span >= timedelta(days=2):
        return f"{span.days}d"
    return f"{max(int(span.total_seconds()), 1)}s"
