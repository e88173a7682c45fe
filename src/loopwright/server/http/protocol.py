"""The control port within the bounds of the data plane (`server.http.connection`): uvicorn's protocol with limits on headers, connections and time."""

from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from loopwright.render.http_errors import describe_status
from loopwright.server.http.admission import Admission, Peer
from loopwright.server.http.connection import ARRIVAL_SECONDS, HEADER_BYTES
from loopwright.server.http.wire import VERSIONS, is_plain, read_plain, without_upgrade

HEALTH_PATHS = (b"/livez", b"/readyz")


class BoundedProtocol(HttpToolsProtocol):
    """To be derived with an `admission`. Answers 431 to headers over 16 KiB; `expire` ends requests that trickle in; makes room for new connections (`admission`)."""

    admission: Admission
    spare = False
    _peer: Peer | None = None
    _waiting: float | None = None
    _size = 0
    _refused = False
    _completed = False
    """Whether a request ended in the data being fed: then bytes after it belong to the next head, of which only the rest has been seen."""

    def connection_made(self, transport: Any) -> None:
        """Find a place for the connection."""
        super().connection_made(transport)
        self._waiting = self.loop.time()
        self._peer = self.admission.admit(self, self.client[0] if self.client else "")

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave its place to another."""
        self._leave()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks whether to leave the connection open
        """The client has closed its side: its request is still answered."""
        return bool(self.cycle) and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the headers have grown too large without coming to an end."""
        if self._refused:
            return
        began_in_headers, self._completed = self._waiting is not None and self._size >= 0, False
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                read_plain(memoryview(data), upgrade.args[0], self._read_again)
        except httptools.HttpParserError:
            self._refuse(400)
        if began_in_headers and not self._completed and self._waiting is not None and self._size >= 0:
            self._size += len(data)
            if self._size > HEADER_BYTES:
                self._refuse(431)

    def _read_again(self) -> tuple[Any, bytes] | None:
        if self._refused:
            return None
        old, self.parser = self.parser, httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return self.parser, without_upgrade(old.get_method(), self.url, old.get_http_version(), self.headers)

    def on_message_begin(self) -> None:
        """A request begins to arrive."""
        self._waiting = self.loop.time()
        self._size = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers of a body are dropped, and bounded like headers."""
        if self._size >= 0:
            super().on_header(name, value)
            return
        self._size -= len(name) + len(value) + 4  # below zero since the headers are whole
        if self._size < -HEADER_BYTES:
            self._refuse(400)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is refused."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        self._size = -1
        if size > HEADER_BYTES:
            self._refuse(431)
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(405)
        elif self.parser.get_http_version() not in VERSIONS or sum(name == b"host" for name, _ in self.headers) > 1:
            self._refuse(400)
        elif not is_plain(b", ".join(v for n, v in self.headers if n == b"transfer-encoding") or b"chunked"):
            self._refuse(415)
        elif self.spare and self.url.partition(b"?")[0] not in HEALTH_PATHS:
            self._refuse(503)
        if not self._refused and not self.parser.should_upgrade():
            super().on_headers_complete()
            if self._peer is not None:
                self._peer.waiting.pop(self, None)

    def on_body(self, body: bytes) -> None:
        """Hand on a part of the body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived."""
        if self._refused or self.parser.should_upgrade():
            return
        self._waiting, self._size, self._completed = None, 0, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer has been sent."""
        super().on_response_complete()
        if self._peer is not None and not self.spare and not self.pipeline:
            self._peer.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP with an error like any other."""
        self._refuse(400)

    def expire(self, now: float) -> None:
        """Close the connection if a request has been arriving for too long. `now` is the loop's time."""
        if self._waiting is not None and now - self._waiting > ARRIVAL_SECONDS and not self._refused:
            self._refuse(408)

    @property
    def idle(self) -> bool:
        """See `admission.Member`."""
        return self._waiting is None or self._size == 0

    def evict(self) -> None:
        """Close at once to make room for another; a client in the middle of a request gets an error."""
        self._leave()
        if not self.idle:
            self._refuse(503)
        self.transport.close()

    def _leave(self) -> None:
        if self._peer is not None:
            self.admission.release(self, self._peer)
            self._peer = None

    def _refuse(self, status: int) -> None:
        if self._refused:
            return
        self._refused = True
        if self.cycle is not None:  # stops the writer of an earlier answer, as the connection is closed
            self.cycle.disconnected = True
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(describe_status(status))
        self.transport.write(
            STATUS_LINE[status]
            + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        self.transport.close()
