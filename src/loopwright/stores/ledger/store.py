"""The ledger's methods, independent of the meaning of records."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, and_, func, select, text, update

from loopwright.base.clock import Clock, RealClock
from loopwright.base.errors import RecordNotFound, ReleaseConflict, UsageError
from loopwright.base.holder import Holder, decode_holder, encode_holder, this_process
from loopwright.base.ids import check_name, digest, is_trace_id, new_id
from loopwright.records.entries import Entry, Link, Pointer, Problem, Record, Untyped
from loopwright.stores.ledger import schema
from loopwright.stores.ledger.coding import decode, encode
from loopwright.stores.ledger.database import Database
from loopwright.stores.ledger.seen import SeenLedger

R = TypeVar("R", bound=Record)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_CHUNK = 500


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The holder of a lease, its expiry by the holder's wall clock, and whether it counts.

    It does not if its process is `dead`, its time is `over`, or it ends further in the future than a lease can (`void`: a clock
    was wrong).
    """

    holder: Holder
    until: datetime
    state: Literal["held", "dead", "over", "void"]


class Ledger:
    """Append-only records with their lineage, on SQLite (`sqlite:///PATH`) or PostgreSQL (`postgresql://...`).

    Opening it makes the schema or brings it up to date. Safe to share among threads; a forked child opens its own
    connections. Every method raises LedgerUnavailable when the database does not answer and Damaged when its bytes are
    not those that were written.

    `clock` dates the entries. Leases coordinate running processes, not moments of history, so they
    follow `lease_clock`, the machine's own clock, even where `clock` is simulated. `seen` is the file in which a home notes its newest
    entry: with it a missing ledger is not silently recreated, and an older one in its place is detected (`seen.behind`).
    `patience` is the timeout of a waiting writer in seconds (None: `database.PATIENCE_SECONDS`).
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        by: str,
        lease_clock: Clock | None = None,
        seen: Path | None = None,
        patience: float | None = None,
    ) -> None:
        self._clock, self.by = clock, by
        self._lease_clock = lease_clock or RealClock()
        self._database = Database(url, SeenLedger(seen), patience)
        self.seen = self._database.seen

    # --- writing -------------------------------------------------------------------------------------------------

    def put(self, record: R, *, loop: str = "", key: str = "", links: Sequence[tuple[str, str]] = ()) -> Entry[R]:
        """Append a record; `links` are pairs (source id, role): this entry was made from that source.

        Raises UsageError for a record that JSON cannot hold, an invalid name of a kind or loop, or a key over 512
        characters.
        """
        with self._database.write() as connection:
            return self._append(connection, record, loop, key, links)

    def swap(
        self,
        name: str,
        expected_generation: int,
        record: R,
        *,
        loop: str = "",
        key: str = "",
        links: Sequence[tuple[str, str]] = (),
    ) -> Entry[R]:
        """Append a record and move pointer `name` to it, from exactly `expected_generation` (0: never moved) to the next.

        The entry itself is the move, so there are as many of them as generations. Raises ReleaseConflict when the
        pointer is at another generation; then nothing is written.
        """
        with self._database.write() as connection:
            self._lock_head(connection)
            found = self._pointer(connection, name)
            generation = found.generation if found else 0
            if generation != expected_generation:
                raise ReleaseConflict(name, expected_generation, generation)
            return self._append(connection, record, loop, key, links, move=(check_name(name, "pointer"), generation + 1))

    def link(self, source: str, target: str, role: str) -> None:
        """Note that `source` was used for `target` in `role`; saying it twice is saying it once."""
        with self._database.write() as connection:
            self._link(connection, [(source, target, role)])

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Everything this thread writes inside is one transaction: all of it, or after an exception nothing.

        Other writers wait meanwhile, so do no slow work inside.
        """
        with self._database.write():
            yield

    def lock(self, name: str, owner: str, seconds: float) -> bool:
        """Acquire the lease `name` for `owner`, or renew it; False while another owner holds it (`lease` returns the holder).

        On one machine a lease expires by the machine's uptime, and at once when its process dies, so changes of the wall clock
        do not matter. Between machines it expires by the wall clock: machines that share a ledger must agree on it much
        better than to `seconds`, and a lease that would hold for more than twice as long is void.
        """
        clock, lease = self._lease_clock, schema.lease
        now = _microseconds(clock.now())
        holder = this_process(_text("owner", owner), clock.uptime() + seconds)
        row = {"name": check_name(name, "lease"), "owner": encode_holder(holder), "expires": now + int(seconds * 1e6)}
        with self._database.write() as connection:
            self._lock_head(connection)
            before = self._lease(connection, name, seconds)
            if before is not None and before.holder.owner != holder.owner and before.state == "held":
                return False
            connection.execute(lease.delete().where(lease.c.name == name))
            connection.execute(lease.insert().values(**row))
            return True

    def unlock(self, name: str, owner: str) -> None:
        """Give the lease `name` back, if `owner` holds it."""
        lease = schema.lease
        with self._database.write() as connection:
            self._lock_head(connection)
            before = self._lease(connection, name, 0)
            if before is not None and before.holder.owner == owner:
                connection.execute(lease.delete().where(lease.c.name == name))

    def lease(self, name: str, seconds: float) -> Lease | None:
        """The lease `name`, which is acquired for `seconds` at a time; None if nobody acquired it, or it was released."""
        with self._database.read() as connection:
            return self._lease(connection, name, seconds)

    def _lease(self, connection: Connection, name: str, seconds: float) -> Lease | None:
        row = connection.execute(select(schema.lease).where(schema.lease.c.name == name)).one_or_none()
        if row is None:
            return None
        holder, now = decode_holder(row.owner), _microseconds(self._lease_clock.now())
        state: Literal["held", "dead", "over", "void"] = "held"
        if holder.dead:
            state = "dead"
        elif holder.here:
            state = "held" if self._lease_clock.uptime() < holder.until else "over"
        elif row.expires <= now:
            state = "over"
        elif row.expires > now + int(2e6 * seconds):
            state = "void"
        return Lease(holder=holder, until=_EPOCH + row.expires * _MICROSECOND, state=state)

    # --- reading -------------------------------------------------------------------------------------------------

    @overload
    def get(self, id: str) -> Entry[Untyped]: ...
    @overload
    def get(self, id: str, type: type[R]) -> Entry[R]: ...
    def get(self, id: str, type: Any = Untyped) -> Any:
        """The entry `id`; without a type its record is Untyped. Raises RecordNotFound (also when it is of another kind)."""
        if not is_trace_id(id):
            raise RecordNotFound(id)
        with self._database.read() as connection:
            row = connection.execute(select(schema.entry).where(schema.entry.c.id == id)).one_or_none()
        if row is None or (type is not Untyped and row.kind != type.kind):
            raise RecordNotFound(id)
        return _entry(row, type)

    def find(
        self,
        type: type[R],
        *,
        loop: str | None = None,
        key: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest: bool = True,
    ) -> list[Entry[R]]:
        """The entries of a type, newest first (or oldest first), written from `since` to `until`, both included."""
        return [_entry(row, type) for row in self._rows(type.kind, loop, key, since, until, limit, newest)]

    def latest(
        self, type: type[R], *, loop: str | None = None, key: str | None = None, until: datetime | None = None
    ) -> Entry[R] | None:
        """The newest entry of a type (written at `until` or before), or None."""
        rows = self._rows(type.kind, loop, key, None, until, 1, True)
        return _entry(rows[0], type) if rows else None

    def newest(
        self,
        type: type[R],
        *,
        loops: Sequence[str] | None = None,
        per: Literal["loop", "key"] = "loop",
        each: int = 1,
        limit: int | None = None,
    ) -> list[Entry[R]]:
        """The newest entries of a type, `each` of every loop (or of every key of a loop), newest first, in one statement.

        For `loops` (default: all); `limit` is over all of them.
        """
        entry = schema.entry
        group = [entry.c.loop] if per == "loop" else [entry.c.loop, entry.c.key]
        wanted = [entry.c.kind == type.kind, *([] if loops is None else [entry.c.loop.in_(loops)])]
        picked = select(func.max(entry.c.sequence)).where(*wanted).group_by(*group)
        if each > 1:
            number = func.row_number().over(partition_by=group, order_by=entry.c.sequence.desc())
            numbered = select(entry.c.sequence, number.label("number")).where(*wanted).subquery()
            picked = select(numbered.c.sequence).where(numbered.c.number <= each)
        query = select(entry).where(entry.c.sequence.in_(picked)).order_by(entry.c.sequence.desc()).limit(limit)
        with self._database.read() as connection:
            return [_entry(row, type) for row in connection.execute(query)]

    def history(self, loop: str | None = None, *, limit: int | None = None) -> list[Entry[Untyped]]:
        """Everything that happened (in one loop), of every kind, newest first."""
        return [_entry(row, Untyped) for row in self._rows(None, loop, None, None, None, limit, True)]

    def loops(self, type: type[Record], *, after: int = 0) -> list[str]:
        """The loops that have an entry of a type beyond the first `after` entries of the ledger, sorted."""
        entry = schema.entry
        query = select(entry.c.loop).distinct().where(entry.c.kind == type.kind, entry.c.sequence > after, entry.c.loop != "")
        with self._database.read() as connection:
            return sorted(connection.execute(query).scalars())

    def count(self) -> int:
        """Number of entries."""
        newest = self._rows(None, None, None, None, None, 1, True)
        return newest[0].sequence if newest else 0

    def links(self, id: str, *, direction: Literal["up", "down"] = "up", depth: int | None = 1) -> list[Link]:
        """Lineage of an entry or artefact, nearest first: `up` to its inputs, `down` to its uses.

        `depth` is the number of steps (None: all). Each link is returned once, also where paths of the lineage meet.
        """
        link = schema.link
        here, there = (link.c.target, link.c.source) if direction == "up" else (link.c.source, link.c.target)
        found: dict[int, Link] = {}
        seen, edge, step = {id}, [id], 0
        with self._database.read() as connection:
            while edge and (depth is None or step < depth):
                rows: list[Row[Any]] = []
                for i in range(0, len(edge), _CHUNK):
                    rows += connection.execute(select(link).where(here.in_(edge[i : i + _CHUNK])).order_by(link.c.sequence))
                for row in rows:
                    found[row.sequence] = Link(source=row.source, target=row.target, role=row.role)
                edge = sorted({row._mapping[there.name] for row in rows} - seen)
                seen.update(edge)
                step += 1
        return list(found.values())

    def pointer(self, name: str) -> Pointer | None:
        """The position of pointer `name`, or None if it was never moved."""
        with self._database.read() as connection:
            return self._pointer(connection, name)

    def verify(self) -> list[Problem]:
        """Check every byte: digests, both chains, generations without a gap, nothing missing at the end."""
        with self._database.snapshot() as connection:
            problems = []
            if self._database.file:
                checks = connection.execute(text("PRAGMA integrity_check(20)")).scalars().all()
                problems = [Problem(where="ledger database", what=check) for check in checks if check != "ok"]
            if behind := self.seen.behind():
                problems.append(Problem(where="ledger", what=behind))
            head = connection.execute(select(schema.head)).one_or_none()
            if head is None:
                return [*problems, Problem(where="ledger head", what="missing")]
            problems += _check_entries(connection, head.entries, head.entry_chain)
            problems += _check_links(connection, head.links, head.link_chain)
            return problems

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _append(
        self,
        connection: Connection,
        record: R,
        loop: str,
        key: str,
        links: Sequence[tuple[str, str]],
        move: tuple[str | None, int | None] = (None, None),
    ) -> Entry[R]:
        check_name(record.kind, "kind")
        if loop:
            check_name(loop, "loop")
        content = encode(record)
        head = self._lock_head(connection)
        at = self._clock.now()
        row = {
            "sequence": head.entries + 1,
            "id": new_id(at),
            "kind": record.kind,
            "loop": loop,
            "key": _text("key", key),
            "at": _microseconds(at),
            "by": _text("by", self.by),
            "pointer": move[0],
            "generation": move[1],
            "digest": digest(content.encode()),
        }
        row["chain"] = _chain(head.entry_chain, row)
        connection.execute(schema.entry.insert().values(**row, record=content))
        connection.execute(update(schema.head).values(entries=row["sequence"], entry_chain=row["chain"]))
        self.seen.append(head.entries + 1, row["chain"])
        self._link(connection, [(source, str(row["id"]), role) for source, role in links])
        fields = {name: row[name] for name in ("sequence", "id", "kind", "loop", "key", "by", "digest", "chain")}
        return cast("Entry[R]", Entry(**fields, at=_EPOCH + _microseconds(at) * _MICROSECOND, record=record))

    def _link(self, connection: Connection, links: Sequence[tuple[str, str, str]]) -> None:
        if not links:
            return
        link = schema.link
        head = self._lock_head(connection)
        number, chain = head.links, head.link_chain
        for source, target, role in links:
            row = {"source": _text("source", source), "target": _text("target", target), "role": _text("role", role)}
            if connection.execute(select(link.c.sequence).filter_by(**row)).first():
                continue
            number += 1
            chain = _chain(chain, {"sequence": number, **row})
            connection.execute(link.insert().values(sequence=number, chain=chain, **row))
        connection.execute(update(schema.head).values(links=number, link_chain=chain))

    def _lock_head(self, connection: Connection) -> Row[Any]:
        """The head of both chains; on PostgreSQL this is where writers wait for each other."""
        return connection.execute(select(schema.head).with_for_update()).one()

    def _pointer(self, connection: Connection, name: str) -> Pointer | None:
        entry = schema.entry
        query = (
            select(entry.c.generation, entry.c.id).where(entry.c.pointer == name).order_by(entry.c.generation.desc()).limit(1)
        )
        row = connection.execute(query).one_or_none()
        return Pointer(name=name, generation=row.generation, entry=row.id) if row else None

    def _rows(
        self,
        kind: str | None,
        loop: str | None,
        key: str | None,
        since: datetime | None,
        until: datetime | None,
        limit: int | None,
        newest: bool,
    ) -> Sequence[Row[Any]]:
        entry = schema.entry
        wanted: list[ColumnElement[bool]] = []
        for column, value in ((entry.c.kind, kind), (entry.c.loop, loop), (entry.c.key, key)):
            if value is not None:
                if "\0" in value:
                    return []
                wanted.append(column == value)
        if since is not None:
            wanted.append(entry.c.at >= _microseconds(since))
        if until is not None:
            wanted.append(entry.c.at <= _microseconds(until))
        order = entry.c.sequence.desc() if newest else entry.c.sequence.asc()
        with self._database.read() as connection:
            return connection.execute(select(entry).where(and_(True, *wanted)).order_by(order).limit(limit)).all()


