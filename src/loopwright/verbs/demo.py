"""The verb `demo`."""

import datetime as dt
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import msgspec

from loopwright import replay as room
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import NotFound, UsageError
from loopwright.base.moment import moment_option
from loopwright.base.progress import Progress, Silent
from loopwright.data.ingest.ingestion import ingest as ingest_file
from loopwright.data.ingest.ingestion import put_contract
from loopwright.loop import load_loop
from loopwright.stores.home import Home
from loopwright.verbs.replay import Replayed, summarise

DEMO_MARK = "demo.json"

DEMO_START, DEMO_END = dt.datetime(2013, 4, 1, tzinfo=dt.UTC), dt.datetime(2014, 1, 1, tzinfo=dt.UTC)


def example(name: str) -> Path:
    """The folder of an example: in the package when installed, in the repository in development."""
    here = Path(__file__).parents[1]
    for folder in (here / "examples" / name, here.parents[1] / "examples" / name):
        if (folder / "loop.py").is_file():
            return folder
    raise NotFound("example", name, next_step="reinstall loopwright, or clone its repository")


def demo(home: Home, *, end: str = "", progress: Progress | None = None) -> Replayed:
    """Run the whole loop on a year of New York flights: train on January to March, replay April to December.

    Args:
        end: stop the year early (ISO 8601 date), for a quick look.
    """
    progress = progress or Silent()
    stop = moment_option(end, home.clock.now(), "--end") if end else DEMO_END
    if not DEMO_START < stop <= DEMO_END:
        raise UsageError(
            f"--end {end} must be after {DEMO_START:%Y-%m-%d}, when the demo goes live, and at most {DEMO_END:%Y-%m-%d}, when its data end"
        )
    _clear_demo(home)
    folder = example("flights")
    declared = load_loop(folder)
    simulated = Home(home.settings, SimulatedClock(DEMO_START))
    try:
        progress.say("scope: " + declared.scope.problem)
        files = _prepare(folder)(home.folder("demo"))
        for i, (table, file) in enumerate(files.items()):
            put_contract(simulated, declared.tables[table])
            done = ingest_file(simulated, declared.tables[table], file)
            progress.say(f"data: {done.good:,} rows into {table}, {done.quarantined:,} in quarantine")
            progress.advance("ingest", i + 1, len(files))
        run = room.replay(simulated, declared, file=str(folder / "loop.py"), start=DEMO_START, end=stop, progress=progress)
        return summarise(simulated, declared, run, "declared")
    finally:
        simulated.close()


def _prepare(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("loopwright_example_prepare", folder / "prepare.py")
    if spec is None or spec.loader is None:
        raise NotFound("file", str(folder / "prepare.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.prepare


def _clear_demo(home: Home) -> None:
    """Begin the demo in an empty home: an earlier demo is removed, anything else is left alone."""
    mark = home.path / DEMO_MARK
    if home.path.exists() and any(home.path.iterdir()):
        if not mark.is_file():
            raise UsageError(f"home {home.path} holds other work; give the demo a home of its own: loopwright --home DIR demo")
        home.close()
        shutil.rmtree(home.path)
    home.make()
    mark.write_bytes(msgspec.json.encode({"note": "made by `loopwright demo`, which removes this folder when run again"}))
