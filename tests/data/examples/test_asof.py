"""The as-of joins against a search through all rows, on random histories: ties, corrections, rows known late or before they happen."""

from collections.abc import Iterator
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from tests.data.history import MINUTE, Row, home, us

from loopwright import Aggregate, Column, Context, Home, Table
from loopwright.base.errors import DeclarationInvalid
from loopwright.data.examples import aggregates, asof
from loopwright.graph.columns import arrow_schema
from loopwright.records.declarations import to_builtins
from loopwright.sql.engine import sql_engine

LANDED = Table(
    "landed",
    {
        "flight": Column("integer"),
        "at": Column("timestamp"),
        "told": Column("timestamp"),
        "carrier": Column("string", nullable=True),
        "gate": Column("integer"),
        "delay": Column("float", nullable=True),
        "kind": Column("string", nullable=True),
    },
    key=["flight"],
    event_time="at",
    known_time="told",
    known_after="2m",
)
SKY = Table(
    "sky",
    {
        "site": Column("string"),
        "gate": Column("integer"),
        "seen": Column("timestamp"),
        "told": Column("timestamp"),
        "wind": Column("float", nullable=True),
    },
    key=["site", "gate"],
    event_time="seen",
    known_time="told",
    known_after="1m",
)
BY = {"carrier": "airline"}
BOTH = {"carrier": "airline", "gate": "door"}
AGGREGATES = [
    Aggregate(name="n", table=LANDED, by=BY, function="count", window="2h"),
    Aggregate(name="total", table=LANDED, by=BY, function="sum", of="delay", window="2h"),
    Aggregate(name="mean", table=LANDED, by=BY, function="mean", of="delay * 1.5", window="2h"),
    Aggregate(name="late", table=LANDED, by=BY, function="share", of="delay > 5", window="2h", lag="0s"),
    Aggregate(name="low", table=LANDED, by=BOTH, function="min", of="delay", window="90m"),
    Aggregate(name="high", table=LANDED, by=BY, function="max", of="abs(delay)", window="90m", lag="7m"),
    Aggregate(name="kinds", table=LANDED, by=BOTH, function="distinct", of="kind", window="3h"),
    Aggregate(name="numbers", table=LANDED, by={"gate": "door"}, function="distinct", of="delay", window="40m"),
]
CONTEXTS = [
    Context(SKY, by={"site": "airline", "gate": "door"}, columns=["wind"], max_age="50m", lag="3m"),
    Context(SKY, by={"site": "other", "gate": "door"}, columns={"there": "wind", "there_at": "seen"}),
]
REQUEST = pa.schema([("airline", pa.string()), ("other", pa.string()), ("door", pa.int64()), ("_us", pa.int64())])


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Home]:
    with home(tmp_path / "home") as found:
        yield found


