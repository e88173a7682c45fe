"""Rate limit of wrong tokens, per client address: a burst, then one a second; beyond it tokens are not checked.

Tokens that were right from that address before are exempt: behind a proxy or a shared address, a guesser locks out nobody else.
"""

import threading

from loopwright.base.clock import Clock
from loopwright.server.http.admission import network

BURST = 20.0
PER_SECOND = 1.0
MAX_CLIENTS = 10_000
"""Maximum number of remembered clients; the one with the oldest guess is evicted first."""


class AuthRateLimiter:
    """A token bucket for each address (of IPv6 each /64). Safe to share among threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}
        self._proven: dict[tuple[str, bytes], None] = {}

    def proved(self, address: str, token: bytes) -> None:
        """A client has sent a right token while it might guess."""
        proof = network(address), token
        if proof not in self._proven:
            with self._lock:
                self._proven[proof] = None
                if len(self._proven) > MAX_CLIENTS:
                    del self._proven[next(iter(self._proven))]

    def has_proved(self, address: str, token: bytes) -> bool:
        """Whether that token was right when the client sent it before."""
        return (network(address), token) in self._proven

    def are_spent(self, address: str) -> bool:
        """Whether a client has to wait before another token of it is looked at."""
        client = network(address)
        if client not in self._left:  # nearly always: no lock, no clock
            return False
        with self._lock:
            return self._allowance(client, self._clock.uptime()) < 1.0

    def count(self, address: str) -> None:
        """Count a wrong token."""
        client, now = network(address), self._clock.uptime()
        with self._lock:
            left = self._allowance(client, now) - 1.0
            self._left.pop(client, None)
            self._left[client] = (max(left, 0.0), now)
            if len(self._left) > MAX_CLIENTS:
                del self._left[next(iter(self._left))]

    def _allowance(self, client: str, now: float) -> float:
        left, since = self._left.get(client, (BURST, now))
        return min(BURST, left + (now - since) * PER_SECOND)
