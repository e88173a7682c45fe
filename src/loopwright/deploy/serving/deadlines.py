"""Deadlines of model runs: one thread watches the running ones and terminates late ones; the runtime stops between two nodes."""

import threading
import time
from typing import Any

import onnxruntime as ort

from loopwright.base.supervision import Repeating

LOOK_SECONDS = 0.05


class TimedRun:
    """One run with its time limit: `options` go to the runtime; `expired`: the run was terminated. Reused unless expired."""

    __slots__ = ("deadline", "expired", "options")

    def __init__(self) -> None:
        self.options: Any = ort.RunOptions()
        self.options.log_severity_level = 4
        self.deadline, self.expired = 0.0, False


class Overruns:
    """Watches runs. The thread starts with the first run and sleeps while nothing runs; safe to use from several threads."""

    def __init__(self) -> None:
        self._running: set[TimedRun] = set()
        self._idle: list[TimedRun] = []
        self._ending = threading.Lock()
        self._some = threading.Event()
        self._watching = Repeating("overruns", self._watch, LOOK_SECONDS, blocks=True)
        self._starting = threading.Lock()
        self._idle_looks = 0

    def begin(self, until: float) -> TimedRun:
        """A run begins that may take until then (`time.perf_counter`)."""
        try:
            run = self._idle.pop()
        except IndexError:
            run = TimedRun()
        run.deadline = until
        self._running.add(run)
        if not self._watching.started:
            self._start()
        if not self._some.is_set():
            self._some.set()
        return run

    def end(self, run: TimedRun) -> None:
        """Record that a run has ended."""
        with self._ending:
            self._running.discard(run)
        if not run.expired:
            self._idle.append(run)

    def _start(self) -> None:
        with self._starting:
            if not self._watching.started:
                self._watching.start()

    def _watch(self) -> None:
        if self._running:
            self._idle_looks = 0
        else:
            self._idle_looks += 1
            if self._idle_looks > 20:
                self._some.clear()
                if not self._running:
                    self._some.wait()
                self._idle_looks = 0
        now = time.perf_counter()
        with self._ending:
            late = [run for run in list(self._running) if now > run.deadline]
            for run in late:
                run.expired = True
                run.options.terminate = True
