"""Seals: make the commits of a local Delta table durable, and corruption of its files detectable.

delta-rs syncs nothing, and neither Parquet nor the Delta log detects damage by itself. So after a commit its files are synced,
then their folders, and last `_sums/<version>.json` with the SHA-256 of each is written: the commit's seal. No caller relies on
an unsealed commit. After a power cut an unsealed commit may be torn; then it is rolled back (moved to `_torn/`), as if it had
never been.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from loopwright.base import failpoints
from loopwright.base.errors import first_line
from loopwright.base.files import replace_file, sync
from loopwright.base.ids import digest
from loopwright.records.entries import Problem

TRANSACTION = "loopwright.transaction"
"""In a commit's information where it carries an application transaction: without that it is torn."""

MAX_UNSEALED = 8
"""A table with more commits and no seal is not one of ours: nothing of it is ever taken back."""

_GONE = "removed"
_LAST_CHECKPOINT = "_last_checkpoint"
_COUNTS = {"add": ("num_added_files", "numFilesAdded"), "remove": ("num_removed_files", "numFilesRemoved")}


def sealed(folder: Path, version: int) -> bool:
    """Whether a version of the table in `folder` is on the disk with all it needs."""
    return _sums_file(folder, version).exists()


def lost(folder: Path, version: int) -> bool:
    """Whether a version was sealed and its commit is gone from the log."""
    return sealed(folder, version) and not _log_file(folder, version).exists()


def seal(folder: Path, version: int) -> None:
    """Sync the files of all commits up to `version` and store their digests, beginning after the last sealed one."""
    failpoints.hit("lake.committed")
    with _alone(folder):
        last = next((number for number in range(version, -1, -1) if sealed(folder, number)), -1)
        new = range(last + 1, version + 1)
        if not new:
            return
        (folder / "_sums").mkdir(exist_ok=True)
        sums = [{str(path.relative_to(folder)): _synced_digest(path) for path in _files(folder, number)} for number in new]
        if (hint := folder / "_delta_log" / _LAST_CHECKPOINT).exists():
            sync(hint)
        # A new table's own name, too, and that of the lake.
        for directory in (folder / "_delta_log", folder, *([*folder.parents][:2] if 0 in new else [])):
            sync(directory)
        failpoints.hit("lake.seal.synced")
        for number, sum in zip(new, sums, strict=True):
            replace_file(_sums_file(folder, number), msgspec.json.encode(sum))


def take_back(folder: Path) -> bool:
    """Roll back torn unsealed commits after a power cut; returns whether there were any. Raises OSError."""
    with _alone(folder):
        last = _last_sealed(folder)
        numbers = [number for number in _numbers(folder) if number > last]
        if last < 0 and len(numbers) > MAX_UNSEALED:
            return False
        torn = next((n for i, n in enumerate(numbers) if n != last + 1 + i or not _whole(folder, n)), None)
        gone = [_log_file(folder, number) for number in numbers if torn is not None and number >= torn]
        for number in numbers:
            checkpoint = _checkpoint(folder, number)
            if checkpoint.exists() and (_log_file(folder, number) in gone or not _readable(checkpoint)):
                gone.append(checkpoint)
        hint = folder / "_delta_log" / _LAST_CHECKPOINT
        if hint.exists() and not _points(folder, hint, gone):
            gone.insert(0, hint)  # first, or the log could not be read without the file that it points to
        for path in gone:
            (folder / "_torn").mkdir(exist_ok=True)
            path.rename(folder / "_torn" / path.name)
    return bool(gone)


def forget(folder: Path, files: set[str]) -> None:
    """Record that these files of the table are about to be removed for good, so that they are not reported missing."""
    with _alone(folder):
        for path in sorted((folder / "_sums").glob("*.json")):
            sums = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
            if sums.keys() & files:
                replace_file(path, msgspec.json.encode({file: _GONE if file in files else sum for file, sum in sums.items()}))


