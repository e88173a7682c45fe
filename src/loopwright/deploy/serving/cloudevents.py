"""Predictions and changes of releases as CloudEvents 1.0 (https://github.com/cloudevents/spec), which upkeep sends to a receiver.

Delivery at least once, in batches over HTTP: the cursor, a record in the ledger, moves on when the receiver has accepted a batch,
so after a crash some events are sent again; their `id` (the prediction's) and `source` identify duplicates. A receiver that is
down is retried in the next round, and a round takes a bounded time. Predictions from before events were switched on are not sent.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, ClassVar

import msgspec
import pyarrow as pa

from loopwright.base.errors import AddressRefused, Damaged, NotFound, PackageRefused
from loopwright.base.ids import is_trace_id, sampling_bound, span_id
from loopwright.base.outbound_http import post, receiver
from loopwright.records.declarations import Column
from loopwright.records.entries import Entry, Record
from loopwright.records.package import Manifest
from loopwright.records.releases import PendingRelease, ReleaseState
from loopwright.records.verdicts import Verdict
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.arrow import rows
from loopwright.stores.prediction_log.segment import table_name

TYPE = "loopwright.prediction"
MEDIA = "application/cloudevents-batch+json"
EVENT_BYTES = 64 * 1024
"""Size that an intermediary must be able to forward; a larger event leaves out the columns of the request."""

BATCH, BATCH_BYTES = 500, 2**20
ROUND_SECONDS = 10.0
CLOCK_BACK = timedelta(days=1)
"""So far may the clock have been moved back without a change of a release being left out."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Json = dict[str, Any]


class EventCursor(Record, frozen=True, kw_only=True):
    """Position of a loop's delivered events: all rows added by its table's versions up to `version`, and `rows` of the next one."""

    kind: ClassVar[str] = "event-cursor"
    version: int
    rows: int


class ReleaseEventCursor(Record, frozen=True, kw_only=True):
    """Position of a loop's delivered changes of releases: the ledger's entries up to `sequence`, written at `at`, are sent."""

    kind: ClassVar[str] = "release-event-cursor"
    sequence: int
    at: datetime


