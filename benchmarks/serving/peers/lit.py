"""The pipeline on LitServe: `python -m benchmarks.serving.peers.lit FOLDER PORT`."""

import sys
from pathlib import Path
from typing import Any

import litserve
import pandas as pd
from benchmarks.serving.columns import COLUMNS
from benchmarks.serving.peers.pipeline import load


class FlightDelay(litserve.LitAPI):  # type: ignore[misc]  # without the library it is Any
    """Probability of a late arrival."""

    def setup(self, device: str) -> None:
        """Load the pipeline, in the worker."""
        self.pipeline = load(Path(sys.argv[1]))

    def decode_request(self, request: dict[str, Any]) -> pd.DataFrame:
        """A data frame of one row."""
        return pd.DataFrame([request], columns=COLUMNS)

    def predict(self, frame: pd.DataFrame) -> float:
        """Probability."""
        return float(self.pipeline.predict_proba(frame)[0, 1])

    def encode_response(self, output: float) -> dict[str, float]:
        """JSON."""
        return {"late": output}


if __name__ == "__main__":
    server = litserve.LitServer(FlightDelay(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="warning")
