"""The Open Inference Protocol, version 2, as KServe's and Triton's clients speak it: JSON tensors and binary tensors.

https://github.com/kserve/open-inference-protocol, and for binary tensors over REST
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md: one input tensor per column of
the contract, named by it, of shape [N] or [N, 1]; of an array column [N, ...], its data flat or nested. Timestamps are BYTES in ISO
8601 with a zone. Null is null in JSON `data` and NaN in a binary floating-point tensor; of BYTES it is the text that the request's
parameter `null` names.
"""

import json
import math
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loopwright.base.errors import FieldProblem, NotFound, RequestInvalid, RequestMalformed, RequestTooLarge
from loopwright.deploy.serving.decode import MAX_PROBLEMS, MAX_ROWS, parse
from loopwright.records.declarations import Column
from loopwright.records.package import Manifest, Output
from loopwright.records.prediction import Contributions, Prediction

REPOSITORY_EXTENSIONS = ("model_repository", "model_configuration", "statistics")
EXTENSIONS = ("binary_tensor_data", *REPOSITORY_EXTENSIONS)
EXPLAINED = ("contributions", "base")
"""The outputs that `explain=true` adds."""

HEADER_LENGTH = b"inference-header-content-length"
BINARY = b"application/octet-stream"

DATATYPES: dict[str, tuple[str, ...]] = {
    "float": ("FP64", "FP32", "FP16"),
    "integer": ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"),
    "boolean": ("BOOL",),
    "string": ("BYTES",),
    "timestamp": ("BYTES",),
    "array": ("FP32", "FP64", "FP16"),
}
"""Column type to the datatypes accepted for it, the native one first."""

NUMBERS = {
    "FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "BOOL": "u1",
    "INT64": "<i8", "INT32": "<i4", "INT16": "<i2", "INT8": "i1",
    "UINT64": "<u8", "UINT32": "<u4", "UINT16": "<u2", "UINT8": "u1",
}  # fmt: skip
"""Datatype to how its elements lie in a binary tensor; those of BYTES follow each other, each after its length (4 bytes)."""

_LENGTH = struct.Struct("<I")
_LABELS = {"boolean": "BOOL", "string": "BYTES"}
_encode = msgspec.json.Encoder().encode


def outputs(output: Output) -> dict[str, str]:
    """Output tensor to datatype: `score`, `label` if the task has one, `values` ([N, K]) if there are some, and further known facts."""
    label = {"label": _LABELS[output.shape.answer]} if output.shape.answer else {}
    values = {"values": "FP64"} if output.names else {}
    return {"score": "FP64"} | label | values | {"id": "BYTES", "arm": "BYTES", "flags": "BYTES", "package": "BYTES"}


def error(described: dict[str, Any]) -> dict[str, Any]:
    """An error's answer (`status.describe`) as the protocol wants it: text under `error`."""
    inner = described["error"]
    fields = "; ".join(f"{f['field']}: {f['reason']}" for f in inner["fields"])
    return {**inner, "error": f"{inner['message']}: {fields}" if fields else inner["message"]}


def check_version(loop: str, version: str, package: str) -> None:
    """Raise NotFound unless `version` is the digest of the package that serves, or its beginning; "" is any."""
    if not package.startswith(version):
        step = "leave the version out, or name the package that serves"
        raise NotFound("version of model", f"{loop}/{version[:64]}", near=[package[:12]], next_step=step)


def is_readable(headers: Mapping[bytes, bytes]) -> bool:
    """Whether to accept a body not declared as JSON: with binary tensors, or from a client that declares no type at all.

    Triton's clients declare none. Another site's page could make a browser send such a body, but the browser adds such a header.
    """
    if headers.get(b"content-type", BINARY).lower() != BINARY:
        return False
    return HEADER_LENGTH in headers or not headers.keys() & {b"content-type", b"origin", b"sec-fetch-site"}


def header_length(header: bytes | None, body: bytes) -> int | None:
    """The length of the JSON part of a body with binary tensors (the request's header HEADER_LENGTH), None for JSON alone.

    Raises RequestMalformed.
    """
    if header is None:
        return None
    if not (header.isdigit() and len(header) <= 9):
        raise RequestMalformed("Inference-Header-Content-Length must be a number of bytes")
    if int(header) > len(body):
        raise RequestMalformed(f"Inference-Header-Content-Length says {int(header)} bytes, the body has {len(body)}")
    return int(header)