class DeliveryRound(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one delivery round for a loop: events sent, and the error if one occurred."""

    events: int
    trouble: str = ""


class Events:
    """One delivery round over all loops, for at most `ROUND_SECONDS` (not counting other work of upkeep).

    Does nothing where no receiver is set.
    """

    def __init__(self, home: Home) -> None:
        self._home, self._to = home, receiver(home.settings, "events")
        self._share = home.settings.trace_share if home.settings.traces else 0.0
        self._left, self._due = ROUND_SECONDS, 0.0
        self._trouble, self._late = "", False
        self._manifest: Callable[[str], Manifest | None] = cache(self._read_manifest)

    def begin(self, loop: str) -> None:
        """Before a loop's log is committed: start the cursor at the current end of the table, if the loop has none."""
        if self._to.url and self._home.ledger.latest(EventCursor, loop=loop) is None:
            name = table_name("predictions", loop)
            version = self._home.lake.version(name) if self._home.lake.exists(name) else -1
            self._home.ledger.put(EventCursor(version=version, rows=0), loop=loop)
        if self._to.url and self._home.ledger.latest(ReleaseEventCursor, loop=loop) is None:
            newest = max((entry.sequence for entry in self._changes(loop, None)), default=0)
            self._home.ledger.put(ReleaseEventCursor(sequence=newest, at=self._home.clock.now()), loop=loop)

    def tell(self, loop: str) -> DeliveryRound | None:
        """After a loop's log was committed: send the new events. None where no receiver is set or nothing can be sent."""
        entry = self._home.ledger.latest(EventCursor, loop=loop) if self._to.url else None
        name = table_name("predictions", loop)
        if entry is None or not self._home.lake.exists(name):
            return None
        start = at = entry.record
        began = self._home.clock.monotonic()
        self._due = began + self._left
        told, newest = 0, self._home.lake.version(name)
        try:
            while at.version < newest and not self._stopped():
                version, through = at.version + 1, True
                for batch, count in self._batches(loop, name, version, at.rows):
                    if not (through := self._post(batch)):
                        break
                    told, at = told + count, EventCursor(version=at.version, rows=at.rows + count)
                if through:
                    at = EventCursor(version=version, rows=0)
        except FileNotFoundError:  # compacted and swept long before the receiver was there again
            at = EventCursor(version=at.version + 1, rows=0)
            self._trouble = f"predictions of version {at.version} of table {name} are gone and were not told"
        except (Damaged, NotFound, OSError) as error:
            self._trouble = f"predictions that were to be told cannot be read: {str(error)[:200]}"
        finally:
            self._left -= self._home.clock.monotonic() - began
            if at != start:
                self._home.ledger.put(at, loop=loop)
        return DeliveryRound(events=told, trouble=self._trouble)

    def tell_releases(self, loop: str) -> DeliveryRound | None:
        """Send the loop's new changes of releases: release states, verdicts but those that hold, releases that wait. None as in `tell`."""
        entry = self._home.ledger.latest(ReleaseEventCursor, loop=loop) if self._to.url else None
        if entry is None or self._stopped():
            return None
        began = self._home.clock.monotonic()
        self._due, sent = began + self._left, 0
        fresh = [
            change for change in self._changes(loop, entry.record.at - CLOCK_BACK) if change.sequence > entry.record.sequence
        ]
        told = [change for change in fresh if not (isinstance(change.record, Verdict) and change.record.answer == "hold")]
        for first in range(0, len(told), BATCH):
            some = told[first : first + BATCH]
            if not self._post(b"[" + b",".join(msgspec.json.encode(release_event(change)) for change in some) + b"]"):
                break
            sent += len(some)
        last = fresh[-1] if sent == len(told) and fresh else told[sent - 1] if sent else None
        if last is not None and (sent or len(fresh) > BATCH):
            self._home.ledger.put(ReleaseEventCursor(sequence=last.sequence, at=last.at), loop=loop)
        self._left -= self._home.clock.monotonic() - began
        return DeliveryRound(events=sent, trouble=self._trouble)

    def _changes(self, loop: str, since: datetime | None) -> list[Entry[Any]]:
        """The entries about a loop's releases, oldest first."""
        kinds = (ReleaseState, Verdict, PendingRelease)
        found = [entry for kind in kinds for entry in self._home.ledger.find(kind, loop=loop, since=since, newest=False)]
        return sorted(found, key=lambda entry: entry.sequence)

    def _stopped(self) -> bool:
        return bool(self._trouble) or self._late

    def _post(self, batch: bytes) -> bool:
        if self._home.clock.monotonic() > self._due:
            self._late = True
            return False
        try:
            post(self._to, batch, limit=2 * BATCH_BYTES, media=MEDIA)
        except (AddressRefused, OSError) as error:
            self._trouble = f"not all events could be told: {str(error)[:200]}"
        return not self._trouble

    def _batches(self, loop: str, name: str, version: int, skip: int) -> Iterator[tuple[bytes, int]]:
        """Batches of the events of a version of the table from row `skip` on, each with its number of events."""
        added = self._home.lake.added(name, version)
        parts: list[bytes] = []
        size = 0
        for batch in added.to_batches(batch_size=BATCH, use_threads=False) if added is not None else ():
            fresh = batch.slice(skip)
            skip = max(0, skip - batch.num_rows)
            for row in rows(pa.Table.from_batches([fresh])):
                parts.append(self._event(loop, row))
                size += len(parts[-1])
                if len(parts) >= BATCH or size >= BATCH_BYTES:
                    yield b"[" + b",".join(parts) + b"]", len(parts)
                    parts, size = [], 0
        if parts:
            yield b"[" + b",".join(parts) + b"]", len(parts)

    def _event(self, loop: str, row: Json) -> bytes:
        told = event(loop, row, self._manifest(row["_package"]), self._share)
        body = msgspec.json.encode(told)
        if len(body) > EVENT_BYTES:
            del told["data"]["request"]
            body = msgspec.json.encode(told)
        return body

    def _read_manifest(self, package: str) -> Manifest | None:
        try:
            return self._home.packages.manifest(package)
        except (NotFound, PackageRefused):
            return None


def event(loop: str, row: Mapping[str, Any], manifest: Manifest | None, share: float = 0.0) -> Json:
    """The event of a row of the table of predictions (timestamps as microseconds); columns tagged `pii` are left out.

    `share` of the traces are sampled, by trace id; the caller's own sampling decision is not in the table.
    """
    request = manifest.request if manifest is not None else {}
    personal = {name for name, column in request.items() if "pii" in column.tags}
    data: Json = {
        "loop": loop,
        "package": row["_package"],
        "arm": row["_arm"],
        "score": row["_score"],
        "label": row["_label"],
        "flags": row["_flags"],
        "request": {n: _plain(c, row[n]) for n, c in request.items() if n in row and n not in personal},
    }
    if row.get("_segment") is not None:
        data["segment"] = row["_segment"]
    if row.get("_values") is not None and manifest is not None:
        data["values"] = dict(zip(manifest.output.names, row["_values"], strict=False))
    told: Json = {
        "specversion": "1.0",
        "id": row["_id"],
        "source": f"/loops/{loop}",
        "type": TYPE,
        "time": _time(row["_at"]),
        "datacontenttype": "application/json",
        "dataschema": f"urn:loopwright:package:{row['_package']}",
    }
    if row["_unit"] and manifest is not None and not personal & set(manifest.key):
        told["subject"] = row["_unit"]
    if is_trace_id(row["_id"]):
        sampled = row["_id"][16:] < sampling_bound(share)
        told["traceparent"] = f"00-{row['_id']}-{span_id(row['_id'])}-{sampled:02x}"
    return {**told, "data": data}


def release_event(entry: Entry[Any]) -> Json:
    """The event of a change of a release: its ledger entry, whose id is the event's. The subject is the package."""
    record = entry.record
    what = record.action if isinstance(record, ReleaseState) else record.answer if isinstance(record, Verdict) else record.state
    return {
        "specversion": "1.0",
        "id": entry.id,
        "source": f"/loops/{entry.loop}",
        "type": f"loopwright.{record.kind}.{what}",
        "time": entry.at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "subject": entry.key,
        "data": {"by": entry.by, **msgspec.to_builtins(record)},
    }


def _plain(column: Column, value: Any) -> Any:
    return _time(value) if column.type == "timestamp" and isinstance(value, int) else value


def _time(microseconds: int) -> str:
    return (_EPOCH + timedelta(microseconds=microseconds)).isoformat().replace("+00:00", "Z")
