"""One POST to an address outside, made so that it cannot be turned against the network it is sent from.

https only, unless the host is loopback by name; resolved once, and that very address is connected to; no private,
link-local, special or unassigned range, also where IPv6 wraps an IPv4 address; no redirect is followed; bounded in time and size.
Private addresses of hosts and networks that the operator names (`LOOPWRIGHT_ALLOW_PRIVATE`) are called, also over http.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from loopwright.base.errors import AddressRefused
from loopwright.base.files import read_named
from loopwright.base.settings import Settings
from loopwright.base.supervision import start

SECONDS = 5.0
REQUEST_BYTES = 64 * 1024
_NEEDS_TLS = (
    "the receiver needs https, unless it is on this machine (localhost, 127.0.0.1, [::1]) "
    "or at a private address that LOOPWRIGHT_ALLOW_PRIVATE names"
)
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All IPv6 addresses that IANA assigns to hosts: outside of it are site-local, local NAT64, segment routing and unassigned ranges."""

_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "100.64.0.0/10",  # carrier-grade NAT
        "168.63.129.16/32",  # a cloud's host, from inside each of its virtual machines
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "240.0.0.0/4",  # reserved
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
"""Special ranges of the IANA registries, named here since `is_global` differs among versions of Python."""

_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "::1/128", "fc00::/7")
)
"""Networks that a setting may allow. Link-local addresses, where clouds serve credentials, are never among them."""

HEADER_BYTES = 16 * 1024
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\x20-\x7e]*?)[ \t]*")
_OWN_HEADERS = ("content-type", "content-length", "transfer-encoding", "connection", "host", "user-agent")

Sink = Literal["webhook", "openlineage", "traces", "events"]


class Receiver(NamedTuple):
    """A receiver of posts: URL, allowed private hosts and networks, and extra headers (a file of them, or `name=value,...`)."""

    url: str
    private: tuple[str, ...] = ()
    headers_file: str = ""
    headers: str = ""


def receiver(settings: Settings, sink: Sink) -> Receiver:
    """The receiver of one kind of message, from the settings."""
    headers = settings.otlp_headers if sink == "traces" else ""
    return Receiver(getattr(settings, sink), settings.allow_private, getattr(settings, f"{sink}_headers"), headers)


def extra_headers(to: Receiver) -> dict[str, str]:
    """The headers for a receiver, read from their file at each call, so that a new key is used at once.

    Raises AddressRefused, without the file's contents, where a line is not `Name: value`, OSError where it cannot be read.
    """
    if to.headers_file:
        lines = read_named(to.headers_file, HEADER_BYTES).decode("latin-1").splitlines()
    else:
        pairs = [pair.partition("=") for pair in to.headers.split(",") if pair.strip()]
        lines = [f"{name.strip()}: {unquote(value.strip())}" for name, _, value in pairs]
    found = {}
    for number, line in enumerate(lines, 1):
        match = _HEADER.fullmatch(line)
        if line.strip() and (match is None or match[1].lower() in _OWN_HEADERS or sum(map(len, lines)) > HEADER_BYTES):
            where = to.headers_file or "the setting"
            raise AddressRefused(f"line {number} of the headers in {where} is not `Name: value`, or a header that is set here")
        if match is not None:
            found[match[1]] = match[2]
    return found


def post(
    to: str | Receiver, body: bytes, *, seconds: float = SECONDS, limit: int = REQUEST_BYTES, media: str = "application/json"
) -> int:
    """POST `body` (of type `media`) to an URL, or to a receiver, and return the status (2xx).

    Raises AddressRefused for a target that is not allowed or a body over `limit` bytes, OSError when it does not answer in `seconds` or with 2xx.
    """
    if len(body) > limit:
        raise AddressRefused(f"a message of {len(body)} bytes is over the limit of {limit}")
    call = _Call(Receiver(to) if isinstance(to, str) else to, body, seconds, media)
    thread = start("outgoing", call.run)
    thread.join(seconds)
    if thread.is_alive():
        call.abort()
        raise TimeoutError(f"the receiver did not answer within {seconds:g} seconds")
    if call.error is not None:
        raise call.error
    if not call.status:
        raise OSError("the call failed; the log says why")
    if not 200 <= call.status < 300:
        raise OSError(f"the receiver answered {call.status}")
    return call.status


