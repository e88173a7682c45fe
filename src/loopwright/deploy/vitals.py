"""What a worker is doing, in a small mapped file that its supervisor can read, also after the worker has died.

The worker notes the package that each of its threads loads or asks (one store of bytes before, one after), a beat of its
event loop, the packages that fail again and again, and which release of each loop it serves. Plain memory: no system call.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from threading import Lock, get_ident
from typing import Literal, NamedTuple

import msgspec

from loopwright.records.releases import ReleaseState

Doing = Literal["loads", "answers"]
Standing = Literal["serves", "idle", "lags", "refuses"]
"""To a release state: serves it; serves none, and will load what is declared when it is asked; serves another; could not switch."""

_HEAD = Struct("<QQd")  # pid, the thread of the event loop, its beat in seconds of the monotonic clock
_NOTES, _NOTE, _THREADS = 64, 160, 16  # a note: thread (8), loads (1 + 64), answers (1 + 64)
_THREAD = Struct("<Q")
_CELL = 65
_LOADS, _ANSWERS = 8, 8 + _CELL
_FAILING, _FAILS = _NOTES + _NOTE * _THREADS, 8
_SERVES = 4096
_SLOT = Struct("<8s8s8s")  # loop, the state that it serves, the state that it could not switch to
_SLOTS = 16_384
_SIZE = _SERVES + _SLOT.size * _SLOTS
_NOTHING = bytes(8)


class Busy(NamedTuple):
    """A thread of a worker was loading or asking a package when it was looked at."""

    thread: int
    doing: Doing
    package: str


class Vitals:
    """One worker's file: made anew by `fresh`, written by the worker, read by anybody. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._places: dict[int, int] = {}
        self._lock = Lock()

    @classmethod
    def fresh(cls, path: Path) -> "Vitals":
        """Make the file, blank."""
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)  # a page without room on the disk would kill who writes it
        return cls(path)

    def close(self) -> None:
        """Let go of the file, which stays."""
        self._map.close()

    def clear(self) -> None:
        """Forget a worker that is gone; the next one writes into the same file."""
        self._map[:] = bytes(_SIZE)

    # --- the event loop ------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """The event loop of this process goes round; `now` in seconds of the monotonic clock. To be called in its thread."""
        _HEAD.pack_into(self._map, 0, os.getpid(), get_ident(), now)

    @property
    def pid(self) -> int:
        """The process that beat last; 0 before the first beat."""
        return int(_HEAD.unpack_from(self._map, 0)[0])

    @property
    def beaten(self) -> float:
        """When it beat last, in seconds of the monotonic clock; 0 before the first."""
        return float(_HEAD.unpack_from(self._map, 0)[2])

    @property
    def main(self) -> int:
        """The thread of the event loop."""
        return int(_HEAD.unpack_from(self._map, 0)[1])

    # --- packages that are loaded and asked ----------------------------------------------------------------------

    @contextmanager
    def loading(self, package: str) -> Iterator[None]:
        """This thread loads a package inside."""
        place = self._place() + _LOADS
        before = self._map[place : place + _CELL]
        self._map[place : place + _CELL] = b"\1" + package.encode()
        try:
            yield
        finally:
            self._map[place : place + _CELL] = before

    def began(self, note: bytes) -> int:
        """This thread asks a package: `note` is `note_of(package)`. Returns what `ended` is to be given."""
        place = (self._places.get(get_ident()) or self._place()) + _ANSWERS
        self._map[place : place + _CELL] = note
        return place

    def ended(self, place: int) -> None:
        """The answer is there."""
        self._map[place] = 0

    def busy(self) -> list[Busy]:
        """What its threads are doing, or were doing when it died."""
        found = []
        for place in range(_NOTES, _NOTES + _NOTE * _THREADS, _NOTE):
            thread = _THREAD.unpack_from(self._map, place)[0]
            cells: tuple[tuple[int, Doing], ...] = ((_ANSWERS, "answers"), (_LOADS, "loads"))
            for cell, doing in cells:  # while loading it is asked, too: the golden requests
                at = place + cell
                if self._map[at]:
                    found.append(Busy(thread, doing, self._map[at + 1 : at + _CELL].decode("ascii", "replace")))
                    break
        return found

    def _place(self) -> int:
        """Where this thread writes; threads beyond the sixteenth share the last place."""
        thread = get_ident()
        place = self._places.get(thread)
        if place is None:
            with self._lock:
                place = _NOTES + _NOTE * min(len(self._places), _THREADS - 1)
                _THREAD.pack_into(self._map, place, thread)
                self._places[thread] = place
        return place

    # --- packages that fail --------------------------------------------------------------------------------------

    def fails(self, package: str) -> None:
        """Say that a package fails again and again; at most eight are held until they are taken."""
        with self._lock:
            for place in range(_FAILING, _FAILING + _CELL * _FAILS, _CELL):
                if self._map[place : place + _CELL] == note_of(package):
                    return
                if not self._map[place]:
                    self._map[place + 1 : place + _CELL] = package.encode()
                    self._map[place] = 1
                    return

    def take_failing(self) -> list[str]:
        """The packages that it said fail, each once."""
        found = []
        for place in range(_FAILING, _FAILING + _CELL * _FAILS, _CELL):
            if self._map[place]:
                found.append(self._map[place + 1 : place + _CELL].decode("ascii", "replace"))
                self._map[place] = 0
        return found

    # --- which release it serves ---------------------------------------------------------------------------------

    def serves(self, state: ReleaseState) -> None:
        """This worker has switched a loop to a state; what does not fit into the table (16,384 loops) is not told."""
        place = self._slot(state.loop, make=True)
        if place:
            loop = _digest(state.loop.encode())
            _SLOT.pack_into(self._map, place, loop, tag_of(state), _NOTHING)

    def refuses(self, state: ReleaseState) -> None:
        """This worker could not switch a loop to a state."""
        place = self._slot(state.loop, make=True)
        if place:
            loop, now, _ = _SLOT.unpack_from(self._map, place)
            _SLOT.pack_into(self._map, place, loop if any(loop) else _digest(state.loop.encode()), now, tag_of(state))

    def forgets(self, loop: str) -> None:
        """This worker has let go of a loop; what is declared then is loaded when it is asked."""
        place = self._slot(loop, make=False)
        if place:
            _SLOT.pack_into(self._map, place, _digest(loop.encode()), _NOTHING, _NOTHING)

    def stands(self, state: ReleaseState) -> Standing:
        """How this worker stands to a state."""
        place = self._slot(state.loop, make=False)
        _, now, refused = _SLOT.unpack_from(self._map, place) if place else (b"", _NOTHING, _NOTHING)
        tag = tag_of(state)
        if tag in (now, refused):
            return "serves" if tag == now else "refuses"
        return "idle" if now == refused == _NOTHING else "lags"

    def _slot(self, loop: str, *, make: bool) -> int:
        """Where a loop is in the table; 0 where it is not, or has no room."""
        key = _digest(loop.encode())
        first = int.from_bytes(key, "little")
        for i in range(_SLOTS):
            place = _SERVES + _SLOT.size * ((first + i) % _SLOTS)
            there = self._map[place : place + 8]
            if there == key or (make and there == _NOTHING):
                return place
            if there == _NOTHING:
                return 0
        return 0


def note_of(package: str) -> bytes:
    """What `began` writes for a package."""
    return b"\1" + package.encode()


def tag_of(state: ReleaseState) -> bytes:
    """Eight bytes that stand for a release state."""
    return _digest(msgspec.msgpack.encode(state))


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=8).digest()


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a server that runs here, and how it stands to what is declared to serve a loop."""

    pid: int
    state: Standing


FOLDER = "run"


def workers(home: Path, state: ReleaseState) -> list[WorkerState]:
    """How each worker of the servers that run over `home` on this machine stands to a state; empty when none runs."""
    found = []
    for path in sorted((home / FOLDER).glob("*/worker-*.vitals")):
        try:
            vitals = Vitals(path)
        except (OSError, ValueError):  # the server ends just now
            continue
        try:
            pid = vitals.pid
            if pid and Path(f"/proc/{pid}").exists():
                found.append(WorkerState(pid=pid, state=vitals.stands(state)))
        finally:
            vitals.close()
    return found
