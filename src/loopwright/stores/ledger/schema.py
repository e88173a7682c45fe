"""The ledger's tables. A change here also needs a numbered file in `migrations`."""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

VERSION = "0001"
"""The newest migration that this code knows."""

metadata = MetaData()

entry = Table(
    "entry",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String(32), nullable=False),
    Column("kind", Text, nullable=False),
    Column("loop", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("at", BigInteger, nullable=False),  # microseconds since 1970, UTC
    Column("by", Text, nullable=False),
    Column("pointer", Text),  # the pointer this entry moved, and the generation it moved it to
    Column("generation", BigInteger),
    Column("record", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("chain", String(64), nullable=False),
    UniqueConstraint("id", name="entry_id"),
    UniqueConstraint("pointer", "generation", name="entry_pointer"),
    Index("entry_kind", "kind", "loop", "key", "sequence"),
    Index("entry_loop", "loop", "sequence"),
)

link = Table(
    "link",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("chain", String(64), nullable=False),
    UniqueConstraint("source", "target", "role", name="link_once"),
    Index("link_target", "target"),
)

# One row: how far both chains have come. Locking it puts writers in a queue; a tail cut off is missed against it.
head = Table(
    "head",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("entries", BigInteger, nullable=False),
    Column("entry_chain", String(64), nullable=False),
    Column("links", BigInteger, nullable=False),
    Column("link_chain", String(64), nullable=False),
)

lease = Table(
    "lease",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("expires", BigInteger, nullable=False),  # microseconds since 1970, UTC
)

# Alembic's own table, read here without importing alembic.
version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
