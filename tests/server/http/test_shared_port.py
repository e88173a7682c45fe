import socket

import pytest

from loopwright.base.errors import AddressRefused, ExtraMissing
from loopwright.base.settings import Settings
from loopwright.server.http import shared_port
from loopwright.server.http.shared_port import address, check_extras, reserve


def listener(port: int) -> socket.socket:
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    opened.bind(("127.0.0.1", port))
    opened.listen()
    return opened


def test_those_who_share_a_reserved_port_get_every_connection() -> None:
    with reserve("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with listener(port) as one, listener(port) as two:
            for opened in (one, two):
                opened.setblocking(False)
            for _ in range(40):
                socket.create_connection(("127.0.0.1", port), 5).close()
            taken = [0, 0]
            for i, opened in enumerate((one, two)):
                while True:
                    try:
                        opened.accept()[0].close()
                    except BlockingIOError:
                        break
                    taken[i] += 1
            assert sum(taken) == 40
            assert min(taken) > 0


def test_a_port_that_somebody_else_has_is_refused_also_where_he_would_share_it() -> None:
    with socket.socket() as alone:
        alone.bind(("127.0.0.1", 0))
        alone.listen()
        with pytest.raises(AddressRefused, match="choose another port"):
            reserve("127.0.0.1", alone.getsockname()[1])
    with reserve("127.0.0.1", 0) as held, listener(held.getsockname()[1]), pytest.raises(AddressRefused):
        reserve("127.0.0.1", held.getsockname()[1])


def test_addresses_of_both_families() -> None:
    assert (address("127.0.0.1", 7), address("::1", 7)) == ("127.0.0.1:7", "[::1]:7")


def test_libraries_are_asked_for_only_where_a_setting_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    check_extras(Settings(grpc_port=0, traces="http://localhost:4318/v1/traces"))
    monkeypatch.setattr(shared_port, "_installed", lambda _module: False)
    check_extras(Settings())
    with pytest.raises(ExtraMissing, match=r"loopwright\[grpc\]"):
        check_extras(Settings(grpc_port=0))
    with pytest.raises(ExtraMissing, match=r"loopwright\[otel\]"):
        check_extras(Settings(traces="http://localhost:4318/v1/traces"))
