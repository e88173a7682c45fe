"""Rows out of a real PostgreSQL: its own types, and a watermark that is a time."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from tests.postgres import Postgres

from loopwright.base.errors import IngestRefused
from loopwright.base.settings import Settings
from loopwright.data.ingest.load import bring_query
from loopwright.records.declarations import Column, Table
from loopwright.stores.home import Home

ORDERS = Table(
    "orders",
    {
        "id": Column("string"),
        "at": Column("timestamp"),
        "amount": Column("float", minimum=0),
        "paid": Column("boolean", nullable=True),
        "items": Column("integer", nullable=True),
    },
    key=["id"],
    event_time="at",
)
QUERY = "SELECT * FROM orders WHERE at > :watermark"
ID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path)) as made:
        yield made


def test_the_types_of_postgresql_come_in_and_a_time_is_a_watermark(home: Home, postgres: Postgres) -> None:
    url = postgres.empty_database().replace("postgresql+psycopg:", "postgresql:")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE orders(id uuid, at timestamptz, amount numeric(10, 2), paid boolean, items bigint)")
        connection.execute("INSERT INTO orders VALUES (%s, '2024-03-10 01:30-05', 7.25, NULL, 3)", [ID])
        connection.execute("INSERT INTO orders VALUES (gen_random_uuid(), '2024-03-10 03:30-04', 1, true, NULL)")
    assert bring_query(home, ORDERS, url, QUERY, watermark="at").good == 2
    [first] = [row for row in home.lake.read("orders").to_pylist() if row["id"] == ID]
    assert (first["at"].isoformat(), first["amount"], first["paid"], first["items"]) == (
        "2024-03-10T06:30:00+00:00",
        7.25,
        None,
        3,
    )
    assert bring_query(home, ORDERS, url, QUERY, watermark="at").already
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO orders VALUES (gen_random_uuid(), '2024-03-10 03:30:00.000001-04', 2, false, 1)")
    assert bring_query(home, ORDERS, url, QUERY, watermark="at").rows == 1


def test_query_of_an_sqlite_file_that_is_not_there_is_refused_and_makes_none(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "nope.db"
    with pytest.raises(IngestRefused, match="there is no file"):
        bring_query(home, ORDERS, f"sqlite:///{file}", "SELECT 1 AS id")
    assert not file.exists()


def test_query_that_gives_two_columns_one_name_is_refused(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "orders.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE orders(id TEXT)")
        connection.execute("INSERT INTO orders VALUES ('right')")
    connection.close()
    with pytest.raises(IngestRefused, match="several columns called id"):
        bring_query(home, ORDERS, f"sqlite:///{file}", "SELECT orders.*, 'wrong' AS id FROM orders")
