"""Begin a loop: write its first loop.py, with a contract inferred from files."""

import os
import re
from datetime import timedelta
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from loopwright.base.errors import ColumnUnknown, UsageError
from loopwright.base.ids import check_name
from loopwright.base.text import count
from loopwright.data.examples.time_warnings import later
from loopwright.data.ingest.source import AS_DETECTED
from loopwright.data.ingest.source_reader import Reading
from loopwright.data.ingest.values import flags
from loopwright.data.scaffold.identifiers import identifies, is_id
from loopwright.data.scaffold.infer import Inferred, Notes, inferred
from loopwright.data.scaffold.leaks import leaking
from loopwright.data.scaffold.template import Drafted, DraftTarget, blank_file, check_task, is_feature, loop_file, target
from loopwright.records.declarations import SHAPES, Column, Table
from loopwright.records.declarations.scope import UNNAMED
from loopwright.records.field_rules import Zone

_PLANNED = re.compile(
    r"(^|_)(appointment|deadline|due|expected|expir(es|y|ation)|plan(ned)?|promised|scheduled?|slot|termin|geplant|faellig|frist)(_|$)"
)
"""Words in names of times that are known in advance."""

DRESSED, _DRESSED = (
    0.9,
    r"^\s*([^\w\s.,-]\s*-?[\d.,\s]+|-?[\d.,]+\s*([^\w\s.,]|[A-Za-z]{1,3})|-?\d{1,3}([\s\x{a0}\x{202f}]\d{3})+([.,]\d+)?)\s*$",
)
"""Minimum share of the values of a column that are numbers written with currencies, units or spaces."""

REACH = 0.2
"""An outcome is drafted as known later by at most this share of the file's time span."""


def begin(
    directory: Path,
    *,
    name: str,
    from_file: Path | None = None,
    label: str = "",
    time: str = "",
    key: str = "",
    zone: str = "UTC",
    task: str = "",
    reading: Reading = AS_DETECTED,
) -> dict[str, list[str]]:
    """Write a loop into `directory` and return the `files` made, `notes` on the assumptions, and the `next_steps`.

    `from_file` is a file, a folder or a glob with one row per decision and, in column `label`, how it came out; both of the
    loop's tables take in the files as they are. Raises UsageError when the directory holds a loop already, a column is not
    missing, or the label is invalid.
    """
    check_name(name, "loop name")
    if why := Zone().problem(zone):
        raise UsageError(f"--zone {why}")
    file = directory / "loop.py"
    if file.exists():
        raise UsageError(f"{file} exists already; `init` writes a new loop: name another folder")
    check_task(task)
    if from_file is None:
        named = {"label": label, "time": time, "key": key, "task": task}
        if unused := [f"--{option}" for option, value in named.items() if value] + reading.options().split()[:1]:
            raise UsageError(f"{', '.join(unused)} needs a file: add --from FILE")
        directory.mkdir(parents=True, exist_ok=True)
        file.write_text(blank_file(name), encoding="utf-8")
        steps = [f"describe your data and your problem in {file}", f"loopwright check {directory}"]
        return {"files": [str(file)], "next_steps": steps}
    found = inferred(from_file, f"{name}-requests", time=time, key=key, zone=zone, reading=reading)
    drafted = _drafted(found, name, label, task, key)
    if label:
        what = f"Predict {drafted.target.what(label)}, for each row such as those of {from_file.name}."
        drafted = drafted._replace(problem=what, owner=UNNAMED)
    text = loop_file(drafted, found.frame)
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    steps = []
    source = f"'{from_file}'" if " " in str(from_file) or "*" in str(from_file) else os.fspath(from_file)
    tables = [drafted.requests.name, *([drafted.outcome.name] if label else [])]
    if not label:
        steps.append(f"say in {file} what the outcome is, and ingest it into table {drafted.outcome.name}")
    steps += [f"loopwright ingest {table} {source}{reading.options()} --loop {directory}" for table in tables]
    steps += [f"loopwright check {directory}", f"loopwright run {directory}", "loopwright serve"]
    return {"files": [str(file)], "notes": _notes(found, drafted, label), "next_steps": steps}


