"""A real server in its own processes, and a plain client for it."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from tests.waiting import PATIENCE_SECONDS
from tests.waiting import until as until

from loopwright.server.processes.supervisor import Serving
from loopwright.stores.home import Home

START = (
    "from loopwright.server.processes.supervisor import serve; from loopwright.stores.home import Home; "
    "from loopwright.base.settings import load_settings; serve(Home(load_settings()), tend={tend})"
)


class Reply(NamedTuple):
    """Status, headers (lower-case names) and body of an answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


TOKEN = "only-for-tests-0123456789"


class Client:
    """One connection, opened again when it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)
        self._connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """One request. A body that is not bytes is sent as JSON; header names are written with _ for -."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("authorization", f"Bearer {TOKEN}")
        if data is not None:
            named.setdefault("content-type", "application/json")
        try:
            self._connection.request(method, path, data, named)
            answer = self._connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except BaseException:
            self._connection.close()
            raise

    def post(self, path: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def close(self) -> None:
        self._connection.close()


class Server:
    """A server's control process, and where it is."""

    def __init__(self, home: Home, process: "subprocess.Popen[str]") -> None:
        self.home, self.process = home, process
        self._clients: list[Client] = []

    @property
    def state(self) -> Serving:
        return msgspec.json.decode((self.home.path / "serve.json").read_bytes(), type=Serving)

    def data(self) -> Client:
        return self._client(self.state.data)

    def control(self) -> Client:
        return self._client(self.state.control)

    def _client(self, url: str) -> Client:
        self._clients.append(Client(url))
        return self._clients[-1]

    def close(self) -> None:
        """Close the clients."""
        for client in self._clients:
            client.close()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it in order, or with SIGKILL the control process and every worker."""
        if self.process.poll() is None:
            workers = self.state.workers if number == signal.SIGKILL else []
            for pid in [*workers, self.process.pid]:
                if pid:
                    try:
                        os.kill(pid, number)
                    except ProcessLookupError:
                        continue
        return self.process.wait(PATIENCE_SECONDS)


@contextmanager
def running(home: Home, *, workers: int = 1, tend: bool = False, check: bool = True, **environment: str) -> Iterator[Server]:
    """A server over `home` on free loopback ports, stopped at the end; with `check` it must end in order."""
    source = Path(__file__).parents[2] / "src"
    environ = {
        **os.environ,
        "PYTHONPATH": str(source),
        **home.settings.environment(),
        "LOOPWRIGHT_WORKERS": str(workers),
        "LOOPWRIGHT_TOKEN": home.settings.token or TOKEN,
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", START.format(tend=tend)], env=environ, stdout=subprocess.PIPE, text=True
    )
    server = Server(home, process)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready: "), (line, process.poll())
        yield server
        if check:
            assert server.stop() == 0
    finally:
        server.stop(signal.SIGKILL)
        server.close()
        process.stdout.close()  # type: ignore[union-attr]  # it was opened
