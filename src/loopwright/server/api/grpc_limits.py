"""Limits that the gRPC library lacks: calls whose message is incomplete, and connections per client address.

The library does not expose its connections, but they are this process's sockets: those over the limits that were silent longest
are shut down, as over HTTP (`admission`). Linux only; elsewhere only the library's own cap on all connections applies.
"""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from loopwright.base.errors import Overloaded, RequestMalformed
from loopwright.server.http.admission import Admission, network

YOUNG_SECONDS = 1.0
"""A message that has been on its way for less is not given up for another."""

_FILES = Path("/proc/self/fd")
_LAST_DATA_RECEIVED = 52  # offset of tcpi_last_data_recv (milliseconds) in struct tcp_info


class Late(Exception):
    """The message of a call did not come in time."""


class Arrivals:
    """Calls whose message is incomplete: at most `most`, of one client address `share` of them, each for `seconds`.

    One too many takes the place of the oldest of its address, or of the address that has most.
    """

    def __init__(self, most: int, seconds: float, share: float = 1.0) -> None:
        self._most, self._per_address, self._seconds = most, max(1, int(most * share)), seconds
        self._arriving: dict[str, dict[asyncio.Timeout, float]] = {}
        self._count = 0

    async def message(self, messages: AsyncIterator[bytes], address: str = "") -> bytes:
        """The message of a call. Raises Late, Overloaded, RequestMalformed where the client ends without one."""
        now = asyncio.get_running_loop().time()
        if len(self._arriving.get(address, ())) >= self._per_address:
            self._give_up_oldest(address, now)
        elif self._count >= self._most:
            self._give_up_oldest(max(self._arriving, key=lambda one: len(self._arriving[one])), now)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                self._arriving.setdefault(address, {})[limit] = now
                self._count += 1
                try:
                    return await anext(messages)
                finally:
                    self._forget(address, limit)
        except TimeoutError:
            raise Late from None
        except StopAsyncIteration:
            raise RequestMalformed("the call has no message") from None

    def _give_up_oldest(self, address: str, now: float) -> None:
        oldest, since = next(iter(self._arriving[address].items()))
        if now - since < YOUNG_SECONDS:
            raise Overloaded("more calls are arriving than can be held; try again")
        self._forget(address, oldest)
        oldest.reschedule(now)

    def _forget(self, address: str, limit: asyncio.Timeout) -> None:
        arriving = self._arriving.get(address, {})
        if arriving.pop(limit, None) is not None:
            self._count -= 1
            if not arriving:
                del self._arriving[address]


def address_of(peer: str) -> str:
    """The client's address in the library's name of a peer: `ipv4:127.0.0.1:5`, `ipv6:%5B::1%5D:5`."""
    return network(unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]"))


class _Connection(NamedTuple):
    silent_ms: int
    fd: int
    peer: tuple[str | int, ...]


def close_excess(port: int, admission: Admission) -> int:
    """Shut down the longest silent connections at `port` of this process over the limits of `admission`; how many."""
    try:
        files = [int(file.name) for file in _FILES.iterdir()]
    except OSError:
        return 0
    if len(files) <= admission.per_address:
        return 0
    addresses: dict[str, list[_Connection]] = defaultdict(list)
    for file in files:
        with contextlib.suppress(OSError), _borrowed(file) as connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getsockname()[1] == port:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
                silent, peer = struct.unpack_from("I", info, _LAST_DATA_RECEIVED)[0], connection.getpeername()
                addresses[network(peer[0])].append(_Connection(silent, file, peer))
    excess = _excess(list(addresses.values()), admission)
    for one in excess:
        with contextlib.suppress(OSError):
            _shut_down(one)
    return len(excess)


def _shut_down(one: _Connection) -> None:
    """End this very connection: the library may have closed it meanwhile, and its number be another's. Raises OSError."""
    copy = os.dup(one.fd)
    try:
        with _borrowed(copy) as connection:
            if connection.getpeername() == one.peer:
                connection.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(copy)


@contextlib.contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A socket of the library, which stays open: a copy of each would take as many descriptors again. Raises OSError."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(f"{fd} is no socket")
    connection = socket.socket(fileno=fd)
    try:
        yield connection
    finally:
        connection.detach()


def _excess(addresses: list[list[_Connection]], admission: Admission) -> list[_Connection]:
    """Connections to shut down: of each address over its limit, then of the addresses with most."""
    closing = []
    for connections in addresses:
        connections.sort()
        while len(connections) > admission.per_address:
            closing.append(connections.pop())
    over = sum(map(len, addresses)) - admission.places
    return closing + [max(addresses, key=len).pop() for _ in range(over)]
