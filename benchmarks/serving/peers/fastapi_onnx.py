"""By hand: FastAPI, async, pydantic, the whole pipeline as skl2onnx converts it on one thread of onnxruntime. `python -m ... FOLDER PORT`.

No contract but the types, no context, no log, no metrics, no ids.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from benchmarks.serving.columns import CATEGORIES, COLUMNS
from benchmarks.serving.peers.flight import Flight
from fastapi import FastAPI

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(str(Path(sys.argv[1]) / "pipeline.onnx"), options, providers=["CPUExecutionProvider"])
PROBABILITIES = [session.get_outputs()[1].name]
KINDS = [(name, object if name in CATEGORIES else np.float32) for name in COLUMNS]


@app.post("/predict")  # type: ignore[untyped-decorator]  # the library is in the peer's environment only
async def predict(f: Flight) -> dict[str, float]:
    """One flight."""
    row = f.__dict__
    [found] = session.run(PROBABILITIES, {name: np.array([[row[name]]], dtype=kind) for name, kind in KINDS})
    return {"late": float(found[0, 1])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), workers=1, access_log=False, log_level="warning")