def target(url: str, private: tuple[str, ...] = ()) -> tuple[str, str, int, str, bool]:
    """Host, the one address to connect to, port, path and whether TLS, of an outgoing URL. Raises AddressRefused, OSError.

    `private` names hosts (also `*.example.com`) and networks whose private addresses may be called.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(f"the URL cannot be read: {error}") from error
    host = parts.hostname or ""
    loopback = host in _LOOPBACK_NAMES
    if parts.scheme not in ("https", "http") or not host:
        raise AddressRefused("the URL begins with https:// and names a host")
    plain = parts.scheme == "http" and not loopback
    if plain and not private:
        raise AddressRefused(_NEEDS_TLS)
    if parts.username or parts.password:
        raise AddressRefused("the URL carries no user name or password")
    tls = parts.scheme == "https"
    port = port or (443 if tls else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not path.isascii() or any(c <= " " or c == "\x7f" for c in path):
        raise AddressRefused("the path of the URL is plain ASCII without spaces")
    addresses = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for address in addresses:
        named = not loopback and _is_named(host, address, private)
        if not named and not _allowed(address, loopback=loopback):
            why = "name it in LOOPWRIGHT_ALLOW_PRIVATE if it is a receiver of yours"
            raise AddressRefused(f"host {host[:80]!r} is at an address that may not be called from here; {why}")
        if plain and not named:
            raise AddressRefused(_NEEDS_TLS)
    return host, addresses[0], port, path, tls


def problem(to: str | Receiver) -> str:
    """Why posts to a receiver would fail, as far as can be checked without one; empty if nothing is wrong."""
    to = Receiver(to) if isinstance(to, str) else to
    try:
        target(to.url, to.private)
        extra_headers(to)
    except (AddressRefused, OSError) as error:
        return str(error)
    return ""


def _is_named(host: str, address: str, private: tuple[str, ...]) -> bool:
    """Whether an address is a private one, and it or its host is named."""
    ip = ipaddress.ip_address(address.split("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if not any(ip in network for network in _PRIVATE):
        return False
    for name in private:
        if name == host.lower() or (name.startswith("*.") and host.lower().endswith(name[1:])):
            return True
        with contextlib.suppress(ValueError):
            if ip in ipaddress.ip_network(name):
                return True
    return False


def _allowed(address: str, *, loopback: bool) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if loopback:
        return ip.is_loopback
    return _is_public(ip)


def _is_public(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address, and the IPv4 address that it wraps (mapped, 6to4, NAT64, ISATAP), is one host of the public internet."""
    if isinstance(ip, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if ip.ipv4_mapped or ip in _NAT64:
            return _is_public(last)
        if ip.sixtofour:  # which `is_global` calls global up to Python 3.12, and not since
            return _is_public(ip.sixtofour)
        if ip not in _GLOBAL_UNICAST:
            return False
        if (int(ip) >> 32) & 0xFCFFFFFF == 0x5EFE and not _is_public(last):
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was resolved before; the host name is used only for headers and TLS."""

    def __init__(self, host: str, address: str, port: int, tls: ssl.SSLContext | None, seconds: float) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address, self._tls = address, tls
        self.default_port = 443 if tls else 80

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host) if self._tls else plain


class _Call:
    """One call in a thread of its own, so that nothing it waits for can hold the caller longer than allowed."""

    def __init__(self, to: Receiver, body: bytes, seconds: float, media: str) -> None:
        self._to, self._body, self._seconds, self._media = to, body, seconds, media
        self._connection: Any = None
        self.status = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            host, address, port, path, tls = target(self._to.url, self._to.private)
            context = ssl.create_default_context() if tls else None
            self._connection = _Pinned(host, address, port, context, self._seconds)
            own = {"Content-Type": self._media, "User-Agent": "loopwright", "Connection": "close"}
            headers = {**extra_headers(self._to), **own}
            self._connection.request("POST", path, self._body, headers)
            with self._connection.getresponse() as response:
                self.status = response.status
        except (AddressRefused, OSError) as error:
            self.error = error
        except (http.client.HTTPException, ValueError) as error:
            self.error = OSError(f"the receiver did not answer in HTTP: {type(error).__name__}")
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection, also while it is waiting."""
        connection = self._connection
        if connection is not None:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                connection.close()
