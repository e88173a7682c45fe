import asyncio

from uvicorn import Config
from uvicorn.server import ServerState

from loopwright.server import protocol
from loopwright.server.admission import Admission
from loopwright.server.http import ARRIVAL_SECONDS


def test_a_request_that_trickles_in_is_ended() -> None:
    """The sweep itself, on a protocol that was never connected to anything but a recorder."""

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

        class Protocol(protocol.BoundedProtocol):
            admission = Admission(10, 1)

        slow = Protocol(Config(lambda _s, _r, _t: None, log_config=None), ServerState(), {})
        slow.connection_made(transport)
        slow.data_received(b"POST / HTTP/1.1\r\nHo")
        now = asyncio.get_running_loop().time()
        slow.expire(now + ARRIVAL_SECONDS - 1)
        assert not transport.is_closing()
        slow.expire(now + ARRIVAL_SECONDS + 1)
        assert transport.is_closing()
        assert transport.written.startswith(b"HTTP/1.1 408")

    asyncio.run(check())
