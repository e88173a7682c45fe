"""Drafts of `init` on files of many kinds live on as they were written: to a retraining that they begin themselves.

Each kind has a known truth. Its file goes through `init`, `ingest`, `run` and release; then requests of the same kind come, through the
engine that the server uses, on a simulated clock, with outcomes, and upkeep closes windows until a reason to retrain is found.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.data.ingest.ingestion import ingest, put_contract
from loopwright.data.scaffold.init import begin
from loopwright.deploy.releases import serving
from loopwright.deploy.serving import release_files
from loopwright.deploy.serving.engine import PredictionRequest, ServingEngine
from loopwright.deploy.serving.registry import Registry
from loopwright.loop import load_loop
from loopwright.records.declarations import Loop, duration
from loopwright.records.evaluation import Leaderboard
from loopwright.records.turns import Turn
from loopwright.stores.home import Home
from loopwright.tend import upkeep
from loopwright.turn import turn
from loopwright.verbs.check import check

START = datetime(2021, 3, 1, 9, tzinfo=UTC)
LABEL = "came_back"
CHUNK, PARTS = 250, 4
MAX_WINDOWS = 16
"""A draft that has not retrained after so many windows never will."""

MINUTE, HOUR, DAY, WEEK = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=7))

Columns = dict[str, Any]
Change = Callable[[Columns, np.random.Generator], None]


class Kind(NamedTuple):
    """One kind of file: how many rows, how often one comes, which share is positive, how it is written; `leak` is to be named by `run`.

    `changes` make it what it is: each changes the columns (arrays [N], the label among them) in place.
    """

    name: str
    rows: int = 3000
    every: timedelta = HOUR
    share: float = 0.3
    task: str = "binary"
    changes: tuple[Change, ...] = ()
    form: str = "csv"
    time: str = "asked_at"
    key: str = "order"
    leak: tuple[str, ...] = ()
    said: tuple[str, ...] = ()


# --- what makes a file what it is --------------------------------------------------------------------------------------


def sentinel(number: float, columns: Columns, rng: np.random.Generator) -> None:
    """Some amounts are not known, and a number stands for them."""
    columns["amount"] = np.where(rng.random(len(columns["amount"])) < 0.15, number, columns["amount"])


def repeated(columns: Columns, rng: np.random.Generator) -> None:
    """A few hundred customers come again and again."""
    columns["order"] = np.array([f"c{n}" for n in rng.integers(0, 200, len(columns["order"]))])


def index(columns: Columns, rng: np.random.Generator) -> None:
    """A data frame's index stands in front."""
    count = len(columns["order"])
    first = {"Unnamed: 0": np.arange(count)} | columns
    columns.clear()
    columns.update(first)


def words(yes: str, no: str, columns: Columns, rng: np.random.Generator) -> None:
    """The label is one of two words."""
    columns[LABEL] = np.where(columns[LABEL], yes, no)


def local(columns: Columns, rng: np.random.Generator) -> None:
    """Times are written as people do, without a zone."""
    columns["asked_at"] = np.array([f"{at[8:10]}.{at[5:7]}.{at[:4]} {at[11:16]}" for at in columns["asked_at"].tolist()])


def gaps(columns: Columns, rng: np.random.Generator) -> None:
    """A tenth of the amounts and a fifth of the plans are missing."""
    columns["amount"] = [None if rng.random() < 0.1 else float(v) for v in columns["amount"]]
    columns["plan"] = [None if rng.random() < 0.2 else str(v) for v in columns["plan"]]


def wide(columns: Columns, rng: np.random.Generator) -> None:
    """Sixty columns of noise with names that no code can write."""
    columns |= {f"n {i} (%)": np.round(rng.normal(0, 1, len(columns["order"])), 3) for i in range(60)}


def leak_code(columns: Columns, rng: np.random.Generator) -> None:
    """A number that is filled in once it is known how it came out."""
    columns["refund"] = np.where(columns[LABEL], np.round(rng.uniform(5, 50, len(columns[LABEL])), 2), 0.0)


