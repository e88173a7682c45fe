"""Endpoints of Triton and KServe besides inference: the repository index, a model's configuration and statistics; and protocol V1.

https://github.com/triton-inference-server/server/tree/main/docs/protocol (extension_model_repository, extension_model_configuration,
extension_statistics) and https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from loopwright.base.errors import RequestInvalid
from loopwright.deploy.serving.decode import parse
from loopwright.deploy.serving.registry import InService
from loopwright.records.package import Manifest
from loopwright.server.api import oip

NOT_LOADED = "clients load and unload no models: `loopwright release` and `rollback` decide what serves"


class Statistics(NamedTuple):
    """Statistics of a loop since the start of the server: requests, their seconds, rows, graph runs, requests refused or failed."""

    requests: int = 0
    seconds: float = 0.0
    rows: int = 0
    runs: int = 0
    failed: int = 0


def only_ready(body: bytes) -> bool:
    """Whether to list ready models only (`{"ready": true}`; without a body: no). Raises RequestMalformed, RequestInvalid."""
    asked = parse(body) if body.strip() else {}
    ready = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(ready, bool):
        raise RequestInvalid([("ready" if isinstance(asked, dict) else "body", 'must be true or false, as in {"ready": true}')])
    return ready


def index(
    loops: Iterable[str], unready: Iterable[str], loaded: Iterable[InService], *, ready: bool = False
) -> list[dict[str, str]]:
    """List the released loops, or only `ready` ones: the package if it is in memory, and whether it can serve."""
    packages, failed = {service.state.loop: service.predictor.digest for service in loaded}, set(unready)
    return [
        {
            "name": loop,
            "version": packages.get(loop, ""),
            "state": "UNAVAILABLE" if loop in failed else "READY",
            "reason": "its package cannot be loaded" if loop in failed else "",
        }
        for loop in loops
        if not (ready and loop in failed)
    ]


def config(loop: str, package: str, manifest: Manifest) -> dict[str, Any]:
    """The configuration as Triton's clients read it; `default_model_filename` is the graph in the package."""
    told = oip.metadata(loop, package, manifest)
    return {
        "name": loop,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [_tensor(tensor) for tensor in told["inputs"]],
        "output": [_tensor(tensor) for tensor in told["outputs"]],
    }


def _tensor(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    optional = {"optional": True} if tensor.get("parameters", {}).get("optional") else {}
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": tensor["shape"]} | optional


def model_statistics(services: Iterable[InService], statistics: Mapping[str, Statistics]) -> list[dict[str, Any]]:
    """Statistics of each loop and the package that serves it now."""
    return [_statistics(s.state.loop, s.predictor.digest, statistics.get(s.state.loop, Statistics())) for s in services]


def _statistics(loop: str, package: str, statistics: Statistics) -> dict[str, Any]:
    """Statistics of one model, over all workers. Times that are not measured apart are 0."""
    nothing = {"count": 0, "ns": 0}
    success = {"count": statistics.requests, "ns": round(statistics.seconds * 1e9)}
    return {
        "name": loop,
        "version": package,
        "last_inference": 0,
        "inference_count": statistics.rows,
        "execution_count": statistics.runs,
        "inference_stats": {
            "success": success,
            "fail": {"count": statistics.failed, "ns": 0},
            **dict.fromkeys(("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"), nothing),
        },
        "batch_stats": [],
    }


def instances(body: bytes) -> list[Any]:
    """The rows of a request of protocol V1. Raises RequestMalformed, RequestInvalid."""
    plain = parse(body)
    rows = plain.get("instances") if isinstance(plain, dict) else None
    if not isinstance(rows, list) or not rows:
        raise RequestInvalid([("instances", "must be a list of rows, each an object of columns")])
    return rows
