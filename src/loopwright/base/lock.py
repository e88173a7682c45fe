"""A lock that is a file: one holder among all threads of all processes of a machine, freed by the kernel when a holder dies."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from loopwright.base.clock import RealClock


class FileLock:
    """Held by one thread at a time. The file stays; it is made at the first `hold`. After a fork the child has its own."""

    _file: int | None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._clock = RealClock()
        self._renew()

    @contextmanager
    def hold(self, patience: float) -> Iterator[None]:
        """Hold the lock inside; raises TimeoutError after `patience` seconds of waiting, OSError when there can be no such file."""
        if os.getpid() != self._pid:
            self.close()
            self._renew()
        deadline = self._clock.monotonic() + patience
        if not self._mutex.acquire(timeout=patience):
            raise TimeoutError(f"another thread holds {self.path.name} for too long")
        try:
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
            self._acquire(self._file, deadline)
            try:
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Close the file; the lock must not be held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._file = None

    def _acquire(self, file: int, deadline: float) -> None:
        pause = 0.0005
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._clock.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {self.path.name} for too long") from None
                sleep(pause)
                pause = min(pause * 1.5, 0.01)
            else:
                return