def leak_words(columns: Columns, rng: np.random.Generator) -> None:
    """A column of which some words are seen with one outcome only."""
    yes, no = rng.choice(["returned", "refunded"], len(columns[LABEL])), rng.choice(["kept", "paid"], len(columns[LABEL]))
    columns["status"] = np.where(columns[LABEL], yes, no)


def leak_missing(columns: Columns, rng: np.random.Generator) -> None:
    """A column that is there only where it came out one way."""
    columns["desk"] = [int(rng.integers(1, 9)) if yes else None for yes in columns[LABEL]]


def leak_sum(columns: Columns, rng: np.random.Generator) -> None:
    """Two columns that add up to the number that is to be predicted."""
    part = np.round(columns[LABEL] * rng.uniform(0.2, 0.6, len(columns[LABEL])))
    columns["casual"], columns["registered"] = part.astype(int), (np.round(columns[LABEL]) - part).astype(int)
    columns[LABEL] = columns["casual"] + columns["registered"]


def nameless(columns: Columns, rng: np.random.Generator) -> None:
    """One row an hour, and nothing but the hour tells rows apart."""
    del columns["order"], columns["note"]


def closed(columns: Columns, rng: np.random.Generator) -> None:
    """A case is closed some hours after it was asked about."""
    after = [timedelta(hours=float(h)) for h in rng.gamma(2, 12, len(columns[LABEL]))]
    columns["closed_at"] = np.array(
        [(datetime.fromisoformat(at) + more).isoformat() for at, more in zip(columns["asked_at"].tolist(), after, strict=True)]
    )


KINDS = [
    Kind("minutes", 4000, MINUTE, 0.2),
    Kind("quarters-of-an-hour", 4000, 15 * MINUTE, 0.05),
    Kind("hours", 3000, HOUR, 0.3),
    Kind("days", 1500, DAY, 0.4),
    Kind("weeks", 500, WEEK, 0.4),
    Kind("one-in-a-hundred", 9000, 10 * MINUTE, 0.01),
    Kind("one-zone-behind", 3000, HOUR, 0.15, changes=(local,), form="utf-16", said=("read as utf-16", "no time zone")),
    Kind("most-are-positive", 3000, HOUR, 0.6),
    Kind("words", 3000, HOUR, 0.1, changes=(partial(words, "returned", "kept"),), said=("came_back = 'returned'",)),
    Kind("classes", 3000, HOUR, task="multiclass"),
    Kind("numbers", 3000, HOUR, task="regression"),
    Kind("sentinel-200", 3000, HOUR, 0.3, changes=(partial(sentinel, -200.0),), said=("'amount': -200",)),
    Kind("sentinel-9999", 3000, 2 * HOUR, 0.2, changes=(partial(sentinel, 9999.0),), said=("'amount': 9999",)),
    Kind("customers-again", 3000, HOUR, 0.3, changes=(repeated,), said=("repeats, so the key is order and asked_at",)),
    Kind("index-in-front", 3000, HOUR, 0.3, changes=(index, gaps), key="", said=("only counts the rows",)),
    Kind("time-is-the-key", 3000, HOUR, 0.3, changes=(nameless,), key="", said=("the key is 'asked_at'",)),
    Kind("closed-later", 3000, HOUR, 0.3, changes=(closed,), said=("closed_at is left out of the requests",)),
    Kind("wide", 2500, HOUR, 0.3, changes=(wide,), said=("59 more columns",)),
    Kind("no-time", 2500, HOUR, 0.3, time=""),
    Kind("leak-code", 3000, HOUR, 0.3, changes=(leak_code,), form="semicolon", leak=("refund",)),
    Kind("leak-words", 3000, HOUR, 0.2, changes=(leak_words,), form="parquet", leak=("status",)),
    Kind("leak-missing", 3000, HOUR, 0.2, changes=(leak_missing,), form="jsonl", leak=("desk",)),
    Kind("leak-sum", 3000, HOUR, task="regression", changes=(leak_sum,), form="latin-1", leak=("casual", "registered")),
]
QUICK = ("weeks", "sentinel-200", "leak-words")
"""These run each time; the others are slow, together."""


