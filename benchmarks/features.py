"""Features and data beside the peers: as-of join, scale, online look-up, the graph, ingestion. Writes a section of RESULTS.md.

    make bench                                   # this after the request path
    python -m benchmarks.features --quick        # without the 34 million rows and without Feast: two minutes

Each measurement is a child process of its own, so that peak memory is its own; what is compared runs in turns, and medians are
reported. Feast gets an environment of its own below ~/.cache (made with uv the first time).
"""

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.feast_peer import peak_mib
from benchmarks.report import RESULTS, machine, put, table

from loopwright import Aggregate, Candidate, Column, Context, Home, Outcome, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import load_settings
from loopwright.loop import load_loop
from loopwright.records.declarations import Loop, to_json

ROOT = Path(__file__).parents[1]
FLIGHTS = ROOT / "examples" / "flights"
LIBRARIES = ("duckdb", "pyarrow", "deltalake", "onnxruntime", "lightgbm", "numpy")
FEAST = "0.67.0"
ROWS, COLUMNS = 300_000, ["temperature", "humidity", "wind_speed", "pressure", "visibility"]
MAX_AGE, PUBLISHED, LAG = timedelta(hours=3), timedelta(minutes=20), timedelta(minutes=1)
AFTER = datetime(2014, 1, 5, tzinfo=UTC)
STATIONS, READINGS = 20_000, 10
TREES = 200
CHILD_SECONDS = 900

Given = dict[str, Any]


class Line(NamedTuple):
    """One row of the table: what is compared, its ratio, the target, and whether it is met (None: not measured)."""

    what: str
    ratio: str
    target: str
    met: bool | None


# --- the pieces, each in a child process ------------------------------------------------------------------------------


def at_home(folder: Path, now: datetime = AFTER) -> Home:
    """A home in `folder` on a clock that stands at `now`."""
    return Home(load_settings({"home": folder, "by": "bench"}, {}), SimulatedClock(now))


def flights(folder: Path) -> Loop:
    """The declarations of the example, without its code (and so without what that imports)."""
    return msgspec.json.decode((folder / "loop.json").read_bytes(), type=Loop)


def weather_context(folder: Path) -> Context:
    """The context of the join: five columns of the weather, as the example has them."""
    return Context(flights(folder).tables["weather"], by={"origin": "origin"}, columns=COLUMNS, max_age="3h", lag="1m")


def prepare(folder: Path, _: Given) -> Given:
    """The year of flights as Parquet; a home with 300,000 of them; and the same for Feast."""
    import runpy

    (folder / "loop.json").write_bytes(to_json(load_loop(FLIGHTS)))
    paths = runpy.run_path(str(FLIGHTS / "prepare.py"))["prepare"](folder / "flights")
    departures = pq.read_table(paths["departures"]).slice(0, ROWS)
    weather = pq.read_table(paths["weather"])
    with at_home(folder / "home") as home:
        home.lake.write("departures", departures)
        home.lake.write("weather", weather)
        home.lake.write("landings", pq.read_table(paths["landings"]))
    known = pc.add(weather["observed_at"], pa.scalar(PUBLISHED + LAG)).cast(pa.timestamp("us", tz="UTC"))
    names = ["origin", "event_timestamp", *COLUMNS]
    pq.write_table(pa.table([weather["origin"], known, *(weather[c] for c in COLUMNS)], names), folder / "weather.parquet")
    asked = departures.rename_columns({"pushed_back_at": "event_timestamp"})
    pq.write_table(asked, folder / "entities.parquet")
    ttl = (MAX_AGE - PUBLISHED - LAG).total_seconds()
    (folder / "join.json").write_text(json.dumps({"columns": COLUMNS, "ttl_s": ttl}))
    return {"rows": len(departures)}


