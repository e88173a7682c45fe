import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import loopwright
from loopwright.base import failpoints
from loopwright.base.errors import SettingInvalid


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_nothing_happens_unless_the_variable_is_set() -> None:
    failpoints.arm(environ={})
    assert not failpoints.armed()
    failpoints.hit("log.append.before")


def test_an_errno_is_raised_at_every_hit_or_at_the_nth_only() -> None:
    failpoints.arm("log.create=ENOSPC; log.created=EIO@2")
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            failpoints.hit("log.create")
    failpoints.hit("log.created")
    with pytest.raises(OSError, match="Input/output error"):
        failpoints.hit("log.created")
    failpoints.hit("log.created")


def test_a_pattern_counts_the_hits_of_all_its_points() -> None:
    failpoints.arm("log.seal.*=EIO@3")
    failpoints.hit("log.seal.next")
    failpoints.hit("log.append.before")
    failpoints.hit("log.seal.footer")
    with pytest.raises(OSError, match="Input/output"):
        failpoints.hit("log.seal.synced")


def test_a_short_write_stores_half_and_says_so(tmp_path: Path) -> None:
    failpoints.arm("log.append.write=short")
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    assert failpoints.write("log.append.write", fd, b"12345678") == 4
    assert failpoints.write("log.seal.write", fd, b"abc") == 3
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == b"1234abc"


def test_a_delay_waits() -> None:
    failpoints.arm("log.answered=delay:0.05")
    began = time.monotonic()
    failpoints.hit("log.answered")
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(("action", "stored"), [("kill", b""), ("tear", b"1234")])
def test_the_environment_kills_a_child(tmp_path: Path, action: str, stored: bytes) -> None:
    code = (
        "import os; from loopwright.base import failpoints;"
        f"fd = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY);"
        "failpoints.write('log.append.write', fd, b'12345678')"
    )
    env = {**os.environ, failpoints.VARIABLE: f"log.append.write={action}"}
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == stored


@pytest.mark.parametrize(
    "text",
    [
        "log.append.before",
        "no.such.point=kill",
        "log.create=explode",
        "log.create=delay:soon",
        "log.create=kill@x",
        "log.create=EXXX",
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text: str) -> None:
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_FAILPOINTS"):
        failpoints.arm(text)


def test_every_point_in_the_code_is_in_the_table_and_the_logs_are_all_used() -> None:
    source = "".join(p.read_text() for p in Path(str(loopwright.__path__[0])).rglob("*.py"))
    used = set(re.findall(r"failpoints\.(?:hit|write)\(\s*\"([a-z.]+)\"", source))
    listed = {name for name, _ in failpoints.POINTS}
    assert used <= listed
    assert {name for name in listed if name.startswith("log.") and name != "log.answered"} <= used