def _notes(inferred: Inferred, drafted: Drafted, label: str) -> list[str]:
    """Assumptions, one line each."""
    notes = [*inferred.notes, *([_predicted(drafted.target, label)] if label else []), *_alike(drafted.outcome)]
    if (field := drafted.outcome.prediction_field) != "id":
        notes.append(f"the tables have a column 'id' of their own: an outcome names its prediction in the field {field!r}")
    notes += [
        f"{column} is left out of the features: is it known at the decision? {why}" for column, why in drafted.leaks.items()
    ]
    notes += _unused(drafted, inferred.frame)
    return notes + [
        f"{column} is taken as planned, by its name: it is {delay}, and the hours until it are a feature (not known then? take it out)"
        if column in drafted.requests.columns
        else f"{column} is left out of the requests: it is {delay}, and not known at the decision (unless it is planned)"
        for column, delay in drafted.later.items()
    ]


def _alike(outcome: Table) -> list[str]:
    """A label's words that differ in case or spaces only: each is a class, which is rarely meant."""
    return [
        f"column {n!r}: {', '.join(map(repr, words))} differ only in case or spaces, and are different labels: "
        f"write them alike, or let `label` of the outcome read lower(trim({n}))"
        for n, c in outcome.columns.items()
        if (
            words := [
                w for w in c.categories or [] if [v.strip().lower() for v in c.categories or []].count(w.strip().lower()) > 1
            ]
        )
    ]


def _unused(drafted: Drafted, frame: pa.Table) -> list[str]:
    """Columns of the requests that the draft makes no feature of, and why: a person may know better."""
    requests, notes = drafted.requests, Notes()
    for name, column in requests.columns.items():
        if name in (*requests.key, requests.event_time) or name in drafted.leaks or column.filled or column.type == "timestamp":
            continue
        if not is_feature(name, column, drafted, frame):
            different = pc.count_distinct(frame[name], mode="only_valid").as_py() if column.type != "array" else 0
            why = (
                "a list" if column.type == "array" else f"{different:,} different texts" if different > 1 else "always the same"
            )
            written = frame[name].drop_null() if column.type == "string" else pa.chunked_array([], pa.string())
            if len(written) and pc.mean(pc.match_substring_regex(written, _DRESSED).cast(pa.int8())).as_py() > DRESSED:
                why += ", numbers with a sign, a unit or spaces: write them without"
            notes.append(f"column {name!r} is no feature: {drafted.ids.get(name) or why}")
    return notes.folded()


def _predicted(aim: DraftTarget, label: str) -> str:
    """The prediction target, as it was understood."""
    known = int(aim.known.sum())
    share = f"true of {aim.reach:.1%} of" if SHAPES[aim.task].has_border else "on"
    what = f"{aim.what(label)}, {share} {count(known, 'row')}"
    gaps = f"; {count(len(aim.known) - known, 'row')} without a label" if known < len(aim.known) else ""
    return f"the label: {what} (task {aim.task}; set --task if it is another){gaps}"


def _drafted(inferred: Inferred, name: str, label: str, task: str, key: str) -> Drafted:
    """The two tables of the loop, the label's expression, and which of the rows have a label."""
    table = inferred.table
    if not label:
        outcome = _outcome(name, table, "happened", Column("boolean"), [])
        return Drafted(name, table, outcome, inferred.spread, target("", None, task))
    column = next((n for n, c in table.columns.items() if label in (n, c.source)), None)
    if column is None:
        raise ColumnUnknown("--label", label, table.columns)
    if column in (*table.key, table.event_time):
        raise UsageError(f"column {label!r} cannot be the label and {'the key' if column in table.key else 'the time'} as well")
    declared = table.columns[column]
    aim = target(column, inferred.frame[column], task)
    # Rows whose outcome is not yet known have no label. A number may have any size; a word, or a yes/no code, must be one of those
    # seen, for any other would make a label "no".
    words = sorted(set(inferred.frame[column].drop_null().to_pylist())) if SHAPES[aim.task].label != "float" else []
    texts, codes = declared.type == "string" and words, declared.type == "integer" and len(words) == 2
    judged = msgspec.structs.replace(
        declared,
        nullable=True,
        minimum=words[0] if codes else None,
        maximum=words[-1] if codes else None,
        categories=words if texts else None,
    )
    requests = msgspec.structs.replace(
        table, columns={n: c for n, c in table.columns.items() if n != column}, ignore=[*table.ignore, inferred.written[column]]
    )
    there = flags(pc.is_valid(inferred.frame[column]))
    asked_of = inferred._replace(frame=inferred.frame.drop_columns([column]))
    drafted = Drafted(
        name, requests, _outcome(name, table, column, judged, ["*"]), inferred.spread, aim, _names(requests, asked_of, key)
    )
    asked = [n for n in requests.columns if n not in (*table.key, table.event_time) and n in inferred.frame.column_names]
    drafted = drafted._replace(leaks=leaking(inferred.frame, asked, aim))
    drafted = _stamped(drafted, inferred)
    if drafted.spread and not _both_sides(inferred.frame[table.event_time], there):
        drafted = drafted._replace(spread=False)
    return drafted