def keys(ledger: Ledger, type: type[Record], loops: Sequence[str]) -> list[tuple[str, str]]:
    """Each loop and key that has an entry of a type, once, in the order in which they came first; no record is read."""
    entry = schema.entry
    wanted = [entry.c.kind == type.kind, entry.c.loop.in_(loops)]
    first = func.min(entry.c.sequence)
    query = select(entry.c.loop, entry.c.key).where(*wanted).group_by(entry.c.loop, entry.c.key).order_by(first)
    with ledger._database.read() as connection:
        return [(row.loop, row.key) for row in connection.execute(query)]


def _entry(row: Row[Any], type: type[R]) -> Entry[R]:
    return Entry(
        id=row.id,
        sequence=row.sequence,
        kind=row.kind,
        loop=row.loop,
        key=row.key,
        at=_EPOCH + row.at * _MICROSECOND,
        by=row.by,
        record=decode(row.record, type, row.id),
        digest=row.digest,
        chain=row.chain,
    )


def _chain(previous: str, row: dict[str, Any]) -> str:
    """SHA-256 over the chain so far and a row's fields."""
    return digest(msgspec.json.encode([previous, sorted(row.items())]))


def _microseconds(moment: datetime) -> int:
    if moment.tzinfo is None:
        raise UsageError(f"a moment needs a time zone: {moment.isoformat()}")
    return (moment - _EPOCH) // _MICROSECOND


