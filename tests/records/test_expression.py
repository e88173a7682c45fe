import re
from pathlib import Path

import duckdb
import pytest

from loopwright.data import aggregates
from loopwright.data.database import locked
from loopwright.records import expression
from loopwright.records.declarations import Aggregate, Column, Outcome, Table
from loopwright.records.errors import DeclarationInvalid
from loopwright.records.home import Home
from loopwright.records.label import label_sql
from loopwright.records.settings import Settings

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
]
OF_MORE = {
    "(SELECT count(*) FROM range(1000000000000))": "a SELECT of its own",
    "Delay > (SELECT avg(Delay) FROM landed)": "a SELECT of its own",
    "EXISTS (SELECT * FROM read_text('/etc/passwd'))": "a SELECT of its own",
    "dest IN (WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT * FROM t) SELECT * FROM t)": "a SELECT of its own",
    "lead(Delay) OVER (ORDER BY landed_at)": "other rows",
    "$1": "a parameter",
    "sum(Delay) > 3": "sum looks at other rows",
    "Random() < 0.5": "random is another value at another moment",
    "landed_at > now()": "now is another value",
    "landed_at > current_timestamp": "current_timestamp is another value",
    "age(landed_at) > INTERVAL 1 DAY": "age is another value",
    "sleep_ms(1000)": "sleep_ms is another value",
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
    "'" + "x" * 20_000 + "'": "longer than 20,000",
}


@pytest.mark.parametrize("sql", OF_ONE_ROW)
def test_an_expression_over_one_row_is_taken(sql: str) -> None:
    assert expression.held("Outcome", "label", sql) == sql


@pytest.mark.parametrize(("sql", "why"), OF_MORE.items())
def test_what_reaches_beyond_its_row_is_refused_before_it_runs(sql: str, why: str) -> None:
    with pytest.raises(DeclarationInvalid, match=re.escape(why)):
        label_sql(Outcome(LANDED, label=sql, wait="1d"))
    with pytest.raises(DeclarationInvalid, match=f"Aggregate late(.|\n)*{re.escape(why)}"):
        aggregates.value(Aggregate(name="late", table=LANDED, by={"dest": "dest"}, function="mean", of=sql, window="1h"))


def test_the_columns_that_an_expression_names() -> None:
    assert expression.columns("""'Delay' = "dest" """, LANDED) == ["dest"]
    assert expression.columns("date_part('hour', Landed_At) >= 21 OR id IN (1, 2)", LANDED) == ["id", "landed_at"]
    assert expression.columns("CASE WHEN dest = 'X' THEN Delay ELSE 0 END", LANDED) == ["Delay", "dest"]
    assert expression.columns("list_sum(list_transform([1, 2], lambda x: x + delay)) > 3", LANDED) == ["Delay"]
    assert expression.columns("1 = 1", LANDED) == []
    assert expression.columns("this is ( no SQL", LANDED) == list(LANDED.columns), "nothing can be ruled out"


def test_the_database_that_expressions_run_in_reaches_no_file_no_network_and_no_setting(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with locked(Home(Settings(home=tmp_path))) as database:
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
