import gc
import json
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.deploy.bodies import BAD, Bad, text
from tests.deploy.loops import NOW_US, REQUESTS, flight

from loopwright.base.clock import microseconds
from loopwright.base.errors import LoopwrightError, RequestInvalid, RequestMalformed, RequestTooLarge
from loopwright.data.ingest.contract import conform
from loopwright.deploy.serving.decode import Decoder, Rows, parse
from loopwright.records.declarations import Column, Table

STATUS: dict[int, type[LoopwrightError]] = {400: RequestMalformed, 413: RequestTooLarge, 422: RequestInvalid}
decode = Decoder(REQUESTS.columns, optional=[REQUESTS.event_time])


def test_one_row_and_many() -> None:
    rows, single = decode(text(flight()))
    assert single
    assert rows == [{**flight(), "pushed_back_at": NOW_US}]
    rows, single = decode(b" \n" + text([flight(1), flight(2, tail="N1")]))
    assert not single
    assert [r["flight"] for r in rows] == ["UA1", "UA2"]
    assert rows[1]["tail"] == "N1"


def test_times_keep_their_moment_in_any_zone() -> None:
    (row,), _ = decode(text(flight(pushed_back_at="2024-05-01T11:30:00.123456+02:30")))
    assert row["pushed_back_at"] == NOW_US + 123_456


@pytest.mark.parametrize(("given", "found"), [("2024-05-01T09:00:00", "a time without its zone"), ("now", "another text")])
def test_a_time_that_is_refused_is_told_what_it_lacks(given: str, found: str) -> None:
    with pytest.raises(RequestInvalid, match=f"must be a time with its zone.*, not {found}"):
        decode(text(flight(pushed_back_at=given)))


@pytest.mark.parametrize(
    ("moment", "lawful"),
    [
        ("0001-01-01T00:00:00Z", False),
        ("1899-12-31T23:59:59Z", False),
        ("1900-01-01T00:00:00Z", True),
        ("2024-05-01T09:00:00+02:00", True),
        ("2200-01-01T00:00:00Z", True),
        ("2200-01-01T00:00:01Z", False),
        ("9999-12-31T23:59:59Z", False),
    ],
)
def test_files_and_requests_take_the_same_moments(moment: str, lawful: bool) -> None:
    table = Table("t", {"id": Column("string"), "at": Column("timestamp")}, ["id"], "at")
    found = conform(table, pa.table({"id": ["a"], "at": [moment]}))
    assert (len(found.good), len(found.bad)) == ((1, 0) if lawful else (0, 1))
    judge = Decoder(table.columns, optional=["at"])
    doors: list[Callable[[Any], list[Any]]] = [lambda row: judge(text(row)).rows, lambda row: judge.check([row], single=True)]
    for door in doors:
        if lawful:
            assert door({"id": "a", "at": moment})[0]["at"] == microseconds(found.good["at"][0].as_py())
        else:
            with pytest.raises(
                RequestInvalid, match=f"at: must be a time .*between the years 1900 and 2200.* {int(moment[:4])}"
            ):
                door({"id": "a", "at": moment})


def test_empty_key_is_refused_and_other_text_may_be_empty() -> None:
    judge = Decoder({"id": Column("string"), "note": Column("string")}, key=["id", "at"])
    assert judge(text({"id": " ", "note": ""})).rows == [{"id": " ", "note": ""}]
    for door in (lambda row: judge(text(row)), lambda row: judge.check([row], single=True)):
        with pytest.raises(RequestInvalid) as refused:
            door({"id": "", "note": ""})
        assert refused.value.problems == [("id", "must be text, not empty text")]


OPTIONAL = {
    "id": Column("string"),
    "at": Column("timestamp"),
    "size": Column("float"),
    "tail": Column("string", nullable=True),
    "note": Column("string", nullable=True, optional=True),
    "seen": Column("timestamp", nullable=True, optional=True),
    "weight": Column("float", nullable=True, optional=True),
    "shape": Column("array", shape=[2, 2], nullable=True, retired=True),
}
WHOLE = {
    "id": "a",
    "at": NOW_US,
    "size": 1.5,
    "tail": 'N"1',
    "note": "x",
    "seen": NOW_US,
    "weight": 2.0,
    "shape": [1.0, 2.0, 3.0, 4.0],
}
SENT = WHOLE | {"at": "2024-05-01T09:00:00Z", "seen": "2024-05-01T09:00:00Z", "shape": [[1, 2], [3, 4]]}
MAY_LACK = ("at", "note", "seen", "weight", "shape")


