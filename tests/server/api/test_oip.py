import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwright.base.errors import NotFound, RequestInvalid, RequestMalformed, RequestTooLarge
from loopwright.deploy.serving.decode import Decoder
from loopwright.records.declarations import Column
from loopwright.records.package import Output
from loopwright.server.api.oip import NUMBERS, Tensors, check_version, encode, header_length, outputs, packed
from loopwright.server.api.openapi import column_schema

COLUMNS = {"image": Column("array", shape=[2, 2]), "mood": Column("array", shape=[3], nullable=True), "n": Column("integer")}
KNOWN = outputs(Output())


def read(*tensors: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a request as the server takes them."""
    rows = Tensors(json.dumps({"inputs": tensors}).encode(), COLUMNS, KNOWN).rows
    return Decoder(COLUMNS, optional=["mood", "n"]).check(rows)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6, 7, 8], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]])
def test_an_array_is_a_tensor_of_its_shape_flat_or_nested(data: list[Any]) -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [2, 2, 2], "data": data}
    mood = {"name": "mood", "datatype": "FP64", "shape": [2, 3], "data": [None, [1, 2, 3]]}
    assert read(image, mood) == [
        {"image": [1.0, 2.0, 3.0, 4.0], "mood": None},
        {"image": [5.0, 6.0, 7.0, 8.0], "mood": [1.0, 2.0, 3.0]},
    ]


@pytest.mark.parametrize(
    ("shape", "data", "why"),
    [
        ([2, 4], [1, 2, 3, 4, 5, 6, 7, 8], r"must be \[N, 2, 2\]"),
        ([2], [1, 2], r"must be \[N, 2, 2\]"),
        ([1, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8], "says 1 values, `data` has 2"),
        ([2, 2, 2], [1, 2, 3, 4, 5, 6, 7], "`data` has 7"),
        ([1, 2, 2], [[[1, 2], [3]]], "ragged lists of 1 and 2"),
        ([1, 2, 2], [[[1, 2], [3, "a"]]], "lists with text in them"),
    ],
)
def test_another_shape_is_named(shape: list[int], data: list[Any], why: str) -> None:
    with pytest.raises(RequestInvalid, match=why):
        read({"name": "image", "datatype": "FP32", "shape": shape, "data": data})


def test_a_column_of_one_value_per_row_has_one_dimension_or_two() -> None:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2], "data": [1, 2, 3, 4]}
    for shape, data in (([1], [7]), ([1, 1], [[7]])):
        assert read(image, {"name": "n", "datatype": "INT64", "shape": shape, "data": data})[0]["n"] == 7
    with pytest.raises(RequestInvalid, match=r"must be \[N\] or \[N, 1\]"):
        read(image, {"name": "n", "datatype": "INT64", "shape": [1, 2], "data": [[7, 8]]})


def test_the_schema_of_an_array_says_its_shape() -> None:
    row = {"type": "array", "items": {"type": "number", "format": "float"}, "minItems": 3, "maxItems": 3}
    assert column_schema(Column("array", shape=[2, 3])) == {"type": "array", "items": row, "minItems": 2, "maxItems": 2}
    assert column_schema(Column("array", shape=[3], nullable=True)) == {**row, "type": ["array", "null"]}


KINDS = {
    "flight": "BYTES", "pushed_back_at": "BYTES", "origin": "BYTES", "delay": "FP64", "hour": "INT64", "tail": "BYTES", "night": "BOOL",
}  # fmt: skip


def tensors_of(rows: list[dict[str, Any]]) -> list[tuple[str, str, Any]]:
    """Name, datatype and values [N] of each column of rows of the small loop; a null is `-`."""
    types: dict[str, Any] = {"BYTES": np.object_, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
    found = []
    for name, datatype in KINDS.items():
        values = ["-" if row[name] is None else row[name] for row in rows]
        found.append((name, datatype, np.array([v.encode() if isinstance(v, str) else v for v in values], types[datatype])))
    return found


# --- binary tensors --------------------------------------------------------------------------------------------------

FLAT = {
    "x": Column("float"),
    "maybe": Column("float", nullable=True),
    "n": Column("integer"),
    "on": Column("boolean"),
    "name": Column("string", nullable=True),
    "image": Column("array", shape=[2, 2]),
}


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def lawful() -> dict[str, tuple[str, list[int], bytes]]:
    return {
        "x": ("FP32", [2, 1], np.array([0.5, -2.0], "<f4").tobytes()),
        "maybe": ("FP64", [2], np.array([np.nan, 7.0], "<f8").tobytes()),
        "n": ("UINT64", [2], np.array([1, 2**63 - 1], "<u8").tobytes()),
        "on": ("BOOL", [2], b"\0\1"),
        "name": ("BYTES", [2, 1], texts("Zoë".encode(), b"-")),
        "image": ("FP16", [2, 2, 2], np.arange(8, dtype="<f2").tobytes()),
    }


def request(changes: dict[str, Any] | None = None, **more: Any) -> tuple[bytes, int]:
    """The body of a binary request and the length of its JSON part; a change is (datatype, shape, data, size that is said)."""
    inputs, parts = [], []
    for name, (datatype, shape, data, *said) in {**lawful(), **(changes or {})}.items():
        size = said[0] if said else len(data)
        inputs.append({"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}})
        parts.append(data)
    head = json.dumps({"inputs": inputs, **more}).encode()
    return b"".join([head, *parts]), len(head)


def taken(body: bytes, length: int) -> Tensors:
    return Tensors(body, FLAT, KNOWN, length)


def test_binary_tensors_of_every_datatype_are_the_rows_they_say() -> None:
    tensors = taken(*request(parameters={"null": "-", "binary_data_output": True}))
    assert Decoder(FLAT).check(tensors.rows) == [
        {"x": 0.5, "maybe": None, "n": 1, "on": False, "name": "Zoë", "image": [0.0, 1.0, 2.0, 3.0]},
        {"x": -2.0, "maybe": 7.0, "n": 2**63 - 1, "on": True, "name": None, "image": [4.0, 5.0, 6.0, 7.0]},
    ]
    assert tensors.binary == set(tensors.outputs) == set(KNOWN)


@pytest.mark.parametrize("datatype", [t for t in NUMBERS if t != "BOOL"])
def test_a_number_means_the_same_in_binary_and_in_json(datatype: str) -> None:
    column = "x" if datatype.startswith("FP") else "n"
    values = np.array([0, 1, 100], NUMBERS[datatype])
    columns = {column: FLAT[column]}
    head = {"name": column, "datatype": datatype, "shape": [3]}
    plain = Tensors(json.dumps({"inputs": [{**head, "data": values.tolist()}]}).encode(), columns, KNOWN)
    size = {"parameters": {"binary_data_size": values.nbytes}}
    part = json.dumps({"inputs": [{**head, **size}]}).encode()
    assert Tensors(part + values.tobytes(), columns, KNOWN, len(part)).rows == plain.rows
    assert packed(values.tolist(), datatype) == values.tobytes()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"x": ("FP32", [2], b"1234")}, r"inputs\[0\].shape: 2 values of FP32 are 8 bytes, not 4"),
        ({"x": ("FP32", [2], b"", 10**12)}, r"binary_data_size: says 1000000000000 bytes"),
        ({"x": ("FP32", [2], b"", -1)}, "must be a number of bytes"),
        ({"x": ("FP32", [2], b"", True)}, "must be a number of bytes"),
        ({"x": ("FP32", [2], b"", "8")}, "must be a number of bytes"),
        ({"x": ("FP32", [2, 2**62], b"")}, r"must be \[N\] or \[N, 1\]"),
        ({"x": ("FP32", [-1], b"")}, r"must be \[N\] or \[N, 1\]"),
        ({"x": ("FP128", [2], b"")}, "must be FP64 or FP32 or FP16"),
        ({"x": ("FP32", [2], np.array([1, np.nan], "<f4").tobytes())}, r"inputs\[0\]: must be finite numbers, not nan"),
        ({"maybe": ("FP64", [2], np.array([1, np.inf], "<f8").tobytes())}, "must be finite numbers, not inf"),
        ({"image": ("FP32", [2, 2, 2], np.full(8, np.nan, "<f4").tobytes())}, "must be finite numbers"),
        ({"on": ("BOOL", [2], b"\0\2")}, "a byte that is 0 or 1"),
        ({"name": ("BYTES", [2], texts(b"a"))}, "says 2 values, its BYTES are 1"),
        ({"name": ("BYTES", [2], texts(b"a", b"b", b"c"))}, "says 2 values, its BYTES are more"),
        ({"name": ("BYTES", [2], texts(b"a") + b"\xff\xff\xff\xffb")}, "element 1 of its BYTES goes beyond"),
        ({"name": ("BYTES", [2], texts(b"a") + b"\1\0")}, "element 1 of its BYTES goes beyond"),
        ({"name": ("BYTES", [2], texts(b"a", b"\xff"))}, "element 1 of its BYTES is not UTF-8"),
    ],
)
def test_binary_data_that_lie_are_named(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestInvalid, match=why):
        taken(*request(changes))


def test_a_shape_too_large_is_too_large() -> None:
    with pytest.raises(RequestTooLarge):
        taken(*request({"x": ("FP32", [2**62], b"")}))


def test_bytes_that_nobody_counts_are_refused() -> None:
    body, length = request()
    with pytest.raises(RequestMalformed, match="3 bytes follow"):
        taken(body + b"abc", length)
    with pytest.raises(RequestInvalid, match="needs the header Inference-Header-Content-Length"):
        Tensors(body[:length], FLAT, KNOWN)
    head = json.dumps(
        {"inputs": [{"name": "n", "datatype": "INT64", "shape": [1], "data": [1], "parameters": {"binary_data_size": 8}}]}
    )
    with pytest.raises(RequestInvalid, match="must not be there beside binary data"):
        Tensors(head.encode() + b"\0" * 8, {"n": FLAT["n"]}, KNOWN, len(head))


@pytest.mark.parametrize("said", [b"-1", b"+5", b"1e3", b"", b" 7", b"99999999999", b"12"])
def test_a_length_of_the_json_part_that_is_none_is_refused(said: bytes) -> None:
    with pytest.raises(RequestMalformed, match="Inference-Header-Content-Length"):
        header_length(said, b"{}")


def test_every_cut_of_a_binary_request_is_refused_in_words() -> None:
    body, length = request()
    for end in range(length, len(body)):
        with pytest.raises(RequestInvalid, match=r"inputs\[\d\]"):
            taken(body[:end], length)


@given(noise=st.binary(max_size=80), flip=st.integers(0, 90))
def test_no_noise_gets_anything_but_a_refusal(noise: bytes, flip: int) -> None:
    body, length = request()
    at = length + flip % (len(body) - length)
    broken = body[:at] + noise + body[at + len(noise) :]
    with contextlib.suppress(RequestInvalid, RequestMalformed):
        assert len(Decoder(FLAT).check(taken(broken[: len(body)], length).rows)) == 2


def test_outputs_are_binary_where_asked() -> None:
    wanted = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "id"}]
    tensors = taken(*request(outputs=wanted))
    assert (tensors.outputs, tensors.binary) == (["score", "id"], frozenset({"score"}))
    all_but = taken(
        *request(
            outputs=[{"name": "score", "parameters": {"binary_data": False}}, {"name": "id"}],
            parameters={"binary_data_output": True},
        )
    )
    assert all_but.binary == {"id"}
    answer = {
        "outputs": [
            {"name": "score", "datatype": "FP64", "shape": [2], "data": [0.25, None]},
            {"name": "id", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        ]
    }
    body, length = encode(answer, {"score", "id"})
    head = json.loads(body[:length])
    assert [o["parameters"] for o in head["outputs"]] == [{"binary_data_size": 16}, {"binary_data_size": 6}]
    assert struct.unpack("<dd", body[length:][:16])[0] == 0.25
    assert body[-6:] == texts("é".encode())
    assert encode(answer, ()) == (json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode(), None)


def test_a_version_is_the_package_or_its_beginning() -> None:
    check_version("loop", "", "3fa9" * 16)
    check_version("loop", "3fa9", "3fa9" * 16)
    with pytest.raises(NotFound, match="version"):
        check_version("loop", "3fb", "3fa9" * 16)
