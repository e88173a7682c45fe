"""A real Redis for tests: its own port and folder, gone with the process that started it."""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from redis import Redis
from tests.waiting import PATIENCE_SECONDS

PASSWORD = "tests-only"


def find_binary() -> str | None:
    """The path of `redis-server`."""
    return shutil.which("redis-server")


class RedisServer:
    """One server on a loopback port, with a password, that keeps nothing on the disk."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="loopwright-redis-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "requirepass": PASSWORD,
            "save": "",
            "appendonly": "no",
            "dir": self.folder,
            "maxmemory": "256mb",
        }
        command = [self._binary, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with Redis.from_url(self.url, socket_timeout=PATIENCE_SECONDS) as client:
                    client.ping()
            except Exception:  # noqa: BLE001  # whatever it is, it is not up yet
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError("redis-server does not start") from None
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """Stop it at once, as a crash would; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def empty(self) -> str:
        """The URL of a database with nothing in it."""
        with Redis.from_url(self.url) as client:
            client.flushall()
        return self.url

    def remove(self) -> None:
        """Stop it and delete its folder."""
        self.stop()
        shutil.rmtree(self.folder)
