"""What tests of several rooms share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.postgres import Postgres, find_binaries
from tests.redis import RedisServer, find_binary
from tests.services import needed
from tests.waiting import PATIENCE_SECONDS

import loopwright  # noqa: F401 - before any test imports onnxruntime, whose telemetry it switches off

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    server = Postgres(needed(find_binaries(), "PostgreSQL", "postgresql"))
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgres"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger, on SQLite and on PostgreSQL in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.empty_database()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis server."""
    server = RedisServer(needed(find_binary(), "Redis", "redis-server"))
    with pytest.MonkeyPatch.context() as patched:  # a busy machine answers all the same, only later
        patched.setattr("loopwright.stores.online.redis.READ_SECONDS", PATIENCE_SECONDS)
        yield server
    server.remove()


@pytest.fixture(params=["embedded", "redis"])
def online_url(request: pytest.FixtureRequest) -> str:
    """The setting of an empty online table, embedded and in Redis in turn."""
    if request.param == "embedded":
        return "embedded"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.empty()