def _text(what: str, value: str) -> str:
    if len(value) > 512 or "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{what} {value[:80]!r}: at most 512 characters of valid text")
    return value


def _check_entries(connection: Connection, count: int, chain: str) -> list[Problem]:
    problems: list[Problem] = []
    generations: dict[str, int] = {}
    last, previous = 0, ""
    fields = ("sequence", "id", "kind", "loop", "key", "at", "by", "pointer", "generation", "digest")
    for row in connection.execution_options(yield_per=_CHUNK).execute(select(schema.entry).order_by(schema.entry.c.sequence)):
        where = f"ledger entry {row.id}"
        if row.sequence != last + 1:
            problems.append(Problem(where=where, what=f"entries {last + 1} to {row.sequence - 1} before it are missing"))
        elif _chain(previous, {name: row._mapping[name] for name in fields}) != row.chain:
            problems.append(Problem(where=where, what="its chain does not follow from the entry before it"))
        if digest(row.record.encode()) != row.digest:
            problems.append(Problem(where=where, what="its record is not what was written"))
        if row.pointer is not None:
            if row.generation != generations.get(row.pointer, 0) + 1:
                problems.append(Problem(where=where, what=f"pointer {row.pointer} jumps to generation {row.generation}"))
            generations[row.pointer] = row.generation
        last, previous = row.sequence, row.chain
    if (last, previous) != (count, chain):
        problems.append(Problem(where="ledger head", what=f"should be entry {count}, but the last entry is {last}"))
    return problems


def _check_links(connection: Connection, count: int, chain: str) -> list[Problem]:
    problems: list[Problem] = []
    last, previous = 0, ""
    for row in connection.execution_options(yield_per=_CHUNK).execute(select(schema.link).order_by(schema.link.c.sequence)):
        where = f"ledger link {row.sequence}"
        fields = {"sequence": row.sequence, "source": row.source, "target": row.target, "role": row.role}
        if row.sequence != last + 1:
            problems.append(Problem(where=where, what=f"links {last + 1} to {row.sequence - 1} before it are missing"))
        elif _chain(previous, fields) != row.chain:
            problems.append(Problem(where=where, what="its chain does not follow from the link before it"))
        last, previous = row.sequence, row.chain
    if (last, previous) != (count, chain):
        problems.append(Problem(where="ledger head", what=f"should be link {count}, but the last link is {last}"))
    return problems
