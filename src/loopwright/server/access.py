"""Who may ask: addresses, hosts, tokens, origins. Deny by default."""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Mapping

from loopwright.records.errors import AddressRefused
from loopwright.records.settings import Settings
from loopwright.server.routes import Permission

MOST_HOSTS = 1000
"""So many Host headers are known again at once."""

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
    """Raises AddressRefused for an address beyond loopback without a token."""
    if not is_loopback(settings.host) and not settings.token:
        raise AddressRefused(
            f"{settings.host} can be reached from other machines: set a token (LOOPWRIGHT_TOKEN), or bind to 127.0.0.1"
        )


class Access:
    """Decides by Host, token and origin. `always` asks for the token on loopback too, wherever one is set.

    Where none is set nothing is changed over HTTP: there is no default token, and the command line needs none.
    """

    def __init__(self, settings: Settings, *, always: bool) -> None:
        self._token = settings.token.encode()
        self._asks = bool(settings.token) and (always or not is_loopback(settings.host))
        self._hosts = _LOOPBACK_NAMES | {settings.host}
        # Where every request carries a token, a forged Host gains nothing, and the names of this machine are not known.
        self._any_host = self._asks and not is_loopback(settings.host)
        self._known: set[bytes] = set()

    def refuse(self, permission: Permission, headers: Mapping[bytes, bytes]) -> int:
        """The status of a refusal, or 0. `headers` have lower-case names."""
        if (
            not self._any_host
            and headers.get(b"host", b"") not in self._known
            and not self._knows_host(headers.get(b"host", b""))
        ):
            return 421
        if permission != "public" and self._asks and not self._knows(headers.get(b"authorization", b"")):
            return 401
        if permission == "write" and not (self._token and self._same_origin(headers)):
            return 403
        return 0

    def _knows_host(self, host: bytes) -> bool:
        if _host(host) not in self._hosts:
            return False
        if len(self._known) < MOST_HOSTS:
            self._known.add(host)
        return True

    def _knows(self, authorization: bytes) -> bool:
        scheme, _, value = authorization.partition(b" ")
        given = b""
        if scheme.lower() == b"bearer":
            given = value.strip()
        elif scheme.lower() == b"basic":  # a browser asks for a password: any user, the token
            try:
                given = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except (ValueError, binascii.Error):
                return False
        return hmac.compare_digest(given, self._token)

    def _same_origin(self, headers: Mapping[bytes, bytes]) -> bool:
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in (b"same-origin", b"none"):
            return False
        origin = headers.get(b"origin")
        if origin is None:
            return True
        return origin.partition(b"://")[2] == headers.get(b"host", b"")


def _host(value: bytes) -> str:
    """The host in a Host header, without its port and brackets."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if ":" in text and text.rpartition(":")[2].isdigit() else text
