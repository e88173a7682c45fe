from typing import Any

import pyarrow as pa
import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LANDINGS, NOW_US

from loopwright.base.errors import RequestInvalid, RequestMalformed
from loopwright.data.ingest.contract import conform
from loopwright.deploy.serving.outcomes import CheckedOutcome, OutcomeDecoder
from loopwright.records.declarations import Column, Table

ID = "018f3361d2807ce8b0f540e9d922a8f2"
decode = OutcomeDecoder(LANDINGS)


def landing(**changes: Any) -> dict[str, Any]:
    return {"flight": "UA1", "landed_at": "2024-05-01T08:00:00Z", "arr_delay": 20.0} | changes


def accept(value: Any, received_at: int = NOW_US) -> list[CheckedOutcome]:
    return decode(text(value), received_at=received_at, provenance="http")


def test_by_key_and_by_id() -> None:
    (by_key,) = accept(landing())
    assert (by_key.row.prediction, by_key.row.unit) == ("", "UA1")
    assert by_key.row.values == {"landed_at": NOW_US - 3_600_000_000, "arr_delay": 20.0}
    assert by_key.row.known_at == NOW_US - 3_600_000_000
    assert (by_key.row.received_at, by_key.row.provenance, by_key.flags) == (NOW_US, "http", [])
    (by_id,) = accept({"id": ID, "arr_delay": 20})
    assert (by_id.row.prediction, by_id.row.unit, by_id.row.values) == (ID, "", {"arr_delay": 20.0})
    assert by_id.row.known_at == NOW_US
    (both,) = accept(landing(id=ID))
    assert (both.row.prediction, both.row.unit) == (ID, "")


def test_the_same_again_is_the_same_row_and_another_is_another() -> None:
    first, again = accept(landing()), accept(landing(), received_at=NOW_US + 9)
    other = accept(landing(arr_delay=3.0))
    assert first[0].row.id == again[0].row.id
    assert other[0].row.id != first[0].row.id
    assert len({a.row.id for a in accept([landing(flight=f"UA{i}") for i in range(50)])}) == 50


def test_known_at_is_said_or_taken_from_the_table_or_the_moment_of_receipt() -> None:
    (said,) = accept(landing(known_at="2024-05-01T08:30:00Z"))
    assert said.row.known_at == NOW_US - 1_800_000_000
    late = OutcomeDecoder(Table(LANDINGS.name, LANDINGS.columns, LANDINGS.key, LANDINGS.event_time, known_after="10m"))
    (delayed,) = late(text(landing()), received_at=NOW_US, provenance="http")
    assert delayed.row.known_at == NOW_US - 3_000_000_000


def test_the_future_is_flagged_and_strange_values_too() -> None:
    (future,) = accept(landing(landed_at="2031-01-01T00:00:00Z"))
    assert future.flags == ["future"]
    assert "future" in future.row.provenance
    (strange,) = accept(landing(arr_delay=9999.0))
    assert strange.flags == ["out_of_range:arr_delay"]


JUDGED = Table(
    "judged",
    {
        "id": Column("string"),
        "at": Column("timestamp"),
        "direction": Column("string", nullable=True, categories=["DOWN", "UP"]),
        "won": Column("integer", nullable=True, minimum=0, maximum=1),
        "price": Column("float", nullable=True, minimum=0, maximum=10),
    },
    key=["id"],
    event_time="at",
)


