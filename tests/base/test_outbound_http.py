import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.receiver import receiving
from tests.waiting import PATIENCE_SECONDS

from loopwright.base.errors import AddressRefused
from loopwright.base.outbound_http import post, problem, receiver, target
from loopwright.base.settings import load_settings


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "http://8.8.8.8/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https:///nothing",
        "//localhost/",
        "https://user:secret@localhost/",
        "https://localhost/a b",
        "https://localhost:99999/",
        "https://[::1/",
        "https://10.0.0.1/",
        "https://172.16.3.4/",
        "https://192.168.1.1/",
        "https://169.254.169.254/latest/meta-data/",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://127.0.0.2/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::a00:1]/",
        "https://[2002:a00:1::]/",
        "https://[64:ff9b:1::a00:1]/",
        "https://[64:ff9b:1::808:808]/",
        "https://[::a00:1]/",
        "https://[::808:808]/",
        "https://[3fff::1]/",
        "https://[5f00::1]/",
        "https://[fec0::1]/",
        "https://[2001:0:a00:1::1]/",
        "https://[2001:db8::1]/",
        "https://[::ffff:0:7f00:1]/",
        "https://[2606:4700::5efe:a00:1]/",
        "https://[2606:4700::200:5efe:a00:1]/",
        "https://[ff0e::1]/",
        "https://[4000::1]/",
        "https://[100:0:0:1::1]/",
        "https://0.1.2.3/",
        "https://192.0.0.9/",
        "https://192.88.99.1/",
        "https://198.18.0.1/",
        "https://240.0.0.1/",
        "https://168.63.129.16/",
    ],
)
def test_only_https_outside_and_this_machine_by_name_may_be_called(url: str) -> None:
    with pytest.raises(AddressRefused):
        target(url)


def test_lawful_targets() -> None:
    assert target("http://127.0.0.1:8080/a?b=c") == ("127.0.0.1", "127.0.0.1", 8080, "/a?b=c", False)
    assert target("https://[::1]/") == ("::1", "::1", 443, "/", True)
    assert target("https://8.8.8.8/x") == ("8.8.8.8", "8.8.8.8", 443, "/x", True)
    assert target("https://[2606:4700::1111]/")[:3] == ("2606:4700::1111", "2606:4700::1111", 443)
    assert target("https://[64:ff9b::808:808]/")[1] == "64:ff9b::808:808"
    assert target("https://[2002:808:808::1]/")[1] == "2002:808:808::1"
    assert target("http://localhost")[0::4] == ("localhost", False)


def test_a_name_that_leads_inside_is_refused_and_one_with_a_single_inner_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver(*addresses: str) -> Any:
        return lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    for inner in (["127.0.0.1"], ["10.1.2.3"], ["93.184.215.14", "10.1.2.3"]):
        monkeypatch.setattr(socket, "getaddrinfo", resolver(*inner))
        with pytest.raises(AddressRefused):
            target("https://hooks.example.com/")
    monkeypatch.setattr(socket, "getaddrinfo", resolver("93.184.215.14"))
    assert target("https://hooks.example.com/") == ("hooks.example.com", "93.184.215.14", 443, "/", True)
    monkeypatch.setattr(socket, "getaddrinfo", resolver("8.8.8.8"))
    with pytest.raises(AddressRefused):
        target("http://localhost/")


@pytest.mark.parametrize(
    ("url", "address", "private", "allowed"),
    [
        ("http://collector.intern:4318/", "10.1.2.3", ("collector.intern",), True),
        ("http://COLLECTOR.intern/", "10.1.2.3", ("*.intern",), True),
        ("http://collector/", "172.17.0.2", ("172.16.0.0/12",), True),
        ("https://[fd00::5]/", "fd00::5", ("fd00::/8",), True),
        ("http://10.1.2.3/", "10.1.2.3", ("10.1.2.3",), True),
        ("http://other.example/", "10.1.2.3", ("collector.intern",), False),
        ("http://evilcollector.intern/", "10.1.2.3", ("collector.intern",), False),
        ("http://intern/", "10.1.2.3", ("*.intern",), False),
        ("http://collector.intern/", "93.184.215.14", ("collector.intern",), False),
        ("http://collector.intern/", "169.254.169.254", ("collector.intern", "169.254.0.0/16"), False),
        ("http://collector.intern/", "0.0.0.0", ("collector.intern", "0.0.0.0/0"), False),
    ],
)
def test_private_receivers_are_called_where_the_setting_names_them(
    monkeypatch: pytest.MonkeyPatch, url: str, address: str, private: tuple[str, ...], allowed: bool
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda _h, port, **_: [(0, 0, 6, "", (address, port))])
    with pytest.raises(AddressRefused):
        target(url.replace("https", "http"))
    if allowed:
        assert target(url, private)[1] == address
    else:
        with pytest.raises(AddressRefused):
            target(url, private)


