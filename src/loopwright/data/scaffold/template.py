"""The text of a first loop.py: everything filled in that the data show, everything else marked for a person to decide."""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import UsageError
from loopwright.data.scaffold.moments import calendar, hours_until
from loopwright.data.scaffold.pace import Pace, pace
from loopwright.records.declarations import SHAPES, Column, Table, Task, duration
from loopwright.records.package import Output
from loopwright.sql.engine import sql_engine
from loopwright.tasks.registry import TASKS
from loopwright.tasks.split import fifth
from loopwright.tasks.task import Draft

MAX_WORDS, MAX_COMMON_WORDS, COMMON = 50, 200, 50
"""A string column with more values than this is left out of the features, a name or an id and not a category: more than 200 if
each is seen fifty times on average, more than 50 if not."""

MAX_CLASSES, FEWEST_PER_CLASS = 50, 10
"""Maximum number of classes of a label of words or integers, and the minimum average number of rows per class."""

DRAFTS: dict[Task, Draft] = {name: task.draft for name, task in TASKS.items() if task.draft is not None}
"""Draft texts of each task that `init` proposes."""

_YES = ("yes", "true", "y", "t", "1", "positive", "good", "won", "churned")

Flags = npt.NDArray[np.bool_]


FILE = Path(__file__).with_name("loop_file.txt")
"""The text of a loop file, with places in braces."""


class DraftTarget(NamedTuple):
    """The prediction target: its task, the SQL expression of its label, and the truth [N] of the available rows (None without).

    `truth` is boolean, strings or numbers, depending on the task; `known` [N] marks the rows with a label.
    """

    task: Task
    label: str
    truth: Any
    known: Flags

    def guess(self, rows: Flags | None = None) -> Any:
        """The best single answer over some rows (all): the commonest class, the median number."""
        there = self.known if rows is None else self.known & rows
        return self.draft.guess(self.truth[there if there.any() else self.known])

    @property
    def draft(self) -> Draft:
        """The draft texts of its task."""
        return DRAFTS[self.task]

    def what(self, label: str) -> str:
        """The prediction target in words."""
        named = self.label if self.draft.is_condition else label  # which of two words is positive
        return self.draft.what(named, 0 if self.truth is None else len(np.unique(self.truth[self.known])))

    @property
    def reach(self) -> float:
        """The metric of a guess in the first objective: the share of the positive or the most frequent class, the mean error."""
        if self.truth is None:
            return 0.5
        return self.draft.reach(self.truth[self.known], self.guess())


