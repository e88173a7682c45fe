from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from loopwright import Heuristic, Objective, Scope, Value
from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.scope.declare import ScopeRecord, declare, declared
from loopwright.stores.home import Home

SCOPE = Scope(
    problem="Tell which flights will land late.",
    objectives=[Objective("catch them", owner="operations", metric="recall", at_least=0.8)],
    heuristic=Heuristic(lambda f: f.dep_delay > 15),
    value=Value(true_positive=120),
)


@pytest.fixture
def home(tmp_path: Path, ledger_url: str) -> Home:
    url = ledger_url.replace("postgresql+psycopg://", "postgresql://")
    return Home(Settings(home=tmp_path / "home", ledger=url, by="tests"), SimulatedClock(datetime(2024, 1, 1, tzinfo=UTC)))


def test_a_scope_is_kept_as_a_record_that_can_be_read_without_its_code(home: Home) -> None:
    with home:
        assert declared(home, "late") is None
        entry = declare(home, "late", SCOPE)
        found = declared(home, "late")
        assert found is not None
        assert (found.id, found.loop, found.by) == (entry.id, "late", "tests")
        assert found.record.scope.objectives == SCOPE.objectives
        assert found.record.scope.value.true_positive == 120
        assert "f.dep_delay > 15" in found.record.scope.heuristic.rule


def test_the_same_scope_is_not_kept_twice_and_a_changed_one_is_a_new_entry(home: Home) -> None:
    with home:
        first = declare(home, "late", SCOPE)
        assert declare(home, "late", SCOPE).id == first.id
        changed = declare(home, "late", msgspec.structs.replace(SCOPE, problem="Something else."))
        assert changed.id != first.id
        assert declare(home, "other", SCOPE).id != first.id
        assert [e.record.scope.problem for e in home.ledger.find(ScopeRecord, loop="late", newest=False)] == [
            SCOPE.problem,
            "Something else.",
        ]
        assert home.ledger.verify() == []