def whole_build(folder: Path, given: Given) -> Given:
    """`examples.build`: requests, context, outcomes, written and digested. Seconds and peak memory."""
    from loopwright.data.examples.build import build
    from loopwright.stores.examples import read_examples

    loop = flights(folder)
    before = peak_mib()
    with at_home(folder / "home") as home:
        start, cpu = time.perf_counter(), time.process_time()
        context = [weather_context(folder)]
        made = build(home, loop_name="bench", requests=loop.requests, context=context, outcome=loop.outcome, as_of=AFTER)
        seconds, peak = time.perf_counter() - start, peak_mib()
        cpu = time.process_time() - cpu
        rows = read_examples(home, made.digest).select(["flight_id", *COLUMNS]).sort_by("flight_id")
        pq.write_table(rows, folder / "ours.parquet")
    return {"seconds": seconds, "cpu": cpu, "rows": made.rows, "peak_mib": peak, "before_mib": before}


def join(folder: Path, given: Given) -> Given:
    """The join alone and the same one written by hand, in turns, from requests in memory (as Feast gets them) to an Arrow table.

    Ours is what `examples.build` does: the steps, one narrow ASOF join, and what it finds laid beside the requests.
    """
    from loopwright.data.examples import asof
    from loopwright.sql.engine import sql_engine

    [context] = asof.joined([weather_context(folder)], [])
    took: dict[str, list[float]] = {"ours": [], "by hand": [], "ours cpu": [], "by hand cpu": []}
    with at_home(folder / "home") as home, sql_engine(home, ordered=False) as database:
        frame, told = home.lake.dataset("departures").to_table(), home.lake.dataset("weather", order=asof.ORDER)
        before = peak_mib()
        database.register("asked", frame)
        database.register("told", told)
        asked = "(SELECT row_number() OVER () AS _row, epoch_us(pushed_back_at) AS _us, origin FROM asked)"
        chosen = ", ".join(f"{sql} AS {name}" for name, sql in asof.values("s0", context).items())

        def ours() -> pa.Table:
            asof.create(database, "s0", context, told)
            query = f"SELECT d._row, {chosen} FROM {asof.asof(asked, [('s0', context)])} ORDER BY d._row"
            found = database.sql(query).to_arrow_table()
            database.execute("DROP TABLE s0")
            return pa.table([*frame.columns, *(found[c] for c in COLUMNS)], [*frame.column_names, *COLUMNS])

        def by_hand() -> pa.Table:
            fresh = "d.pushed_back_at - w.observed_at <= INTERVAL 3 HOUR"
            chosen = ", ".join(f"CASE WHEN {fresh} THEN w.{c} END AS {c}" for c in COLUMNS)
            query = f"""SELECT d.*, {chosen} FROM asked d
                ASOF LEFT JOIN (SELECT *, observed_at + INTERVAL 21 MINUTE AS known FROM told) w
                ON d.origin = w.origin AND d.pushed_back_at >= w.known"""
            return database.sql(query).to_arrow_table()

        if given.get("memory"):
            found = ours()
            return {"rows": len(found), "peak_mib": peak_mib(), "before_mib": before}
        same = ours().sort_by("flight_id").equals(by_hand().sort_by("flight_id"))
        for _ in range(given["rounds"]):
            for name, call in (("ours", ours), ("by hand", by_hand)):
                start, cpu = time.perf_counter(), time.process_time()
                call()
                took[name].append(time.perf_counter() - start)
                took[f"{name} cpu"].append(time.process_time() - cpu)
    return {"same": same, **{name: statistics.median(t) for name, t in took.items()}}


def landed(folder: Path) -> Table:
    """Landings with what aggregates are keyed by."""
    columns = flights(folder).tables["landings"].columns
    more = {"carrier": Column("string"), "origin": Column("string")}
    return Table("landings", {**columns, **more}, key=["flight_id"], event_time="landed_at")


def two_aggregates(folder: Path) -> list[Aggregate]:
    """Mean delay of the carrier over a day, and how many flights of this airport landed in three hours."""
    delay = Aggregate(
        name="carrier_delay", table=landed(folder), by={"carrier": "carrier"}, function="mean", of="arr_delay", window="24h"
    )
    count = Aggregate(name="landed_3h", table=landed(folder), by={"origin": "origin"}, function="count", window="3h")
    return [delay, count]


