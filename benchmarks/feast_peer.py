"""What Feast takes for the same join and the same look-up; run by `features.py` with the Python of Feast's own environment.

    python feast_peer.py join FOLDER       entities.parquet with weather.parquet: get_historical_features, DuckDB store
    python feast_peer.py online FOLDER     stations.parquet: get_online_features of one key, SQLite store

Prints one JSON document. Feast knows no delay until a row is known and no lag: the files it is given have both added to their
event times, and its ttl is shorter by as much, so that it finds the very same rows.
"""

import json
import statistics
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


def peak_mib() -> float:
    """Most memory this process ever held, MiB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def open_store(folder: Path, name: str, key: str, columns: list[str], ttl: timedelta | None) -> Any:
    """A feature store over one Parquet file with one feature view."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import Float64
    from feast.value_type import ValueType

    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / f"{name}.registry"),
        offline_store={"type": "duckdb"},
        online_store={"type": "sqlite", "path": str(folder / f"{name}.online")},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(config=config)
    entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
    source = FileSource(name=f"{name}_file", path=str(folder / f"{name}.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name=c, dtype=Float64) for c in columns]
    store.apply([entity, FeatureView(name=name, entities=[entity], ttl=ttl, schema=schema, source=source)])
    return store


def join(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Seconds and peak memory of get_historical_features; the rows go to `feast.parquet`."""
    import pandas as pd

    store = open_store(folder, "weather", "origin", given["columns"], timedelta(seconds=given["ttl_s"]))
    entities = pd.read_parquet(folder / "entities.parquet")
    before = peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    job = store.get_historical_features(entity_df=entities, features=[f"weather:{c}" for c in given["columns"]])
    found = job.to_df()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mib()
    found[["flight_id", *given["columns"]]].to_parquet(folder / "feast.parquet")
    return {"seconds": seconds, "cpu": cpu, "rows": len(found), "peak_mib": peak, "before_mib": before}


def online(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Microseconds of get_online_features for one key, five columns."""
    store = open_store(folder, "stations", "station", given["columns"], None)
    store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime.fromisoformat(given["until"]))
    features = [f"stations:{c}" for c in given["columns"]]
    took = []
    for key in given["keys"]:
        start = time.perf_counter()
        store.get_online_features(features=features, entity_rows=[{"station": key}])
        took.append((time.perf_counter() - start) * 1e6)
    answer = store.get_online_features(features=features, entity_rows=[{"station": given["keys"][0]}]).to_dict()
    return {"us": statistics.median(took[len(took) // 5 :]), "answer": {c: answer[c][0] for c in given["columns"]}}


def main() -> None:
    """Run what is asked for."""
    warnings.simplefilter("ignore")
    what, folder = sys.argv[1], Path(sys.argv[2])
    given = json.loads((folder / f"{what}.json").read_text())
    said = sys.stdout
    sys.stdout = sys.stderr  # Feast talks while it works
    found = {"join": join, "online": online}[what](folder, given)
    print(json.dumps(found), file=said)


if __name__ == "__main__":
    main()
