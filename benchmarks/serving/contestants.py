"""Who is measured: how each gets its model, is started, is asked, and answers. All serve the same trees and are sent the same rows."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.serving.columns import CATEGORIES, COLUMNS, NUMBERS
from benchmarks.serving.flights import LOOP, ROOT, command

TOLERANCE = 1e-6
PEERS = "benchmarks.serving.peers"
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
}
Row = Mapping[str, Any]


class Place(NamedTuple):
    """Where a contestant runs: the Python of its environment, the folder with the models, our home, its port."""

    python: Path
    folder: Path
    home: Path
    port: int

    def program(self, name: str) -> str:
        """A program of the environment."""
        return str(self.python.parent / name)

    def module(self, name: str) -> list[str]:
        """A module of `peers`, given the folder and the port."""
        return [str(self.python), "-m", f"{PEERS}.{name}", str(self.folder), str(self.port)]


class Contestant(NamedTuple):
    """One server. `environment` and `keep` (see `peers.pipeline`) are empty for what runs in this environment."""

    name: str
    line: Callable[[Place], list[str]]
    environment: str = ""
    keep: str = ""
    path: str = "/predict"
    body: Callable[[Row], Any] = dict
    score: Callable[[Any], float] = lambda answer: float(answer["late"])
    variables: Callable[[Place], dict[str, str]] = lambda place: {}
    echoes: bool = False

    def right(self, row: Row, expected: float) -> Callable[[Any], bool]:
        """Whether an answer is the expected one: the score within 1e-6, or of an echo the row."""

        def check(answer: Any) -> bool:
            if self.echoes:
                return bool(answer == row)
            try:
                return math.isclose(self.score(answer), expected, rel_tol=0, abs_tol=TOLERANCE)
            except (KeyError, IndexError, TypeError):
                return False

        return check

    def environ(self, place: Place) -> dict[str, str]:
        """Its environment variables."""
        path = f"{place.python.parent}:/usr/local/bin:/usr/bin:/bin"
        return {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "VIRTUAL_ENV": str(place.python.parents[1]),
            **QUIET,
            **self.variables(place),
        }

    def encoded(self, row: Row) -> bytes:
        """The body of a request."""
        return json.dumps(self.body(row)).encode()


def _ours(place: Place) -> list[str]:
    return command(place.home, "serve", "--port", str(place.port), "--control-port", "0", "--workers", "1", "--no-tend")


def _mlflow(place: Place) -> list[str]:
    model = ["-m", str(place.folder / "mlflow-model"), "--env-manager", "local"]
    return [place.program("mlflow"), "models", "serve", *model, "-h", "127.0.0.1", "-p", str(place.port), "-w", "1"]


def _bento(place: Place) -> list[str]:
    return [place.program("bentoml"), "serve", f"{PEERS}.bento:FlightDelay", "--host", "127.0.0.1", "--port", str(place.port)]


def _mlserver(place: Place) -> list[str]:
    folder = place.folder / "mlserver"
    folder.mkdir(exist_ok=True)
    model = {
        "name": LOOP,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(place.folder / "model.joblib")},
    }
    (folder / "model-settings.json").write_text(json.dumps(model))
    return [place.program("mlserver"), "start", str(folder)]


def _mlserver_variables(place: Place) -> dict[str, str]:
    given = {
        "HOST": "127.0.0.1",
        "HTTP_PORT": place.port,
        "GRPC_PORT": place.port + 1,
        "METRICS_PORT": place.port + 2,
        "DEBUG": "false",
    }
    folders = {"METRICS_DIR": place.folder / "metrics", "ENVIRONMENTS_DIR": place.folder / "envs"}
    return {f"MLSERVER_{name}": str(value) for name, value in {**given, **folders}.items()}


def _mlserver_body(row: Row) -> dict[str, Any]:
    def tensor(name: str) -> dict[str, Any]:
        if name in CATEGORIES:
            return {
                "name": name,
                "shape": [1, 1],
                "datatype": "BYTES",
                "data": [row[name]],
                "parameters": {"content_type": "str"},
            }
        kind = "FP64" if NUMBERS[name][0] is float else "INT64"
        return {"name": name, "shape": [1, 1], "datatype": kind, "data": [row[name]]}

    tensors = [tensor(name) for name in COLUMNS]
    return {"parameters": {"content_type": "pd"}, "inputs": tensors, "outputs": [{"name": "predict_proba"}]}


def _granian(place: Place) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--workers", "1", "--loop", "uvloop", "--no-log", "--no-ws"]
    return [place.program("granian"), "--interface", "rsgi", *where, f"{PEERS}.granian_onnx:app"]


def _echo(place: Place) -> list[str]:
    return [str(place.python), str(ROOT / "benchmarks" / "echo.py"), str(place.port)]


CONTESTANTS = [
    Contestant("loopwright", _ours, path=f"/loops/{LOOP}/predict", score=lambda answer: float(answer["score"])),
    Contestant(
        "MLflow",
        _mlflow,
        "mlflow",
        "mlflow",
        path="/invocations",
        body=lambda row: {"dataframe_records": [row]},
        score=lambda answer: float(answer["predictions"][0][1]),
    ),
    Contestant(
        "BentoML",
        _bento,
        "bentoml",
        "bento",
        body=lambda row: {"flight": row},
        variables=lambda place: {"BENTOML_HOME": str(place.folder / "bentoml")},
    ),
    Contestant(
        "MLServer",
        _mlserver,
        "mlserver",
        "joblib",
        path=f"/v2/models/{LOOP}/infer",
        body=_mlserver_body,
        score=lambda answer: float(answer["outputs"][0]["data"][1]),
        variables=_mlserver_variables,
    ),
    Contestant("LitServe", lambda place: place.module("lit"), "litserve", "joblib"),
    Contestant("Ray Serve", lambda place: place.module("on_ray"), "ray", "joblib", path="/"),
    Contestant("FastAPI + pipeline", lambda place: place.module("fastapi_pipeline"), "fastapi", "joblib"),
    Contestant("FastAPI + onnxruntime", lambda place: place.module("fastapi_onnx"), "fastapi", "whole-onnx"),
    Contestant("FastAPI + onnxruntime, tuned", lambda place: place.module("fastapi_trees"), "fastapi", "onnx"),
    Contestant("granian + onnxruntime", _granian, "granian", "onnx", variables=lambda place: {"FOLDER": str(place.folder)}),
    Contestant("echo on uvicorn", _echo, path="/echo", echoes=True),
    Contestant("echo on our HTTP layer", lambda place: [*_echo(place), "own"], path="/echo", echoes=True),
]


def contestant(name: str) -> Contestant:
    """By name. Raises KeyError."""
    return next(c for c in CONTESTANTS if c.name == name)
