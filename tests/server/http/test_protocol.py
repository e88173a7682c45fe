import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from loopwright.server.http import protocol
from loopwright.server.http.admission import Admission
from loopwright.server.http.connection import ARRIVAL_SECONDS, HEADER_BYTES


class Transport:
    """Records what is written and whether it is closed."""

    written = b""
    closed = False

    def get_extra_info(self, _name: str, default: object = None) -> object:
        return default

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


class Protocol(protocol.BoundedProtocol):
    admission = Admission(10, 1)


async def never(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


def connected(transport: Transport) -> Protocol:
    made = Protocol(Config(never, log_config=None), ServerState(), {})
    made.connection_made(transport)
    return made


def test_a_request_that_trickles_in_is_ended() -> None:
    """The sweep itself, on a protocol that was never connected to anything but a recorder."""

    async def check() -> None:
        transport = Transport()
        slow = connected(transport)
        slow.data_received(b"POST / HTTP/1.1\r\nHo")
        now = asyncio.get_running_loop().time()
        slow.expire(now + ARRIVAL_SECONDS - 1)
        assert not transport.is_closing()
        slow.expire(now + ARRIVAL_SECONDS + 1)
        assert transport.is_closing()
        assert transport.written.startswith(b"HTTP/1.1 408")

    asyncio.run(check())


def test_trailers_are_dropped_and_bounded() -> None:
    """An unbounded trailer of a public path would fill the memory of the process, for headers are held."""

    async def check() -> None:
        transport = Transport()
        asked = connected(transport)
        asked.data_received(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        asked.data_received(b"X-Sum: 1\r\n" * 100)
        assert len(asked.headers) == 2
        assert not transport.is_closing()
        for _ in range(HEADER_BYTES // 1000):
            asked.data_received(b"X-Sum: 1\r\n" * 100)
        assert transport.is_closing()
        assert transport.written.startswith(b"HTTP/1.1 400")
        assert asked.cycle is not None
        assert asked.cycle.disconnected
        assert len(asked.headers) == 2

    asyncio.run(check())


def test_pipelined_requests_are_not_taken_for_one_large_head() -> None:
    """Several times the bound of a head in whole requests, cut anywhere; a head that is too large after them is refused still."""

    async def check() -> None:
        request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
        transport = Transport()
        pipelined = connected(transport)
        sent = request * (3 * HEADER_BYTES // len(request))
        for at in range(0, len(sent), HEADER_BYTES + 1):
            pipelined.data_received(sent[at : at + HEADER_BYTES + 1])
        assert not transport.written
        assert len(pipelined.pipeline) == sent.count(b"GET") - 1
        pipelined.data_received(request + b"GET / HTTP/1.1\r\nx: ")
        pipelined.data_received(b"a" * (HEADER_BYTES + 1))
        assert transport.written.startswith(b"HTTP/1.1 431")
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(check())
