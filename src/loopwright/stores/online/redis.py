"""The online store in Redis, for several machines: one hash of keys per store, and the state of each store.

    loopwright:steps:STORE     key -> steps
    loopwright:fed             STORE -> version and since
    loopwright:until           STORE -> until

One Redis database per installation. Without persistence it restarts empty, and the next upkeep feeds it again.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loopwright.base.clock import RealClock
from loopwright.base.errors import Damaged, Unavailable
from loopwright.stores.online.steps import CACHED_KEYS, FRESH_SECONDS, Fed, Items, Steps

READ_SECONDS = 0.25
"""A look-up that takes longer is given up: a prediction waits no longer for its context."""

REST_SECONDS = 1.0
"""After a failed look-up, further ones fail at once for this long."""

_WRITE_SECONDS = 30.0
_STEPS, _FED, _UNTIL, _LOCK = "loopwright:steps:", "loopwright:fed", "loopwright:until", "loopwright:lock:"


class RedisOnline:
    """The table at `url` (`redis://[:password@]host[:port][/database]`, or `rediss://`); see `stores.online.Online`.

    Keys looked up are cached for `FRESH_SECONDS`. Messages name host and port, never the password.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._place = f"{parts.hostname}:{parts.port or 6379}"
        self._failures: tuple[type[Exception], ...] = (redis.RedisError, OSError)
        self._read: Any
        self._write: Any
        self._read, self._write = (
            redis.Redis.from_url(
                url,
                socket_connect_timeout=min(seconds, 5.0),
                socket_timeout=seconds,
                retry=Retry(NoBackoff(), 1),  # once, for a connection that the server closed while it was idle
                decode_responses=False,
            )
            for seconds in (READ_SECONDS, _WRITE_SECONDS)
        )
        self._now = RealClock().monotonic
        self._mutex = threading.Lock()
        self._cache: dict[tuple[str, str], tuple[float, Steps | None]] = {}
        self._feds: dict[str, tuple[float, Fed | None]] = {}
        self._rests_until = 0.0

    def write(self, store: str, items: Items, fed: Fed) -> int:
        """See `Online`."""
        name, changed = _STEPS + store, 0
        with self._errors(), self._write.lock(_LOCK + store, timeout=600, blocking_timeout=_WRITE_SECONDS):
            before = _fed(self._write.hget(_FED, store), b"0")
            if before is not None and before.version > fed.version:
                return 0
            # Concurrent look-ups find old steps or new ones, and both are right from `since` on.
            self._write.hset(_FED, store, f"{before.version if before else -1} {fed.since}")
            gone, rest = set(self._write.hkeys(name)), iter(items)
            while batch := list(islice(rest, 1000)):
                keys = [key.encode() for key, _ in batch]
                there = self._write.hmget(name, keys)
                new = {k: steps for k, old, (_, steps) in zip(keys, there, batch, strict=True) if old != steps}
                if new:
                    self._write.hset(name, mapping=new)
                gone.difference_update(keys)
                changed += len(new)
            if gone:
                self._write.hdel(name, *gone)
            self._write.hset(_FED, store, f"{fed.version} {fed.since}")
            self._mark(store, fed.until)
        with self._mutex:
            self._cache, self._feds = {}, {}
        return changed + len(gone)

    def mark(self, store: str, until: int) -> None:
        """See `Online`."""
        with self._errors():
            self._mark(store, until)
        self._feds.pop(store, None)

    def _mark(self, store: str, until: int) -> None:
        if int(self._write.hget(_UNTIL, store) or -(2**63)) < until:
            self._write.hset(_UNTIL, store, until)

    def fed(self, store: str, /) -> Fed | None:
        """See `Online`."""
        now = self._now()
        known = self._feds.get(store)
        if known is not None and now < known[0]:
            return known[1]
        with self._errors(reading=True):
            version, until = self._read.pipeline(transaction=False).hget(_FED, store).hget(_UNTIL, store).execute()
            found = _fed(version, until)
        self._feds[store] = (now + FRESH_SECONDS, found)
        return found

    def get_many(self, store: str, keys: list[str], /) -> list[Steps | None]:
        """See `Online`."""
        now, cache = self._now(), self._cache
        unknown = [key for key in keys if (entry := cache.get((store, key))) is None or now >= entry[0]]
        if not unknown:
            return [cache[store, key][1] for key in keys]
        with self._errors(reading=True):
            data = self._read.hmget(_STEPS + store, unknown)
            fresh = {key: Steps(d) if d is not None else None for key, d in zip(unknown, data, strict=True)}
        with self._mutex:
            if len(self._cache) + len(fresh) > CACHED_KEYS:
                self._cache = {}
            self._cache.update({(store, key): (now + FRESH_SECONDS, steps) for key, steps in fresh.items()})
        return [fresh[key] if key in fresh else cache[store, key][1] for key in keys]

    def close(self) -> None:
        """See `Online`."""
        self._read.close()
        self._write.close()

    @contextmanager
    def _errors(self, *, reading: bool = False) -> Iterator[None]:
        if reading and self._now() < self._rests_until:
            raise Unavailable(f"the online table in Redis at {self._place} did not answer")
        try:
            yield
        except self._failures as error:
            if reading:
                self._rests_until = self._now() + REST_SECONDS
            raise Unavailable(
                f"the online table in Redis at {self._place} does not answer: {type(error).__name__}"
            ) from None  # the library's message may contain the URL


def _fed(version: Any, until: Any) -> Fed | None:
    if version is None:
        return None
    try:
        number, since = version.split()
        return Fed(int(number), int(since), int(until or -(2**63)))
    except ValueError as error:
        raise Damaged("the online table in Redis holds something else than was written") from error
