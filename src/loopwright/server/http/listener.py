"""The control port: a uvicorn server on a socket we opened, with our limits, stopped by us; it never raises a signal again after its end."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from loopwright.base.errors import AddressRefused
from loopwright.server.http.admission import Admission
from loopwright.server.http.connection import ADDRESS_SHARE, CONNECTIONS, GRACE_SECONDS, IDLE_SECONDS
from loopwright.server.http.protocol import BoundedProtocol


class Listener(uvicorn.Server):
    """Serves `app` until SIGTERM or `should_exit`; `started` is called once it accepts connections."""

    def __init__(self, app: Any, admission: Admission | None = None, *, started: Callable[[], None] = lambda: None) -> None:
        self._then = started
        within = {"admission": admission or Admission(CONNECTIONS, ADDRESS_SHARE)}
        super().__init__(
            uvicorn.Config(
                app,
                http=type("AdmittingProtocol", (BoundedProtocol,), within),
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                backlog=1024,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, and say so."""
        await super().startup(sockets)
        if self.started:
            self._then()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal, without raising it again at the end."""
        self.heed_signals()
        yield

    def heed_signals(self) -> None:
        """Install signal handlers: SIGTERM stops this server in order, also before it runs; SIGINT is left to the parent process."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.should_exit = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second; once a second requests that trickle in are ended."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, BoundedProtocol):
                    connection.expire(now)
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressRefused when the address cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(1024)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        why = f"{host}:{port} cannot be bound: {error.strerror}; choose another port, or 0 for a free one"
        raise AddressRefused(why) from error
    return opened


def url(opened: socket.socket, host: str) -> str:
    """The URL under which a socket can be reached from this machine."""
    port = opened.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104  # compared, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
