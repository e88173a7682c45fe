import socket
import time

import pytest
from tests.deploy.bodies import text
from tests.deploy.loops import LOOP, flight
from tests.server.running import Client

from loopwright.server import protocol

BODY = text(flight())
HEAD = f"POST /loops/{LOOP}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


def send(client: Client, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send parts on a fresh connection and read until it is closed or silent for a second."""
    with socket.create_connection((client.host, client.port), 5) as raw:
        try:
            for part in parts:
                raw.sendall(part)
                time.sleep(pause)
        except OSError:
            pass
        raw.settimeout(1)
        found = b""
        try:
            while part := raw.recv(65536):
                found += part
        except OSError:
            pass
        return found


@pytest.mark.parametrize("size", [17 * 1024, 200 * 1024])
def test_large_headers_are_431(client: Client, size: int) -> None:
    answer = send(client, HEAD + b"X-Large: " + b"x" * size + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
    assert b'"code":"headers"' in answer


def test_headers_that_never_end_are_431(client: Client) -> None:
    assert send(client, HEAD, *[b"X-%d: y\r\n" % i for i in range(2500)]).startswith(b"HTTP/1.1 431")
    assert send(client, HEAD + b"X-Large: ", *[b"x" * 1000] * 40).startswith(b"HTTP/1.1 431")


def test_a_long_url_is_431(client: Client) -> None:
    assert send(client, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 431")


def test_headers_within_the_limit_pass(client: Client) -> None:
    large = HEAD + b"X-Large: " + b"x" * 14_000 + b"\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    assert send(client, large + BODY).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_is_400_and_closed(client: Client, rubbish: bytes) -> None:
    answer = send(client, rubbish)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert client.get("/livez").status == 200


def test_requests_in_pieces_and_in_a_row(client: Client) -> None:
    pieces = [REQUEST[i : i + 37] for i in range(0, len(REQUEST), 37)]
    assert send(client, *pieces, pause=0.002).count(b"HTTP/1.1 200") == 1
    assert send(client, REQUEST * 5).count(b"HTTP/1.1 200") == 5


def test_a_websocket_is_not_spoken(client: Client) -> None:
    upgrade = (
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    )
    assert not send(client, upgrade).startswith(b"HTTP/1.1 101")


def test_a_client_that_goes_away_while_sending_harms_nobody(client: Client) -> None:
    for _ in range(20):
        with socket.create_connection((client.host, client.port), 5) as raw:
            raw.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    assert client.get("/livez").status == 200


def test_a_request_that_trickles_in_is_ended() -> None:
    """The sweep itself, on a protocol that was never connected to anything but a recorder."""
    import asyncio

    from uvicorn import Config
    from uvicorn.server import ServerState

    class Transport:
        written = b""
        closed = False

        def get_extra_info(self, _name: str, default: object = None) -> object:
            return default

        def write(self, data: bytes) -> None:
            self.written += data

        def is_closing(self) -> bool:
            return self.closed

        def close(self) -> None:
            self.closed = True

    async def check() -> None:
        transport = Transport()
        slow = protocol.BoundedProtocol(Config(lambda _s, _r, _t: None, log_config=None), ServerState(), {})
        slow.connection_made(transport)
        slow.data_received(b"POST / HTTP/1.1\r\nHo")
        now = asyncio.get_running_loop().time()
        slow.expire(now + protocol.ARRIVAL_SECONDS - 1)
        assert not transport.is_closing()
        slow.expire(now + protocol.ARRIVAL_SECONDS + 1)
        assert transport.is_closing()
        assert transport.written.startswith(b"HTTP/1.1 408")

    asyncio.run(check())
