"""No process of ours talks to anybody who was not named in the settings: every command and the server, watched by strace."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.services import needed

_ADDRESS = re.compile(r'sa_family=AF_INET6?\b.*?(?:inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)")')
_LOOPBACK = ("127.", "::1")
_RESOLVERS = ("htons(53)", "systemd.Resolve")
SECONDS = 300


class Watched:
    """Runs `loopwright` under strace, with a folder of its own as HOME."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user = folder, folder / "user"
        self.user.mkdir()
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY")}
        self.environment = kept | {"HOME": str(self.user), "LOOPWRIGHT_HOME": str(folder / "home"), "MPLCONFIGDIR": str(folder)}
        self._strace = needed(shutil.which("strace"), "strace", "strace")

    def command(self, name: str, *arguments: str) -> list[str]:
        tracing = [
            self._strace,
            "-f",
            "-qq",
            "-e",
            "trace=%network",
            "-e",
            "signal=none",
            "-o",
            str(self.folder / f"{name}.strace"),
        ]
        return [*tracing, sys.executable, "-m", "loopwright", *arguments]

    def run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            self.command(name, *arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if "PTRACE_TRACEME" in done.stderr or "Operation not permitted" in done.stderr:
            needed(None, "the right to trace processes (ptrace)", "strace")
        assert done.returncode == 0, done.stderr[-2000:]
        self.check(name)

    def check(self, name: str) -> None:
        """No address of another machine (a name server's neither), and nothing written into the user's own folder."""
        text = (self.folder / f"{name}.strace").read_text(errors="replace")
        assert foreign(text.splitlines()) == []
        assert [str(p) for p in self.user.rglob("*")] == []


def foreign(calls: Sequence[str]) -> list[str]:
    """The system calls that name the address of another machine, or a resolver of names, wherever that is."""
    found = []
    for call in calls:
        address = _ADDRESS.search(call)
        named = (address[1] or address[2]) if address else ""
        elsewhere = named and not named.startswith(_LOOPBACK) and named not in ("0.0.0.0", "::")
        if elsewhere or any(word in call for word in _RESOLVERS):
            found.append(call[:200])
    return found


def test_foreign_addresses_are_recognised() -> None:
    there = [
        '1 connect(8, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("10.255.255.53")}, 16) = 0',
        '1 sendto(9, "a", 1, 0, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2606:4700::1", &a)}, 28) = 1',
        '1 connect(8, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0',
    ]
    assert foreign(there) == there
    assert foreign(['1 connect(3, {sa_family=AF_INET, sin_port=htons(1), sin_addr=inet_addr("127.0.0.1")}, 16) = 0']) == []


def customers(file: Path) -> None:
    dice = random.Random(7)
    with file.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["customer_id", "renewal_at", "support_calls", "churned"])
        for i in range(600):
            calls = dice.choice([0, 0, 1, 2, 3, 5])
            at = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=i)
            rows.writerow([f"c{i}", at.isoformat(), calls, dice.random() < calls / 6])


def wait_for(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(SECONDS * 5):
        assert server.poll() is None
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")


def state(home: Path) -> dict[str, str]:
    for _ in range(SECONDS * 5):
        try:
            return dict(json.loads((home / "serve.json").read_bytes()))
        except (OSError, ValueError):
            time.sleep(0.2)
    raise AssertionError("the server does not start")


@pytest.mark.slow
def test_no_command_and_no_process_of_a_server_resolves_or_reaches_another_machine(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    customers(tmp_path / "customers.csv")
    made = ["init", "churn", "--from", "customers.csv", "--label", "churned", "--time", "renewal_at", "--key", "customer_id"]
    watched.run("init", *made)
    for table in ("churn-requests", "churn-outcomes"):
        watched.run(f"ingest-{table}", "ingest", table, "customers.csv", "--loop", "churn")
    watched.run("run", "run", "churn")
    for verb in (["status"], ["doctor"], ["verify"], ["history", "churn"], ["tend", "--once"]):
        watched.run(verb[0], *verb)
    served = watched.command("serve", "serve", "--workers", "2", "--port", "0", "--control-port", "0")
    with (tmp_path / "serve.err").open("w") as errors:
        server = subprocess.Popen(served, cwd=tmp_path, env=watched.environment, stdout=errors, stderr=errors)
    try:
        urls = state(tmp_path / "home")
        wait_for(f"{urls['data']}/readyz", server)
        body = json.dumps({"customer_id": "a", "support_calls": 1}).encode()
        for _ in range(20):
            request = urllib.request.Request(f"{urls['data']}/loops/churn/predict", body, {"content-type": "application/json"})
            assert json.load(urllib.request.urlopen(request, timeout=60))["score"] >= 0
        wait_for(f"{urls['control']}/", server)
    finally:
        os.kill(int(urls["pid"]), signal.SIGTERM)
        server.wait(SECONDS)
    watched.check("serve")
