"""Bringing a ledger's schema up to date."""

from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

FOLDER = Path(__file__).parent / "migrations"


def scripts() -> Any:
    """The migrations as alembic's ScriptDirectory."""
    return ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])


def upgrade(connection: Connection) -> None:
    """Run every migration that this database has not had, in the transaction that `connection` is in."""
    directory, context = scripts(), MigrationContext.configure(connection)
    missing = list(directory.iterate_revisions("heads", context.get_current_revision() or "base"))
    with Operations.context(context):
        for script in reversed(missing):
            script.module.upgrade()
    context.stamp(directory, "heads")
