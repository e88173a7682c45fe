import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import pytest

from loopwright.base.errors import DeclarationInvalid
from loopwright.base.settings import Settings
from loopwright.data.examples import aggregates
from loopwright.records.declarations import Aggregate, Column, Outcome, Table
from loopwright.sql import expression
from loopwright.sql.engine import sql_engine
from loopwright.sql.functions import ROW_FUNCTIONS
from loopwright.stores.home import Home
from loopwright.tasks.label import label_sql

LANDED = Table(
    "landed",
    columns={"id": Column("string"), "landed_at": Column("timestamp"), "Delay": Column("float"), "dest": Column("string")},
    key=["id"],
    event_time="landed_at",
)
OF_ONE_ROW = [
    "Delay",
    '"left"',
    "CASE WHEN dest = 'X' THEN Delay ELSE 0 END > 15 AND NOT (id LIKE 'a%')",
    "list_sum(list_transform([1, 2], lambda x: x + Delay)) > 3",
    "dest IN ('A', 'B') OR date_part('hour', landed_at) >= 21",
    "'SELECT 1; -- ' || dest",
    "age(landed_at, TIMESTAMPTZ '2013-01-01') > INTERVAL 1 DAY",
    "coalesce(Delay, 0) > 3 AND NOT isnan(Delay)",
    "Delay - 15 > 0",
    "-Delay > 3",
    "hour(landed_at) > 8",
    "Delay + 1 > 2 AND Delay * 2 % 3 // 2 ** 2 <= @Delay",
    "landed_at - INTERVAL 3 DAYS > TIMESTAMPTZ '2013-01-01'",
    "date_trunc('day', landed_at) = landed_at AND strftime(landed_at, '%H') = '03'",
    "landed_at AT TIME ZONE 'Europe/Rome' > TIMESTAMP '2013-01-01'",
    "date_diff('day', landed_at, make_timestamptz(2013, 1, 1, 0, 0, 0.0)) > date_sub('day', landed_at, landed_at)",
    "year(landed_at) = 2013 OR dayofweek(landed_at) IN (0, 6) OR last_day(landed_at) > DATE '2013-02-01'",
    "CASE dest WHEN 'X' THEN 1 ELSE nullif(Delay, 0) END BETWEEN 1 AND 2",
    "list_aggr([Delay, 2], 'SUM') > 3 AND [x for x in [1, 2] if x > Delay][1] = 1",
    "if(dest SIMILAR TO 'A.*', upper(dest), lower(dest)) ILIKE '%a'",
    "TRY_CAST(dest AS INTEGER) IS NOT DISTINCT FROM 3 AND dest COLLATE NOCASE = 'x'",
    "json_extract_string(dest, '$.a') = 'b' OR {'a': Delay}.a > 3",
    "split_part(dest, '-', 2) = 'x' OR lpad(dest, 5, '0') = md5(dest)",
]
OF_MORE = {
    "(SELECT count(*) FROM range(1000000000000))": "a SELECT of its own",
    "Delay > (SELECT avg(Delay) FROM landed)": "a SELECT of its own",
    "EXISTS (SELECT * FROM read_text('/etc/passwd'))": "a SELECT of its own",
    "dest IN (WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT * FROM t)": "a SELECT of its own",
    "lead(Delay) OVER (ORDER BY landed_at)": "other rows",
    "$1": "a parameter",
    "sum(Delay) > 3": "sum looks at other rows",
    "geomean(Delay)": "geomean is not known to be a function of one row alone",
    "wavg(Delay, Delay)": "wavg is not known",
    "histogram(Delay) IS NULL": "histogram looks at other rows",
    "json_group_array(Delay) = ''": "json_group_array is not known",
    "row_number()": "row_number looks at other rows",
    "Random() < 0.5": "random is not known",
    "landed_at > now()": "now is not known",
    "landed_at > ago(INTERVAL '30 days')": "ago is not known",
    "landed_at > pg_conf_load_time()": "pg_conf_load_time is not known",
    "landed_at > system.main.now()": "now is not known",
    "landed_at > current_timestamp": "current_timestamp is another value at another moment",
    "age(landed_at) > INTERVAL 1 DAY": "age of one argument is another value",
    "sleep_ms(1000)": "sleep_ms is not known",
    "pg_sleep(1) IS NULL": "pg_sleep is not known",
    "list_transform([1], lambda x: random())[1] > 0.5": "random is not known",
    "list_aggr([Delay], 'reservoir_quantile', 0.5) > 3": "list_aggr needs the name of its aggregate, one of",
    "list_aggr([Delay]) > 3": "list_aggr needs the name of its aggregate",
    "get_block_size('memory') > 0": "get_block_size is not known",
    "current_setting('threads') > 1": "current_setting is not known",
    "getvariable('x') > 1": "getvariable is not known",
    "nextval('x') > 1": "nextval is not known",
    "unnest([1, 2])": "unnest is not known",
    "len(range(1000000000)) > 1": "range is not known",
    "no_such_function(Delay)": "no_such_function is not known",
    "#1 > 2": "POSITIONAL_REFERENCE is not an expression over one row",
    "Delay) FROM read_csv('/etc/passwd') WHERE (true": "more than one expression",
    "Delay) UNION SELECT (1": "more than one expression",
    "Delay) LIMIT (1": "more than one expression",
    "1), (2": "more than one expression",
    "1); COPY landed TO '/tmp/stolen.csv'; SELECT (2": "Only SELECT",
    "1); SELECT (2": "more than one expression",
    "Delay --": "syntax error",
    "Delay /*": "cannot be evaluated",
    "this is ( no SQL": "syntax error",
    "(" * 5_000 + "1" + ")" * 5_000: "depth",
    "'" + "x" * 20_000 + "'": "20,000",
}


