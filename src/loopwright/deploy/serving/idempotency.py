"""Recent answers by request id (idempotency key): a repeated request gets the same answer, and one row in the log.

One mapped file for all workers of a home, which outlives them: a hash table of requests in stripes, each with a lock and a ring
buffer of answers, of a fixed size. The oldest are evicted. A worker claims a request before it answers it, so that two workers
that get it at once do not both answer it; the claim of a dead worker is void.
"""

import fcntl
import mmap
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from time import perf_counter, sleep
from typing import NamedTuple

import msgspec

from loopwright.base.errors import Overloaded, RequestConflict
from loopwright.records.prediction import Prediction

STRIPES, BUCKETS, WAYS = 16, 512, 8
RING = 2 * 2**20
PATIENCE_SECONDS = 0.05
"""Time that a request waits for another worker that is answering the same one."""

CLAIM_SECONDS = 60.0

_MAGIC = b"lwrecent1\n"
_HEAD = 4096
_ENTRY = Struct("<16s16s8sQIIIB3x")  # key, digest, loop, position (of a claim: its time), length, checksum, process, state
_STATE = 60  # where the state is in an entry
_CLAIMED, _ANSWERED, _LOGGED = 1, 2, 3
_TABLE = _ENTRY.size * WAYS * BUCKETS
_STRIPE = 64 + _TABLE + RING
_SIZE = _HEAD + _STRIPE * STRIPES
_FLOCK = Struct("hhqqi4x")
_POSITION = Struct("<Q")
_PACKED = 64 * 1024
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Prediction]).decode


class Claim(NamedTuple):
    """A request that is this caller's to answer: `keep` and `logged`, or `leave`, must follow."""

    stripe: int
    place: int
    key: bytes
    asked: bytes
    whose: bytes


class EarlierAnswer(NamedTuple):
    """An earlier answer. `logged` unless a worker died between answering and logging; `own` if this process answered."""

    answers: list[Prediction]
    logged: bool
    own: bool


class _Entry(NamedTuple):
    key: bytes
    asked: bytes
    whose: bytes
    position: int
    length: int
    checksum: int
    process: int
    state: int


