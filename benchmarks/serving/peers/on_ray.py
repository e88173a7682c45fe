"""The pipeline on Ray Serve, one replica: `python -m benchmarks.serving.peers.on_ray FOLDER PORT`. Runs until it is ended."""

import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from benchmarks.serving.columns import COLUMNS
from benchmarks.serving.peers.pipeline import load
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1})
class FlightDelay:
    """Probability of a late arrival."""

    def __init__(self, folder: str) -> None:
        self.pipeline = load(Path(folder))

    async def __call__(self, request: Any) -> dict[str, float]:
        """One flight."""
        frame = pd.DataFrame([await request.json()], columns=COLUMNS)
        return {"late": float(self.pipeline.predict_proba(frame)[0, 1])}


def main() -> None:
    """Start a Ray of its own, and serve."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(Path(sys.argv[1]) / "ray"),  # its Unix sockets want a short path
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": str(Path.cwd())}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, logging_config={"log_level": "WARNING"})
    serve.run(FlightDelay.bind(sys.argv[1]), route_prefix="/")  # type: ignore[attr-defined]  # the decorator adds it
    threading.Event().wait()


if __name__ == "__main__":
    main()