@pytest.mark.parametrize(("field", "value"), [("direction", "SIDEWAYS"), ("direction", "UP "), ("direction", "up"), ("won", 2)])
def test_unknown_words_and_codes_of_a_label_are_refused_as_files_quarantine_them(field: str, value: Any) -> None:
    whole = {"id": "a", "at": "2024-05-01T08:00:00Z", "direction": "UP", "won": 1, "price": 1.0}
    decode = OutcomeDecoder(JUDGED)
    assert not decode(text(whole), received_at=NOW_US, provenance="http")[0].flags
    with pytest.raises(RequestInvalid) as refused:
        decode(text([whole, whole | {field: value}]), received_at=NOW_US, provenance="http")
    assert [p.field for p in refused.value.problems] == [f"[1].{field}"]
    assert repr(value) in refused.value.problems[0].reason
    found = conform(JUDGED, pa.table({name: [str(v), str(whole[name])] for name, v in (whole | {field: value}).items()}))
    assert (len(found.good), found.bad["_row"].to_pylist()) == (1, [1])
    assert found.bad["_reason"].to_pylist()[0].startswith(f"{field}: ")
    assert not decode(text(whole | {"direction": None, "won": None}), received_at=NOW_US, provenance="http")[0].flags


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (landing(landed_at="2024-05-01T08:00:00"), "landed_at"),
        (landing(known_at="yesterday"), "known_at"),
        (landing(known_at="2024-05-01T08:00:00"), "known_at"),
        (landing(arr_delay="late"), "arr_delay"),
        (landing(arr_delay=None), "arr_delay"),
        ({"flight": "UA1"}, "arr_delay"),
        ({"arr_delay": 1.0}, "id"),
        ({"id": "", "arr_delay": 1.0}, "id"),
        ({"id": "not an id", "arr_delay": 1.0}, "id"),
        ({"id": "0" * 32, "arr_delay": 1.0}, "id"),
        ({"id": ID.upper(), "arr_delay": 1.0}, "id"),
        (landing(truth=True), "truth"),
        ([landing(), {"arr_delay": 1.0}], "[1].id"),
        ([], "body"),
        (7, "body"),
    ],
)
def test_what_is_wrong_is_named(value: Any, field: str) -> None:
    with pytest.raises(RequestInvalid) as refused:
        accept(value)
    assert [p.field for p in refused.value.problems] == [field]


def test_double_keys_are_malformed() -> None:
    with pytest.raises(RequestMalformed):
        decode(b'{"id":"%s","arr_delay":1.0,"arr_delay":2.0}' % ID.encode(), received_at=NOW_US, provenance="http")


def test_a_table_with_a_column_named_id_keeps_it_and_the_predictions_id_has_another_name() -> None:
    table = Table("orders", {"id": Column("string"), "at": Column("timestamp"), "paid": Column("boolean")}, ["id"], "at")
    (row,) = OutcomeDecoder(table)(b'{"id":"A-7","paid":true}', received_at=NOW_US, provenance="http")
    assert (row.row.prediction, row.row.unit, row.row.values) == ("", "A-7", {"paid": True})
    (row,) = OutcomeDecoder(table)(b'{"prediction":"%s","paid":true}' % ID.encode(), received_at=NOW_US, provenance="http")
    assert (row.row.prediction, row.row.unit, row.row.values) == (ID, "", {"paid": True})
    with pytest.raises(RequestInvalid, match="prediction"):
        OutcomeDecoder(table)(b'{"paid":true}', received_at=NOW_US, provenance="http")


@pytest.mark.parametrize("name", ["id", "prediction", "prediction_id"])
def test_prediction_is_named_by_any_name_that_is_no_column(name: str) -> None:
    (named,) = accept({name: ID, "arr_delay": 20})
    assert (named.row.prediction, named.row.values) == (ID, {"arr_delay": 20.0})
    with pytest.raises(RequestInvalid, match="prediction_id: names another prediction than id"):
        accept({"id": ID, "prediction_id": "1" * 32, "arr_delay": 20})


def test_id_of_a_prediction_in_a_column_of_the_table_is_hinted_at() -> None:
    """Where it is refused the error says which field it belongs into, where it is lawful a flag."""
    hint = "name the prediction in the field `prediction`"
    columns = {"id": Column("integer"), "at": Column("timestamp"), "paid": Column("boolean")}
    wrong = [
        (Table("orders", columns, ["id"], "at"), {"id": ID, "paid": True}),
        (Table("orders", columns, ["id"], "at"), [{"id": ID, "paid": True}]),
        (Table("orders", columns | {"id": Column("string"), "who": Column("string")}, ["who"], "at"), {"id": ID, "paid": True}),
        (Table("orders", columns | {"id": Column("string")}, ["id"], "at"), {"id": ID}),
    ]
    for table, body in wrong:
        with pytest.raises(RequestInvalid, match=hint):
            OutcomeDecoder(table)(text(body), received_at=NOW_US, provenance="http")
    decode = OutcomeDecoder(Table("orders", columns | {"id": Column("string")}, ["id"], "at"))
    flags = [
        decode(text({"paid": True, **named}), received_at=NOW_US, provenance="http")[0].flags
        for named in ({"id": ID}, {"id": "A-7"}, {"id": ID, "prediction": ID})
    ]
    assert flags == [["id_is_a_column"], [], []]


def test_same_outcome_with_and_without_the_key_beside_its_prediction_is_one() -> None:
    (alone,), (both,) = accept({"id": ID, "arr_delay": 20}), accept({"id": ID, "flight": "UA1", "arr_delay": 20})
    assert alone.row == both.row
