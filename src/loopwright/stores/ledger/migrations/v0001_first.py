"""The first schema: entries, links, the head of both chains, leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "entry",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("loop", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("by", sa.Text, nullable=False),
        sa.Column("pointer", sa.Text),
        sa.Column("generation", sa.BigInteger),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("chain", sa.String(64), nullable=False),
        sa.UniqueConstraint("id", name="entry_id"),
        sa.UniqueConstraint("pointer", "generation", name="entry_pointer"),
    )
    op.create_index("entry_kind", "entry", ["kind", "loop", "key", "sequence"])
    op.create_index("entry_loop", "entry", ["loop", "sequence"])
    op.create_table(
        "link",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("chain", sa.String(64), nullable=False),
        sa.UniqueConstraint("source", "target", "role", name="link_once"),
    )
    op.create_index("link_target", "link", ["target"])
    head = op.create_table(
        "head",
        sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entries", sa.BigInteger, nullable=False),
        sa.Column("entry_chain", sa.String(64), nullable=False),
        sa.Column("links", sa.BigInteger, nullable=False),
        sa.Column("link_chain", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"one": 1, "entries": 0, "entry_chain": "", "links": 0, "link_chain": ""}])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
