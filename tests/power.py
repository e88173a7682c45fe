"""A disk that forgets: every state of a folder that a power cut may leave, made from what was synced and what was not.

What the kernel promises (POSIX fsync; the file systems' common ground in Pillai et al. 2014, "All file systems are not created
equal", OSDI): a file's bytes are on the disk once it was synced, a folder's names once the folder was; a rename is one step.
Anything else may be there or not after the cut, wholly or in part, in any order. So only syncs have to be watched: whatever is
in the folder and was not synced is what may be lost.
"""

import os
import random
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

SECTOR = 64
"""Bytes that are written as one; small, so that small files are torn in many ways."""

Links = frozenset[tuple[int, str]]


class ForgetfulDisk:
    """Watches the syncs in `root` and calls `cut(disk)` before each, when most may be lost, and at `cut`; `left` makes what the cut leaves."""

    def __init__(self, root: Path, cut: Callable[["ForgetfulDisk"], None], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self._cut, self._lock = root, cut, threading.RLock()
        self._top = root.stat().st_ino
        self._bytes: dict[int, bytes] = {}
        self._links: dict[tuple[int, str], int] = {}
        self._held: dict[int, int] = {}
        self._folders: set[int] = {self._top}
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        for folder, _, files in os.walk(root):
            self._synced(Path(folder).stat(), Path(folder))
            for file in files:
                self._synced((Path(folder) / file).stat(), Path(folder) / file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._held.values():
            os.close(fd)

    def cut(self) -> None:
        """Let the power fail now."""
        with self._lock:
            self._cut(self)

    def _watched(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            place = Path(f"/proc/self/fd/{fd}")
            if not str(place.readlink()).startswith(str(self.root)):
                real(fd)
                return
            with self._lock:
                self._cut(self)
                self._synced(os.fstat(fd), place)
                real(fd)

        return sync

    def _synced(self, what: os.stat_result, place: Path) -> None:
        """Note what is durable now; held open, so that no other file gets its number."""
        if what.st_ino not in self._held:
            self._held[what.st_ino] = os.open(place, os.O_PATH)
        if not stat.S_ISDIR(what.st_mode):
            self._bytes[what.st_ino] = place.read_bytes()
            return
        self._links = {link: ino for link, ino in self._links.items() if link[0] != what.st_ino}
        for entry in list(os.scandir(place)):  # a list closes it, whatever happens to an entry
            self._links[what.st_ino, entry.name] = entry.inode()
            self._hold(entry)

    def _hold(self, entry: "os.DirEntry[str]") -> None:
        if entry.inode() not in self._held:
            self._held[entry.inode()] = os.open(entry.path, os.O_PATH)
        if entry.is_dir(follow_symlinks=False):
            self._folders.add(entry.inode())

    def left(self, target: Path, dice: random.Random, *, lost: float = 0.5) -> None:
        """Make in `target` what may be left: each unsynced change is lost with probability `lost`, 0 none and 1 all of them."""
        with self._lock:
            now: dict[tuple[int, str], int] = {}
            bytes_now: dict[int, bytes] = {}
            for folder, _, _ in os.walk(self.root):
                number = Path(folder).stat().st_ino
                for entry in list(os.scandir(folder)):
                    now[number, entry.name] = entry.inode()
                    self._hold(entry)
                    if entry.is_file(follow_symlinks=False):
                        bytes_now[entry.inode()] = Path(entry.path).read_bytes()
            self._build(target, self._names(now, dice, lost), bytes_now, dice, lost)

    def _names(self, now: dict[tuple[int, str], int], dice: random.Random, lost: float) -> dict[tuple[int, str], int]:
        """Of each group of changed names that belong together (a rename; a name that another file has now) all or none."""
        before, groups = self._links, list[tuple[set[tuple[int, str]], set[int]]]()
        changed = [link for link in before.keys() | now.keys() if before.get(link) != now.get(link)]
        for link in sorted(changed):
            names, inodes = {link}, {i for i in (before.get(link), now.get(link)) if i is not None}
            joined = [g for g in groups if g[1] & inodes]
            groups = [g for g in groups if not g[1] & inodes]
            groups.append((names.union(*(g[0] for g in joined)), inodes.union(*(g[1] for g in joined))))
        chosen = dict(before)
        for names, _ in groups:
            if dice.random() >= lost:
                for link in names:
                    chosen.pop(link, None)
                    if link in now:
                        chosen[link] = now[link]
        return chosen

    def _build(
        self,
        target: Path,
        links: dict[tuple[int, str], int],
        now: dict[int, bytes],
        dice: random.Random,
        lost: float,
    ) -> None:
        waiting = [(self._top, target)]
        while waiting:
            number, place = waiting.pop()
            place.mkdir()
            for (folder, name), inode in sorted(links.items()):
                if folder != number:
                    continue
                if inode in self._folders:
                    waiting.append((inode, place / name))
                else:
                    durable = self._bytes.get(inode, b"")
                    (place / name).write_bytes(_torn(durable, now.get(inode, durable), dice, lost))


def _torn(durable: bytes, now: bytes, dice: random.Random, lost: float) -> bytes:
    """What may be left of a file: its size is one it had, or between; of each sector the old bytes or the new."""
    if durable == now or lost >= 1 or (lost > 0 and dice.random() < lost / 2):
        return durable
    if lost <= 0 or dice.random() < (1 - lost) / 2:
        return now
    low, high = sorted((len(durable), len(now)))
    size = dice.choice((low, high, dice.randint(low, high)))
    if dice.random() < 0.5:  # in order, so a beginning
        return (now + durable[len(now) :])[:size]
    made = bytearray(size)
    for at in range(0, size, SECTOR):
        part = (durable if dice.random() < lost else now)[at : min(at + SECTOR, size)]
        made[at : at + len(part)] = part
    return bytes(made)
