import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.traffic import LOOP, START

from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.monitor.alerts import close_alert, open_alerts, raise_alert, send
from loopwright.records.windows import Alert
from loopwright.stores.home import Home


class Receiver(ThreadingHTTPServer):
    """A web server on loopback that keeps what is posted to it and answers `status`."""

    status = 204
    location = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[dict[str, object]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/alerts?to=desk"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(server.status)
        if server.location:
            self.send_header("Location", server.location)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def at(folder: Path, webhook: str = "") -> Home:
    return Home(Settings(home=folder, webhook=webhook), SimulatedClock(START))


def drift(home: Home, detail: str = "delay moved") -> Alert:
    return raise_alert(home, LOOP, "drift", severity="warning", title="1 column drifted", detail=detail)


def test_one_alert_per_key_goes_out_once_however_often_it_is_raised(tmp_path: Path, receiver: Receiver) -> None:
    with at(tmp_path, receiver.url) as home:
        assert [drift(home).repeats for _ in range(3)] == [0, 1, 2]
        raise_alert(home, LOOP, "decay", severity="critical", title="Quality has decayed", detail="")
        assert [(g["key"], g["state"], g["loop"]) for g in receiver.got] == [("drift", "open", LOOP), ("decay", "open", LOOP)]
        assert [a.key for a in open_alerts(home, LOOP)] == ["drift", "decay"]


def test_it_goes_out_again_once_it_was_closed_and_the_closing_is_told(tmp_path: Path, receiver: Receiver) -> None:
    with at(tmp_path, receiver.url) as home:
        drift(home)
        assert close_alert(home, LOOP, "drift", detail="over") is not None
        assert close_alert(home, LOOP, "drift", detail="over") is None
        send(home, LOOP)
        assert open_alerts(home, LOOP) == []
        assert drift(home).repeats == 0
        assert [g["state"] for g in receiver.got] == ["open", "closed", "open"]


def test_a_worse_alert_of_the_same_key_goes_out(tmp_path: Path, receiver: Receiver) -> None:
    with at(tmp_path, receiver.url) as home:
        drift(home)
        raise_alert(home, LOOP, "drift", severity="critical", title="9 columns drifted", detail="")
        assert [g["severity"] for g in receiver.got] == ["warning", "critical"]


def test_what_a_sink_did_not_take_is_sent_later(tmp_path: Path, receiver: Receiver) -> None:
    with at(tmp_path, receiver.url) as home:
        receiver.status = 500
        drift(home)
        assert not open_alerts(home, LOOP)[0].sent
        receiver.status, receiver.location = 302, "http://127.0.0.1:1/elsewhere"
        assert send(home, LOOP) == []
        receiver.status = 200
        assert [a.key for a in send(home, LOOP)] == ["drift"]
        assert send(home, LOOP) == []
        assert [g["id"] for g in receiver.got] == [receiver.got[0]["id"]] * 3


def test_a_webhook_that_is_down_or_forbidden_stops_nobody(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1/", "http://example.com/", "https://10.0.0.1/"):
        with at(tmp_path / url[-8:-1].replace("/", "_"), url) as home:
            assert drift(home).state == "open"
            assert not open_alerts(home, LOOP)[0].sent


def test_the_log_gets_one_line_of_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with at(tmp_path) as home, caplog.at_level(logging.INFO, "loopwright.alerts"):
        drift(home, detail="x" * 10_000 + "\n")
        drift(home)
    (record,) = caplog.records
    line = json.loads(record.getMessage())
    assert (line["loop"], line["key"], line["at"]) == (LOOP, "drift", START.isoformat())
    assert len(line["detail"]) == 2000
    assert "\n" not in record.getMessage()
