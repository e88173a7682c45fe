"""Parity of serving and training: the same where the context came in time, named with rows where it did not."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from tests.journeys import synthetic
from tests.journeys.synthetic import FILE, START, WEEK

from loopwright import Home, Loop
from loopwright.base.errors import NotFound
from loopwright.data.ingest.ingestion import ingest
from loopwright.deploy.releases import serving
from loopwright.graph.columns import arrow_schema
from loopwright.loop import load_loop
from loopwright.parity import Parity, parity, parity_check
from loopwright.replay import replay
from loopwright.stores.packages.probe import Probed, open_probed
from loopwright.turn import turn
from loopwright.verbs.parity import parity as verb

END = START + 2 * WEEK


@pytest.fixture
def loop() -> Loop:
    return load_loop(FILE)


@pytest.fixture
def lived(tmp_path: Path, loop: Loop) -> Iterator[Home]:
    """Two weeks that were served on a simulated clock, with the context of their moments."""
    with synthetic.filled(tmp_path, START, synthetic.known(loop, synthetic.world(), END)) as home:
        replay(home, loop, file=str(FILE), start=START, end=END)
        yield home


def package(home: Home, loop: Loop) -> Probed:
    state = serving(home, loop.name)
    assert state is not None
    return open_probed(home.packages, state.champion.package)


def compared(home: Home, loop: Loop) -> Parity:
    return parity(home, loop, package(home, loop), start=START, end=END)


def late(home: Home, loop: Loop) -> None:
    """Rows of the second week arrive now, and say that they were known then."""
    table = loop.tables["traffic"]
    rows = [
        {"shop": shop, "seen_at": at, "told_at": at, "jam": 9.5}
        for shop in synthetic.SHOPS
        for at in (START + WEEK + timedelta(minutes=30 * i) for i in range(300))
    ]
    done = ingest(home, table, pa.Table.from_pylist(rows, schema=arrow_schema(table.columns)))
    assert done.quarantined == 0, done.reasons


def test_what_was_served_in_time_is_what_training_joins(lived: Home, loop: Loop) -> None:
    found = compared(lived, loop)
    assert found.ok
    assert found.rows > 600
    assert [(c.column, c.differs) for c in found.columns] == [(c.column, 0) for c in found.columns]
    assert {c.column for c in found.columns} == set(loop.context_columns)
    assert (found.flips, found.largest_difference) == (0.0, 0.0)
    [check] = parity_check(lived, loop, package(lived, loop))
    assert check.passed


def test_context_that_came_later_than_it_says_is_named_with_rows_and_refuses_the_next_release(lived: Home, loop: Loop) -> None:
    late(lived, loop)
    found = compared(lived, loop)
    assert not found.ok
    worst = found.columns[0]
    assert (worst.column, worst.table) in {("jam", "traffic"), *((a.name, "traffic") for a in loop.aggregates)}
    assert worst.share > 0.2
    assert len(worst.examples) == 5
    shown = worst.examples[0]
    assert shown["served"] != shown["joined"]
    assert found.largest_difference > 0
    [check] = parity_check(lived, loop, package(lived, loop))
    assert not check.passed
    assert f"{worst.column} of traffic differs in" in check.detail
    steps = {s.stage: s for s in turn(lived, loop, cause="manual", why="again", fresh=True)}
    assert steps["deploy"].output["released"] is False
    assert "parity: " in steps["deploy"].summary


def test_verb_compares_what_serves_or_a_package_by_name(lived: Home, loop: Loop) -> None:
    own = package(lived, loop)
    by_default = verb(lived, loop.name, since=START.isoformat(), until=END.isoformat())
    assert by_default == verb(lived, loop.name, own.digest[:12], since=START.isoformat(), until=END.isoformat())
    assert by_default.package == own.digest
    assert verb(lived, loop.name, until=START.isoformat()).rows == 0


def test_loop_that_was_never_released_has_nothing_to_compare(tmp_path: Path, loop: Loop) -> None:
    with synthetic.filled(tmp_path, START, synthetic.known(loop, synthetic.world(), START)) as home:
        turn(home, loop, file=str(FILE), release=False)
        with pytest.raises(NotFound, match="name a package"):
            verb(home, loop.name)
