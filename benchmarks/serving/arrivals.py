"""Open-loop load: requests leave at the moments of a Poisson process, whether or not earlier ones have been answered.

    python -m benchmarks.serving.arrivals PORT PATH RATE SECONDS BODIES.json

Latency counts from the moment a request was due, not from when it was sent, so a server that stalls is charged for everybody who would have
waited meanwhile (no coordinated omission). The generator never sleeps: it spins on its sockets, one request at a time on each, and
says how late it was itself (`lag`: from due to sent where a connection was free). Prints one JSON document; times in microseconds.
"""

import contextlib
import gc
import json
import select
import socket
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

CONNECTIONS = 128
WARM_UP = 1.0
PATIENCE = 5.0
"""Seconds to wait for the last answers."""


class Client:
    """One connection with at most one request under way, due at `due` nanoseconds (of the run)."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.due, self.number, self.read, self.length = 0, 0, b"", -1

    def answered(self) -> bool:
        """Take what has arrived; whether the answer is whole. Raises RuntimeError for anything but a 200."""
        self.read += self.socket.recv(65536)
        if self.length < 0:
            head = self.read.find(b"\r\n\r\n")
            if head < 0:
                return False
            if not self.read.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answered {self.read[:80]!r}")
            at = self.read[:head].lower().index(b"content-length:") + 15
            self.length = head + 4 + int(self.read[at : self.read.find(b"\r", at)])
        if len(self.read) < self.length:
            return False
        self.read, self.length = b"", -1
        return True


def run(port: int, path: str, rate: float, seconds: float, bodies: list[str]) -> dict[str, Any]:
    """Latencies of one load. RuntimeError for an answer that is no 200."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(b.encode())}\r\n\r\n{b}".encode() for b in bodies]
    count = int(rate * (WARM_UP + seconds))
    due = (np.cumsum(np.random.default_rng(1).exponential(1 / rate, count)) * 1e9).astype(np.int64)
    with contextlib.ExitStack() as stack:
        clients = [Client(port) for _ in range(CONNECTIONS)]
        for client in clients:
            stack.callback(client.socket.close)
        gc.disable()
        stack.callback(gc.enable)
        latency, lag, took = _spin(clients, stack.enter_context(select.epoll()), due.tolist(), requests)
    return _told(latency, lag, due >= WARM_UP * 1e9, rate, int((latency >= 0).sum()) / took)


def _spin(clients: list[Client], poller: select.epoll, due: list[int], requests: list[bytes]) -> tuple[Any, Any, float]:
    """Latency and lag of each request in nanoseconds, -1 where there is none, and how many seconds it all took."""
    count, last = len(due), due[-1] + int(PATIENCE * 1e9)
    latency, lag = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    by_number = {c.socket.fileno(): c for c in clients}
    for number in by_number:
        poller.register(number, select.EPOLLIN)
    idle, waiting = clients.copy(), deque[int]()
    clock, poll, following, answered = time.perf_counter_ns, poller.poll, 0, 0
    start = clock()
    while answered < count:
        now = clock() - start
        if now > last:
            break
        while following < count and due[following] <= now:
            if idle and not waiting:
                lag[following] = clock() - start - due[following]
            waiting.append(following)
            following += 1
            if idle:
                _send(idle.pop(), waiting.popleft(), due, requests)
        for number, _ in poll(0):
            client = by_number[number]
            if client.answered():
                latency[client.number] = clock() - start - client.due
                answered += 1
                if waiting:
                    _send(client, waiting.popleft(), due, requests)
                else:
                    idle.append(client)
    return latency, lag, (clock() - start) / 1e9


def _send(client: Client, number: int, due: list[int], requests: list[bytes]) -> None:
    client.number, client.due = number, due[number]
    client.socket.send(requests[number % len(requests)])


def _told(latency: Any, lag: Any, counted: Any, rate: float, achieved: float) -> dict[str, Any]:
    done, sent = latency[counted & (latency >= 0)] / 1e3, lag[counted & (lag >= 0)] / 1e3
    quantiles = np.percentile(done, [50, 99, 99.9]) if len(done) else [float("nan")] * 3
    lags = np.percentile(sent, [50, 99]) if len(sent) else [float("nan")] * 2
    names = ("p50", "p99", "p999", "lag_p50", "lag_p99")
    told = dict(zip(names, (round(float(v), 1) for v in (*quantiles, *lags)), strict=True))
    return {**told, "rate": round(rate), "achieved": round(achieved), "lost": int((latency < 0).sum()), "sent": len(latency)}


def main() -> None:
    """Run and say."""
    port, path, rate, seconds, bodies = sys.argv[1:]
    print(json.dumps(run(int(port), path, float(rate), float(seconds), json.loads(Path(bodies).read_text()))))


if __name__ == "__main__":
    main()
