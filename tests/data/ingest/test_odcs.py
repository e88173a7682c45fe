"""Contracts out and in again, against the JSON schema that the standard publishes."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from loopwright import Column, Table
from loopwright.base.errors import DeclarationInvalid, FileMissing, UsageError
from loopwright.data.ingest.odcs import from_odcs, read, to_odcs, write

FULL = Table(
    "orders",
    {
        "order_id": Column("string", source="Order Id", tags=["pii"], description="number on the receipt"),
        "line": Column("integer", minimum=1, maximum=99),
        "placed_at": Column("timestamp", zone="Europe/Paris", format="%d/%m/%Y %H:%M"),
        "known_at": Column("timestamp"),
        "country": Column("string", nullable=True, categories=["DE", "FR"], optional=True),
        "amount": Column("float", nullable=True, minimum=-0.5, format="1.234,5", missing=["?", "-"]),
        "paid": Column("boolean"),
        "photo": Column("array", shape=[2, 3], nullable=True),
        "row": Column("string", filled="row_id"),
    },
    key=["order_id", "line"],
    event_time="placed_at",
    known_time="known_at",
    known_after="20m",
    description="Every line of every order.",
    ignore=["internal note"],
)


def published() -> dict[str, Any]:
    return json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]  # it is an object


def test_what_is_written_is_valid_by_the_published_schema() -> None:
    jsonschema.Draft201909Validator(published()).validate(to_odcs(FULL))


@pytest.mark.parametrize("name", ["orders.yaml", "orders.odcs.json"])
def test_nothing_is_lost_on_the_way_out_and_in(tmp_path: Path, name: str) -> None:
    write(FULL, tmp_path / name)
    assert read(tmp_path / name) == (FULL, [])
    assert read(tmp_path / name, "orders") == (FULL, [])


def test_a_contract_of_others_comes_in_with_what_a_table_can_hold() -> None:
    document = yaml.safe_load("""
        apiVersion: v3.0.2
        kind: DataContract
        id: 53581432
        version: 1.0.0
        status: active
        team: {members: [{username: ann}]}
        schema:
          - name: sales
            properties:
              - {name: id, logicalType: string, required: true, primaryKey: true}
              - {name: day, logicalType: date, required: true, logicalTypeOptions: {format: yyyy-MM-dd}}
              - {name: price, logicalType: number, logicalTypeOptions: {minimum: 0, multipleOf: 0.01}, classification: secret}
              - name: kind
                logicalType: string
                quality: [{metric: invalidValues, arguments: {validValues: [a, b]}, mustBe: 0}, {metric: nullValues, mustBe: 0}]
    """)
    table, left = from_odcs(document)
    assert table == Table(
        "sales",
        {
            "id": Column("string"),
            "day": Column("timestamp", zone="UTC"),
            "price": Column("float", nullable=True, minimum=0),
            "kind": Column("string", nullable=True, categories=["a", "b"]),
        },
        key=["id"],
        event_time="day",
    )
    assert left == [
        "team of the contract",
        "format yyyy-MM-dd of column day",
        "classification of column price",
        "multipleOf of column price",
        "quality rule nullValues of column kind",
        "which column is the event time: taken was day",
    ]


def test_what_makes_no_table_is_named() -> None:
    good = to_odcs(FULL)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"kind": "Else"}, "kind"),
        ({"apiVersion": "v2.2.2"}, "apiVersion"),
        ({"schema": []}, "schema"),
        ({"schema": [{"name": "t", "properties": [{"name": "x", "logicalType": "object"}]}]}, "properties.x.logicalType"),
        ({"schema": [{"name": "t", "properties": [{"name": "x", "logicalType": "string"}]}]}, "properties"),
    ]
    for change, field in changes:
        with pytest.raises(DeclarationInvalid) as refused:
            from_odcs(good | change)
        assert [p.field for p in refused.value.problems] == [field]


@pytest.mark.parametrize(
    "properties",
    [
        "5",
        "[5]",
        "{a: 1}",
        "[{name: a, logicalType: string, primaryKeyPosition: first}]",
        "[{name: a, logicalType: string, logicalTypeOptions: 7}]",
        "[{name: a, logicalType: string, quality: [3]}]",
        "[{name: a, logicalType: string, customProperties: [3]}]",
        "[{name: a, logicalType: number, logicalTypeOptions: {minimum: much}, primaryKey: true}, {name: t, logicalType: timestamp, required: true}]",
    ],
)
def test_what_is_not_laid_out_as_the_standard_says_is_refused(tmp_path: Path, properties: str) -> None:
    text = f"kind: DataContract\napiVersion: v3.1.0\nschema: [{{name: x, properties: {properties}}}]"
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DeclarationInvalid):
        read(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "!!python/object/apply:os.system ['true']",
        "a: &x [1]\nb: *x",
        "a: &x {b: 1}\nc:\n  <<: *x",
        "\x00",
        "[" * 100_000,
        "{a: " * 20_000,
        "a: " + "9" * 5_000,
        "a: " + "x" * (1 << 20),
    ],
    ids=["cut", "tag", "alias", "merge", "nul", "deep lists", "deep objects", "long number", "large"],
)
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.yaml"):
        read(tmp_path / "c.yaml")
    with pytest.raises(FileMissing, match="no file"):
        read(tmp_path / "absent.yaml")
