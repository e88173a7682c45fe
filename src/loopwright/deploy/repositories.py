"""An exported graph as the files that another server takes: a bare model, a Triton model repository, an MLflow model."""

import json
from collections.abc import Callable

import onnx
from onnx import TensorProto

from loopwright.deploy.export import Exported, Port
from loopwright.records.package import Manifest
from loopwright.stores.packages.environments import ENV, environment_files

_TRITON: dict[int, str] = {
    TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.FLOAT: "TYPE_FP32",
    TensorProto.INT64: "TYPE_INT64",
    TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.STRING: "TYPE_STRING",
}
_DTYPES: dict[int, str] = {
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT: "float32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "str",
}

Files = dict[str, bytes]


def bare(exported: Exported, manifest: Manifest) -> Files:
    """The model alone."""
    del manifest
    return {"model.onnx": exported.model}


def triton(exported: Exported, manifest: Manifest) -> Files:
    """A model repository of Triton Inference Server: inputs and outputs [N], so a request may hold any number of rows."""
    lines = [f"name: {json.dumps(manifest.loop)}", 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind, ports in (("input", exported.inputs), ("output", exported.outputs)):
        for port in ports:
            dims = ", ".join(map(str, (-1, *port.shape)))
            name = json.dumps(port.name, ensure_ascii=False)
            lines.append(f"{kind} {{\n  name: {name}\n  data_type: {_TRITON[port.type]}\n  dims: [ {dims} ]\n}}")
    text = "\n".join(lines) + "\n"
    return {f"{manifest.loop}/config.pbtxt": text.encode(), f"{manifest.loop}/1/model.onnx": exported.model}


def mlflow(exported: Exported, manifest: Manifest) -> Files:
    """An MLflow model for MLflow's own ONNX flavour: serving it does not need loopwright.

    Its signature is of tensors: of data frames MLflow hands text columns to the runtime in a form that it refuses.
    """
    inputs, outputs = ([_tensor(port) for port in ports] for ports in (exported.inputs, exported.outputs))
    python = manifest.environment.get("python", "3.11")
    lines = [
        "flavors:",
        "  onnx:",
        "    data: model.onnx",
        f"    onnx_version: {onnx.__version__}",
        "    providers:",
        "    - CPUExecutionProvider",
        "  python_function:",
        "    data: model.onnx",
        *ENV,
        "    loader_module: mlflow.onnx",
        f"    python_version: {python}",
        "mlflow_version: 2.22.0",
        "signature:",
        f"  inputs: {_quoted(json.dumps(inputs))}",
        f"  outputs: {_quoted(json.dumps(outputs))}",
        "  params: null",
        f"utc_time_created: '{manifest.created_at:%Y-%m-%d %H:%M:%S.%f}'",
    ]
    files = environment_files(python, ["mlflow>=2.22", "onnx>=1.17", "onnxruntime>=1.20", "pandas"])
    return {"MLmodel": ("\n".join(lines) + "\n").encode(), "model.onnx": exported.model, **files}


def _tensor(port: Port) -> dict[str, object]:
    return {"name": port.name, "type": "tensor", "tensor-spec": {"dtype": _DTYPES[port.type], "shape": [-1, *port.shape]}}


def _quoted(text: str) -> str:
    """A text in YAML's single quotes."""
    return "'" + text.replace("'", "''") + "'"


FORMATS: dict[str, Callable[[Exported, Manifest], Files]] = {"onnx": bare, "triton": triton, "mlflow": mlflow}
"""Export formats of a package."""
