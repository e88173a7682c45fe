"""Whether the holder of a lease is known to be dead."""

import os
import subprocess
import sys

import msgspec
import pytest

from loopwright.base.holder import this_process


def test_a_holder_is_dead_once_its_process_has_ended_or_its_number_went_to_another() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        script = "import sys; from loopwright.base.holder import *; sys.stdout.write(encode_holder(this_process('child', 1.0)))"
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        alive = this_process("here", 1.0)
        assert not alive.dead
        assert msgspec.json.decode(ended, type=type(alive)).dead
        assert msgspec.structs.replace(alive, pid=child.pid).dead, "another process has its number"
        child.kill()


def test_a_holder_that_proc_hides_from_this_user_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = msgspec.structs.replace(this_process("of another user", 1.0), pid=2**22 + 1)  # no process can have it
    assert hidden.dead

    def refuse(pid: int, signal: int) -> None:
        assert (pid, signal) == (hidden.pid, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)  # as the kernel answers where /proc is mounted with hidepid
    assert not hidden.dead
