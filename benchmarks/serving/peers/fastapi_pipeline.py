"""What most teams write first: FastAPI, a data frame of one row, the pipeline. `python -m ... FOLDER PORT`."""

import sys
from pathlib import Path

import pandas as pd
import uvicorn
from benchmarks.serving.peers.flight import Flight
from benchmarks.serving.peers.pipeline import load
from fastapi import FastAPI

app = FastAPI()
pipeline = load(Path(sys.argv[1]))


@app.post("/predict")  # type: ignore[untyped-decorator]  # the library is in the peer's environment only
def predict(flight: Flight) -> dict[str, float]:
    """One flight."""
    frame = pd.DataFrame([flight.model_dump()])
    return {"late": float(pipeline.predict_proba(frame)[0, 1])}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), workers=1, access_log=False, log_level="warning")
