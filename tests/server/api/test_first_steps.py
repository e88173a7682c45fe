"""The requests that `serve` prints work as they stand."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.deploy.loops import LANDINGS, LOOP, declared, opened, package
from tests.server.running import TOKEN, running

from loopwright.base.clock import RealClock
from loopwright.deploy import releases
from loopwright.records.declarations import Column, Table
from loopwright.records.profiles import ColumnProfile, Profile
from loopwright.server.api.first_steps import first_steps
from loopwright.stores.home import Home
from loopwright.stores.outcomes.join import outcomes
from loopwright.stores.prediction_log.read import predictions


def with_own(*names: str) -> Table:
    """The outcome table with further columns, which are numbers."""
    columns = {**dict.fromkeys(names, Column("integer")), **LANDINGS.columns}
    return Table("landings", columns, LANDINGS.key, LANDINGS.event_time)


def printed(home: Home, *, lines: int) -> tuple[list[str], list[dict[str, Any]]]:
    """What a server prints after it is ready, and what its commands answer in a shell."""
    with running(home) as server:
        assert server.process.stdout is not None
        text = [server.process.stdout.readline().rstrip("\n") for _ in range(lines)]
        answers = []
        for command in (line for line in text if line.startswith("  curl ")):
            done = subprocess.run(
                ["/bin/bash", "-c", command.replace("curl", "curl -sSf", 1)],
                env={"PATH": "/usr/bin:/bin", "LOOPWRIGHT_TOKEN": TOKEN},
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, (command, done.stderr)
            answers.append(json.loads(done.stdout))
    return text, answers


def test_printed_outcome_has_a_common_text_of_the_table(tmp_path: Path) -> None:
    """A made-up text would be a label that the loop does not know."""
    home = opened(tmp_path, RealClock())
    loop = declared()
    texts = {"event": Column("string"), "name": Column("string", tags=["pii"])}
    table = Table("landings", {**LANDINGS.columns, **texts}, LANDINGS.key, LANDINGS.event_time)
    outcome = msgspec.structs.replace(loop.outcome, table=table)
    home.ledger.put(msgspec.structs.replace(loop, outcome=outcome).record("loop.py"), loop=LOOP, key=LOOP)
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    seen = [
        ColumnProfile(name=n, type="string", nulls=0, top=[(word, 9)]) for n, word in (("event", "landed"), ("name", "Ada"))
    ]
    home.ledger.put(Profile(table="landings", version=1, at=home.clock.now(), rows=9, columns=seen), key="landings")
    assert '"event": "landed", "name": "text"' in first_steps(home, "http://127.0.0.1:1", "http://127.0.0.1:2")[-1]


@pytest.mark.parametrize("own", [(), ("id",), ("id", "prediction", "prediction_id")])
def test_printed_request_and_its_outcome_work_as_they_stand(tmp_path: Path, own: tuple[str, ...]) -> None:
    """Whatever columns the outcome table has of its own: the outcome is that of the very prediction."""
    home = opened(tmp_path, RealClock())
    loop = declared()
    outcome = msgspec.structs.replace(loop.outcome, table=with_own(*own))
    home.ledger.put(msgspec.structs.replace(loop, outcome=outcome).record("loop.py"), loop=LOOP, key=LOOP)
    releases.release(home, LOOP, package(home.packages).digest, why="first")
    text, (answer, accepted) = printed(home, lines=5)
    assert [line.partition(":")[0] for line in text[:2]] == [LOOP, "a request to try"]
    assert accepted["accepted"] == 1
    [prediction] = predictions(home, LOOP).to_pylist()
    [truth] = outcomes(home, LOOP).to_pylist()
    assert prediction["_id"] == answer["id"]
    assert (truth["_prediction"], truth["_unit"]) == (answer["id"], "")
