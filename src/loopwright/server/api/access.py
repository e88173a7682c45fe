"""Access control: addresses, hosts, tokens, origins. Deny by default."""

import hmac
import ipaddress
import re
from collections.abc import Mapping

from loopwright.base.clock import Clock, RealClock
from loopwright.base.errors import AddressRefused
from loopwright.base.settings import Settings
from loopwright.base.tokens import ADVICE, exposed, read_tokens, token_problem
from loopwright.server.api.auth_rate_limit import AuthRateLimiter
from loopwright.server.api.callers import Caller, claimed_name, credentials
from loopwright.server.api.routes import Permission

MAX_HOSTS = 1000
"""Number of cached Host headers."""

_HOST = re.compile(rb"(?:\[([0-9a-f:.]+)\]|([a-z0-9._~-]*))(?::[0-9]{0,5})?")
"""A Host header in lower case (RFC 9112): an IPv6 address in brackets, or a name or IPv4 address, with an optional port."""

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(settings: Settings) -> None:
    """Raises AddressRefused for an address beyond loopback without a token, or with one that is easy to guess.

    Raises SettingInvalid for a bad file of tokens.
    """
    why = exposed(settings)
    if not is_loopback(settings.host) and not settings.has_token:
        raise AddressRefused(
            f"{settings.host} can be reached from other machines: set a token (LOOPWRIGHT_TOKEN), or bind to 127.0.0.1; {ADVICE}"
        )
    if not is_loopback(settings.host) and why:
        raise AddressRefused(f"{settings.host} can be reached from other machines, and {why}: {ADVICE}")


class Access:
    """Decides by Host, token and origin. `always` asks for the token on loopback too, wherever one is set.

    Without a token nothing can be changed over HTTP: there is no default token, and the command line needs none.
    """

    def __init__(self, settings: Settings, *, always: bool, clock: Clock | None = None) -> None:
        self._tokens = read_tokens(settings)
        self._strong = {token for token in self._tokens if not token_problem(token.decode(errors="replace"))}
        self._limiter = AuthRateLimiter(clock or RealClock())
        self._asks = bool(self._tokens) and (always or not is_loopback(settings.host))
        names = {name.lower() for name in settings.hosts}
        self._hosts = _LOOPBACK_NAMES | {settings.host.lower()} | names
        self._domains = tuple(name[1:] for name in names if name.startswith("*."))
        # Where every request carries a token, a forged Host gains nothing, and the names of this machine are not known.
        self._any_host = self._asks and not is_loopback(settings.host)
        self._known: set[bytes] = set()

    def refuse(self, permission: Permission, headers: Mapping[bytes, bytes], address: str = "") -> int:
        """The status of a refusal, or 0. `headers` have lower-case names; `address` is the client's."""
        if permission == "public":  # a load balancer may send any Host, or none
            return 0
        host = headers.get(b"host", b"")
        if host not in self._known and (status := self._refuse_host(host)):
            return status
        if self._asks and (status := self._refuse_token(headers.get(b"authorization", b""), address)):
            return status
        if permission == "write" and not (self._tokens and self._same_origin(headers)):
            return 403
        if permission == "read" and not (self._same_origin(headers) or _followed_link(headers)):
            return 403
        return 0

    def _refuse_token(self, authorization: bytes, address: str) -> int:
        if not authorization:
            return 401
        token = credentials(authorization)[1]
        if self._limiter.are_spent(address):
            # A weak one could be guessed where its owner shares the address.
            return 0 if token in self._strong and self._limiter.has_proved(address, token) else 429
        if self._name(authorization) is None:
            self._limiter.count(address)
            return 401
        self._limiter.proved(address, token)
        return 0

    def _refuse_host(self, host: bytes) -> int:
        match = _HOST.fullmatch(host.lower())
        if match is None:
            return 400
        name = (match[1] or match[2]).decode()
        if not (self._any_host or name in self._hosts or name.endswith(self._domains)):
            return 421
        if len(self._known) < MAX_HOSTS:
            self._known.add(host)
        return 0

    def caller(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """The sender of a permitted request. Raises RequestMalformed for an invalid claimed name."""
        authorization = headers.get(b"authorization", b"")
        name = self._name(authorization)
        if name:
            return Caller(name, "token", address)
        claimed = claimed_name(headers, credentials(authorization)[0])
        return Caller(claimed, "claimed" if claimed else "none", address)

    def _name(self, authorization: bytes) -> str | None:
        """The name of a token, "" if it has none; None if it is unknown."""
        _, token = credentials(authorization)
        found = None
        for known, name in self._tokens.items():  # compare all of them, so that timing reveals nothing
            if hmac.compare_digest(token, known):
                found = name
        return found

    def _same_origin(self, headers: Mapping[bytes, bytes]) -> bool:
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            return False
        origin = headers.get(b"origin")
        if origin is None:
            return True
        return origin.partition(b"://")[2] == headers.get(b"host", b"")


def _followed_link(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a person followed a link of another site to a page; no script can send these headers."""
    wanted = ((b"sec-fetch-mode", b"navigate"), (b"sec-fetch-dest", b"document"), (b"sec-fetch-user", b"?1"))
    return all(headers.get(name) == value for name, value in wanted)