class IdempotencyStore:
    """The file at `path`, made when it is first needed; where it cannot be, this process remembers for itself. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._token = os.urandom(8)
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._locks = [threading.Lock() for _ in range(STRIPES + 1)]

    def close(self) -> None:
        """Close the file, without removing it."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def claim(self, loop: str, id: str, request_digest: bytes) -> Claim | EarlierAnswer:
        """The earlier answers to `id`, or a claim on it. `request_digest` is a digest of the request (16 bytes).

        Raises RequestConflict when it was another request, and Overloaded when another worker is answering it for too long.
        """
        table = self._open()
        key = blake2b(f"{loop}\0{id}".encode(), digest_size=16).digest()
        stripe, bucket = key[0] % STRIPES, int.from_bytes(key[1:3], "little") % BUCKETS
        until = 0.0
        while True:
            with self._alone(stripe):
                found = self._look(table, stripe, bucket, key, request_digest, loop, id)
            if found is not None:
                return found
            until = until or perf_counter() + PATIENCE_SECONDS
            if perf_counter() > until:
                raise Overloaded(f"request {id} is being answered; try again")
            sleep(0.0005)

    def keep(self, claim: Claim, answers: list[Prediction]) -> None:
        """Remember the answers of a claim, unless they are larger than a ring; to be called before they are logged."""
        table = self._open()
        data = _encode(answers)
        if len(data) > _PACKED:
            data = zlib.compress(data, 1)
        if len(data) > RING:
            self.leave(claim)
            return
        with self._alone(claim.stripe):
            entry = self._entry(table, claim.place)
            if entry.key != claim.key or entry.whose != claim.whose:  # the claim expired and another worker has it
                return
            position = self._write(table, claim.stripe, data)
            kept = _Entry(
                claim.key,
                claim.asked,
                claim.whose,
                position,
                len(data),
                _checksum(claim.key, claim.asked, data),
                os.getpid(),
                _ANSWERED,
            )
            _ENTRY.pack_into(table, claim.place, *kept)

    def logged(self, claim: Claim) -> None:
        """The answers of a claim are in the log."""
        table = self._open()
        with self._alone(claim.stripe):
            entry = self._entry(table, claim.place)
            if entry.key == claim.key and entry.state == _ANSWERED:
                table[claim.place + _STATE] = _LOGGED  # one byte: a crash leaves the entry valid

    def leave(self, claim: Claim) -> None:
        """Release a claim without an answer."""
        table = self._open()
        with self._alone(claim.stripe):
            entry = self._entry(table, claim.place)
            if entry.key == claim.key and entry.whose == claim.whose:
                table[claim.place : claim.place + _ENTRY.size] = bytes(_ENTRY.size)

    def forget(self, loop: str) -> None:
        """Forget this loop's answers of this process: they may be missing from the log."""
        if self._map is None:
            return
        table, whose = self._map, self._whose(loop)
        for stripe in range(STRIPES):
            with self._alone(stripe):
                start = _HEAD + _STRIPE * stripe + 64
                for place in range(start, start + _TABLE, _ENTRY.size):
                    if table[place + 32 : place + 40] == whose:
                        table[place : place + _ENTRY.size] = bytes(_ENTRY.size)

    # --- one stripe, under its lock ------------------------------------------------------------------------------

    def _look(
        self, table: mmap.mmap, stripe: int, bucket: int, key: bytes, request_digest: bytes, loop: str, id: str
    ) -> Claim | EarlierAnswer | None:
        """The result of `claim`; None while another worker is answering."""
        places = self._places(stripe, bucket)
        there = [(place, self._entry(table, place)) for place in places]
        place, entry = next(((p, e) for p, e in there if e.key == key and e.state), (0, None))
        if entry is not None:
            if entry.state == _CLAIMED and self._lives(entry):
                if entry.asked != request_digest:
                    raise RequestConflict(id)
                return None
            answers = None if entry.state == _CLAIMED else self._read(table, stripe, entry)
            if answers is not None:
                if entry.asked != request_digest:
                    raise RequestConflict(id)
                own = entry.whose == self._whose(loop)
                if entry.state == _ANSWERED and Path(f"/proc/{entry.process}").exists() and not own:
                    return None  # it is being logged
                return EarlierAnswer(answers, entry.state == _LOGGED, own)
        else:
            place = self._oldest(there)
        claim = Claim(stripe, place, key, request_digest, self._whose(loop))
        now = int(perf_counter() * 1000)
        _ENTRY.pack_into(table, place, key, request_digest, claim.whose, now, 0, 0, os.getpid(), _CLAIMED)
        return claim

    def _oldest(self, entries: list[tuple[int, _Entry]]) -> int:
        """An empty place, or that of the oldest answer. Raises Overloaded when all are being answered just now."""
        free = [place for place, e in entries if not e.state or (e.state == _CLAIMED and not self._lives(e))]
        if free:
            return free[0]
        answered = [(e.position, place) for place, e in entries if e.state != _CLAIMED]
        if not answered:
            raise Overloaded("too many requests with an id are being answered; try again")
        return min(answered)[1]

    @staticmethod
    def _lives(entry: _Entry) -> bool:
        """Whether a claim still counts."""
        young = 0 <= perf_counter() * 1000 - entry.position < CLAIM_SECONDS * 1000
        return young and Path(f"/proc/{entry.process}").exists()

    @staticmethod
    def _places(stripe: int, bucket: int) -> range:
        first = _HEAD + _STRIPE * stripe + 64 + bucket * WAYS * _ENTRY.size
        return range(first, first + WAYS * _ENTRY.size, _ENTRY.size)

    @staticmethod
    def _entry(table: mmap.mmap, place: int) -> _Entry:
        return _Entry(*_ENTRY.unpack_from(table, place))

    @staticmethod
    def _write(table: mmap.mmap, stripe: int, data: bytes) -> int:
        """Put bytes into the ring; where they are, counted from its beginning of time (never 0)."""
        start = _HEAD + _STRIPE * stripe
        position = _POSITION.unpack_from(table, start)[0] or 1
        if position % RING + len(data) > RING:  # not in one piece: begin the next round
            position += RING - position % RING
        place = start + 64 + _TABLE + position % RING
        _POSITION.pack_into(table, start, position + len(data))
        table[place : place + len(data)] = data
        return int(position)

    @staticmethod
    def _read(table: mmap.mmap, stripe: int, entry: _Entry) -> list[Prediction] | None:
        """The answers of an entry; None if they were overwritten, or are incomplete after a crash."""
        start = _HEAD + _STRIPE * stripe
        head = _POSITION.unpack_from(table, start)[0]
        if not entry.length or head > entry.position + RING or entry.length > RING:
            return None
        place = start + 64 + _TABLE + entry.position % RING
        data = table[place : place + entry.length]
        if _checksum(entry.key, entry.asked, data) != entry.checksum:
            return None
        if data[:1] == b"\x78":  # zlib; an array of answers begins otherwise
            data = zlib.decompress(data)
        return _decode(data)

    # --- the file ------------------------------------------------------------------------------------------------

    def _whose(self, loop: str) -> bytes:
        return blake2b(loop.encode(), key=self._token, digest_size=8).digest()

    @contextmanager
    def _alone(self, stripe: int) -> Iterator[None]:
        """Hold a stripe, among threads and processes; the kernel frees it when a process dies."""
        with self._locks[stripe]:
            if self._fd < 0:
                yield
                return
            _lock(self._fd, fcntl.F_WRLCK, stripe)
            try:
                yield
            finally:
                _lock(self._fd, fcntl.F_UNLCK, stripe)

    def _open(self) -> mmap.mmap:
        if self._map is None:
            with self._locks[STRIPES]:
                if self._map is None:
                    self._map = self._shared() or mmap.mmap(-1, _SIZE)
        return self._map

    def _shared(self) -> mmap.mmap | None:
        """The file, all of it on the disk: a page that finds no room when it is first written kills the process."""
        fd = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(fd, fcntl.F_WRLCK, STRIPES)
            if os.pread(fd, len(_MAGIC), 0) != _MAGIC or os.fstat(fd).st_size != _SIZE:
                os.truncate(fd, 0)
                os.posix_fallocate(fd, 0, _SIZE)
                os.pwrite(fd, _MAGIC, 0)
            _lock(fd, fcntl.F_UNLCK, STRIPES)
            shared = mmap.mmap(fd, _SIZE)
        except OSError:
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
            return None
        self._fd = fd
        return shared


def _lock(fd: int, kind: int, stripe: int) -> None:
    """Take or free a lock on one byte that belongs to the opened file, not to the process, and waits for its turn."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, stripe, 1, 0))


def _checksum(key: bytes, request_digest: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key + request_digest))