class RequestedOutput(NamedTuple):
    """An output tensor that is wanted, and whether as a binary tensor."""

    name: str
    binary: bool


class Tensors:
    """The contents of an inference request: its id, rows of columns, the requested outputs, and which of them in binary.

    `length` is that of the JSON part of `body` (`header_length`). Raises RequestMalformed, RequestInvalid, RequestTooLarge.
    """

    def __init__(
        self, body: bytes, columns: Mapping[str, Column], outputs: Mapping[str, str], length: int | None = None
    ) -> None:
        plain = parse(body if length is None else body[:length])
        problems: list[FieldProblem] = []
        raw = _raw(plain, memoryview(body)[length:] if length is not None else None, problems)
        self._take(plain, raw, columns, outputs, problems)

    @classmethod
    def of(
        cls, plain: dict[str, Any], raw: Sequence[bytes | None], columns: Mapping[str, Column], outputs: Mapping[str, str]
    ) -> "Tensors":
        """Read a request that is not JSON: plain values, with each input's binary data, if it has some."""
        found = cls.__new__(cls)
        found._take(plain, raw, columns, outputs, [])
        return found

    def _take(
        self,
        plain: Any,
        raw: Sequence[bytes | memoryview | None],
        columns: Mapping[str, Column],
        outputs: Mapping[str, str],
        problems: list[FieldProblem],
    ) -> None:
        if not isinstance(plain, dict):
            raise RequestInvalid([("body", "must be an object with `inputs`")])
        plain = {
            name: value for name, value in plain.items() if value is not None
        }  # some clients send null for optional fields
        self.id = plain.get("id", "")
        if not isinstance(self.id, str):
            problems.append(FieldProblem("id", "must be text"))
        parameters = plain.get("parameters", {})
        if not isinstance(parameters, dict):
            problems.append(FieldProblem("parameters", "must be an object"))
            parameters = {}
        binary = _flag(parameters, "binary_data_output", "parameters", problems)
        wanted = _outputs(plain.get("outputs"), outputs, binary=binary, problems=problems)
        self.outputs, self.binary = [w.name for w in wanted], frozenset(w.name for w in wanted if w.binary)
        null = parameters.get("null")
        if null is not None and not isinstance(null, str):
            problems.append(FieldProblem("parameters.null", "must be the text that stands for null"))
        found = _inputs(plain.get("inputs"), raw, columns, null, problems)
        if problems:
            raise RequestInvalid(problems[:MAX_PROBLEMS])
        count = len(next(iter(found.values()), []))
        if not count:
            raise RequestInvalid([("inputs", "send at least one row")])
        names = list(found)
        self.rows: list[Any] = [dict(zip(names, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _raw(plain: Any, rest: memoryview | None, problems: list[FieldProblem]) -> list[memoryview | None]:
    """The binary data of each input, in order, after the JSON part. Raises RequestMalformed if it does not fit."""
    inputs = plain.get("inputs") if isinstance(plain, dict) else None
    left = rest if rest is not None else memoryview(b"")
    found: list[memoryview | None] = []
    for i, tensor in enumerate(inputs if isinstance(inputs, list) else []):
        parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            found.append(None)
            continue
        where = f"inputs[{i}].parameters.binary_data_size"
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise RequestInvalid([(where, "must be a number of bytes")])
        if rest is None:
            raise RequestInvalid([(where, "needs the header Inference-Header-Content-Length, the length of the JSON part")])
        if size > len(left):
            raise RequestInvalid([(where, f"says {size} bytes, {len(left)} are there")])
        if "data" in tensor:
            problems.append(FieldProblem(f"inputs[{i}].data", "must not be there beside binary data"))
        found.append(left[:size])
        left = left[size:]
    if left:
        raise RequestMalformed(f"{len(left)} bytes follow the JSON part that no tensor's binary_data_size counts")
    return found


def _flag(parameters: Mapping[str, Any], name: str, where: str, problems: list[FieldProblem]) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        problems.append(FieldProblem(f"{where}.{name}", "must be true or false"))
    return value is True


def _outputs(wanted: Any, known: Mapping[str, str], *, binary: bool, problems: list[FieldProblem]) -> list[RequestedOutput]:
    if wanted is None:
        return [RequestedOutput(name, binary) for name in known]
    found: dict[str, RequestedOutput] = {}
    for i, output in enumerate(wanted if isinstance(wanted, list) else [None]):
        where = f"outputs[{i}]"
        name = output.get("name") if isinstance(output, dict) else None
        parameters = output.get("parameters", {}) if isinstance(output, dict) else {}
        if not isinstance(name, str) or name not in known:
            problems.append(FieldProblem(f"{where}.name", f"must be one of {', '.join(known)}"))
        elif name in found:
            problems.append(FieldProblem(f"{where}.name", f"{name!r} is there twice"))
        elif not isinstance(parameters, dict):
            problems.append(FieldProblem(f"{where}.parameters", "must be an object"))
        else:
            strange = sorted(parameters.keys() & {"classification", "shared_memory_region"})
            problems += [FieldProblem(f"{where}.parameters.{other}", "is not supported") for other in strange]
            own = _flag(parameters, "binary_data", f"{where}.parameters", problems)
            found[name] = RequestedOutput(name, own if "binary_data" in parameters else binary)
        if len(problems) >= MAX_PROBLEMS:
            break
    return list(found.values())


def _inputs(
    inputs: Any,
    raw: Sequence[bytes | memoryview | None],
    columns: Mapping[str, Column],
    null: str | None,
    problems: list[FieldProblem],
) -> dict[str, list[Any]]:
    if not isinstance(inputs, list) or not inputs:
        problems.append(FieldProblem("inputs", "must be a list with one tensor per column"))
        return {}
    found: dict[str, list[Any]] = {}
    for i, tensor in enumerate(inputs):
        if len(problems) >= MAX_PROBLEMS:
            break
        where = f"inputs[{i}]"
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            problems.append(FieldProblem(f"{where}.name", "must be the name of a column"))
            continue
        name = tensor["name"]
        if name in found:
            problems.append(FieldProblem(f"{where}.name", f"{name[:80]!r} is there twice"))
        elif name not in columns:
            problems.append(FieldProblem(f"{where}.name", f"{name[:80]!r} is not in the contract"))
        else:
            found[name] = _data(tensor, raw[i], columns[name], where, null, problems)
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1 and not problems:
        problems.append(FieldProblem("inputs", f"tensors of different lengths: {', '.join(map(str, sorted(lengths)[:5]))}"))
    if max(lengths, default=0) > MAX_ROWS:
        raise RequestTooLarge("rows", MAX_ROWS)
    return found


def _data(
    tensor: Mapping[str, Any],
    raw: bytes | memoryview | None,
    column: Column,
    where: str,
    null: str | None,
    problems: list[FieldProblem],
) -> list[Any]:
    """One value per row of a tensor."""
    before = len(problems)
    accepted, datatype = DATATYPES[column.type], str(tensor.get("datatype"))
    if datatype not in accepted:
        problems.append(FieldProblem(f"{where}.datatype", f"must be {' or '.join(accepted)}"))
    shape = _shape(tensor.get("shape"), column, where, problems)
    data: Any = tensor.get("data")
    if raw is None and isinstance(data, list):  # JSON
        values = _rows(data, column, null)
        if shape and shape[0] != len(values):
            problems.append(FieldProblem(f"{where}.shape", f"says {shape[0]} values, `data` has {len(values)}"))
        return values
    if raw is None and (not isinstance(data, Sequence) or isinstance(data, str)):
        problems.append(FieldProblem(f"{where}.data", "must be a list"))
    if len(problems) > before:
        return []
    count = math.prod(shape)
    if raw is not None:
        data = _unpacked(raw, datatype, count, where, problems)
    elif len(data) != count:
        problems.append(FieldProblem(f"{where}.shape", f"says {count} values, there are {len(data)}"))
    if len(problems) == before:
        _check_finite(data, datatype, column, where, problems)
    return _rows(data, column, null) if len(problems) == before else []


def _shape(shape: Any, column: Column, where: str, problems: list[FieldProblem]) -> list[int]:
    """The shape of a tensor, empty if it does not fit the column. Raises RequestTooLarge."""
    inner = [column.shape] if column.shape else [[], [1]]
    numbers = isinstance(shape, list) and all(isinstance(d, int) and not isinstance(d, bool) and d >= 0 for d in shape)
    if not numbers or not shape or shape[1:] not in inner:
        wanted = " or ".join(f"[{', '.join(['N', *map(str, tail)])}]" for tail in inner)
        problems.append(FieldProblem(f"{where}.shape", f"must be {wanted}"))
        return []
    if shape[0] > MAX_ROWS:
        raise RequestTooLarge("rows", MAX_ROWS)
    found: list[int] = shape
    return found


def _check_finite(data: Sequence[Any], datatype: str, column: Column, where: str, problems: list[FieldProblem]) -> None:
    """For data outside of JSON: report infinities, and NaN if it does not mean null."""
    if datatype not in ("FP64", "FP32", "FP16"):
        return
    odd = np.asarray(data, np.float64)
    odd = odd[~np.isfinite(odd)]
    if column.nullable and not column.shape:
        odd = odd[~np.isnan(odd)]
    if len(odd):
        problems.append(FieldProblem(where, f"must be finite numbers, not {odd[0]}"))


def _rows(data: Sequence[Any], column: Column, null: str | None) -> list[Any]:
    if column.shape:
        return _unflattened(list(data), column.shape)
    values = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in data]
    if column.nullable and column.type == "float":
        return [None if v != v else v for v in values]  # NaN alone differs from itself
    if null is not None and column.nullable and column.type in ("string", "timestamp"):
        return [None if v == null else v for v in values]
    return values


def _unpacked(raw: bytes | memoryview, datatype: str, count: int, where: str, problems: list[FieldProblem]) -> list[Any]:
    """The elements of a binary tensor, in row-major order; none where they do not fit its shape and datatype."""
    if datatype == "BYTES":
        return _texts(raw, count, where, problems)
    each = np.dtype(NUMBERS[datatype])
    if len(raw) != count * each.itemsize:
        wanted = f"{count} values of {datatype} are {count * each.itemsize} bytes, not {len(raw)}"
        problems.append(FieldProblem(f"{where}.shape", wanted))
        return []
    found = np.frombuffer(raw, each)
    if datatype == "BOOL":
        if found.max(initial=0) > 1:
            problems.append(FieldProblem(where, "a BOOL is a byte that is 0 or 1"))
            return []
        found = found.astype(bool)
    values: list[Any] = found.tolist()
    return values


def _texts(raw: bytes | memoryview, count: int, where: str, problems: list[FieldProblem]) -> list[Any]:
    texts: list[str] = []
    at, end = 0, len(raw)
    try:
        while at < end and len(texts) < count:
            (length,) = _LENGTH.unpack_from(raw, at)
            at += 4 + length
            if at > end:
                raise struct.error
            texts.append(str(raw[at - length : at], "utf-8"))
    except struct.error:
        problems.append(FieldProblem(where, f"element {len(texts)} of its BYTES goes beyond the tensor's end"))
        return []
    except UnicodeDecodeError:
        problems.append(FieldProblem(where, f"element {len(texts)} of its BYTES is not UTF-8"))
        return []
    if len(texts) != count or at != end:
        problems.append(
            FieldProblem(f"{where}.shape", f"says {count} values, its BYTES are {'more' if at != end else len(texts)}")
        )
        return []
    return texts


def _unflattened(data: list[Any], shape: list[int]) -> list[Any]:
    """One nested list per row, of nested data or of flat data in row-major order; data that do not fit are given back as they are."""
    if any(isinstance(v, list) or v is None for v in data):
        return data
    for length in reversed(shape):
        if len(data) % length:
            return data
        data = [data[i : i + length] for i in range(0, len(data), length)]
    return data


def response(
    loop: str,
    id: str,
    answers: Sequence[Prediction],
    wanted: Sequence[str],
    output: Output,
    names: Callable[[str], Sequence[str]],
) -> dict[str, Any]:
    """The answer to an inference request. The model's version is the package: of a fleet the first row's, `package` has each.

    `values` are flat, row by row, in the order of the output's names, which are the tensor's parameter `names`; `names`
    returns those of any package (a segment's may know fewer classes: 0).
    """
    types = outputs(output)
    return {
        "model_name": loop,
        "model_version": answers[0].package,
        "id": id,
        "outputs": [
            {
                "name": name,
                "shape": [len(answers), *_width(name, output)],
                "datatype": types[name],
                "data": _column(name, answers, output, names),
                **_named(name, output),
            }
            for name in wanted
        ],
    }


def explained(reasons: Sequence[Contributions]) -> list[dict[str, Any]]:
    """Explanations as two more output tensors: `contributions` [N, F], with the features as the parameter `names`, and `base` [N].

    The rows of answers that are not explained are null.
    """
    told = next((r for r in reasons if r.contributions is not None), Contributions({}))
    names = list(told.contributions or {})
    data = [(r.contributions or {}).get(name) for r in reasons for name in names]
    about = {"datatype": "FP64", "parameters": {"names": json.dumps(names), "unit": told.unit}}
    return [
        {"name": EXPLAINED[0], "shape": [len(reasons), len(names)], "data": data, **about},
        {"name": EXPLAINED[1], "shape": [len(reasons)], "data": [r.base for r in reasons], "datatype": "FP64"},
    ]


def _column(name: str, answers: Sequence[Prediction], output: Output, names: Callable[[str], Sequence[str]]) -> list[Any]:
    if name == "flags":
        return [",".join(a.flags) for a in answers]
    if name == "values":
        given = [dict(zip(names(a.package), a.values or [], strict=True)) for a in answers]
        return [row.get(value, 0.0) for row in given for value in output.names]
    return [getattr(a, name) for a in answers]


def encode(answer: dict[str, Any], binary: Collection[str]) -> tuple[bytes, int | None]:
    """An answer (`response`) as a body, those outputs that `binary` names as binary tensors; and the length of its JSON part, if it has any."""
    if not binary:
        return _encode(answer), None
    parts, described = [], []
    for tensor in answer["outputs"]:
        if tensor["name"] in binary:
            parts.append(packed(tensor["data"], tensor["datatype"]))
            parameters = {**tensor.get("parameters", {}), "binary_data_size": len(parts[-1])}
            tensor = {**{k: v for k, v in tensor.items() if k != "data"}, "parameters": parameters}
        described.append(tensor)
    head = _encode({**answer, "outputs": described})
    return b"".join([head, *parts]), len(head)


def packed(values: Sequence[Any], datatype: str) -> bytes:
    """Values as a binary tensor. Those of BYTES are text; null is the empty one, false, or NaN."""
    if datatype != "BYTES":
        empty = float("nan") if datatype.startswith("FP") else 0
        return np.array([empty if v is None else v for v in values], NUMBERS[datatype]).tobytes()
    texts = [("" if v is None else str(v)).encode() for v in values]
    return b"".join(part for text in texts for part in (_LENGTH.pack(len(text)), text))


def _width(name: str, output: Output) -> list[int]:
    return [len(output.names)] if name == "values" else []


def _named(name: str, output: Output) -> dict[str, Any]:
    """The names of the values; a parameter is a scalar by the protocol, so they are JSON text."""
    return {"parameters": {"names": json.dumps(output.names)}} if name == "values" else {}


def _may(name: str, column: Column, manifest: Manifest) -> dict[str, Any]:
    """Whether a client may omit a column, or send null; empty if neither."""
    said = {"optional": name in manifest.may_lack, "nullable": column.nullable}
    may = {key: True for key, true in said.items() if true}
    return {"parameters": may} if may else {}


def metadata(loop: str, package: str, manifest: Manifest) -> dict[str, Any]:
    """The metadata of a model: its package as the version, a tensor per column."""
    return {
        "name": loop,
        "versions": [package],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": n, "datatype": DATATYPES[c.type][0], "shape": [-1, *(c.shape or [])], **_may(n, c, manifest)}
            for n, c in manifest.request.items()
        ],
        "outputs": [
            {"name": n, "datatype": t, "shape": [-1, *_width(n, manifest.output)], **_named(n, manifest.output)}
            for n, t in outputs(manifest.output).items()
        ],
    }