def history(seed: int, start: datetime, rows: int = 160, decisions: int = 150) -> tuple[list[Row], list[Row], list[Row]]:
    """Landings, skies and decisions within half a day; minutes collide on purpose."""
    rng = np.random.default_rng(seed)

    def moment() -> datetime:
        return start + MINUTE * int(rng.integers(0, 720))

    def pick(*values: Any) -> Any:
        return values[rng.integers(0, len(values))]

    landed: list[Row] = []
    for number in range(rows):
        at = moment()
        flight = int(rng.integers(0, rows // 3)) if rng.random() < 0.2 else number
        for _ in range(int(pick(1, 1, 1, 2, 3))):  # versions: some correct the carrier too, some are known at the same time
            told = at + MINUTE * int(pick(-30, 0, 0, 0, 5, 5, 60, 200))
            landed.append(
                {
                    "flight": flight,
                    "at": at,
                    "told": told,
                    "carrier": pick("AA", "AA", "B6", "None", None),
                    "gate": int(pick(1, 2)),
                    "delay": None
                    if rng.random() < 0.2
                    else float(pick(rng.integers(-9, 9), rng.normal() * 1e3, 1e9 / 3, -0.0)),
                    "kind": pick("a", "b", "c", None),
                }
            )
    sky = [
        {
            "site": pick("AA", "B6", "None"),
            "gate": int(pick(1, 2)),
            "seen": at,
            "told": at + MINUTE * int(pick(-60, 0, 0, 10, 10, 120)),
            "wind": None if rng.random() < 0.2 else float(rng.normal()),
        }
        for at in [moment() for _ in range(rows)]
    ]
    sky += [{**r, "wind": float(rng.normal())} for r in sky if rng.random() < 0.3]  # alike in key and moments: the last counts
    landed += [{**r, "delay": float(rng.normal()), "kind": pick("a", None)} for r in landed if rng.random() < 0.1]
    asked: list[Row] = [
        {
            "airline": pick("AA", "B6", "None", "ZZ", None),
            "other": pick("AA", "B6", None),
            "door": int(pick(1, 2)),
            "_us": us(moment()) + int(pick(-1, 0, 0, 0, 1)),
        }
        for _ in range(decisions)
    ]
    return landed, sky, asked


def context_of(rows: list[Row], c: Context, asked: Row) -> Row:
    """What a context gives a decision, as plainly as possible."""
    lag = {"3m": 3, "1m": 1}[c.lag]
    mine = [
        r for r in rows if all(r[k] == asked[q] for k, q in c.by.items()) and us(r["told"] + MINUTE * (1 + lag)) <= asked["_us"]
    ]
    best = max(reversed(mine), key=lambda r: (r["seen"], r["told"]), default=None)
    if best is not None and c.max_age is not None and asked["_us"] - us(best["seen"]) > 50 * 60 * 1_000_000:
        best = None
    return {name: None if best is None else best[column] for name, column in c.wanted.items()}


OF: dict[str, Any] = {
    "": lambda _: 1,
    "delay": lambda r: r["delay"],
    "delay * 1.5": lambda r: None if r["delay"] is None else r["delay"] * 1.5,
    "delay > 5": lambda r: None if r["delay"] is None else r["delay"] > 5,
    "abs(delay)": lambda r: None if r["delay"] is None else abs(r["delay"]),
    "kind": lambda r: r["kind"],
}


def aggregate_of(rows: list[Row], a: Aggregate, asked: Row) -> Any:
    """What an aggregate gives a decision, as plainly as possible."""
    lag, window = {"0s": 0, "1m": 1, "7m": 7}[a.lag], {"2h": 120, "90m": 90, "3h": 180, "40m": 40}[a.window]
    newest: dict[Any, Row] = {}
    for r in sorted(rows, key=lambda r: r["told"]):
        if us(r["told"] + MINUTE * (2 + lag)) <= asked["_us"]:
            newest[r["flight"], r["at"]] = r
    now = asked["_us"]
    mine = [r for r in newest.values() if all(r[k] is not None and r[k] == asked[q] for k, q in a.by.items())]
    mine = [r for r in mine if now - window * 60_000_000 < us(r["at"]) <= now]
    if a.function == "count":
        return len(mine)
    values = [v for r in mine if (v := OF[a.of](r)) is not None]
    if a.function == "distinct":
        return len(set(values))
    exact = [Fraction(round(Fraction(v) * aggregates.SCALE), aggregates.SCALE) for v in values]
    if a.function == "sum":
        return float(sum(exact))
    if not values:
        return None
    plain: dict[str, Any] = {
        "min": min,
        "max": max,
        "mean": lambda v: float(sum(exact) / len(v)),
        "share": lambda v: float(Fraction(sum(v), len(v))),
    }
    return plain[a.function](values)


def dataset(table: Table, rows: list[Row]) -> ds.Dataset:
    """Rows as they were ingested one after another, shuffled: the order is what `ORDER` says."""
    made = pa.Table.from_pylist(rows, schema=arrow_schema(table.columns))
    made = made.append_column(asof.ORDER, pa.array(range(len(rows)), pa.int64()))
    return ds.dataset(made.take(np.random.default_rng(0).permutation(len(rows))))


def found(opened: Home, landed: list[Row], sky: list[Row], asked: list[Row], **given: Any) -> list[Row]:
    """What the SQL finds."""
    data = {t.name: dataset(t, r) for t, r in ((LANDED, landed), (SKY, sky))}
    with sql_engine(opened, ordered=False) as database:
        database.register(
            "asked",
            pa.Table.from_pylist(
                [{**r, "i": i} for i, r in enumerate(asked)], schema=REQUEST.append(pa.field("i", pa.int64()))
            ),
        )
        joins = [(f"s{i}", j) for i, j in enumerate(asof.joined(CONTEXTS, AGGREGATES))]
        columns: dict[str, str] = {}
        for name, j in joins:
            asof.create(database, name, j, data[j.table.name], **given)
            columns |= asof.values(name, j)
        chosen = ", ".join(f"{sql} AS {n}" for n, sql in columns.items())
        table = database.sql(f"SELECT {chosen} FROM {asof.asof('asked', joins)} ORDER BY i").to_arrow_table()
    return table.to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


STARTS = [
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 3, 9, 22, tzinfo=ZoneInfo("America/New_York")).astimezone(UTC),  # the clocks go forward in this night,
    datetime(2024, 11, 2, 22, tzinfo=ZoneInfo("America/New_York")).astimezone(UTC),  # and back in this
]


@pytest.mark.parametrize("seed", range(9))
def test_every_decision_gets_what_a_plain_search_finds(opened: Home, seed: int) -> None:
    landed, sky, asked = history(seed, STARTS[seed % 3])
    rows = found(opened, landed, sky, asked)
    for r, a in zip(rows, asked, strict=True):
        wanted = (
            {a_.name: aggregate_of(landed, a_, a) for a_ in AGGREGATES}
            | context_of(sky, CONTEXTS[0], a)
            | context_of(sky, CONTEXTS[1], a)
        )
        for name in ("total", "mean"):  # exact inside, and rounded once or twice on the way out
            wanted[name] = wanted[name] and pytest.approx(wanted[name], rel=4.5e-16, abs=0.0)
        assert r == wanted, a
    assert all(any(r[c] not in (None, 0) for r in rows) for c in rows[0]), "each column says something somewhere"


@pytest.mark.parametrize("seed", [20, 21, 22])
def test_steps_of_a_later_stretch_are_the_same_steps(opened: Home, seed: int) -> None:
    """Made for decisions from a moment on, or of what was known by one, they are right for those decisions."""
    landed, sky, asked = history(seed, STARTS[0])
    middle = us(STARTS[0] + 300 * MINUTE)
    whole = found(opened, landed, sky, asked)
    late, early = found(opened, landed, sky, asked, since=middle), found(opened, landed, sky, asked, known_by=middle)
    for a, w, after, before in zip(asked, whole, late, early, strict=True):
        assert a["_us"] < middle or after == w
        assert a["_us"] > middle or before == w


def test_sums_do_not_depend_on_what_came_and_went(opened: Home) -> None:
    """A huge value that left the window leaves nothing behind."""
    start = STARTS[0]
    rows = [
        {
            "flight": i,
            "at": start + MINUTE * at,
            "told": start + MINUTE * at,
            "carrier": "AA",
            "gate": 1,
            "delay": v,
            "kind": None,
        }
        for i, (at, v) in enumerate([(0, 1e16), (1, 0.1), (2, -1e16 / 3), (200, 0.1), (201, 0.2)])
    ]
    asked: list[Row] = [{"airline": "AA", "other": None, "door": 1, "_us": us(start + MINUTE * 210)}]
    [row] = found(opened, rows, [], asked)
    rounded = [round(v * aggregates.SCALE) / aggregates.SCALE for v in (0.1, 0.2)]
    assert row["total"] == sum(rounded) == pytest.approx(0.3, abs=1e-12)
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.225, abs=1e-12))