def forgotten(folder: Path) -> bool:
    """Whether files of versions gone by were removed for good."""
    needle = f'"{_GONE}"'.encode()
    return any(needle in path.read_bytes() for path in (folder / "_sums").glob("*.json"))


def check(folder: Path, where: str) -> list[Problem]:
    """Every file that has a digest, also of versions gone by, against it; and the log's numbers. `where` names the table."""
    problems: list[Problem] = []
    numbers = _numbers(folder)
    if missing := sorted(set(range(max([*numbers[-1:], _last_sealed(folder)], default=-1) + 1)) - set(numbers)):
        problems.append(Problem(where=where, what=f"commits {', '.join(map(str, missing))} are missing from the log"))
    for path in sorted((folder / "_sums").glob("*.json")):
        try:
            sums = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except (OSError, msgspec.DecodeError):
            problems.append(Problem(where=f"{where} _sums/{path.name}", what="cannot be read"))
            continue
        for file, sum in sums.items():
            if sum != _GONE and (what := _differs(folder / file, sum)):
                problems.append(Problem(where=f"{where} {file}", what=what))
    return problems


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the table's lock: a commit being sealed, or one made in the place of a torn commit, must not be rolled back."""
    fd = os.open(folder / "_delta_log", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _whole(folder: Path, number: int) -> bool:
    """Whether a commit and its added files are complete. A torn file raises no error number, unlike an unreadable disk."""
    try:
        actions = [
            msgspec.json.decode(line, type=dict[str, Any]) for line in _log_file(folder, number).read_bytes().splitlines()
        ]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    found = [(name, content) for action in actions for name, content in action.items()]
    names = [name for name, _ in found]
    about = next((content for name, content in found if name == "commitInfo"), None)
    if about is None:
        return False
    metrics = about.get("operationMetrics", {})
    for name, metric in ((name, m) for name, each in _COUNTS.items() for m in each):
        if metric in metrics and int(metrics[metric]) != names.count(name):
            return False
    if (TRANSACTION in about and "txn" not in names) or (number == 0 and "metaData" not in names):
        return False
    added = [(folder / unquote(content["path"]), content["size"]) for name, content in found if name == "add"]
    return all(path.exists() and path.stat().st_size == size and _readable(path) for path, size in added)


def _readable(path: Path) -> bool:
    """Whether a Parquet file is complete. Raises OSError for disk errors."""
    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except FileNotFoundError:
        return False
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return False
    return True


def _points(folder: Path, hint: Path, gone: list[Path]) -> bool:
    try:
        to = _checkpoint(folder, msgspec.json.decode(hint.read_bytes())["version"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError):
        return False
    return to.exists() and to not in gone


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "_delta_log").glob("*.json") if path.stem.isdigit())


def _last_sealed(folder: Path) -> int:
    return max((int(path.stem) for path in (folder / "_sums").glob("*.json") if path.stem.isdigit()), default=-1)


def _log_file(folder: Path, version: int) -> Path:
    return folder / "_delta_log" / f"{version:020}.json"


def _checkpoint(folder: Path, version: int) -> Path:
    return _log_file(folder, version).with_suffix(".checkpoint.parquet")


def _sums_file(folder: Path, version: int) -> Path:
    return folder / "_sums" / f"{version:020}.json"


def _files(folder: Path, version: int) -> list[Path]:
    """The files of a commit: its entry in the log, a checkpoint, the files it added."""
    log, checkpoint = _log_file(folder, version), _checkpoint(folder, version)
    actions = (msgspec.json.decode(line) for line in log.read_bytes().splitlines() if line.strip())
    added = [folder / unquote(action["add"]["path"]) for action in actions if "add" in action]
    return [log, *added, *([checkpoint] if checkpoint.exists() else [])]


def _synced_digest(path: Path) -> str:
    sync(path)
    return digest(path.read_bytes())


def _differs(path: Path, sum: str) -> str | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {first_line(error)}"
    return None if digest(data) == sum else "is not what was written"
