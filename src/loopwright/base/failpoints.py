"""Fail points: named places in the product's own code where a test can make it die, fail, write short or wait.

Inert unless `LOOPWRIGHT_FAILPOINTS` is set when the process reaches its first point, e.g.

    LOOPWRIGHT_FAILPOINTS="log.append.written=kill@3;log.seal.*=EIO@2"

An action is `kill` (SIGKILL to this process), an errno name (`ENOSPC`, `EIO`: raised as OSError), `short` (a write stores
half of its bytes), `tear` (half of the bytes, then SIGKILL) or `delay:SECONDS`. `@n` means at the n-th hit only (at every
hit without it). A name may end in `*`; its hits are counted over all points it matches, so that the n-th system call of a
path can be failed for n = 1, 2, 3 ... as SQLite's own tests do (https://www.sqlite.org/testing.html).
"""

import errno
import os
import signal
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase

from loopwright.base.errors import SettingInvalid

VARIABLE = "LOOPWRIGHT_FAILPOINTS"

POINTS: tuple[tuple[str, str], ...] = (
    ("log.create", "before a segment file is made"),
    ("log.created", "segment file made and locked, not yet under its name"),
    ("log.append.before", "records encoded, nothing written"),
    ("log.append.write", "the write of a batch of records"),
    ("log.append.written", "records written, nothing answered"),
    ("log.sync", "the sync of what was appended (durability disk)"),
    ("log.synced", "records on the disk, nothing answered (durability disk)"),
    ("log.answered", "the answer left the process"),
    ("log.seal.next", "the next segment is there, the old one not yet sealed"),
    ("log.seal.write", "the write of the footer"),
    ("log.seal.footer", "footer written, not synced"),
    ("log.seal.synced", "footer synced, segment not yet renamed"),
    ("log.seal.renamed", "segment renamed, folder not yet synced"),
    ("log.recover.torn", "torn tail of a dead writer's segment set aside, not yet cut off"),
    ("log.recover.cut", "torn tail cut off, no footer yet"),
    ("log.commit.before", "segments read, nothing in Delta"),
    ("log.commit.delta", "rows and cursor in Delta, segments still there"),
    ("log.commit.half", "some of the committed segments deleted"),
    ("lake.committed", "a commit is in a table's log, nothing of it synced"),
    ("lake.seal.synced", "files and names of a commit on the disk, its seal not yet written"),
    ("package.partly", "some files of a package written under a passing name"),
    ("package.renamed", "a package under its name, the folder not yet synced"),
    ("package.recorded", "the packages of a turn in the ledger with their lineage, the step not recorded as done"),
    ("turn.step.began", "step of a turn recorded as running, nothing of it done"),
    ("turn.segment.kept", "model of one segment stored, the next one not begun"),
    ("turn.step.ran", "step of a turn done, not recorded as done"),
    ("release.planning", "a rollback is asked for, the ledger has not been read"),
    ("release.judged", "the verdict on a stage is recorded, nothing was done about it"),
    ("release.blocked", "the package that was judged worse is marked bad, it still serves its share"),
    ("release.intent", "everything checked, nothing recorded"),
    ("release.recorded", "state and audit row in the ledger, the servers' copy is the old one"),
    ("release.copied", "the servers' copy is written, workers have not been told otherwise"),
    ("release.followed", "a server's process is about to bring a copy up to date with the ledger"),
    ("release.loaded", "a worker has made the new package ready, the old one answers"),
    ("release.switched", "a worker has switched, others perhaps not"),
    ("release.local", "a rollback is in the servers' copy, the ledger does not know of it"),
    ("release.caught_up", "a rollback made without the ledger is recorded, the copy does not say so yet"),
    ("bad.marked", "package marked bad in a file, still in service"),
    ("bad.rolled_back", "bad package out of service, not yet in the ledger, nobody told"),
    ("outcome.stored", "outcomes logged, not answered and not joined"),
    ("window.computed", "monitoring window measured, nothing written"),
    ("window.closed", "monitoring window written, no reason to retrain looked for, no alert sent"),
    ("alert.decided", "alert recorded, not sent"),
    ("alert.sent", "alert sent, not recorded as sent"),
)

THREADS = "thread.*"
"""The points of `base.supervision`: `thread.NAME`, before each step of a thread or task. An error there is one of the thread's own."""


class _Rule:
    """One action at one point (or pattern), with its count of hits."""

    def __init__(self, pattern: str, action: str, at: int | None) -> None:
        self.pattern, self.action, self.at, self.hits = pattern, action, at, 0

    def due(self, name: str) -> bool:
        if name != self.pattern and not fnmatchcase(name, self.pattern):
            return False
        self.hits += 1
        return self.at is None or self.hits == self.at


_rules: list[_Rule] | None = None


def arm(text: str | None = None, environ: Mapping[str, str] | None = None) -> None:
    """Set the fail points from `text`, or from the environment; the empty text disarms.

    Raises SettingInvalid naming the part that cannot be read.
    """
    global _rules
    if text is None:
        text = (os.environ if environ is None else environ).get(VARIABLE, "")
    _rules = [_parse(part.strip()) for part in text.split(";") if part.strip()]


def armed() -> bool:
    """Whether any fail point is set; the environment is read at the first call in a process, not again."""
    if _rules is None:
        arm()
    return bool(_rules)


def hits(pattern: str) -> int:
    """Number of times that the rule for `pattern` was reached since it was set; 0 without a rule."""
    return max((rule.hits for rule in _rules or () if rule.pattern == pattern), default=0)


def hit(name: str) -> None:
    """Pass the point `name`: nothing happens unless it is set. Raises OSError where an errno is set."""
    if armed():
        _fire(name, None, b"")


def write(name: str, fd: int, data: bytes | bytearray | memoryview) -> int:
    """`os.write` through the point `name`; returns the number of bytes written."""
    if armed():
        written = _fire(name, fd, data)
        if written is not None:
            return written
    return os.write(fd, data)


def _fire(name: str, fd: int | None, data: bytes | bytearray | memoryview) -> int | None:
    for rule in _rules or ():
        if not rule.due(name):
            continue
        action = rule.action
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif action.startswith("delay:"):
            time.sleep(float(action[6:]))
        elif action in ("short", "tear"):
            if fd is None:
                continue
            written = os.write(fd, bytes(data[: len(data) // 2]))
            if action == "tear":
                os.kill(os.getpid(), signal.SIGKILL)
            return written
        else:
            number = getattr(errno, action)
            raise OSError(number, os.strerror(number))
    return None


def _parse(part: str) -> _Rule:
    pattern, equals, action = part.partition("=")
    action, _, at = action.partition("@")
    known = fnmatchcase(pattern, THREADS) or any(fnmatchcase(name, pattern) for name, _ in POINTS)
    if not equals or not known:
        raise SettingInvalid(VARIABLE, part, f"no fail point is called {pattern!r}")
    if action.startswith("delay:"):
        try:
            lawful = float(action[6:]) >= 0
        except ValueError:
            lawful = False
    else:
        lawful = action in ("kill", "short", "tear") or (action.startswith("E") and hasattr(errno, action))
    if not lawful or (at and not at.isdigit()):
        raise SettingInvalid(
            VARIABLE, part, "an action is kill, short, tear, delay:SECONDS or an errno name, then @n if only the n-th hit"
        )
    return _Rule(pattern, action, int(at) if at else None)
