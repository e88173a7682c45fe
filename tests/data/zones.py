"""Prints, as JSON, what declared SQL over times gives wherever it is evaluated; run by itself under several time zones."""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from tests.data.history import ASKED, LOOP, MINUTE, OUTCOME, START, WEATHER, History, Row, fill, home, log, served, told

from loopwright import Aggregate, Home, Outcome
from loopwright.data.examples.build import build
from loopwright.stores.examples import read_examples
from loopwright.stores.outcomes.join import history as history_of
from loopwright.stores.outcomes.join import join, outcomes
from loopwright.stores.prediction_log.read import predictions

LABELS = (
    "came_at > TIMESTAMPTZ '2024-01-01 12:00:00'",
    "came_at > TIMESTAMP '2024-01-01 12:00:00'",
    "came_at::VARCHAR < '2024-01-01 12:00:00+00'",
    "hour(came_at) >= 12",
    "hour(came_at AT TIME ZONE 'America/New_York') >= 12",
    "date_trunc('day', came_at) + INTERVAL 12 HOURS < came_at",
    "came_at::DATE > DATE '2024-01-01'",
    "strftime(came_at, '%H') >= '12'",
    "typeof(came_at) = 'TIMESTAMP WITH TIME ZONE' AND came_at::TIMESTAMP > TIMESTAMP '2024-01-01 12:00:00'",
    "came_at > make_timestamptz(2024, 1, 1, 12, 0, 0.0)",
)
AGGREGATES = [
    Aggregate(name=f"seen_{function}", table=WEATHER, by={"site": "place"}, function=function, of=of, window="9h")  # type: ignore[arg-type]
    for function, of in {
        "share": "seen_at > TIMESTAMPTZ '2024-01-01 12:00:00'",
        "sum": "hour(seen_at AT TIME ZONE 'America/New_York')",
        "max": "hour(seen_at)",
        "distinct": "seen_at::DATE",
    }.items()
]
HOURS = tuple(range(0, 36, 3))
END = START + timedelta(days=3)


def history() -> History:
    asked: list[Row] = [{"id": h, "at": START + timedelta(hours=h), "place": "A", "size": 1.0} for h in HOURS]
    came: list[Row] = [{"id": r["id"], "came_at": r["at"] + 7 * MINUTE, "delay": 1.0} for r in asked]
    weather = [
        {"site": "A", "seen_at": r["at"] - 30 * MINUTE, "told_at": r["at"] - 20 * MINUTE, "wind": 1.0, "calm": True}
        for r in asked
    ]
    return History(asked, weather, came)


def everything(folder: Path) -> dict[str, Any]:
    """Per label: `landed` (examples of a table), `reported` (examples of posted outcomes), `joined`, `one` (trace)."""
    said, found = history(), {}
    with home(folder / "tables") as tables, home(folder / "log") as logged:
        fill(tables, said)
        fill(logged, said._replace(came=[]))
        log(logged, "predictions", [served(r, i) for i, r in enumerate(said.asked)])
        log(logged, "outcomes", [told(i, r["delay"], r["came_at"], unit=str(r["id"])) for i, r in enumerate(said.came)])
        for label in LABELS:
            outcome = msgspec.structs.replace(OUTCOME, label=label)
            seen = predictions(logged, LOOP)
            truth = join(logged, seen, outcomes(logged, LOOP), outcome, known_by=END)
            one = {
                r.unit: next((s.truth for s in history_of(logged, LOOP, r, outcome) if s.counts), None)
                for r in (served(r, i) for i, r in enumerate(said.asked))
            }
            found[label] = {
                "landed": labels(tables, outcome),
                "reported": labels(logged, outcome),
                "joined": dict(zip(truth["_unit"].to_pylist(), truth["_truth"].to_pylist(), strict=True)),
                "one": one,
            }
        made = examples(tables, msgspec.structs.replace(OUTCOME, label=LABELS[0]), AGGREGATES)
        found["aggregates"] = {a.name: {r["_unit"]: r[a.name] for r in made} for a in AGGREGATES}
    return found


def labels(home: Home, outcome: Outcome) -> dict[str, Any]:
    """The label of each example by unit."""
    return {r["_unit"]: r["_label"] for r in examples(home, outcome)}


def examples(home: Home, outcome: Outcome, aggregates: Sequence[Aggregate] = ()) -> list[Row]:
    """The examples as rows."""
    made = build(home, loop_name=LOOP, requests=ASKED, context=[], aggregates=aggregates, outcome=outcome, as_of=END)
    return read_examples(home, made.digest).to_pylist()  # type: ignore[no-any-return]  # pyarrow has no types


if __name__ == "__main__":
    print(json.dumps(everything(Path(sys.argv[1]))))