@given(
    rows=st.lists(
        st.tuples(st.sets(st.sampled_from(MAY_LACK)), st.sets(st.sampled_from(["tail", "note", "seen", "weight", "shape"]))),
        min_size=1,
        max_size=4,
    ),
    double=st.none() | st.tuples(st.integers(0, 3), st.sampled_from(list(OPTIONAL))),
)
def test_optional_columns_may_be_sent_or_not_in_any_mixture(
    rows: list[tuple[set[str], set[str]]], double: tuple[int, str] | None
) -> None:
    judge = _JUDGE  # one for all examples: what it saw before must not matter
    sent = [{n: None if n in null else v for n, v in SENT.items() if n not in lack} for lack, null in rows]
    wanted = [{n: None if n in null else v for n, v in WHOLE.items() if n not in lack} for lack, null in rows]
    assert judge.check([dict(row) for row in sent]) == wanted
    bodies = [text(row).decode() for row in sent]
    if double is None or double[1] not in sent[double[0] % len(sent)]:
        assert judge(f"[{','.join(bodies)}]".encode()).rows == wanted
        return
    at = double[0] % len(sent)
    bodies[at] = f"{bodies[at][:-1]},{json.dumps(double[1])}:{json.dumps(sent[at][double[1]])}}}"
    with pytest.raises(RequestMalformed, match="twice"):
        judge(f"[{','.join(bodies)}]".encode())


_JUDGE = Decoder(OPTIONAL, optional=["at"])


def test_a_required_column_is_missed_whatever_else_is_left_out() -> None:
    for row in (SENT, {n: v for n, v in SENT.items() if n not in MAY_LACK}):
        for name in ("id", "size", "tail"):
            with pytest.raises(RequestInvalid) as refused:
                _JUDGE(text({n: v for n, v in row.items() if n != name}))
            assert [p.field for p in refused.value.problems] == [name]


def test_the_event_time_may_be_left_out() -> None:
    given = flight()
    del given["pushed_back_at"]
    (row,), _ = decode(text(given))
    assert "pushed_back_at" not in row


def test_what_looks_odd_and_is_lawful() -> None:
    odd = flight(flight='a "quoted" \\ name', tail="", delay=3, hour=-(2**63), origin="日本")
    (row,), _ = decode(text(odd))
    assert row["flight"] == 'a "quoted" \\ name'
    assert row["delay"] == 3.0
    assert isinstance(row["delay"], float)
    assert row["hour"] == -(2**63)


@pytest.mark.parametrize("bad", BAD, ids=lambda b: b.name)
def test_bad_bodies_are_refused_and_named(bad: Bad) -> None:
    with pytest.raises(STATUS[bad.status]) as refused:
        decode(bad.body)
    assert all(word in str(refused.value) for word in bad.words)
    if isinstance(refused.value, RequestInvalid):
        assert 1 <= len(refused.value.problems) <= 20


def test_a_renamed_field_is_guessed() -> None:
    with pytest.raises(RequestInvalid, match="is 'delay' meant"):
        decode(text({**flight(), "delai": 1}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)


def lawful(row: Any) -> bool:
    """The contract once more, written naively."""

    def fits(name: str, value: Any) -> bool:
        column = REQUESTS.columns[name]
        if value is None:
            return column.nullable
        if column.type == "float":
            return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))
        if column.type == "integer":
            return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63
        if column.type == "boolean":
            return isinstance(value, bool)
        return isinstance(value, str)

    names = set(REQUESTS.columns) - {"pushed_back_at"}
    return isinstance(row, dict) and row.keys() == names and all(fits(n, v) for n, v in row.items())


@given(
    changes=st.dictionaries(st.sampled_from([n for n in REQUESTS.columns if n != "pushed_back_at"]), json_values, max_size=3)
)
def test_accepts_exactly_what_the_contract_says(changes: dict[str, Any]) -> None:
    row = {**flight(), **changes}
    del row["pushed_back_at"]
    body = text(row)
    if lawful(row):
        assert decode(body).rows == [row]
    else:
        with pytest.raises(RequestInvalid) as refused:
            decode(body)
        assert {p.field for p in refused.value.problems} <= set(changes)