# --- the truth, and how it is written ----------------------------------------------------------------------------------


def made(kind: Kind, count: int, first: int, seed: int) -> Columns:
    """`count` rows from number `first` on, as columns [count]; the label depends on amount, visits, plan, and chance."""
    rng = np.random.default_rng([seed, first])
    amount, visits = np.round(rng.gamma(2.0, 30.0, count), 2), rng.poisson(3, count)
    plan = rng.choice(["basic", "plus", "münchen"], count)
    latent = (amount - 60) / 42 + 0.5 * (visits - 3) + 0.8 * (plan == "basic") + rng.normal(0, 0.8, count)
    columns: Columns = {
        "order": np.array([f"o{seed}-{first + i}" for i in range(count)]),
        "asked_at": moments(kind, count, first),
        "amount": amount,
        "visits": visits,
        "plan": plan,
        "note": np.array([f"note {rng.integers(10**9)}" for _ in range(count)]),
    }
    labels: dict[str, Any] = {
        "binary": latent > _border(kind.share),
        "multiclass": np.where(latent > 0.9, "high", np.where(latent > -0.5, "middle", "low")),
        "regression": np.round(200 + 60 * latent).astype(int),
    }
    columns[LABEL] = labels[kind.task]
    if not kind.time:
        del columns["asked_at"]
    for change in kind.changes:
        change(columns, rng)
    return columns


def moments(kind: Kind, count: int, first: int) -> Any:
    """When each of `count` rows from number `first` on is asked about, ISO 8601 [count]."""
    return np.array([(START + kind.every * (first + i)).isoformat() for i in range(count)])


def _border(share: float) -> float:
    """The latent number that this share of all rows is above."""
    rng = np.random.default_rng(5)
    n = 200_000
    latent = (rng.gamma(2.0, 30.0, n) - 60) / 42 + 0.5 * (rng.poisson(3, n) - 3)
    return float(np.quantile(latent + 0.8 * (rng.random(n) < 1 / 3) + rng.normal(0, 0.8, n), 1 - share))


def written(kind: Kind, columns: Columns, folder: Path) -> Path:
    """The file, in the kind's own form."""
    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    path = folder / f"history.{kind.form if kind.form in ('parquet', 'jsonl') else 'csv'}"
    if kind.form == "parquet":
        pq.write_table(table, path)
    elif kind.form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")
    else:
        sink = pa.BufferOutputStream()
        delimiter = {"semicolon": ";", "utf-16": "\t"}.get(kind.form, ",")
        options = pyarrow.csv.WriteOptions(delimiter=delimiter, quoting_style="needed")
        pyarrow.csv.write_csv(table, sink, options)
        text = sink.getvalue().to_pybytes().decode()
        path.write_bytes(text.encode(kind.form if kind.form in ("latin-1", "utf-16") else "utf-8"))
    return path


# --- a life ------------------------------------------------------------------------------------------------------------


