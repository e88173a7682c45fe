"""A load for trials, in a process of its own: open-loop arrivals over many connections, every answer remembered.

    python -m tests.server.storm URL PATH SECONDS RATE CONNECTIONS FOLDER < bodies (JSON list)

Arrivals are Poisson; a request that finds every connection busy waits, and its latency counts from when it was to be sent. Into FOLDER go
`answers` (16 bytes of id, 4 of package for each row answered) and `summary.json` (`Summary`), which is written anew every second.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec
import uvloop

ANSWER_BYTES = 20


class Summary(msgspec.Struct, kw_only=True):
    """What happened: rows answered, statuses, when connections were cut under a request, refused bodies, latencies in seconds."""

    answered: int = 0
    statuses: dict[int, int] = {}
    cut: list[float] = []
    unconnected: int = 0
    odd: list[str] = []
    p50: float = 0.0
    p99: float = 0.0
    worst: float = 0.0
    lag: float = 0.0


class Connection(asyncio.Protocol):
    """One connection of the storm: one request at a time."""

    def __init__(self, storm: "Storm") -> None:
        self.storm, self.due = storm, 0.0
        self.transport: Any = None
        self._body = b""
        self._parser: Any = None
        self._close = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self.storm.idle(self)

    def send(self, due: float, request: bytes) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = b""

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        due, self.due = self.due, 0.0
        self._close = not self._parser.should_keep_alive()
        self.storm.done(due, self._parser.get_status_code(), self._body)
        if self._close:
            self.transport.close()
        else:
            self.storm.idle(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self.due:
            self.storm.summary.cut.append(time.time())
        self.storm.lost(self)


class Storm:
    """The load: see the head of this file."""

    def __init__(self, url: str, path: str, rate: float, connections: int, folder: Path, bodies: list[Any]) -> None:
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self.rate, self.count, self.folder = rate, connections, folder
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer only-for-tests-0123456789\r\n"
        texts = [json.dumps(body).encode() for body in bodies]
        self.requests = [f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text for text in texts]
        self.summary, self.statuses = Summary(), Counter[int]()
        self.waiting: deque[float] = deque()
        self.free: list[Connection] = []
        self.latencies: deque[float] = deque(maxlen=200_000)
        self.rng = random.Random(1)
        self.open = 0
        self.over = False
        self.out = (folder / "answers").open("wb")

    def idle(self, connection: Connection) -> None:
        if self.waiting:
            connection.send(self.waiting.popleft(), self.rng.choice(self.requests))
        else:
            self.free.append(connection)

    def lost(self, connection: Connection) -> None:
        if connection in self.free:
            self.free.remove(connection)
        self.open -= 1

    def done(self, due: float, status: int, body: bytes) -> None:
        self.statuses[status] += 1
        self.latencies.append(time.perf_counter() - due)
        if status != 200:
            if len(self.summary.odd) < 20:
                self.summary.odd.append(f"{status} {body[:300].decode(errors='replace')}")
            return
        rows = msgspec.json.decode(body)
        for row in rows if isinstance(rows, list) else [rows]:
            self.summary.answered += 1
            self.out.write(bytes.fromhex(row["id"]) + bytes.fromhex(row["package"][:8]))

    async def keep_open(self) -> None:
        running = asyncio.get_running_loop()
        while not self.over:
            while self.open < self.count and not self.over:
                try:
                    self.open += 1
                    await running.create_connection(lambda: Connection(self), self.host, self.port)
                except OSError:
                    self.open -= 1
                    self.summary.unconnected += 1
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.005)

    async def run(self, seconds: float) -> None:
        keeping = asyncio.ensure_future(self.keep_open())
        begun = due = written = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            while due <= now:
                if self.free:
                    self.free.pop().send(due, self.rng.choice(self.requests))
                else:
                    self.waiting.append(due)
                due += self.rng.expovariate(self.rate)
            if now > written + 1:
                written = now
                self.tell()
            self.summary.lag = max(self.summary.lag, time.perf_counter() - now)
            await asyncio.sleep(max(0.0005, min(due - time.perf_counter(), 0.05)))
        self.waiting.clear()
        limit = time.perf_counter() + 60
        while len(self.free) < self.open and time.perf_counter() < limit:
            await asyncio.sleep(0.01)
        self.over = True
        await keeping
        for connection in list(self.free):
            connection.transport.close()
        await asyncio.sleep(0.05)
        self.tell()
        self.out.close()

    def tell(self) -> None:
        self.out.flush()
        took = sorted(self.latencies) or [0.0]
        s = self.summary
        s.statuses, s.p50, s.p99, s.worst = dict(self.statuses), took[len(took) // 2], took[int(len(took) * 0.99)], took[-1]
        written = self.folder / ".summary"
        written.write_bytes(msgspec.json.encode(s))
        written.rename(self.folder / "summary.json")


def main() -> None:
    """Entry of the process."""
    url, path, seconds, rate, connections, folder = sys.argv[1:]
    storm = Storm(url, path, float(rate), int(connections), Path(folder), json.load(sys.stdin))
    uvloop.run(storm.run(float(seconds)))


if __name__ == "__main__":
    main()