@pytest.mark.parametrize(("sql", "why"), OF_MORE.items())
def test_what_reaches_beyond_its_row_is_refused_before_it_runs(sql: str, why: str) -> None:
    with pytest.raises(DeclarationInvalid, match=re.escape(why)):
        label_sql(Outcome(LANDED, label=sql, wait="1d"))
    with pytest.raises(DeclarationInvalid, match=f"Aggregate(.|\n)*{re.escape(why)}"):
        aggregates.value(Aggregate(name="late", table=LANDED, by={"dest": "dest"}, function="mean", of=sql, window="1h"))


@pytest.fixture(scope="module")
def landed() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as database:
        database.execute("SET TimeZone = 'UTC'")
        database.execute("""CREATE TABLE landed AS SELECT '1' AS id, TIMESTAMPTZ '2013-01-01 03:00:00+00' AS landed_at,
            1.5::DOUBLE AS "Delay", '{"a": "b"}' AS dest, 1 AS "left", 0 AS zero, 'nan'::DOUBLE AS bad""")
        yield database


@pytest.mark.parametrize("sql", [*OF_ONE_ROW, " + ".join(["Delay"] * 60), " * ".join(["Delay / 2"] * 30)])
def test_an_expression_over_one_row_gives_what_it_gives_where_all_numbers_are_finite(
    landed: duckdb.DuckDBPyConnection, sql: str
) -> None:
    run = expression.row_sql("Outcome", "label", sql, LANDED)
    assert landed.execute(f"SELECT ({run}) FROM landed").fetchall() == landed.execute(f"SELECT ({sql}) FROM landed").fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "Delay / zero > 0.5",
        "NOT Delay / zero > 0.5",
        "-Delay / zero < 0.5",
        "0 / zero = 0",
        "1 / (Delay / zero) = 0",
        '"left" % zero = 0',
        '"left" // zero = 0',
        'mod("left", zero) = 0',
        "Delay % zero > 1",
        "ln(zero) < 0",
        "sqrt(-Delay) > 0",
        "acos(2 * Delay) > 0",
        "pow(zero, -1) > 0",
        "exp(1000 * Delay) > 1",
        "1e308 * 10 * Delay > 1",
        "1e308 * 10 * Delay - 1e308 * 10 * Delay > 1",
        "BAD > 1",
        "bad - 1 < 1",
        "landed.bad = landed.bad",
        "greatest(bad, NULL) > 1",
        "bad IN (1, 2)",
        "bad BETWEEN 0 AND 1",
        "'inf'::DOUBLE > 1",
        "'nan'::REAL > 1",
        "CAST(bad AS INTEGER) > 1",
        "bad || ''",
        "list_sum([1e308, 1e308]) > 1",
        "list_transform([Delay], lambda bad: bad / zero)[1] > 1",
        "CASE WHEN bad > 1 THEN true END",
    ],
)
def test_a_number_that_is_not_finite_makes_a_comparison_unknown(landed: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Infinity and NaN are larger than every number to DuckDB."""
    table = msgspec.structs.replace(LANDED, columns={**LANDED.columns, "bad": Column("float")})
    run = expression.row_sql("Outcome", "label", sql, table)
    assert landed.execute(f"SELECT ({run}) FROM landed").fetchall() == [(None,)]


@pytest.mark.parametrize(
    "sql",
    [
        "coalesce(Delay / zero, 1) > 0.5",
        "CASE WHEN zero = 0 THEN true ELSE Delay / zero > 0.5 END",
        "isnan(bad)",
        "isinf(Delay / zero)",
        "NOT isfinite(bad)",
        "bad IS NULL",
        "CASE WHEN bad > 1 THEN false ELSE true END",
    ],
)
def test_what_handles_numbers_that_are_not_finite_itself_is_known(landed: duckdb.DuckDBPyConnection, sql: str) -> None:
    table = msgspec.structs.replace(LANDED, columns={**LANDED.columns, "bad": Column("float")})
    run = expression.row_sql("Outcome", "label", sql, table)
    assert landed.execute(f"SELECT ({run}) FROM landed").fetchall() == [(True,)]


@pytest.mark.parametrize(
    ("function", "of"),
    [
        ("sum", "Delay / zero"),
        ("mean", "bad"),
        ("max", "bad"),
        ("distinct", "Delay / zero"),
        ("distinct", "bad"),
        ("share", "bad > 1"),
        ("share", "Delay / zero > 0.5"),
    ],
)
def test_an_aggregate_does_not_count_a_number_that_is_not_finite(
    landed: duckdb.DuckDBPyConnection, function: Any, of: str
) -> None:
    table = msgspec.structs.replace(LANDED, columns={**LANDED.columns, "bad": Column("float")})
    value = aggregates.value(Aggregate(name="late", table=table, by={"dest": "dest"}, function=function, of=of, window="1h"))
    assert landed.execute(f"SELECT {value} FROM landed").fetchall() == [(None,)]


def test_an_expression_that_is_nested_too_deeply_for_its_guards_is_taken_or_refused_by_name() -> None:
    sql = "Delay"
    for _ in range(60):
        sql = f"ln({sql})"
    said = ""
    try:
        label_sql(Outcome(LANDED, label=sql, wait="1d"))
    except DeclarationInvalid as error:  # how deep a tree may be differs from version to version of DuckDB
        said = str(error)
    assert re.search(r"^$|label: .*(nested too deeply|depth)", said)


class Catalogued(NamedTuple):
    """What the installed DuckDB's catalogue says of a name: types and stabilities of its overloads, text of its macros."""

    types: set[str]
    stabilities: set[str]
    macros: list[str]


@pytest.fixture(scope="module")
def catalogue() -> dict[str, Catalogued]:
    with duckdb.connect(":memory:") as database:
        rows = database.execute(
            """SELECT lower(function_name), list(function_type), list(coalesce(stability, '')),
            list(macro_definition) FILTER (macro_definition IS NOT NULL) FROM duckdb_functions() GROUP BY ALL"""
        ).fetchall()
    assert len(rows) > 500
    return {name: Catalogued(set(t), set(s), macros or []) for name, t, s, macros in rows}


def test_row_functions_are_no_aggregates_and_not_volatile_in_the_installed_duckdb(catalogue: dict[str, Catalogued]) -> None:
    """A name that fails here has come to mean something else in this DuckDB: review it, and take it out of ROW_FUNCTIONS if it did."""
    known = {name: catalogue[name] for name in ROW_FUNCTIONS & catalogue.keys()}
    assert {name for name, f in known.items() if "VOLATILE" in f.stabilities} == {"error"}, "always raises, whatever the row"
    assert {name for name, f in known.items() if not f.types <= {"scalar", "macro", "table"}} == set()


def test_row_functions_exist_in_the_installed_duckdb_or_are_refused_when_bound(catalogue: dict[str, Catalogued]) -> None:
    """A name that no DuckDB has is a typing error of ours: at least 95 % of them are here, whatever the version."""
    missing = sorted(ROW_FUNCTIONS - catalogue.keys())
    assert len(missing) < 0.05 * len(ROW_FUNCTIONS), missing


def test_macros_among_row_functions_expand_to_row_functions(catalogue: dict[str, Catalogued]) -> None:
    macros = {name: catalogue[name].macros for name in ROW_FUNCTIONS & catalogue.keys() if catalogue[name].macros}
    assert {"if", "list_sum", "split_part", "date_add"} <= macros.keys()
    for name, definitions in macros.items():
        for definition in definitions:
            try:
                expression.row_sql("Macro", name, definition, LANDED)
            except DeclarationInvalid as fault:
                pytest.fail(
                    f"{name} expands to {definition} in DuckDB {duckdb.__version__}: take it out of ROW_FUNCTIONS. {fault}"
                )


def test_every_other_function_of_the_installed_duckdb_is_refused_by_name(catalogue: dict[str, Catalogued]) -> None:
    names = [name for name in catalogue if name not in ROW_FUNCTIONS and re.fullmatch(r"[a-z_0-9]+", name)]
    assert len(names) > 200
    for name in names:
        with pytest.raises(DeclarationInvalid, match=f"(?i){name} (looks at other rows|is not known)|it has a SELECT|coalesce"):
            expression.row_sql("Outcome", "label", f'"{name}"(Delay)', LANDED)


def test_the_columns_that_an_expression_names() -> None:
    assert expression.columns("""'Delay' = "dest" """, LANDED) == ["dest"]
    assert expression.columns("date_part('hour', Landed_At) >= 21 OR id IN (1, 2)", LANDED) == ["id", "landed_at"]
    assert expression.columns("CASE WHEN dest = 'X' THEN Delay ELSE 0 END", LANDED) == ["Delay", "dest"]
    assert expression.columns("list_sum(list_transform([1, 2], lambda x: x + delay)) > 3", LANDED) == ["Delay"]
    assert expression.columns("1 = 1", LANDED) == []
    assert expression.columns("this is ( no SQL", LANDED) == list(LANDED.columns), "nothing can be ruled out"


def test_the_database_that_expressions_run_in_reaches_no_file_no_network_and_no_setting(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with sql_engine(Home(Settings(home=tmp_path))) as database:
        for sql in (
            f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
            f"SELECT content FROM read_text('{tmp_path}/secret.csv')",
            f"SELECT * FROM '{tmp_path}/secret.csv'",
            f"SELECT * FROM glob('{tmp_path}/*')",
            f"ATTACH '{tmp_path}/other.db' AS other",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"EXPORT DATABASE '{tmp_path}/export'",
            "SELECT * FROM read_csv('https://example.org/x.csv')",
            "SELECT * FROM read_blob('/proc/self/environ')",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET lock_configuration = false",
            "SELECT * FROM LANDED",  # a variable of this test
        ):
            with pytest.raises(duckdb.Error):
                database.execute(sql).fetchall()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret.csv", "tmp"]
