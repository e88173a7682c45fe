import errno
import os
from pathlib import Path

import pytest

from loopwright.base.files import replace_file


def test_replaced_file_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "state.json", []
    path.write_bytes(b"old")

    def watch(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".json")[0], path.read_bytes()))

    monkeypatch.setattr(os, "fsync", watch)
    replace_file(path, b"new")
    assert synced == [(".state", b"old"), (tmp_path.name, b"new")]
    synced.clear()
    replace_file(path, b"newer", durable=False)
    assert (synced, path.read_bytes(), [*tmp_path.iterdir()]) == ([], b"newer", [path])


def test_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no room"):
        replace_file(path, b"new")
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"old", [path])
