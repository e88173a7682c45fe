"""By hand and tuned: FastAPI, async, pydantic; strings looked up in Python, only the trees in onnxruntime. `python -m ... FOLDER PORT`.

No contract but the types, no context, no log, no metrics, no ids.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from benchmarks.serving.columns import CATEGORIES
from benchmarks.serving.peers.flight import Flight
from fastapi import FastAPI

app = FastAPI()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(str(Path(sys.argv[1]) / "trees.onnx"), options, providers=["CPUExecutionProvider"])
PROBABILITIES = [session.get_outputs()[1].name]
carriers, origins, dests = ({word: i for i, word in enumerate(words)} for words in CATEGORIES.values())


@app.post("/predict")  # type: ignore[untyped-decorator]  # the library is in the peer's environment only
async def predict(f: Flight) -> dict[str, float]:
    """One flight."""
    row = (
        carriers.get(f.carrier, -1), origins.get(f.origin, -1), dests.get(f.dest, -1), f.month, f.day, f.weekday, f.hour, f.minute,
        f.flight, f.dep_time, f.sched_dep_time, f.sched_arr_time, f.scheduled_minutes, f.distance, f.dep_delay,
    )  # fmt: skip
    [found] = session.run(PROBABILITIES, {"features": np.array([row], dtype=np.float32)})
    return {"late": float(found[0, 1])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), workers=1, access_log=False, log_level="warning")
