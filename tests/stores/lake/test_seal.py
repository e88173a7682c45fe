from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from loopwright.base import failpoints
from loopwright.base.errors import Unavailable
from loopwright.stores.lake import seal
from loopwright.stores.lake.tables import Lake

NAME = "log"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Three sealed appends, and a fourth that was committed and never sealed, as by a process that died or a power cut."""
    lake = Lake(str(tmp_path / "lake"))
    for number in range(4):
        failpoints.arm("lake.committed=EIO" if number == 3 else "")
        try:
            lake.append_once(NAME, pa.table({"a": [number] * 50}), application="w", sequence=number)
        except Unavailable:
            assert number == 3
    failpoints.arm("")
    return lake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lake" / NAME


def last(folder: Path) -> Path:
    return max((folder / "_delta_log").glob("*.json"))


def added(folder: Path) -> Path:
    """The file that the unsealed commit added."""
    text = last(folder).read_text()
    return next(path for path in folder.glob("*.parquet") if path.name in text)


def keep_lines(*wanted: str) -> Callable[[Path], object]:
    def tear(folder: Path) -> None:
        lines = last(folder).read_bytes().split(b"\n")
        last(folder).write_bytes(
            b"\n".join(line for line in lines if line.startswith(tuple(f'{{"{w}"'.encode() for w in wanted)))
        )

    return tear


def cut(path: Callable[[Path], Path], size: int) -> Callable[[Path], object]:
    return lambda folder: path(folder).write_bytes(path(folder).read_bytes()[:size])


def zeroed(path: Callable[[Path], Path]) -> Callable[[Path], object]:
    return lambda folder: path(folder).write_bytes(bytes(path(folder).stat().st_size))


TORN: dict[str, Callable[[Path], object]] = {
    "an empty commit": cut(last, 0),
    "half a commit": cut(last, 700),
    "a commit of zeros": zeroed(last),
    "no transaction": keep_lines("commitInfo", "add"),
    "no files": keep_lines("commitInfo", "txn"),
    "no file": lambda folder: added(folder).unlink(),
    "half a file": cut(added, 300),
    "a file of zeros": zeroed(added),
}


def rows(lake: Lake) -> list[int]:
    return sorted(set(lake.read(NAME)["a"].to_pylist()))


def test_what_is_whole_stays_and_is_sealed_by_whoever_comes_first(lake: Lake, folder: Path) -> None:
    newest = int(last(folder).stem)
    assert not seal.sealed(folder, newest)
    assert rows(lake) == [0, 1, 2, 3]
    assert lake.last_sequence(NAME, "w") == 3
    assert seal.sealed(folder, newest), "once, and not looked at again by everyone who reads"
    assert lake.verify(NAME) == []


@pytest.mark.parametrize("how", TORN)
def test_what_is_torn_is_taken_back_by_whoever_comes_first_and_can_be_done_again(lake: Lake, folder: Path, how: str) -> None:
    TORN[how](folder)
    assert rows(lake) == [0, 1, 2]
    assert lake.last_sequence(NAME, "w") == 2
    assert [path.name for path in (folder / "_torn").iterdir()] == ["00000000000000000004.json"]
    assert lake.append_once(NAME, pa.table({"a": [3] * 50}), application="w", sequence=3) is not None
    assert rows(lake) == [0, 1, 2, 3]
    assert lake.verify(NAME) == []


@pytest.mark.parametrize("how", TORN)
def test_what_was_sealed_is_damage_and_never_taken_back(lake: Lake, folder: Path, how: str) -> None:
    lake.settle(NAME)
    TORN[how](folder)
    assert lake.verify(NAME) != []
    assert not seal.take_back(folder)
    assert not (folder / "_torn").exists()


@pytest.mark.parametrize("what", ["checkpoint", "hint", "both"])
def test_a_torn_checkpoint_goes_and_the_log_is_read_without_it(lake: Lake, folder: Path, what: str) -> None:
    DeltaTable(str(folder)).create_checkpoint()
    hint, [checkpoint] = folder / "_delta_log" / "_last_checkpoint", (folder / "_delta_log").glob("*.checkpoint.parquet")
    if what != "hint":
        checkpoint.write_bytes(checkpoint.read_bytes()[:200])
    if what != "checkpoint":
        hint.write_bytes(b'{"versi')
    assert rows(lake) == [0, 1, 2, 3]
    lake.append_once(NAME, pa.table({"a": [4]}), application="w", sequence=4)
    assert rows(lake) == [0, 1, 2, 3, 4]


def test_the_very_first_commit_may_be_torn_too(tmp_path: Path) -> None:
    lake, folder = Lake(str(tmp_path / "lake")), tmp_path / "lake" / NAME
    failpoints.arm("lake.committed=EIO")
    with pytest.raises(Unavailable):
        lake.write(NAME, pa.table({"a": [1]}))
    failpoints.arm("")
    for path in (folder / "_delta_log").glob("*.json"):
        path.write_bytes(b"")
    assert not lake.exists(NAME)
    lake.write(NAME, pa.table({"a": [2]}))
    assert rows(lake) == [2]


def test_a_table_that_others_made_is_left_as_it_is(tmp_path: Path) -> None:
    lake, folder = Lake(str(tmp_path / "lake")), tmp_path / "lake" / NAME
    for number in range(seal.MAX_UNSEALED + 1):
        lake.write(NAME, pa.table({"a": [number]}))
    for path in (folder / "_sums").iterdir():
        path.unlink()
    last(folder).write_bytes(b"")
    assert not seal.take_back(folder)
