"""The pipeline as a BentoML service: `bentoml serve benchmarks.serving.peers.bento:FlightDelay`."""

from typing import Any

import bentoml
import pandas as pd
from benchmarks.serving.columns import COLUMNS


@bentoml.service(workers=1)
class FlightDelay:
    """Probability of a late arrival."""

    model = bentoml.models.BentoModel("flight-delay:latest")

    def __init__(self) -> None:
        self.pipeline = bentoml.sklearn.load_model(self.model)

    @bentoml.api  # type: ignore[untyped-decorator]  # the library is in the peer's environment only
    def predict(self, flight: dict[str, Any]) -> dict[str, float]:
        """One flight."""
        frame = pd.DataFrame([flight], columns=COLUMNS)
        return {"late": float(self.pipeline.predict_proba(frame)[0, 1])}