def test_headers_for_a_receiver_come_from_a_file_and_are_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: Bearer first\nX-Scope: a b\n\n")
    with receiving() as heard:
        settings = load_settings(environ={"LOOPWRIGHT_WEBHOOK": heard.url, "LOOPWRIGHT_WEBHOOK_HEADERS": str(file)})
        post(receiver(settings, "webhook"), b"{}")
        file.write_text("Authorization: Bearer second")
        post(receiver(settings, "webhook"), b"{}")
        assert [p.headers["authorization"] for p in heard.posted] == ["Bearer first", "Bearer second"]
        assert heard.posted[0].headers["x-scope"] == "a b"
        for bad in ("secret-without-colon", "X: secret\x00", "Content-Length: 5", "Host: secret", "X" * 20_000 + ": secret"):
            file.write_text(bad)
            with pytest.raises(AddressRefused) as refused:
                post(receiver(settings, "webhook"), b"{}")
            assert "secret" not in str(refused.value)
            assert "line 1" in problem(receiver(settings, "webhook"))
        file.unlink()
        with pytest.raises(OSError, match="No such file"):
            post(receiver(settings, "webhook"), b"{}")
        os.mkfifo(file)
        with pytest.raises(OSError, match="no regular file"):
            post(receiver(settings, "webhook"), b"{}")
        assert len(heard.posted) == 2
        traces = load_settings(environ={"LOOPWRIGHT_TRACES": heard.url, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a%20b,x=1"})
        post(receiver(traces, "traces"), b"{}")
        assert (heard.posted[2].headers["api-key"], heard.posted[2].headers["x"]) == ("a b", "1")


class Raw:
    """A server on loopback that answers each connection with `reply`, byte by byte if `drip`."""

    def __init__(self, reply: bytes, *, drip: float = 0.0) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        self.reply, self.drip, self.got = reply, drip, b""
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.socket.accept()
        with connection:
            connection.settimeout(PATIENCE_SECONDS)
            self.got = connection.recv(65536)
            try:
                for i in range(0, len(self.reply), 1 if self.drip else len(self.reply)):
                    connection.sendall(self.reply[i : i + 1] if self.drip else self.reply)
                    time.sleep(self.drip)
            except OSError:
                pass

    def close(self) -> None:
        self.socket.close()
        self.thread.join(PATIENCE_SECONDS)


@pytest.fixture
def servers() -> Iterator[list[Raw]]:
    made: list[Raw] = []
    yield made
    for server in made:
        server.close()


def test_an_answer_counts_when_it_is_2xx_and_redirects_are_not_followed(servers: list[Raw]) -> None:
    servers.append(Raw(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"))
    assert post(servers[0].url, b"{}") == 202
    assert servers[0].got.startswith(b"POST / HTTP/1.1\r\n")
    servers.append(Raw(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"))
    with pytest.raises(OSError, match="307"):
        post(servers[1].url, b"{}")


def test_what_is_not_http_is_an_error_of_the_sink(servers: list[Raw]) -> None:
    servers.append(Raw(b"\x00\x01 garbage\r\n\r\n"))
    with pytest.raises(OSError, match="HTTP"):
        post(servers[0].url, b"{}")


def test_a_server_that_drips_is_given_up_in_time(servers: list[Raw]) -> None:
    servers.append(Raw(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 100_000, drip=0.02))
    """Each byte comes in time, and all of them would take hours."""
    with pytest.raises(TimeoutError):
        post(servers[0].url, b"{}", seconds=0.4)


def test_a_message_has_a_limit() -> None:
    with pytest.raises(AddressRefused, match="limit"):
        post("http://127.0.0.1:1/", b"x" * (64 * 1024 + 1))