def _stamped(drafted: Drafted, inferred: Inferred) -> Drafted:
    """Take times that always follow the decision out of the requests, and use one of them as the time when the outcome is known.

    Of several it is one that is always present, and the last. Where it follows at a fixed delay, or not for every row, the outcome is
    known after the longest delay; a delay above REACH of the file's span is only a comment, since too few rows would be known.
    """
    requests, outcome, frame = drafted.requests, drafted.outcome, inferred.frame
    event = requests.event_time
    times = [n for n, c in requests.columns.items() if c.type == "timestamp" and n not in (event, *requests.key)]
    after = later(frame, event, times) if event in frame.column_names else {}
    if not after:
        return drafted
    name = max(after, key=lambda n: (after[n].always, after[n].middle))
    delay, moments = after[name], frame[event].cast(pa.int64())
    spans = timedelta(microseconds=pc.max(moments).as_py() - pc.min(moments).as_py())
    exact = delay.always and not delay.constant
    stays = (delay.middle if exact else delay.longest) <= REACH * spans
    if stays and exact:
        stamp = msgspec.structs.replace(requests.columns[name], nullable=False, optional=False)
        columns = outcome.columns | {name: stamp}
        outcome = msgspec.structs.replace(outcome, columns=columns, known_time=name)
    elif stays:
        outcome = msgspec.structs.replace(outcome, known_after=delay.after)
    unknown = [n for n in after if not _PLANNED.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", n).lower())]
    return drafted._replace(
        requests=msgspec.structs.replace(
            requests,
            columns={n: c for n, c in requests.columns.items() if n not in unknown},
            ignore=[*requests.ignore, *(inferred.written[n] for n in unknown)],
        ),
        outcome=outcome,
        hours={n: delay.middle / timedelta(hours=1) for n, delay in after.items()},
        later={n: f"{delay} after {event}" for n, delay in after.items()},
        stamped=(name, delay.after),
    )


def _names(table: Table, inferred: Inferred, key: str) -> dict[str, str]:
    """Identifier columns, which are not features, and why: numbers in the user's key, row numbers and numbers of entities.

    A text of the key may be a feature: of readings of machines, the machine often explains most.
    """
    called = {n: "" for n, c in table.columns.items() if c.type != "string" and {n, c.source} & {key, *key.split(",")}}
    numbers = [n for n, c in table.columns.items() if c.type in ("integer", "float") and n in inferred.frame.column_names]
    rows = {n: "" for n in numbers if is_id(n) and pc.count_distinct(inferred.frame[n]).as_py() == len(inferred.frame)}
    return {n: why for n in numbers if (why := identifies(n, inferred.frame))} | rows | called


def _outcome(name: str, table: Table, column: str, judged: Column, ignore: list[str]) -> Table:
    shared = {n: table.columns[n] for n in dict.fromkeys([*table.key, table.event_time])}
    return Table(
        name=f"{name}-outcomes", columns={**shared, column: judged}, key=table.key, event_time=table.event_time, ignore=ignore
    )


def _both_sides(moments: pa.ChunkedArray, labelled: pa.Array) -> bool:
    """Whether there are labels both before and after the boundary of the newest fifth."""
    seen = moments.cast(pa.int64())
    low, high = (pc.min(seen).as_py(), pc.max(seen).as_py())
    newest = flags(pc.fill_null(pc.greater(seen, high - (high - low) // 5), False))
    return bool((newest & labelled).sum() >= 20 and (~newest & labelled).sum() >= 20)
