"""The Open Inference Protocol, version 2, as KServe's and Triton's clients speak it over REST with JSON tensors.

https://github.com/kserve/open-inference-protocol: one input tensor per column of the contract, named by it, of shape [N] or
[N, 1]; of an array column [N, ...], its data flat or nested. Timestamps are BYTES in ISO 8601 with a zone. Beyond the protocol, `data` may hold null where the contract does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loopwright.deploy.decode import MOST_ROWS, parse
from loopwright.records.declarations import Column
from loopwright.records.errors import FieldProblem, RequestInvalid, RequestTooLarge
from loopwright.records.package import Manifest, Output
from loopwright.records.predictions.record import Prediction

DATATYPES: dict[str, tuple[str, ...]] = {
    "float": ("FP64", "FP32", "FP16"),
    "integer": ("INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8"),
    "boolean": ("BOOL",),
    "string": ("BYTES",),
    "timestamp": ("BYTES",),
    "array": ("FP32", "FP64", "FP16"),
}
"""Column type to the datatypes accepted for it, the native one first."""

_LABELS: dict[str, str] = {"binary": "BOOL", "anomaly": "BOOL", "multiclass": "BYTES"}


def outputs(output: Output) -> dict[str, str]:
    """Output tensor to datatype: `score`, `label` where the task has one, `values` ([N, K]) where there are some, and what else is known."""
    label = {"label": _LABELS[output.task]} if output.task in _LABELS else {}
    values = {"values": "FP64"} if output.names else {}
    return {"score": "FP64"} | label | values | {"id": "BYTES", "arm": "BYTES", "flags": "BYTES", "package": "BYTES"}


class Tensors:
    """What an inference request holds: its id, rows of columns, and the names of the outputs wanted."""

    def __init__(self, body: bytes, columns: Mapping[str, Column], outputs: Mapping[str, str]) -> None:
        plain = parse(body)
        problems: list[FieldProblem] = []
        if not isinstance(plain, dict):
            raise RequestInvalid([("body", "must be an object with `inputs`")])
        self.id = plain.get("id", "")
        if not isinstance(self.id, str):
            problems.append(FieldProblem("id", "must be text"))
        problems += [
            FieldProblem(str(name)[:80], "is not in the protocol")
            for name in plain.keys() - {"id", "parameters", "inputs", "outputs"}
        ]
        self.outputs = _outputs(plain.get("outputs"), outputs, problems)
        found = _inputs(plain.get("inputs"), columns, problems)
        if problems:
            raise RequestInvalid(problems)
        count = len(next(iter(found.values()), []))
        if not count:
            raise RequestInvalid([("inputs", "send at least one row")])
        self.rows: list[Any] = [{name: values[i] for name, values in found.items()} for i in range(count)]


def _outputs(wanted: Any, known: Mapping[str, str], problems: list[FieldProblem]) -> list[str]:
    if wanted is None:
        return list(known)
    names = []
    for i, output in enumerate(wanted if isinstance(wanted, list) else [None]):
        name = output.get("name") if isinstance(output, dict) else None
        if isinstance(name, str) and name in known:
            names.append(name)
        else:
            problems.append(FieldProblem(f"outputs[{i}].name", f"must be one of {', '.join(known)}"))
        if len(problems) >= 20:
            break
    return names


def _inputs(inputs: Any, columns: Mapping[str, Column], problems: list[FieldProblem]) -> dict[str, list[Any]]:
    if not isinstance(inputs, list) or not inputs:
        problems.append(FieldProblem("inputs", "must be a list with one tensor per column"))
        return {}
    found: dict[str, list[Any]] = {}
    for i, tensor in enumerate(inputs):
        if len(problems) >= 20:
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
            found[name] = _data(tensor, columns[name], where, problems)
    lengths = {len(values) for values in found.values()}
    if len(lengths) > 1 and not problems:
        problems.append(FieldProblem("inputs", f"tensors of different lengths: {', '.join(map(str, sorted(lengths)[:5]))}"))
    if max(lengths, default=0) > MOST_ROWS:
        raise RequestTooLarge("rows", MOST_ROWS)
    return found


def _data(tensor: Mapping[str, Any], column: Column, where: str, problems: list[FieldProblem]) -> list[Any]:
    accepted = DATATYPES[column.type]
    if tensor.get("datatype") not in accepted:
        problems.append(FieldProblem(f"{where}.datatype", f"must be {' or '.join(accepted)}"))
    shape = tensor.get("shape")
    inner = [column.shape] if column.shape else [[], [1]]
    lawful = (
        isinstance(shape, list)
        and all(isinstance(d, int) and not isinstance(d, bool) and d >= 0 for d in shape)
        and len(shape) > 0
        and shape[1:] in inner
    )
    if not lawful:
        wanted = " or ".join(f"[{', '.join(['N', *map(str, tail)])}]" for tail in inner)
        problems.append(FieldProblem(f"{where}.shape", f"must be {wanted}"))
    data = tensor.get("data")
    if not isinstance(data, list):
        problems.append(FieldProblem(f"{where}.data", "must be a list"))
        return []
    if column.shape:
        values = _unflattened(data, column.shape)
    else:
        values = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in data]
    if lawful and isinstance(shape, list) and shape[0] != len(values):
        problems.append(FieldProblem(f"{where}.shape", f"says {shape[0]} values, `data` has {len(values)}"))
    return values


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
    """The answer to an inference request. The model's version is the package: of a fleet the first row's, `package` says each.

    `values` are flat, row by row, in the order of the output's names, which are given as the tensor's parameter `names`; `names`
    tells those of any package (a segment's may know fewer classes: 0).
    """
    data: dict[str, list[Any]] = {
        "score": [a.score for a in answers],
        "label": [a.label for a in answers],
        "id": [a.id for a in answers],
        "arm": [a.arm for a in answers],
        "flags": [",".join(a.flags) for a in answers],
        "package": [a.package for a in answers],
    }
    if "values" in wanted:
        given = [dict(zip(names(a.package), a.values or [], strict=True)) for a in answers]
        data["values"] = [row.get(name, 0.0) for row in given for name in output.names]
    types = outputs(output)
    return {
        "model_name": loop,
        "model_version": answers[0].package,
        "id": id,
        "outputs": [
            {"name": n, "shape": [len(answers), *_width(n, output)], "datatype": types[n], "data": data[n], **_named(n, output)}
            for n in wanted
        ],
    }


def _width(name: str, output: Output) -> list[int]:
    return [len(output.names)] if name == "values" else []


def _named(name: str, output: Output) -> dict[str, Any]:
    """The names of the values; a parameter is a scalar by the protocol, so they are JSON text."""
    return {"parameters": {"names": json.dumps(output.names)}} if name == "values" else {}


def metadata(loop: str, package: str, manifest: Manifest) -> dict[str, Any]:
    """The metadata of a model: its package as the version, a tensor per column."""
    return {
        "name": loop,
        "versions": [package],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": n, "datatype": DATATYPES[c.type][0], "shape": [-1, *(c.shape or [])]} for n, c in manifest.request.items()
        ],
        "outputs": [
            {"name": n, "datatype": t, "shape": [-1, *_width(n, manifest.output)], **_named(n, manifest.output)}
            for n, t in outputs(manifest.output).items()
        ],
    }
