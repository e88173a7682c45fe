"""Records for tests of the log."""

from datetime import UTC, datetime, timedelta
from typing import Any

from loopwright.base.ids import new_id
from loopwright.records.prediction import OutcomeRow, Prediction

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PACKAGE = "ab" * 32


def prediction(number: int = 0, **changes: Any) -> Prediction:
    """A prediction made `number` seconds after START."""
    at = START + timedelta(seconds=number)
    values: dict[str, Any] = {
        "id": new_id(at),
        "at": round(at.timestamp() * 1e6),
        "package": PACKAGE,
        "arm": "champion",
        "probability": 1.0,
        "request": {"carrier": "AA", "flight": number, "delay": number / 2, "night": number % 2 == 0, "note": None},
        "context": {"wind": 3.5},
        "context_age_s": 60.0,
        "score": 0.25,
        "label": False,
        "flags": ["out_of_range:delay"] if number % 3 == 0 else [],
        "latency_us": 80.0,
        "unit": f"AA|{number}",
    }
    return Prediction(**{**values, **changes})


def outcome(number: int = 0, *, late: bool = True, **changes: Any) -> OutcomeRow:
    """An outcome for the unit of `prediction(number)`, known an hour later."""
    known = round((START + timedelta(seconds=number, hours=1)).timestamp() * 1e6)
    values: dict[str, Any] = {
        "id": new_id(START),
        "prediction": "",
        "unit": f"AA|{number}",
        "values": {"arr_delay": 40.0 if late else -5.0},
        "known_at": known,
        "received_at": known,
        "provenance": "test",
    }
    return OutcomeRow(**{**values, **changes})
