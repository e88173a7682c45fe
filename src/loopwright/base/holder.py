"""The holder of a lease: host, boot, PID namespace, PID and start time of a process, so that a dead holder is recognised at once."""

import os
import socket
from functools import lru_cache
from pathlib import Path

import msgspec

_PROC = Path("/proc")


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds a lease until `until`, by the uptime of its machine (`Clock.uptime`); `owner` is its own word for itself.

    `boot` and `namespace` are empty where the system has none; then the process cannot be checked from outside.
    """

    owner: str
    host: str = ""
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    started: int = 0
    until: float = 0.0

    @property
    def here(self) -> bool:
        """Whether it runs, or ran, on this machine since it started."""
        return bool(self.boot) and self.boot == boot_id()

    @property
    def dead(self) -> bool:
        """Whether it is known to have ended: on this machine before it last started, or since then."""
        if not self.here or not self.namespace or self.namespace != _namespace():
            return False
        return _started(self.pid) != self.started and not _hidden(self.pid)

    @property
    def gone(self) -> bool:
        """Whether it has surely ended, e.g. because this machine has rebooted since."""
        return self.dead or (bool(self.boot) and not self.here and self.host == socket.gethostname()[:64])

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "another process"


def this_process(owner: str, until: float) -> Holder:
    """This process as a holder."""
    pid = os.getpid()
    return Holder(
        owner=owner,
        host=socket.gethostname()[:64],
        boot=boot_id(),
        namespace=_namespace(),
        pid=pid,
        started=_started(pid) or 0,
        until=until,
    )


def encode_holder(holder: Holder) -> str:
    """The text by which a ledger remembers a holder."""
    return msgspec.json.encode(holder).decode()


def decode_holder(text: str) -> Holder:
    """The holder that a ledger remembers; of earlier versions only the owner is known."""
    try:
        return msgspec.json.decode(text, type=Holder)
    except msgspec.DecodeError:
        return Holder(owner=text)


@lru_cache(1)
def boot_id() -> str:
    """The boot id of this machine; empty where the system has none."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""


def _hidden(pid: int) -> bool:
    """Whether a process exists that `/proc` hides: another user's, mounted with `hidepid`."""
    if (_PROC / str(pid)).exists():
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _started(pid: int) -> int | None:
    """Start time of a process, in ticks since boot; None if there is none, or it is a zombie."""
    try:
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in ("Z", "X") else int(fields[18])
