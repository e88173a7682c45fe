"""The heartbeat of a worker: a small mapped file that its supervisor can read, also after the worker has died.

The worker notes the package that each of its threads loads or runs, the inputs of that run, a heartbeat of its event loop, the
packages that fail repeatedly, and the release of each loop that it serves. Plain memory: no system call.

A value that another process reads while it is written is one aligned word, stored and loaded atomically; longer values are written
before the word that marks them as valid. (`struct.pack_into` stores zeros first, which a reader sees.)
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from threading import Lock, get_ident
from typing import Literal, NamedTuple

import msgspec

from loopwright.deploy.serving.suspects import FILE, Suspects, fingerprints
from loopwright.records.releases import ReleaseState

Doing = Literal["loads", "answers"]
Standing = Literal["serves", "idle", "lags", "refuses", "down"]
"""A worker's state for a release: serves it; idle: will load it on the first request; serves another; could not switch; not running."""

_PID, _MAIN, _BEAT = 0, 1, 2  # words: the process, the thread of its event loop, its beat in nanoseconds of the monotonic clock
_NOTES, _NOTE, _THREADS = 64, 160, 16  # a note: thread (8), loads (1 + 64), answers (1 + 64)
_CELL = 65
_LOADS, _ANSWERS = 8, 8 + _CELL
_FAILING, _FAILS = _NOTES + _NOTE * _THREADS, 8
_SERVES = 4096
_SLOT, _SLOTS = 24, 16_384  # words: the loop, the state that it serves, the state that it could not switch to
_INPUTS, MAX_BYTES = _SERVES + _SLOT * _SLOTS, 2**18
_ENCODED, _PRINTS, _RUN_HEAD = 1, 2, Struct("QQQ")
_RUN = (
    24 + MAX_BYTES
)  # of each thread: rows that the package had answered, bytes of its inputs, which form (8 each); the inputs
_OVERRUNS, _OVERRUN, _MAX_OVERRUNS = (
    _INPUTS + _RUN * _THREADS,
    8 + 64 + 16 + 8 * 256,
    8,
)  # is there (8), package, rows, inputs, fingerprints
_SIZE = _OVERRUNS + _OVERRUN * _MAX_OVERRUNS


class Busy(NamedTuple):
    """A thread of a worker was loading or asking a package when it was looked at."""

    thread: int
    doing: Doing
    package: str
    inputs: tuple[bytes, ...] = ()
    """Fingerprints of the rows that it runs (see `deploy.serving.suspects`)."""
    answered: int = 0
    """Rows that the package's model had answered in this worker before."""


class Overrun(NamedTuple):
    """A run beyond its deadline: fingerprints of its rows (none for too many rows), and the rows that the model had answered before."""

    package: str
    inputs: tuple[bytes, ...]
    answered: int