def test_an_empty_window_and_an_unknown_key_are_alike(opened: Home) -> None:
    landed, sky, _ = history(1, STARTS[0])
    asked: list[Row] = [
        {"airline": key, "other": None, "door": 1, "_us": us(STARTS[0]) + off}
        for key in ("AA", "ZZ", None)
        for off in (0, 10**14)
    ]
    for row in found(opened, landed, sky, [asked[1], asked[3], asked[5]]):
        nothing = {"n": 0, "total": 0.0, "mean": None, "late": None, "low": None, "high": None, "kinds": 0, "numbers": 0}
        assert {n: row[n] for n in nothing} == nothing
        assert row["wind"] is None


def test_infinite_values_are_not_counted_and_too_large_ones_are_refused(opened: Home) -> None:
    start = STARTS[0]
    row = {"flight": 1, "at": start, "told": start, "carrier": "AA", "gate": 1, "delay": float("inf"), "kind": None}
    asked: list[Row] = [{"airline": "AA", "other": None, "door": 1, "_us": us(start + MINUTE * 10)}]
    [found_row] = found(opened, [row], [], asked)
    assert (found_row["n"], found_row["total"], found_row["mean"], found_row["low"], found_row["high"]) == (
        1,
        0.0,
        None,
        None,
        None,
    )
    with pytest.raises(DeclarationInvalid, match="Aggregate n, total, mean"):
        found(opened, [row | {"delay": 1e300}], [], asked)