def grow(folder: Path, given: Given) -> Given:
    """A home with the year of flights `copies` times over, each copy 52 weeks after the one before."""
    data = {name: pq.read_table(folder / "flights" / f"{name}.parquet") for name in ("departures", "weather", "landings")}
    of_flight = data["departures"].select(["flight_id", "carrier", "origin"])
    if "carrier" not in data["landings"].column_names:
        data["landings"] = data["landings"].join(of_flight, "flight_id", join_type="inner")
    data["landings"] = data["landings"].select(list(landed(folder).columns))
    copies, rows = given["copies"], 0
    with at_home(folder / f"home{copies}") as home:
        for first in range(0, copies, 10):
            for name, one in data.items():
                made = pa.concat_tables(_later(one, k) for k in range(first, min(first + 10, copies)))
                home.lake.write(name, made)
                rows += len(made) if name == "departures" else 0
    return {"rows": rows}


def _later(one: pa.Table, k: int) -> pa.Table:
    for i, field in enumerate(one.schema):
        if pa.types.is_timestamp(field.type):
            one = one.set_column(i, field, pc.add(one[field.name], pa.scalar(timedelta(days=364 * k))).cast(field.type))
        elif field.name == "flight_id":
            one = one.set_column(i, field, pc.binary_join_element_wise(one["flight_id"], str(k), "."))
    return one


def scale(folder: Path, given: Given) -> Given:
    """`examples.build` with one context and two aggregates. Seconds and peak memory."""
    from loopwright.data.examples.build import build

    loop = flights(folder)
    outcome = Outcome(landed(folder), loop.outcome.label, wait=loop.outcome.wait)
    end = AFTER + timedelta(days=364 * given["copies"])
    with at_home(folder / f"home{given['copies']}", end) as home:
        start, cpu = time.perf_counter(), time.process_time()
        made = build(
            home,
            loop_name="bench",
            requests=loop.requests,
            context=[weather_context(folder)],
            aggregates=two_aggregates(folder),
            outcome=outcome,
            as_of=end,
        )
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "rows": made.rows, "peak_mib": peak_mib()}