class Troubles:
    """Package failures that a worker reports until its supervisor takes them: at most eight of each kind."""

    def __init__(self, map: mmap.mmap, words: memoryview) -> None:
        self._map, self._words = map, words
        self._lock = Lock()

    def fails(self, package: str) -> None:
        """Say that a package fails again and again; at most eight are held until they are taken."""
        with self._lock:
            for place in range(_FAILING, _FAILING + _CELL * _FAILS, _CELL):
                if self._map[place] and self._map[place + 1 : place + _CELL] == note_of(package):
                    return
                if not self._map[place]:
                    self._map[place + 1 : place + _CELL] = package.encode()
                    self._map[place] = 1
                    return

    def take_failing(self) -> list[str]:
        """The packages reported as failing, each once."""
        found = []
        for place in range(_FAILING, _FAILING + _CELL * _FAILS, _CELL):
            if self._map[place]:
                found.append(self._map[place + 1 : place + _CELL].decode("ascii", "replace"))
                self._map[place] = 0
        return found

    def overran(self, package: str, inputs: bytes, answered: int) -> None:
        """Say that a run took too long; at most eight are held until they are taken."""
        inputs = inputs if len(inputs) <= 8 * 256 else b""
        with self._lock:
            for place in range(_OVERRUNS, _OVERRUNS + _OVERRUN * _MAX_OVERRUNS, _OVERRUN):
                if not self._words[place // 8]:
                    self._map[place + 8 : place + 72] = package.encode()
                    self._words[place // 8 + 9] = answered
                    self._words[place // 8 + 10] = len(inputs) // 8
                    self._map[place + 88 : place + 88 + len(inputs)] = inputs
                    self._words[place // 8] = 1
                    return

    def take_overruns(self) -> list[Overrun]:
        """The runs that took too long, each once."""
        found = []
        for place in range(_OVERRUNS, _OVERRUNS + _OVERRUN * _MAX_OVERRUNS, _OVERRUN):
            if self._words[place // 8]:
                count = min(self._words[place // 8 + 10], 256)
                inputs = _split(self._map[place + 88 : place + 88 + 8 * count])
                package = self._map[place + 8 : place + 72].decode("ascii", "replace")
                found.append(Overrun(package, inputs, self._words[place // 8 + 9]))
                self._words[place // 8] = 0
        return found


class ReleaseTable:
    """Which release state of each loop a worker serves, or could not switch to: a hash table of 16,384 loops."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def serves(self, state: ReleaseState) -> None:
        """Record that this worker has switched a loop to a state; loops beyond the table's size (16,384) are not recorded."""
        self._stand(state.loop, tag_of(state), 0)

    def refuses(self, state: ReleaseState) -> None:
        """This worker could not switch a loop to a state."""
        place = self._slot(state.loop)
        self._stand(state.loop, self._words[place + 1] if place else 0, tag_of(state))

    def forgets(self, loop: str) -> None:
        """Record that this worker has evicted a loop; the next request loads the declared release."""
        if self._slot(loop):
            self._stand(loop, 0, 0)

    def stands(self, state: ReleaseState) -> Standing:
        """The state of this worker for a release."""
        place = self._slot(state.loop)
        now, refused = (self._words[place + 1], self._words[place + 2]) if place else (0, 0)
        tag = tag_of(state)
        if tag in (now, refused):
            return "serves" if tag == now else "refuses"
        return "idle" if now == refused == 0 else "lags"

    def _stand(self, loop: str, serves: int, refused: int) -> None:
        place = self._slot(loop, make=True)
        if place:
            self._words[place + 1] = serves
            self._words[place + 2] = refused
            self._words[place] = _word(loop.encode())  # last: from now on it counts

    def _slot(self, loop: str, *, make: bool = False) -> int:
        """Which word of the table a loop begins at; 0 where it is not, or has no room."""
        key = _word(loop.encode())
        for i in range(_SLOTS):
            place = (_SERVES + _SLOT * ((key + i) % _SLOTS)) // 8
            there = self._words[place]
            if there == key or (make and there == 0):
                return place
            if there == 0:
                return 0
        return 0


class Heartbeat:
    """The file of one worker: recreated by `fresh`, written by the worker, read by others. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self._words = memoryview(self._map).cast("Q")
        self.troubles, self.releases = Troubles(self._map, self._words), ReleaseTable(self._words)
        self._places: dict[int, int] = {}
        self._runs: dict[int, tuple[int, int]] = {}
        self._lock = Lock()

    @classmethod
    def fresh(cls, path: Path) -> "Heartbeat":
        """Make the file, blank."""
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)  # writing to a page without disk space would kill the process
        return cls(path)

    def close(self) -> None:
        """Close the file, without removing it."""
        self._words.release()
        self._map.close()
        if "suspects" in self.__dict__ and self.suspects is not None:
            self.suspects.close()

    @cached_property
    def suspects(self) -> Suspects | None:
        """The table of this server's suspect inputs; None without one."""
        try:
            return Suspects(self.path.with_name(FILE))
        except (OSError, ValueError):
            return None

    def clear(self) -> None:
        """Forget a worker that is gone; the next one writes into the same file."""
        self._map[:] = bytes(_SIZE)

    # --- the event loop ------------------------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        """The event loop of this process goes round; `now` in seconds of the monotonic clock. To be called in its thread."""
        self._words[_MAIN] = get_ident()
        self._words[_PID] = os.getpid()
        self._words[_BEAT] = round(now * 1e9)

    @property
    def pid(self) -> int:
        """The process that beat last; 0 before the first beat."""
        return self._words[_PID]

    @property
    def beaten(self) -> float:
        """Time of the last heartbeat, in seconds of the monotonic clock; 0 before the first."""
        return self._words[_BEAT] / 1e9

    @property
    def main(self) -> int:
        """The thread of the event loop."""
        return self._words[_MAIN]

    # --- packages that are loaded and run ------------------------------------------------------------------------

    @contextmanager
    def loading(self, package: str) -> Iterator[None]:
        """This thread loads a package inside."""
        place = self._place() + _LOADS
        before = self._map[place : place + _CELL]
        self._map[place + 1 : place + _CELL] = package.encode()
        self._map[place] = 1
        try:
            yield
        finally:
            self._map[place : place + _CELL] = before

    def began(self, note: bytes, inputs: bytes = b"", answered: int = 0) -> int:
        """Record that this thread runs a package: `note` is `note_of(package)`, `inputs` the rows as encoded by `suspects.encoded`.

        Readers compute the fingerprints; only those of large inputs are computed here. Returns the argument of `ended`.
        """
        run, place = self._runs.get(get_ident()) or self._new_run()
        form, size = _ENCODED, len(inputs)
        if size > MAX_BYTES:
            inputs, form = b"".join(fingerprints(note, inputs)), _PRINTS
            size = len(inputs)
        self._map[run : run + 24 + size] = _RUN_HEAD.pack(answered, size, form) + inputs
        self._map[place + 1 : place + _CELL] = note
        self._map[place] = 1
        return place

    def ended(self, place: int) -> None:
        """Mark the run at `place` as ended."""
        self._map[place] = 0

    def busy(self) -> list[Busy]:
        """Activity of its threads, now or when it died."""
        found = []
        for place in range(_NOTES, _NOTES + _NOTE * _THREADS, _NOTE):
            thread = self._words[place // 8]
            cells: tuple[tuple[int, Doing], ...] = ((_ANSWERS, "answers"), (_LOADS, "loads"))
            for cell, doing in cells:  # loading runs the golden requests, too
                at = place + cell
                if self._map[at]:
                    package = self._map[at + 1 : at + _CELL].decode("ascii", "replace")
                    run = self._run(place, package) if doing == "answers" else ((), 0)
                    found.append(Busy(thread, doing, package, *run))
                    break
        return found

    def _run(self, place: int, package: str) -> tuple[tuple[bytes, ...], int]:
        run = _INPUTS + (place - _NOTES) // _NOTE * _RUN
        answered, size, form = self._words[run // 8 : run // 8 + 3]
        inputs = self._map[run + 24 : run + 24 + min(size, MAX_BYTES)]
        return _split(inputs) if form == _PRINTS else fingerprints(note_of(package), inputs), answered

    def _new_run(self) -> tuple[int, int]:
        base = self._place()
        found = self._runs[get_ident()] = _INPUTS + (base - _NOTES) // _NOTE * _RUN, base + _ANSWERS
        return found

    def _place(self) -> int:
        """This thread's slot; threads beyond the sixteenth share the last one."""
        thread = get_ident()
        place = self._places.get(thread)
        if place is None:
            with self._lock:
                place = _NOTES + _NOTE * min(len(self._places), _THREADS - 1)
                self._words[place // 8] = thread
                self._places[thread] = place
        return place


def note_of(package: str) -> bytes:
    """The bytes that `began` writes for a package."""
    return package.encode()


def tag_of(state: ReleaseState) -> int:
    """A hash of a release state, one word."""
    return _word(msgspec.msgpack.encode(state))


def _word(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1


def _split(inputs: bytes) -> tuple[bytes, ...]:
    return tuple(inputs[i : i + 8] for i in range(0, len(inputs), 8))


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of a running server on this machine (`pid` 0 while it is down), and its state for the declared release of a loop."""

    pid: int
    state: Standing


FOLDER = "run"


def workers(home: Path, state: ReleaseState) -> list[WorkerState]:
    """The state of each worker of the servers on this machine over `home` for a release; empty when none runs."""
    found = []
    for path in sorted((home / FOLDER).glob("*/worker-*.heartbeat")):
        try:
            heartbeat = Heartbeat(path)
        except (OSError, ValueError):  # the server ends just now
            continue
        try:
            pid = heartbeat.pid
            if pid and Path(f"/proc/{pid}").exists():
                found.append(WorkerState(pid=pid, state=heartbeat.releases.stands(state)))
            elif Path(f"/proc/{path.parent.name}").exists():  # the server, which starts it again
                found.append(WorkerState(pid=0, state="down"))
        finally:
            heartbeat.close()
    return found
