"""Servers as processes: started, waited for, measured, and ended with all that they started."""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

READY_SECONDS = 180.0
END_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36


class Failed(Exception):
    """A server did not start, ended, or gave no answer."""


def adopt_orphans() -> None:
    """Whatever a server leaves behind becomes a child of this process, so that it is found and ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def below(root: int) -> list[int]:
    """The process `root` and all below it, by id."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [root]
    for one in found:
        found += children.get(one, [])
    return found


def end_all(ids: list[int]) -> None:
    """Kill processes that are still there, and reap those that are ours."""
    for one in ids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    deadline = time.monotonic() + END_SECONDS
    while ids and time.monotonic() < deadline:
        for one in list(ids):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, os.WNOHANG)
            if not Path(f"/proc/{one}").exists():
                ids.remove(one)
        time.sleep(0.01)


class Server:
    """A running server; `with Server(...)` ends it."""

    def __init__(
        self,
        line: list[str],
        port: int,
        *,
        path: str,
        first: bytes,
        right: Callable[[Any], bool],
        folder: Path,
        variables: Mapping[str, str],
        cwd: Path,
    ) -> None:
        """Start `line` and wait until the request `first` to `path` is answered right. Raises Failed."""
        self.port, self.path = port, path
        self.said = folder / "said.txt"
        gone = ("PYTHONDONTWRITEBYTECODE",)
        environment = {k: v for k, v in os.environ.items() if k not in gone} | dict(variables)
        self._others = {*below(os.getpid())}
        began = time.perf_counter()
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                line, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
        try:
            self._wait(first, right)
        except BaseException:
            self.end()
            raise
        self.start_seconds = time.perf_counter() - began
        """From the start of the process to its first right answer."""

    def _wait(self, first: bytes, right: Callable[[Any], bool]) -> None:
        deadline, last = time.monotonic() + READY_SECONDS, ""
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Failed(f"ended with {self.process.returncode}: {self.last_words()}")
            try:
                status, answer = self.ask(first, timeout=10)
                if status == http.client.OK and right(answer):
                    return
                last = f"answered {status}: {json.dumps(answer)[:300]}"
            except (OSError, ValueError, http.client.HTTPException) as error:
                last = type(error).__name__
            time.sleep(0.005)
        raise Failed(f"no right answer within {READY_SECONDS:.0f} s; the last: {last}; {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it printed, on one line."""
        return " / ".join(self.said.read_text(errors="replace").split("\n")[-4:])[-400:].strip()

    def ask(self, body: bytes, *, timeout: float = 30.0) -> tuple[int, Any]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def memory_mib(self) -> float:
        """Memory of all its processes, each shared page counted once (proportional set size), MiB."""
        total = 0
        for one in below(self.process.pid):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024

    def cpu_seconds(self) -> tuple[float, float]:
        """Processor time that all its processes have used, in user and in kernel mode."""
        user = kernel = 0
        for one in below(self.process.pid):
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
                user, kernel = user + int(fields[11]), kernel + int(fields[12])
        second = os.sysconf("SC_CLK_TCK")
        return user / second, kernel / second

    def end(self) -> None:
        """SIGTERM, and for what is there after 10 seconds SIGKILL; what this process had started before is left alone."""
        ids = below(self.process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)
        end_all([one for one in {*ids, *below(os.getpid())} - self._others if Path(f"/proc/{one}").exists()])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()
