"""Parts of a request's head that the parser does not check, for both ports (RFC 9110, 9112)."""

from collections.abc import Callable, Iterable
from typing import Any

import httptools

VERSIONS = ("1.1", "1.0")
"""The versions of HTTP that are spoken; the parser reads others too."""

_UPGRADE = (b"upgrade", b"http2-settings")


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request as if it did not ask for another protocol (`Upgrade: h2c`, `websocket`), which a server may ignore.

    The parser stops at such a head and takes the body for the other protocol: reading this one instead brings the body back.
    """
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(token for token in map(bytes.strip, value.split(b",")) if token.lower() not in _UPGRADE)
        if name not in _UPGRADE and (value or name != b"connection"):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def read_plain(data: memoryview, at: int, again: Callable[[], tuple[Any, bytes] | None]) -> None:
    """Resume parsing after a head with an `Upgrade` request, which ends at `at`.

    `again` returns a new parser and the head without the upgrade (`without_upgrade`), or None to stop reading.
    Raises HttpParserError.
    """
    while (following := again()) is not None:
        (parser, head), data = following, data[at:]
        try:
            parser.feed_data(head)
            parser.feed_data(data)
            return
        except httptools.HttpParserUpgrade as upgrade:
            at = upgrade.args[0]


def is_plain(transfer_encoding: bytes) -> bool:
    """Whether a Transfer-Encoding (all its lines, joined) is exactly `chunked`."""
    return transfer_encoding.lower() == b"chunked"
