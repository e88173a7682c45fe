"""Connection limits of a process: in total and per client address, so that no client locks out the others.

A connection is idle while no complete request of it is being answered. When an address is at its limit, its longest idle connection
is closed for a new one; when all places are taken, the longest idle one of the address with most connections. When none is idle, a
connection gets one of a few spare places: only health is answered there, everything else gets "try again".
"""

from ipaddress import ip_address
from typing import Protocol

SPARE_PLACES = 64
SPARE_FILES = 256
"""File descriptors reserved for logs, packages and the rest when connections take all they may."""

_LOOK_AT = 32
"""Number of the longest waiting connections that are searched for an idle one before an active one is closed."""


class Member(Protocol):
    """A connection. `spare`: it has one of the spare places. `idle`: nothing of a request has arrived."""

    spare: bool

    @property
    def idle(self) -> bool:
        """Whether nothing of a next request has arrived."""
        ...

    def evict(self) -> None:
        """Close it to make room, and release its place."""
        ...


class Peer:
    """Connections of one address: their number, and the waiting ones, longest wait first."""

    __slots__ = ("address", "count", "waiting")

    def __init__(self, address: str) -> None:
        self.address, self.count = address, 0
        self.waiting: dict[Member, None] = {}

    def longest_waiting(self) -> Member | None:
        """The connection to close for a new one: an idle one if there is one among the first."""
        first = None
        for _, member in zip(range(_LOOK_AT), self.waiting, strict=False):
            if member.idle:
                return member
            first = first or member
        return first


class Admission:
    """At most `places` connections, of which one address has at most `share`, and a few spare ones."""

    def __init__(self, places: int, share: float) -> None:
        self.places, self.per_address = places, max(1, int(places * share))
        self._peers: dict[str, Peer] = {}
        self._spare: dict[Member, None] = {}
        self.count = self.evicted = 0

    def admit(self, member: Member, address: str) -> Peer:
        """Find a place for a new connection."""
        address = network(address)
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(address)
        crowded = peer.count >= self.per_address
        if crowded or self.count >= self.places:
            self._make_room([peer] if crowded else sorted(self._peers.values(), key=lambda p: -p.count))
        member.spare = peer.count >= self.per_address or self.count >= self.places
        if member.spare:
            if len(self._spare) >= SPARE_PLACES:
                self._evict(next(iter(self._spare)))
            self._spare[member] = None
        else:
            self.count += 1
            peer.count += 1
            peer.waiting[member] = None
            self._peers[address] = peer  # its last one may have been closed for this one
        return peer

    def release(self, member: Member, peer: Peer) -> None:
        """A connection has ended, or is closed for another: to be called once."""
        if member.spare:
            self._spare.pop(member, None)
        else:
            peer.waiting.pop(member, None)
            self.count -= 1
            peer.count -= 1
        if not peer.count and self._peers.get(peer.address) is peer:
            del self._peers[peer.address]

    def _make_room(self, peers: list[Peer]) -> None:
        for peer in peers:
            member = peer.longest_waiting()
            if member is not None:
                self._evict(member)
                return

    def _evict(self, member: Member) -> None:
        self.evicted += 1
        member.evict()


def places(most: int, files: int) -> int:
    """Maximum number of connections of a process: `most`, or as many as its limit of open files allows."""
    return max(16, min(most, files - SPARE_FILES))


def network(address: str) -> str:
    """The network of one client: an IPv4 address, or the /64 from which an IPv6 client can choose addresses."""
    if ":" not in address:
        return address
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    return str(mapped) if mapped is not None else str(int(ip) >> 64)