def lookup(folder: Path, given: Given) -> Given:
    """One key of 20,000, first from the file, then from memory; a bare select by primary key; in turns, microseconds."""
    from loopwright.data.examples.asof import joined
    from loopwright.data.examples.context import feed
    from loopwright.deploy.serving.context import Contexts

    names = [f"v{i}" for i in range(5)]
    columns = {"station": Column("string"), "at": Column("timestamp"), **{n: Column("float") for n in names}}
    stations = Table("stations", columns, key=["station"], event_time="at")
    context = Context(stations, by={"station": "station"}, columns=names, lag="1m")
    [wanted] = joined([context], [])
    rng = np.random.default_rng(0)
    keys = [f"station {i:05d}" for i in range(STATIONS)]
    moments = [AFTER - timedelta(hours=i) for i in range(READINGS)]
    frame = pa.table(
        {
            "station": [key for key in keys for _ in moments],
            "at": pa.array([at for _ in keys for at in moments], pa.timestamp("us", tz="UTC")),
            **{n: rng.normal(size=STATIONS * READINGS) for n in names},
        }
    )
    pq.write_table(frame.rename_columns({"at": "event_timestamp"}), folder / "stations.parquet")
    now = AFTER + timedelta(minutes=5)
    asked = [keys[i] for i in rng.permutation(STATIONS)]
    online = {"columns": names, "until": now.isoformat(), "keys": asked[:2000]}
    (folder / "online.json").write_text(json.dumps(online))
    with at_home(folder / "online", now) as home:
        home.lake.write("stations", frame)
        feed(home, [wanted])
    bare = folder / "bare.db"
    with sqlite3.connect(bare) as made:
        made.execute("CREATE TABLE kept (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")
        value = os.urandom(4 + READINGS * 12 + READINGS * 51)  # as long as the steps of a key
        made.executemany("INSERT INTO kept VALUES (?, ?)", [(key, value) for key in keys])
    made.close()
    took: dict[str, list[float]] = {"select": [], "first": [], "again": [], "as served": []}
    at = round(now.timestamp() * 1e6)
    with at_home(folder / "online", now) as home:
        store, select = home.online, sqlite3.connect(bare, isolation_level=None)
        contexts = Contexts([wanted.need], "at", store)
        steps: dict[str, Callable[[str], object]] = {
            "select": lambda key: select.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone(),
            "first": lambda key: store.get_many(wanted.need.store, [key])[0].at(at),  # type: ignore[union-attr]  # it is there
            "again": lambda key: store.get_many(wanted.need.store, [key])[0].at(at),  # type: ignore[union-attr]  # as above
            "as served": lambda key: contexts.find([{"station": key, "at": at}], [[]]),
        }
        for block in range(0, STATIONS, 1000):
            for name, call in steps.items():
                for key in asked[block : block + 1000]:
                    start = time.perf_counter()
                    call(key)
                    took[name].append((time.perf_counter() - start) * 1e6)
        answer = contexts.find([{"station": asked[0], "at": at}], [[]])[0][0]
        select.close()
    return {name: statistics.median(t[len(t) // 5 :]) for name, t in took.items()} | {"answer": answer}


def graph(folder: Path, given: Given) -> Given:
    """The flights' features with 200 trees as one graph, and the trees alone on a ready matrix: microseconds, in turns."""
    import lightgbm

    from loopwright.develop.evaluate import loading
    from loopwright.graph.columns import arrow_feed
    from loopwright.graph.session import Graph
    from loopwright.records.examples import Examples
    from loopwright.stores.examples import read_examples
    from loopwright.turn import turn

    settings: Given = {
        "n_estimators": TREES,
        "random_state": 0,
        "n_jobs": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    trees = Candidate("lightgbm", lambda: lightgbm.LGBMClassifier(**settings), phase=3, encoding="ordinal")
    loop = msgspec.structs.replace(load_loop(FLIGHTS), candidates=[trees])
    data = {name: pq.read_table(folder / "flights" / f"{name}.parquet") for name in ("departures", "weather", "landings")}
    with at_home(folder / "graph", datetime(2013, 4, 1, tzinfo=UTC)) as home:
        for name, frame in data.items():
            home.lake.write(name, frame)
        turn(home, loop, until="develop")
        manifests = {home.packages.manifest(d).candidate: d for d in home.packages.list()}
        package = home.packages.read(manifests["lightgbm"])
        rows = read_examples(home, home.ledger.find(Examples)[0].record.digest).slice(0, 60_000)
        whole = Graph(package.files["model.onnx"])
        many = arrow_feed(whole, package.columns, rows)
        matrix = whole.run(many, ["features"])["features"]
        alone = runner(trees_of(package.files["model.onnx"]))
        found: Given = {}
        for count, calls in ((1, 1000), (32, 200), (10_000, 5)):
            feed, ready = {name: array[:count] for name, array in many.items()}, matrix[:count]
            steps: dict[str, Callable[[], object]] = {"whole": partial(whole.score, feed), "alone": partial(alone, ready)}
            took = in_turns(steps, calls=calls, rounds=given["rounds"] * 3)
            found |= {f"{name} {count}": us for name, us in took.items()}
        found["loading"] = loading(package.files["model.onnx"], home.clock)
        found["bytes"] = len(package.files["model.onnx"])
    return found


def trees_of(model: bytes) -> bytes:
    """The part of a package's graph behind the matrix of features: the model and nothing else."""
    import onnx

    from loopwright.graph.session import METADATA

    loaded = onnx.load_from_string(model)
    names = json.loads({p.key: p.value for p in loaded.metadata_props}.get(METADATA, "{}")).get("outputs", {})
    cut = onnx.utils.Extractor(loaded).extract_model([names.get("features", "features")], [names.get("score", "score")])
    return bytes(cut.SerializeToString())


def runner(model: bytes) -> Callable[[Any], object]:
    """A call of a model with one input, for its last output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name, outputs = session.get_inputs()[0].name, [session.get_outputs()[-1].name]
    return lambda matrix: session.run(outputs, {name: matrix})


def in_turns(steps: Mapping[str, Callable[[], object]], *, calls: int, rounds: int) -> dict[str, float]:
    """Median microseconds of a call of each, in turns; the first round only warms up."""
    took: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, call in steps.items():
            for _ in range(calls):
                start = time.perf_counter()
                call()
                if turn:
                    took[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(t) for name, t in took.items()}


def ingestion(folder: Path, given: Given) -> Given:
    """The year of flights through its contract, and a bare `write_deltalake` of the same frame: seconds, in turns."""
    from deltalake import write_deltalake

    from loopwright.data.ingest.ingestion import ingest

    declared = flights(folder).tables["departures"]
    frame = pq.read_table(folder / "flights" / "departures.parquet").select(list(declared.columns))
    took: dict[str, list[float]] = {"ours": [], "bare": []}
    for i in range(given["rounds"] + 1):
        with at_home(folder / f"ingest{i}") as home:
            start = time.perf_counter()
            done = ingest(home, declared, frame)
            took["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        write_deltalake(folder / f"bare{i}", frame)
        took["bare"].append(time.perf_counter() - start)
        shutil.rmtree(folder / f"ingest{i}")
        shutil.rmtree(folder / f"bare{i}")
    assert done.good == len(frame), done
    return {"rows": len(frame), **{name: statistics.median(t[1:]) for name, t in took.items()}}


STEPS: dict[str, Callable[[Path, Given], Given]] = {
    step.__name__: step for step in (prepare, whole_build, join, grow, scale, lookup, graph, ingestion)
}


# --- putting it together ----------------------------------------------------------------------------------------------


def child(step: str, folder: Path, *, seconds: float = CHILD_SECONDS, **given: Any) -> Given:
    """Run a step in a process of its own and return what it found."""
    line = [sys.executable, "-m", "benchmarks.features", "--step", step, "--folder", str(folder), "--given", json.dumps(given)]
    return _answer(line, seconds)


def _answer(line: list[str], seconds: float) -> Given:
    print(f"  {' '.join(line[1:5])} ...", flush=True)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{line} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: Given = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"    {found}", flush=True)
    return found


def feast_python() -> Path:
    """The Python of Feast's own environment, made if it is not there. RuntimeError when it cannot be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loopwright-benchmarks"
    python = cache / f"feast-{FEAST}" / "bin" / "python"
    if not (cache / f"feast-{FEAST}.ready").is_file():
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(python.parents[1])],
            [str(python), "-m", "pip", "install", f"feast[duckdb]=={FEAST}"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-1000:])
        (cache / f"feast-{FEAST}.ready").touch()
    return python


def feast(what: str, folder: Path) -> Given:
    """What Feast takes."""
    return _answer([str(feast_python()), str(ROOT / "benchmarks" / "feast_peer.py"), what, str(folder)], CHILD_SECONDS)


def same_rows(folder: Path) -> tuple[int, int]:
    """How many of the rows that both joins have are alike in every column, of how many."""
    ours, theirs = pq.read_table(folder / "ours.parquet"), pq.read_table(folder / "feast.parquet").sort_by("flight_id")
    theirs = theirs.filter(pc.is_in(theirs["flight_id"], ours["flight_id"].combine_chunks()))
    alike = np.ones(len(ours), dtype=bool)
    for name in COLUMNS:
        a, b = (t[name].to_numpy(zero_copy_only=False).astype(float) for t in (ours, theirs))
        alike &= (a == b) | (np.isnan(a) & np.isnan(b))
    return int(alike.sum()), len(ours)


def _cells(found: Given) -> list[str]:
    return [f"{found['seconds']:.2f}", f"{found['cpu']:.2f}", f"{found['peak_mib']:,.0f}"]


def joins(folder: Path, *, rounds: int, quick: bool) -> tuple[list[Line], str]:
    """The point-in-time join: ours, by hand, Feast."""
    alone = child("join", folder, rounds=rounds * 2 + 1)
    lean = child("join", folder, memory=True)
    builds = [child("whole_build", folder) for _ in range(rounds)]
    build = {k: statistics.median(b[k] for b in builds) for k in ("seconds", "cpu", "peak_mib")}
    rows = [
        ["hand-written ASOF JOIN", f"{alone['by hand']:.3f}", f"{alone['by hand cpu']:.3f}", ""],
        ["our join of the same", f"{alone['ours']:.3f}", f"{alone['ours cpu']:.3f}", f"{lean['peak_mib']:,.0f}"],
        ["`examples.build`: with outcomes, written, digested", *_cells(build)],
    ]
    ratio = alone["by hand"] / alone["ours"]
    lines = [Line("join of 300,000 flights: speed / hand-written ASOF JOIN", f"{ratio:.2f}", ">= 0.8", ratio >= 0.8)]
    said = f"Both joins give the same {ROWS:,} rows." if alone["same"] else "The two joins DISAGREE."
    if quick:
        return lines, table(["join", "seconds", "CPU seconds", "peak MiB"], rows) + f"\n{said}\n"
    theirs = feast("join", folder)
    rows.append([f"Feast {FEAST}, DuckDB store", *_cells(theirs)])
    faster, whole = theirs["seconds"] / alone["ours"], theirs["seconds"] / build["seconds"]
    ours_more, theirs_more = (found["peak_mib"] - found["before_mib"] for found in (lean, theirs))
    less = ours_more / theirs_more
    lines += [
        Line("the same: join, speed / Feast's get_historical_features", f"{faster:.0f}", ">= 50", faster >= 50),
        Line("the same: join, Feast's CPU time / ours", f"{theirs['cpu'] / alone['ours cpu']:.0f}", "", None),
        Line("the same: `examples.build` as a whole, speed / Feast's join", f"{whole:.1f}", "", None),
        Line("the same: memory the join adds to its process / Feast's", f"{less:.2f}", "<= 0.1", less <= 0.1),
        Line("the same: peak memory of the process / Feast's", f"{lean['peak_mib'] / theirs['peak_mib']:.2f}", "", None),
    ]
    alike, of = same_rows(folder)
    said += f" Of the {of:,} examples (flights with an outcome) {alike:,} have in all five columns what Feast found."
    held = f"{lean['before_mib']:,.0f} MiB here, {theirs['before_mib']:,.0f} MiB with Feast"
    said += f" Before the join a process holds {held}.\n"
    said += "The targets beside Feast were set on a measurement of an earlier version (14.6 s, 2.7 GB).\n"
    return lines, table(["join", "seconds", "CPU seconds", "peak MiB"], rows) + f"\n{said}"


def scales(folder: Path, *, rounds: int, quick: bool) -> tuple[list[Line], str]:
    """A hundred times the rows."""
    small = child("grow", folder, copies=1)["rows"]
    times = [child("scale", folder, copies=1) for _ in range(rounds)]
    one = {k: statistics.median(t[k] for t in times) for k in ("seconds", "cpu", "peak_mib")}
    cost = one["seconds"] / small
    rows = [[f"{small:,}", *_cells(one), f"{cost * 1e6:.2f}"]]
    lines = []
    if not quick:
        large = child("grow", folder, copies=100)["rows"]
        found = child("scale", folder, copies=100)
        per_row = found["seconds"] / large
        rows.append([f"{large:,}", *_cells(found), f"{per_row * 1e6:.2f}"])
        lines = [
            Line(f"{large:,} rows: cost per row / at {small:,}", f"{per_row / cost:.2f}", "<= 1.5", per_row / cost <= 1.5),
            Line("the same: peak memory, GiB", f"{found['peak_mib'] / 1024:.1f}", "<= 8", found["peak_mib"] <= 8192),
        ]
        shutil.rmtree(folder / "home100")
    text = "\nThe 34 million rows were left out of this run.\n" if quick else ""
    return lines, table(["one context, two aggregates: rows", "seconds", "CPU seconds", "peak MiB", "µs a row"], rows) + text


def lookups(folder: Path, *, quick: bool) -> tuple[list[Line], str]:
    """One key of the online table."""
    found = child("lookup", folder)
    rows = [
        ["bare SQLite select by primary key", f"{found['select']:.1f}"],
        ["look-up of a key for the first time", f"{found['first']:.1f}"],
        ["the same key again", f"{found['again']:.2f}"],
        ["the same as a request does it: key, flags, columns", f"{found['as served']:.2f}"],
    ]
    first, again = found["first"] / found["select"], found["again"] / found["select"]
    lines = [
        Line("look-up of one key, not yet in memory / bare SQLite select by primary key", f"{first:.2f}", "<= 2", first <= 2),
        Line("the same, in memory", f"{again:.2f}", "<= 2", again <= 2),
    ]
    if not quick:
        theirs = feast("online", folder)
        rows.append([f"Feast {FEAST}, SQLite store", f"{theirs['us']:.1f}"])
        for what, took in (("not yet in memory", found["first"]), ("in memory", found["again"])):
            faster = theirs["us"] / took
            lines.append(Line(f"the same, {what}: speed / Feast's get_online_features", f"{faster:.0f}", ">= 8", faster >= 8))
        assert found["answer"] == theirs["answer"], (found["answer"], theirs["answer"])
    return lines, table(["one of 20,000 keys, five columns; median of calls", "µs"], rows)


def graphs(folder: Path, *, rounds: int) -> tuple[list[Line], str]:
    """The whole graph and the model alone."""
    found = child("graph", folder, rounds=rounds)
    lines, rows = [], []
    for count, most in ((1, 3.0), (32, None), (10_000, 1.3)):
        whole, alone = found[f"whole {count}"], found[f"alone {count}"]
        rows.append([f"{count:,}", f"{whole:,.1f}", f"{alone:,.1f}"])
        ratio = whole / alone
        what = f"features + {TREES} trees on {count:,} row{'s' if count > 1 else ''} / the trees alone on a ready matrix"
        lines.append(Line(what, f"{ratio:.2f}", f"<= {most:g}" if most else "", ratio <= most if most else None))
    took, held = found["loading"]
    said = f"\nThe graph has {found['bytes'] / 1024:,.0f} KiB, loads in {took:.1f} ms and holds {held / 1024:,.0f} KiB then.\n"
    return lines, table(["rows", "whole graph µs", "trees alone µs"], rows) + said


def ingestions(folder: Path, *, rounds: int) -> tuple[list[Line], str]:
    """Through the contract and bare."""
    found = child("ingestion", folder, rounds=rounds)
    ratio = found["bare"] / found["ours"]
    rows = [["through the contract", f"{found['ours']:.2f}"], ["bare write_deltalake", f"{found['bare']:.2f}"]]
    line = Line(f"ingestion of {found['rows']:,} flights, speed / bare write_deltalake", f"{ratio:.2f}", ">= 0.3", ratio >= 0.3)
    return [line], table(["ingestion", "seconds"], rows)


def section(parts: list[tuple[list[Line], str]], line: str, seconds: float) -> str:
    """The section of RESULTS.md."""
    verdict = {True: "met", False: "**not met**", None: ""}
    rows = [[w.what, w.ratio, w.target, verdict[w.met]] for lines, _ in parts for w in lines]
    text = machine(LIBRARIES) + "\n" + table(["what", "ratio", "target", ""], rows)
    for _, body in parts:
        text += f"\n{body}"
    return text + f"\nReproduce: `{line}` ({seconds / 60:.0f} minutes here).\n"


def main() -> int:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the 34 million rows and without Feast")
    parser.add_argument("--no-large", action="store_true", help="without the 34 million rows")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", default="", help="joins, scales, lookups, graphs or ingestions: print it, write nothing")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--given", default="{}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.folder, json.loads(args.given))))
        return 0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        child("prepare", folder)
        every: dict[str, Callable[[], tuple[list[Line], str]]] = {
            "joins": lambda: joins(folder, rounds=args.rounds, quick=args.quick),
            "scales": lambda: scales(folder, rounds=args.rounds, quick=args.quick or args.no_large),
            "lookups": lambda: lookups(folder, quick=args.quick),
            "graphs": lambda: graphs(folder, rounds=args.rounds),
            "ingestions": lambda: ingestions(folder, rounds=args.rounds),
        }
        parts = [part() for name, part in every.items() if args.only in ("", name)]
    text = section(
        parts,
        " ".join(["python -m benchmarks.features", *(a for a in sys.argv[1:] if a.startswith("--no") or a == "--quick")])
        if args.quick or args.no_large
        else "make bench",
        time.perf_counter() - start,
    )
    print(text)
    if not args.only:
        put("Features and data", text, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