class Drafted(NamedTuple):
    """Input of a loop file. `spread`: the rows are spread over time; `ids`: identifier columns, and why.

    `leaks`: columns that give away the label, and why. `later`: times after the decision, and how long after;
    `hours`: its median (a time that is in the requests all the same is planned);
    `stamped`: the one of these at which the outcome is known, and the longest delay.
    """

    name: str
    requests: Table
    outcome: Table
    spread: bool
    target: DraftTarget
    ids: Mapping[str, str] = {}
    problem: str = "TODO: say in one sentence which problem this solves, for whom."
    owner: str = "TODO"
    leaks: Mapping[str, str] = {}
    later: Mapping[str, str] = {}
    hours: Mapping[str, float] = {}
    stamped: tuple[str, str] | None = None

    @property
    def moments(self) -> str:
        """The column of when a decision was taken, where the rows are spread over it; empty elsewhere."""
        return self.requests.event_time if self.spread else ""

    @property
    def same_moment(self) -> bool:
        """Whether outcomes are taken as known when the decision is taken, because one column of the file is the time of both."""
        return (
            self.outcome.event_time == self.requests.event_time and not self.requests.columns[self.requests.event_time].filled
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
    drafted = Drafted(name, requests, outcome, True, target("", None, ""))
    return _text_of(
        drafted,
        requests=_table("requests", requests, "TODO: one row per decision, as the server will see it."),
        outcome=_table("outcomes", outcome, "TODO: how it came out."),
        judged="happened",
        features='        "amount": f.amount,\n        "country": f.country,',
        rule="f.amount > 100",
        why="TODO: the rule that people use today",
        slices='Slice("country", lambda f: f.country)',
        split='TimeSplit(validation="14d")',
        pace=pace(None, 2)._replace(every="30d"),
    )


def _text_of(drafted: Drafted, *, pace: Pace, **parts: str) -> str:
    task, words = drafted.target.task, drafted.target.draft
    simple = re.sub(r"(?<=.)(?=[A-Z])", "_", words.linear).lower()
    written = parts["rule"] + re.sub(r"(?m)^ *#.*$", "", parts["features"])
    local = ", ".join(n for n in ("local_time", "seconds_between") if f"{n}(" in written)
    used = [f"import ndonnx{m} as {n}\n" for m, n in (("", "ndx"), (".extensions", "nde")) if f"{n}." in written]
    return FILE.read_text(encoding="utf-8").format(
        name=drafted.name,
        arrays="".join(used) + ("\n" if used else ""),
        local=f"from loopwright.features import {local}\n" if local else "",
        problem=_text(drafted.problem),
        owner=_text(drafted.owner),
        random="" if parts["split"].startswith("Time") else "    StratifiedSplit,\n",
        timed="    TimeSplit,\n" if parts["split"].startswith("Time") else "",
        simple=simple,
        plain=simple.replace("_", "-"),
        reach=_plain(float(f"{max(drafted.target.reach, 0.001):.3g}")),
        label=_text(drafted.target.label),
        **pace._asdict(),
        **{name: text for name, text in words._asdict().items() if isinstance(text, str) and name != "objective"},
        objective=f'        objective="{words.objective}",\n' if words.objective else "",
        task="" if task == Output().task else f', task="{task}"',
        wait=max(pace.every, drafted.stamped[1] if drafted.stamped else "", key=lambda d: duration(d or "0s")),
        **parts,
    )


def check_task(task: str) -> None:
    """Raise UsageError for a task that a person named and that no label has."""
    if task not in ("", *DRAFTS):
        raise UsageError(f"--task {task[:80]!r}: one of {', '.join(DRAFTS)}")


def target(name: str, values: pa.ChunkedArray | None, task: str) -> DraftTarget:
    """The prediction target, from the column of the label [N] and the `task` if the user names one.

    Two values (booleans, two words, two numbers) are binary: of two numbers the larger is positive, of two words the one that
    means yes, else the rarer. Words, and few whole numbers, are classes. Other numbers are a regression; as binary,
    the values above the median are positive. Raises UsageError for a label that is none of these.
    """
    check_task(task)
    if values is None:
        return DraftTarget("binary", "happened", None, np.zeros(0, dtype=bool))
    column, known = _sql_name(name), _flags(pc.is_valid(values))
    kinds = [v for v in pc.unique(values).to_pylist() if v is not None and (not isinstance(v, float) or np.isfinite(v))]
    if pa.types.is_floating(values.type):  # infinite values go to quarantine
        known &= np.isfinite(values.to_numpy())
    if len(kinds) < 2 or pa.types.is_timestamp(values.type) or pa.types.is_nested(values.type):
        raise UsageError(f"column {name!r} cannot be a label: it needs two values or more, and no times")
    text, whole = pa.types.is_string(values.type), pa.types.is_integer(values.type)
    many = len(kinds) > MAX_CLASSES or len(kinds) * FEWEST_PER_CLASS > len(values)
    chosen: Task = task or (  # type: ignore[assignment]  # checked above
        "binary" if len(kinds) == 2 else "multiclass" if (text or whole) and not many else "regression"
    )
    label = SHAPES[chosen].label
    if label == "float":
        if text or pa.types.is_boolean(values.type):
            raise UsageError(
                f"column {name!r} has {len(kinds):,} different words: too many for classes, and they are no numbers. Name another "
                "--label, group the words, or write numbers without signs and units"
            )
        numbers = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy()
        return DraftTarget(chosen, f"CAST({column} AS DOUBLE)" if whole else column, numbers, known)
    if label == "string":
        words = np.array([str(v) for v in pc.fill_null(values.cast(pa.string()), "").to_pylist()])
        return DraftTarget(chosen, column if text else f"CAST({column} AS VARCHAR)", words, known)
    sql, truth = _positive(name, column, values, kinds)
    return DraftTarget(chosen, sql, truth, known)


def _positive(name: str, column: str, values: pa.ChunkedArray, kinds: list[Any]) -> tuple[str, Flags]:
    """An SQL expression for "the label is positive" and its value [N] per row (false where null)."""
    if pa.types.is_boolean(values.type):
        return column, _flags(values)
    if pa.types.is_string(values.type):
        if len(kinds) != 2:
            raise UsageError(f"column {name!r} has {len(kinds)} different words; a binary label has two")
        said = [k for k in kinds if k.lower() in _YES]
        word = said[0] if len(said) == 1 else min(kinds, key=lambda k: (pc.sum(pc.equal(values, k)).as_py(), k))
        return f"{column} = '{word.replace(chr(39), chr(39) * 2)}'", _flags(pc.equal(values, word))
    if len(kinds) == 2:
        return f"{column} = {_plain(max(kinds))}", _flags(pc.equal(values, pa.scalar(max(kinds), values.type)))
    numbers = values.drop_null().to_numpy()
    middle = float(np.median(numbers[np.isfinite(numbers)]))
    return f"{column} > {middle:g}", _flags(pc.greater(values.cast(pa.float64()), middle))


def _sql_name(name: str) -> str:
    with sql_engine() as database:
        query = "SELECT count(*) FROM duckdb_keywords() WHERE keyword_name = ? AND keyword_category <> 'unreserved'"
        [(taken,)] = database.execute(query, [name.lower()]).fetchall()
    return f'"{name}"' if taken else name


def loop_file(drafted: Drafted, frame: pa.Table) -> str:
    """The text of loop.py. `frame` [N] has the rows at hand, which medians and thresholds are taken from.

    Raises UsageError when no column can be a feature.
    """
    requests = drafted.requests
    usable = {n: c for n, c in requests.columns.items() if is_feature(n, c, drafted, frame)}
    if not usable:  # names are better than nothing
        drafted = drafted._replace(ids={n: why for n, why in drafted.ids.items() if not why})
        usable = {n: c for n, c in requests.columns.items() if is_feature(n, c, drafted, frame)}
    if not usable:
        raise UsageError("no column can be a feature: all are keys, times, constants or names")
    leaks = {n: usable[n] for n in usable if n in drafted.leaks}
    usable = {n: c for n, c in usable.items() if n not in leaks}
    if not usable:  # a loop needs a feature: the user decides
        usable, leaks = leaks, {}
    rule, why = _rule(usable, frame, drafted.target)
    known = {*usable, *leaks, *requests.key, requests.event_time, *drafted.later}
    left_out = [n for n in requests.columns if n not in known]
    sliced = [n for n, c in usable.items() if c.type == "boolean" or (c.categories and len(c.categories) <= 10)][:3]
    judged = [n for n in drafted.outcome.columns if n not in drafted.outcome.key and n != drafted.outcome.event_time]
    lines = [f'        "{n}": {_feature(n, c, frame)},' for n, c in usable.items()]
    lines += [f'        "{n}": {code},' for n, code in calendar(drafted.moments, drafted.requests, frame).items()]
    lines += [
        f'        # TODO: is {n} known at the decision? {drafted.leaks[n]}.\n        # "{n}": {_feature(n, c, frame)},'
        for n, c in leaks.items()
    ]
    lines += [
        f"        # {n}: {delay}. By its name it is planned; if it is not known at the decision, take it out of requests, into ignore.\n"
        f"        {hours_until(requests.event_time, n, drafted.hours[n])}"
        if n in requests.columns
        else f"        # {n}: {delay}, so not known at the decision; if it is (a plan), declare it in requests, take it out of ignore,\n"
        f"        # and import seconds_between from loopwright.features:\n        # {hours_until(requests.event_time, n, drafted.hours[n])}"
        for n, delay in drafted.later.items()
    ]
    doubted = {n: requests.columns[n] for n in left_out if drafted.ids.get(n)}
    lines += [
        f'        # {n}: {drafted.ids[n]}. A feature if a larger one means more.\n        # "{n}": {_feature(n, c, frame)},'
        for n, c in doubted.items()
    ]
    split = (
        f'TimeSplit(validation="{_fifth(frame[requests.event_time])}")' if drafted.spread else "StratifiedSplit(validation=0.2)"
    )
    left_out = [n for n in left_out if n not in doubted]
    lines += [f"        # {n}: a time, a constant, a name, or too many different values" for n in left_out]
    return _text_of(
        drafted,
        requests=_table("requests", requests, "One row per decision, as the server will see it."),
        outcome=_table("outcomes", drafted.outcome, "How it came out.", _known(drafted)),
        judged=", ".join(judged),
        features="\n".join(lines),
        rule=rule,
        why=why,
        slices="".join(f'\n        Slice("{n.lower()}", lambda f: f.{n}),' for n in sliced) + ("\n    " if sliced else ""),
        split=split,
        pace=pace(frame[drafted.moments] if drafted.moments else None, len(usable)),
    )


def is_feature(name: str, column: Column, drafted: Drafted, frame: pa.Table) -> bool:
    """Whether a draft makes a feature of a column of the requests."""
    names_row = name in drafted.requests.key and (len(drafted.requests.key) == 1 or column.type != "string")
    if names_row or name in drafted.ids or column.type in ("timestamp", "array") or column.filled:
        return False
    values = frame[name]
    if column.type == "float":
        values = values.filter(pc.is_finite(values))
    count = pc.count_distinct(values, mode="only_valid").as_py()
    if column.type != "string":
        return bool(count > 1)
    return bool(1 < count <= (MAX_COMMON_WORDS if count * COMMON <= len(frame) else MAX_WORDS))


def _feature(name: str, column: Column, frame: pa.Table) -> str:
    if not column.nullable or column.type == "string":
        return f"f.{name}"
    return f"nde.fill_null(f.{name}, {_filler(column, frame[name])})"


def _filler(column: Column, values: pa.ChunkedArray) -> str:
    """Code of a value that replaces nulls: the median, false, the empty text."""
    if column.type in ("float", "integer"):
        numbers = values.drop_null().to_numpy()
        middle = float(np.median(numbers[np.isfinite(numbers)]))
        return repr(float(f"{middle:.4g}")) if column.type == "float" else repr(int(middle))
    return "False" if column.type == "boolean" else '""'


def _rule(usable: dict[str, Column], frame: pa.Table, aim: DraftTarget) -> tuple[str, str]:
    """The best rule on one column as code, and a comment.

    Best means: for a binary label the split of greatest Youden's J (true minus false positive rate) among those true for half
    to twice as many rows as are positive; for classes the most accurate; for numbers the least absolute error, where
    each side answers its best constant.
    """
    best = (-np.inf, "", "")
    for name, column in usable.items():
        f = f"f.{name}" if not column.nullable else f"nde.fill_null(f.{name}, {_filler(column, frame[name])})"
        for holds, code in _cuts(f, column, frame[name], aim):
            yes, no = ("", "") if aim.draft.is_condition else (_answer_text(aim, holds), _answer_text(aim, ~holds))
            answer = code if aim.draft.is_condition else f"ndx.where({code}, {yes}, {no})"
            best = max(best, (_worth(aim, holds), answer, name), key=lambda b: b[0])
    why = "the best rule on one column of the file" if aim.truth is not None else "a guess: replace it with your own rule"
    return best[1], why


def _answer_text(aim: DraftTarget, rows: Flags) -> str:
    guess = aim.guess(rows)
    return f"ndx.asarray({_text(guess) if isinstance(guess, str) else repr(float(f'{guess:.4g}'))})"


def _worth(aim: DraftTarget, holds: Flags) -> float:
    """The quality of a split into rows that meet the condition and others; more is better."""
    if aim.truth is None:
        return 0.0
    return aim.draft.worth(aim.truth[aim.known], holds[aim.known])


def _cuts(f: str, column: Column, values: pa.ChunkedArray, aim: DraftTarget) -> list[tuple[Flags, str]]:
    """Rules on one column: which rows [N] they hold for, and their code."""
    if column.type == "boolean":
        flags = _flags(values)
        return [(flags, f), (~flags, f"~{f}")]
    if column.type == "string":
        words = column.categories or sorted(w for w in pc.unique(values).to_pylist() if w is not None)
        return [(_flags(pc.equal(values, w)), f"{f} == {_text(w)}") for w in words]
    numbers = values.to_numpy().astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    numbers = np.where(np.isnan(numbers), np.median(finite), numbers)
    share = [aim.reach, 1 - aim.reach] if aim.draft.is_condition else []
    cuts = np.unique(np.quantile(finite, [*np.arange(0.1, 0.95, 0.1), *share]))
    shown = [repr(float(f"{c:.4g}")) if column.type == "float" else repr(int(c)) for c in cuts]
    return [(numbers > float(c), f"{f} > {c}") for c in shown] + [(numbers < float(c), f"{f} < {c}") for c in shown]


_KNOWN_AFTER = """\
    # TODO: when is the outcome known? Assumed: at the moment of the decision, so the newest decisions count as settled.
    # known_after="30d",
"""


def _known(drafted: Drafted) -> str:
    """When the outcome is known: as the table shows, or a placeholder for the user."""
    outcome = drafted.outcome
    if drafted.stamped is None:
        return _KNOWN_AFTER if drafted.same_moment else ""
    name, after = drafted.stamped
    said = f"    # {name} is {drafted.later[name]}"
    if outcome.known_time is not None:
        return f"{said}: taken is that the outcome is known then.\n    known_time={_text(outcome.known_time)},\n"
    if outcome.known_after != "0s":
        return f"{said}: taken is that the outcome is known after that.\n    known_after={_text(outcome.known_after)},\n"
    return f"{said}: too long for what the file spans.\n{_KNOWN_AFTER}".replace('"30d"', _text(after))


_KEYS = (
    "No column tells the rows apart: the key is made of the file and the number of the row, and the same row in another file is another.",
    "Nothing else tells the rows apart: two rows of one moment would be the same row.",
)
"""Explanation of a key: generated, or the event time alone."""


def _table(variable: str, table: Table, description: str, more: str = "") -> str:
    columns = "\n".join(f"        {_text(n)}: {_column(c)}," for n, c in table.columns.items())
    ignored = f"    ignore=[{', '.join(_text(n) for n in table.ignore)}],\n" if table.ignore else ""
    whole = table.columns[table.key[0]].filled, table.key == [table.event_time]
    why = next((f"    # {why}\n" for is_so, why in zip(whole, _KEYS, strict=True) if is_so), "")
    return (
        f"{variable} = Table(\n    name={_text(table.name)},\n    description={_text(description)},\n    columns={{\n{columns}\n    }},\n"
        f"{why}    key=[{', '.join(_text(k) for k in table.key)}],\n    event_time={_text(table.event_time)},\n{more}{ignored})"
    )


def _column(column: Column) -> str:
    parts = [_text(column.type)]
    parts += [f"{flag}=True" for flag in ("nullable", "optional") if getattr(column, flag)]
    parts += [f"{side}={_plain(getattr(column, side))}" for side in ("minimum", "maximum") if getattr(column, side) is not None]
    texts = {k: getattr(column, k) for k in ("zone", "source", "format", "filled")}
    parts += [f"{k}={_text(v)}" for k, v in texts.items() if v is not None]
    lists = {"categories": column.categories, "missing": column.missing or None}
    parts += [f"{k}=[{', '.join(_text(c) for c in v)}]" for k, v in lists.items() if v is not None]
    parts += [f"shape={column.shape}"] if column.shape else []
    return f"Column({', '.join(parts)})"


def _plain(number: float) -> str:
    """A number as a person writes it: without an exponent, unless it is very large or small."""
    return f"{number:.12g}"


def _text(value: str) -> str:
    """A Python string literal in double quotes; JSON's is one."""
    return msgspec.json.encode(value).decode()


def _flags(values: Any) -> Flags:
    return np.asarray(pc.fill_null(values, False).to_numpy(), dtype=bool)


def _fifth(times: pa.ChunkedArray) -> str:
    """A fifth of the time that the rows span, as a duration."""
    moments = times.cast(pa.int64()).drop_null().to_numpy()
    return fifth(timedelta(microseconds=int(moments.max() - moments.min())))
