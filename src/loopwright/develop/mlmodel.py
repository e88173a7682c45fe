"""The `MLmodel` file of a package, so that `mlflow.pyfunc.load_model` works on the folder; and the class that MLflow loads.

The model then takes a data frame with the columns of the contract (missing context columns count as null) and returns
a data frame of `score`, `label` where the task has one, and a column for each of the values. `mlflow.onnx.load_model` loads
the plain graph.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa

from loopwright.base.errors import PackageRefused
from loopwright.base.files import read_regular
from loopwright.base.ids import digest
from loopwright.graph.columns import ARROW_TYPES, arrow_feed
from loopwright.graph.session import Graph
from loopwright.records.declarations import Column
from loopwright.records.package import Manifest, Output
from loopwright.stores.packages.environments import ENV
from loopwright.stores.packages.store import FILE_BYTES, MANIFEST_BYTES, decode_json
from loopwright.tasks.metrics import answered

_TYPES = {
    "float": "double",
    "integer": "long",
    "boolean": "boolean",
    "string": "string",
    "timestamp": "datetime",
    "array": "float",
}


def mlmodel(columns: Mapping[str, Column], used: list[str], output: Output, python: str, created_at: datetime) -> bytes:
    """The text of the file, for a model over `columns` that uses those in `used` and gives `output`."""
    inputs = [{**_type(columns[n]), "name": n, "required": not columns[n].nullable} for n in columns if n in used]
    label = output.shape.answer
    outputs = [{"type": "float", "name": "score", "required": True}]
    outputs += [{"type": label, "name": "label", "required": True}] if label else []
    outputs += [{"type": "float", "name": name, "required": True} for name in output.names]
    lines = [
        "flavors:",
        "  onnx:",
        "    data: model.onnx",
        f"    onnx_version: {onnx.__version__}",
        "    providers:",
        "    - CPUExecutionProvider",
        "  python_function:",
        *ENV,
        "    loader_module: loopwright.develop.mlmodel",
        f"    python_version: {python}",
        "mlflow_version: 2.22.0",
        "signature:",
        f"  inputs: '{json.dumps(inputs)}'",
        f"  outputs: '{json.dumps(outputs)}'",
        "  params: null",
        f"utc_time_created: '{created_at.astimezone(UTC).strftime('%Y-%m-%d %H:%M:%S.%f')}'",
    ]
    return ("\n".join(lines) + "\n").encode()


def requirements(version: str) -> list[str]:
    """Requirements to load the folder as an MLflow model, with that version of loopwright."""
    return ["mlflow>=2.22", f"loopwright=={version}", "pandas"]


def _type(column: Column) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _TYPES[column.type]}
    for _ in column.shape or []:
        found = {"type": "array", "items": found}
    return found


class PythonFunction:
    """The object on which MLflow calls `predict`."""

    def __init__(self, manifest: Manifest, graph: Graph) -> None:
        self._manifest, self._graph = manifest, graph
        context = {name: column for need in manifest.context for name, column in need.columns.items()}
        self._columns = {**manifest.request, **context}

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Outputs as in the signature, one row per row of a pandas data frame with the contract's columns."""
        del params
        arrays = {
            name: pa.array(
                _flat(self._columns[name], model_input[name]), type=ARROW_TYPES[self._columns[name].type], from_pandas=True
            )
            if name in model_input
            else pa.nulls(len(model_input), type=ARROW_TYPES[self._columns[name].type])
            for name in self._graph.columns
        }
        found = self._graph.run(
            arrow_feed(self._graph, self._columns, pa.table(arrays)),
            [o for o in ("score", "values") if o in self._graph.outputs],
        )
        output, values = self._manifest.output, found.get("values")
        given = answered(output, found["score"], values, self._manifest.threshold)
        parts = {"score": found["score"]} | ({"label": given.label} if given.label is not None else {})
        return pa.table(
            parts | ({n: values[:, i] for i, n in enumerate(output.names)} if values is not None else {})
        ).to_pandas()


def _flat(column: Column, values: Any) -> Any:
    """Arrays as flat lists in row-major order, moments as a list; other values as they are."""
    if column.type == "array":
        return [v if v is None else np.ravel(np.asarray(v)).tolist() for v in values]
    return list(values) if column.type == "timestamp" else values  # pyarrow < 26 takes the zone off a pandas series


def _load_pyfunc(path: str) -> PythonFunction:
    """MLflow's entry point: the graph in the folder `path`, its bytes checked against the manifest. Raises PackageRefused."""
    folder = Path(path)
    data = _read(folder / "manifest.json", MANIFEST_BYTES)
    manifest: Manifest = decode_json(data, Manifest)
    model = _read(folder / "model.onnx", FILE_BYTES)
    if digest(model) != manifest.files["model.onnx"].sha256:
        raise PackageRefused(digest(data), "the SHA-256 of model.onnx is not the manifest's")
    return PythonFunction(manifest, Graph(model))


def _read(path: Path, limit: int) -> bytes:
    data = read_regular(path, limit)
    if len(data) > limit:
        raise PackageRefused(path.parent.name, f"{path.name} has more than {limit} bytes")
    return data
