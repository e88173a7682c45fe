"""One environment per peer, made once under a cache folder: by uv, or where that is not there by venv and pip."""

import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

_PIPELINE = (f"lightgbm=={version('lightgbm')}", f"scikit-learn=={version('scikit-learn')}", "pandas>=2.2,<4")
_ONNX = "onnxruntime>=1.32,<2"

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "mlflow": ("mlflow>=3.17,<3.18", *_PIPELINE),
    "bentoml": ("bentoml>=1.4,<1.5", *_PIPELINE),
    "mlserver": (
        "mlserver>=1.7,<1.8",
        "mlserver-sklearn>=1.7,<1.8",
        "uvloop<0.22",
        *_PIPELINE,
    ),  # its workers want uvloop of its time
    "litserve": ("litserve>=0.2,<0.3", *_PIPELINE),
    "ray": ("ray[serve]>=2.60,<2.61", *_PIPELINE),
    "fastapi": (
        *("fastapi>=0.165,<1", "uvicorn>=0.54,<1", "httptools>=0.9,<1", "uvloop>=0.23,<1"),
        *(_ONNX, "onnxmltools>=1.16,<2", "skl2onnx>=1.20,<2", *_PIPELINE),
    ),
    "granian": ("granian>=2.8,<3", "msgspec>=0.22,<1", "uvloop>=0.23,<1", _ONNX),
}
"""Name -> requirements. LightGBM and scikit-learn are the very versions that train ours: the same rows then give the same trees."""

TOLD = (
    "mlflow",
    "bentoml",
    "mlserver",
    "litserve",
    "ray",
    "fastapi",
    "uvicorn",
    "granian",
    "onnxruntime",
    "scikit-learn",
    "lightgbm",
)
"""The packages whose versions are reported."""

INSTALL_SECONDS = 900


def default_cache() -> Path:
    """Where environments are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopwright-benchmarks"


def python_of(name: str, cache: Path) -> Path:
    """The Python of an environment, made if it is not there. Raises RuntimeError when it cannot be."""
    wanted = ENVIRONMENTS[name]
    mark = hashlib.sha256(repr((wanted, sys.version_info[:2])).encode()).hexdigest()[:8]
    folder = cache / f"{name}-{mark}"
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"  making the environment of {name} in {folder} ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        uv = shutil.which("uv")
        if uv:
            _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
            _run([uv, "pip", "install", "--quiet", "--python", str(python), *wanted])
        else:
            _run([sys.executable, "-m", "venv", str(folder)])
            _run([str(python), "-m", "pip", "install", "--quiet", *wanted])
        (folder / "ready").touch()
    return python


def versions(python: Path) -> dict[str, str]:
    """The versions of what is told of an environment."""
    code = "import importlib.metadata as m; print(*(f'{d.name.lower()}={d.version}' for d in m.distributions()))"
    said = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout
    found = dict(pair.split("=", 1) for pair in said.split())
    return {name: found[name] for name in TOLD if name in found}


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line[:4])} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
