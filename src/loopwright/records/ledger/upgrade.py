"""Bringing a ledger's schema up to date."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection

FOLDER = Path(__file__).parent / "migrations"


def scripts() -> Any:
    """The migrations as alembic's ScriptDirectory."""
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])


def upgrade(connection: Connection) -> None:
    """Run every migration that this database has not had, in the transaction that `connection` is in."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    directory = scripts()

    def steps(current: Any, _context: Any) -> Any:
        return directory._upgrade_revs("heads", current)

    with EnvironmentContext(Config(), directory, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
