"""What tests of several rooms share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres import Postgres, find_binaries
from tests.redis import RedisServer, find_binary


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server. Skips without its binaries, or fails if LOOPWRIGHT_REQUIRE_SERVICES=1 says they must be there."""
    binaries = find_binaries()
    if binaries is None:
        if os.environ.get("LOOPWRIGHT_REQUIRE_SERVICES") == "1":
            pytest.fail("PostgreSQL's binaries are missing: apt-get install postgresql")
        pytest.skip("PostgreSQL's binaries are missing: apt-get install postgresql")
    server = Postgres(binaries)
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
    """A Redis server. Skips without its program, or fails if LOOPWRIGHT_REQUIRE_SERVICES=1 says it must be there."""
    binary = find_binary()
    if binary is None:
        if os.environ.get("LOOPWRIGHT_REQUIRE_SERVICES") == "1":
            pytest.fail("Redis is missing: apt-get install redis-server")
        pytest.skip("Redis is missing: apt-get install redis-server")
    server = RedisServer(binary)
    yield server
    server.remove()


@pytest.fixture(params=["embedded", "redis"])
def online_url(request: pytest.FixtureRequest) -> str:
    """The setting of an empty online table, embedded and in Redis in turn."""
    if request.param == "embedded":
        return "embedded"
    server: RedisServer = request.getfixturevalue("redis_server")
    return server.empty()
