"""A port on which each worker listens with a socket of its own: the kernel spreads connections over them (SO_REUSEPORT)."""

import socket
from importlib.util import find_spec

from loopwright.base.errors import AddressRefused, ExtraMissing
from loopwright.base.settings import Settings


def reserve(host: str, port: int) -> socket.socket:
    """A socket that reserves `port` (0: a free one) without listening, so that the sockets that share it get every connection.

    Raises AddressRefused when another process has it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as alone:  # a shared bind would also succeed next to a foreign process
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise AddressRefused(
            f"{host}:{port} cannot be bound: {error.strerror}; choose another port, or 0 for a free one"
        ) from error
    return held


def address(host: str, port: int) -> str:
    """`host:port` as gRPC writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_extras(settings: Settings) -> None:
    """Raise ExtraMissing where a setting of the data plane needs libraries that are not installed."""
    wanted = (
        (settings.grpc_port >= 0, ("grpc", "google.protobuf"), "grpc", "the Open Inference Protocol over gRPC"),
        (bool(settings.traces), ("opentelemetry.proto",), "otel", "sending spans of requests"),
    )
    for asked, modules, extra, purpose in wanted:
        if asked and not all(_installed(module) for module in modules):
            raise ExtraMissing(extra, purpose)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