class Life:
    """A drafted loop: made from its file, trained, released, asked."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        history = made(kind, kind.rows, 0, seed=1)
        path = written(kind, history, folder)
        drafted = begin(folder / "loop", name="drafted", from_file=path, label=LABEL, time=kind.time, key=kind.key)
        self.notes = drafted["notes"]
        self.loop: Loop = load_loop(folder / "loop")
        self.clock = SimulatedClock(START + kind.every * kind.rows)
        self.home = Home(Settings(home=folder / "home", by="tests"), self.clock)
        self.said: list[str] = []
        for table in self.loop.tables.values():
            put_contract(self.home, table)
            assert ingest(self.home, table, path).quarantined == 0
            self.clock.advance(MINUTE)
        self.next = kind.rows
        self.labelled: list[Any] = []
        self.truth: list[Any] = []

    def say(self, line: str) -> None:
        """See Progress."""
        self.said.append(line)

    def advance(self, what: str, done: float, total: float) -> None:
        """See Progress."""

    def turn(self, **given: Any) -> None:
        turn(self.home, self.loop, file=str(self.folder / "loop" / "loop.py"), progress=self, **given)

    def live(self, until: datetime) -> None:
        """Requests and their outcomes until then, at the kind's own pace, as the server takes them."""
        release_files.follow(self.home)
        engine = ServingEngine(Registry(self.home.path, self.home.packages, self.home.online, self.clock))
        engine.registry.refresh()
        pause = timedelta(seconds=1)  # so that what comes at the end of a window is in it
        whole = (until - self.clock.now()) // self.kind.every
        while self.clock.now() < until:
            count = min(CHUNK, 1 + whole // PARTS, max(1, (until - self.clock.now()) // self.kind.every))
            columns = made(self.kind, count, self.next, seed=1)
            truth = [_plain(v) for v in columns.pop(LABEL)]
            if self.kind.time:  # requests write times as JSON does, whatever the file
                columns[self.kind.time] = moments(self.kind, count, self.next)
            self.next += count
            self.clock.advance(self.kind.every * count - pause)
            names = {c.source if c.source is not None else n: n for n, c in self.loop.requests.columns.items()}
            rows = [
                {names[name]: _plain(value) for name, value in zip(columns, row, strict=True) if name in names}
                for row in zip(*columns.values(), strict=True)
            ]
            [answers] = engine.answer(
                "drafted", [PredictionRequest(engine.registry.service("drafted").decode(msgspec.json.encode(rows)).rows)]
            )
            assert isinstance(answers, list), answers
            assert not any("degraded" in a.flags for a in answers)
            told = [{"id": a.id, LABEL: t} for a, t in zip(answers, truth, strict=True)]
            engine.accept("drafted", msgspec.json.encode(told), "http")
            self.clock.advance(pause)
            self.labelled += [a.label for a in answers]
            self.truth += truth
        engine.close()

    def until_retrained(self) -> Turn:
        """Live on until upkeep finds a reason to retrain and a turn has followed it; that turn."""
        step = duration(self.loop.monitor.every)
        for _ in range(MAX_WINDOWS):
            self.live(self.clock.now() + step)
            kept = upkeep(self.home, self.loop, until=self.clock.now())
            assert {w.state_text for w in kept.watched.windows} <= {"ok", "watch", "drift"}, (
                "windows have rows enough to be judged"
            )
            if (trigger := kept.watched.trigger) is not None:
                self.turn(as_of=self.clock.now(), cause=trigger.cause, why=trigger.reason, refit=True)
                newest = self.home.ledger.latest(Turn, loop="drafted")
                assert newest is not None
                return newest.record
        raise AssertionError(f"no reason to retrain in {MAX_WINDOWS} windows of {self.loop.monitor.every}")

    def verdict(self) -> str:
        board = self.home.ledger.latest(Leaderboard, loop="drafted")
        assert board is not None
        return board.record.verdict


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize(
    "kind", [pytest.param(k, id=k.name, marks=[] if k.name in QUICK else [pytest.mark.slow]) for k in KINDS]
)
def test_draft_goes_from_init_to_its_own_retraining_without_editing(kind: Kind, tmp_path: Path) -> None:
    life = Life(kind, tmp_path)
    assert all(any(part in note for note in life.notes) for part in kind.said), life.notes
    checked = check(life.home, str(tmp_path / "loop"))
    assert checked.ok, [(i.name, i.detail) for i in checked.items if not i.ok]
    life.turn(why="first")
    first = serving(life.home, "drafted")
    assert first is not None
    for leak in kind.leak:
        assert any(f"{leak} is left out of the features" in note for note in life.notes), life.notes
        assert leak in life.verdict(), life.verdict()
        assert any(leak in line for line in life.said), life.said
    again = life.until_retrained()
    assert (again.state, again.cause) in {("done", c) for c in ("schedule", "drift", "decay")}
    second = serving(life.home, "drafted")
    assert second is not None
    assert second.champion.package != first.champion.package, life.said
    assert len(life.truth) > 50
    if kind.task == "binary":
        positive = {"returned"} if isinstance(life.truth[0], str) else {True}
        truth = np.mean([t in positive for t in life.truth])
        assert truth / 2 <= np.mean(np.array(life.labelled, dtype=bool)) <= 2 * truth
    life.home.close()
