"""The control port within the bounds of the data plane (`server.http`): uvicorn's protocol with limits on headers, connections and time."""

from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from loopwright.server.http import ARRIVAL_SECONDS, CONNECTIONS, HEADER_BYTES
from loopwright.server.status import describe_status


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to headers over 16 KiB and 503 to a connection too many; `expire` ends requests that trickle in."""

    _waiting: float | None = None
    _size = 0
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """Count the connection; one too many is told so and closed."""
        super().connection_made(transport)
        self._waiting = self.loop.time()
        if len(self.connections) > CONNECTIONS:
            self._refuse(503)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers have grown too large without coming to an end."""
        if self._refused:
            return
        began_in_headers = self._waiting is not None and self._size >= 0
        super().data_received(data)
        if began_in_headers and self._waiting is not None and self._size >= 0:
            self._size += len(data)
            if self._size > HEADER_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        self._waiting = self.loop.time()
        self._size = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, unless its headers are too large."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._size = -1
        if size > HEADER_BYTES:
            self._refuse(431)
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        self._waiting, self._size = None, 0
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP gets an error like any other."""
        self._refuse(400)

    def expire(self, now: float) -> None:
        """Close the connection if a request has been arriving for too long. `now` is the loop's time."""
        if self._waiting is not None and now - self._waiting > ARRIVAL_SECONDS and not self._refused:
            self._refuse(408)

    def _refuse(self, status: int) -> None:
        if self._refused:
            return
        self._refused = True
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(describe_status(status))
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()