@pytest.mark.parametrize(
    "of", ["no_such_column", "delay >", "(SELECT count(*) FROM read_csv('/etc/passwd'))", "kind", "getenv('HOME')"]
)
def test_an_expression_that_cannot_be_evaluated_is_named(opened: Home, of: str) -> None:
    landed, _, _ = history(1, STARTS[0])
    wrong = Aggregate(name="wrong", table=LANDED, by=BY, function="mean", of=of, window="1h")
    data = dataset(LANDED, landed)
    [joined] = asof.joined([], [wrong])
    with sql_engine(opened, ordered=False) as database, pytest.raises(DeclarationInvalid, match=r"(?s)Aggregate wrong.*of"):
        asof.create(database, "s", joined, data)


def test_aggregates_that_can_be_made_in_one_pass_are() -> None:
    assert [[a.name for a in j.aggregates] for j in asof.joined([], AGGREGATES)] == [
        ["n", "total", "mean"],
        ["late"],
        ["low"],
        ["high"],
        ["kinds"],
        ["numbers"],
    ]


def test_a_declaration_out_of_the_ledger_has_the_same_steps() -> None:
    """Upkeep feeds what the ledger declares, under the names that packages look up; JSON objects lose their order there."""
    contexts = msgspec.convert(to_builtins([*CONTEXTS, CONTEXTS[0]]), list[Context])
    again = msgspec.convert(to_builtins(AGGREGATES), list[Aggregate])
    for here, there in zip(asof.joined([*CONTEXTS, CONTEXTS[0]], AGGREGATES), asof.joined(contexts, again), strict=True):
        assert (here.need.store, here.need.values, here.need.by) == (there.need.store, there.need.values, there.need.by)
        assert here.columns == there.columns


def test_steps_are_kept_under_one_name_exactly_where_they_are_the_same() -> None:
    here, there = (
        j.need for j in asof.joined([Context(SKY, by={"site": a, "gate": "door"}, columns=["wind"]) for a in ("x", "y")], [])
    )
    assert here.store == there.store
    names = {
        j.need.store
        for j in asof.joined(
            [*CONTEXTS, Context(SKY, by={"site": "x", "gate": "door"}, columns=["wind"], lag="2m")], AGGREGATES
        )
    }
    assert len(names) == 9
    assert all(name.startswith(("sky.", "landed.")) for name in names)