@given(body=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with pytest.raises((RequestMalformed, RequestInvalid)):
        decode(body)


@given(key=st.sampled_from(sorted(REQUESTS.columns)), where=st.integers(0, 6))
def test_a_double_key_is_found_wherever_it_stands(key: str, where: int) -> None:
    pairs = [f"{json.dumps(n)}:{json.dumps(v)}" for n, v in flight().items()]
    pairs.insert(where, f"{json.dumps(key)}:{json.dumps(flight()[key])}")
    with pytest.raises(RequestMalformed, match="twice"):
        decode(("{" + ",".join(pairs) + "}").encode())


def test_column_names_that_are_words_of_python() -> None:
    decode_words = Decoder({"class": Column("string"), "from": Column("float", nullable=True), "self": Column("boolean")})
    assert decode_words(b'{"class":"a","from":null,"self":true}').rows == [{"class": "a", "from": None, "self": True}]


def test_plain_values_are_checked_alike() -> None:
    row = flight()
    assert decode.check([dict(row)]) == decode(text(row)).rows
    with pytest.raises(
        RequestInvalid, match=r"\[1\]\.hour: must be an integer of at most 64 bits, not a number with a decimal point"
    ):
        decode.check([dict(row), {**row, "hour": 1.5}])


def test_parse_is_strict() -> None:
    assert parse(b'{"a":[1,null]}') == {"a": [1, None]}
    for body in (b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b"NaN", b"[" * 100_000, b"1e999"):
        with pytest.raises(RequestMalformed):
            parse(body)


ARRAYS = {"image": Column("array", shape=[2, 3]), "mood": Column("array", shape=[2], nullable=True), "n": Column("float")}


def test_arrays_are_nested_lists_and_become_flat() -> None:
    read = Decoder(ARRAYS, optional=["n"])
    body = b'{"image":[[1,2,3],[4,5,6.5]],"mood":[0.5,-1e-300]}'
    assert read(body) == Rows([{"image": [1.0, 2.0, 3.0, 4.0, 5.0, 6.5], "mood": [0.5, -1e-300]}], True)
    assert read(b'[{"image":[[1,2,3],[4,5,6]],"mood":null,"n":1}]').rows[0]["mood"] is None
    assert read.check([{"image": [[1, 2, 3], [4, 5, 6]], "mood": [3.4e38, 0]}]) == [
        {"image": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "mood": [3.4e38, 0.0]}
    ]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (
            "image",
            "[[1,2,3],[4,5]]",
            "nested lists of shape [2, 3] of numbers that a float32 holds, not ragged lists of 2 and 3",
        ),
        ("image", "[1,2,3,4,5,6]", "not of shape [6]"),
        ("image", "[[1,2],[3,4],[5,6]]", "not of shape [3, 2]"),
        ("image", "[[1,2,3],[4,5,[6]]]", "not lists of different depth"),
        ("image", '[[1,2,3],[4,5,"6"]]', "not lists with text in them"),
        ("image", "[[1,2,3],[4,5,true]]", "not lists with true in them"),
        ("image", "[[1,2,3],[4,5,null]]", "not lists with null in them"),
        ("image", "[[1,2,3],[4,5,1e39]]", "not with a number too large for a float32"),
        ("image", "[]", "not of shape [0]"),
        ("image", "null", "not null"),
        ("image", "7", "not a number"),
        ("mood", "[1]", "null or nested lists of shape [2] of numbers that a float32 holds, not of shape [1]"),
        ("mood", '{"a":1}', "null or nested lists of shape [2] of numbers that a float32 holds, not an object"),
    ],
)
def test_an_array_of_another_shape_is_named(field: str, value: str, why: str) -> None:
    given = {"image": "[[1,2,3],[4,5,6]]", "mood": "null", "n": "1", field: value}
    with pytest.raises(RequestInvalid) as caught:
        Decoder(ARRAYS)(("{" + ",".join(f'"{k}":{v}' for k, v in given.items()) + "}").encode())
    [problem] = caught.value.problems
    assert problem.field == field
    assert problem.reason.endswith(why), problem.reason


@pytest.mark.parametrize(
    "value",
    [
        lambda n: "[" * (300 * n),
        lambda n: "[" * (50 * n) + "]" * (50 * n),
        lambda n: "[" * (n // 11) + "]" * (n // 11),
        lambda n: "[" + "1," * (400 * n) + "1]",
        lambda n: "[" + "[]," * (300 * n) + "[]]",
    ],
    ids=["cut", "very deep", "deep", "long", "many empty"],
)
def test_an_array_however_deep_or_long_is_refused_in_time_linear_in_its_length(value: Callable[[int], str]) -> None:
    """Sixteen times as long takes 16 times the processor time; what is quadratic would take 256 times."""

    def seconds(size: int) -> float:
        body = f'{{"image": {value(size)}, "mood": null}}'.encode()
        gc.disable()  # what a collection takes depends on all objects of the process
        try:
            started = time.thread_time()
            with pytest.raises((RequestInvalid, RequestMalformed)):
                Decoder(ARRAYS)(body)
            return time.thread_time() - started
        finally:
            gc.enable()

    part = min(seconds(150) for _ in range(3))
    assert seconds(16 * 150) < 5 * 16 * max(part, 0.001)
