import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from tests.stores.prediction_log.samples import prediction

from loopwright.base.errors import NameInvalid, Unavailable
from loopwright.base.settings import Settings
from loopwright.records.entries import Problem
from loopwright.records.prediction import Prediction
from loopwright.stores.home import Home
from loopwright.stores.prediction_log.commit import commit, verify
from loopwright.stores.prediction_log.read import predictions
from loopwright.stores.prediction_log.segment import log_folder, read_segment
from loopwright.stores.prediction_log.writer import LogWriter


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home")) as opened:
        yield opened


def folder(home: Home) -> Path:
    return log_folder(home.path, "loop") / "predictions"


def written(home: Home, segments: int = 4) -> tuple[list[Path], list[list[Prediction]]]:
    """A closed writer's segments of three records each, and the records."""
    records = [[prediction(10 * n + i) for i in range(3)] for n in range(segments)]
    before = set(folder(home).glob("*.sealed"))
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        for batch in records:
            writer.append(batch)
            writer.seal()
    return sorted(set(folder(home).glob("*.sealed")) - before), records


def units(home: Home) -> list[str]:
    return sorted(home.lake.read("predictions.loop", columns=["_unit"])["_unit"].to_pylist())


def expected(*batches: list[Prediction]) -> list[str]:
    return sorted(record.unit for batch in batches for record in batch)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def whats(problems: list[Problem]) -> str:
    return "\n".join(f"{Path(p.where).name}: {p.what}" for p in problems)


def test_nothing_to_commit(home: Home) -> None:
    done = commit(home, "loop")
    assert (done.predictions, done.outcomes, done.problems) == (0, 0, [])
    assert verify(home) == []
    assert not home.lake.exists("predictions.loop")


def test_rows_move_to_delta_and_segments_go(home: Home) -> None:
    _, records = written(home)
    assert verify(home) == []
    done = commit(home, "loop")
    assert (done.predictions, done.problems) == (12, [])
    assert units(home) == expected(*records)
    assert list(folder(home).iterdir()) == []
    again = commit(home, "loop")
    assert (again.predictions, again.problems) == (0, [])


def test_the_lakes_own_rows_are_as_the_log_had_them(home: Home) -> None:
    written(home, 1)
    commit(home, "loop")
    row = home.lake.read("predictions.loop", filters=[("_unit", "=", "AA|0")]).to_pylist()[0]
    assert (row["carrier"], row["flight"], row["delay"], row["night"], row["wind"]) == ("AA", 0, 0.0, True, 3.5)
    assert (row["_score"], row["_label"], row["_flags"], row["_context_age_s"]) == (0.25, False, ["out_of_range:delay"], 60.0)
    assert home.lake.schema("predictions.loop").field("_at").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize("where", ["header", "first frame", "a middle frame", "last frame", "footer"])
def test_a_flip_is_found_the_neighbours_committed_and_the_segment_kept_aside(home: Home, where: str) -> None:
    paths, records = written(home)
    segment = read_segment(paths[1], "predictions")
    frames = segment.frames
    places = {
        "header": 10,
        "first frame": frames[0].start + 30,
        "a middle frame": frames[1].start + 2,
        "last frame": frames[2].end - 1,
        "footer": segment.size - 20,
    }
    flip(paths[1], places[where])
    assert paths[1].name in whats(verify(home))
    done = commit(home, "loop")
    assert paths[1].name in whats(done.problems)
    lost = {"first frame": 0, "a middle frame": 1, "last frame": 2}.get(where)
    assert units(home) == expected(records[0], [r for i, r in enumerate(records[1]) if i != lost], records[2], records[3])
    assert "set aside by a commit" in whats(verify(home))
    shutil.rmtree(folder(home) / "quarantine")
    assert verify(home) == []


def test_a_flip_in_a_dead_writers_open_segment_is_found_and_its_neighbours_kept(home: Home, tmp_path: Path) -> None:
    writer = LogWriter(log_folder(home.path, "loop"), "predictions")
    records = [prediction(i) for i in range(5)]
    writer.append(records)
    [path] = folder(home).glob("*.open")
    copy = tmp_path / "copy"
    shutil.copytree(folder(home), copy)
    writer.close()
    shutil.rmtree(folder(home))
    shutil.copytree(copy, folder(home))
    flip(path, read_segment(path, "predictions").frames[2].start + 40)
    assert "are damaged" in whats(verify(home))
    done = commit(home, "loop")
    assert "are damaged" in whats(done.problems)
    assert units(home) == expected(records[:2], records[3:])
    assert "set aside" in whats(verify(home))


@pytest.mark.parametrize("keep", [0, 20, 100, -1])
def test_a_truncated_segment_is_found(home: Home, keep: int) -> None:
    paths, records = written(home)
    data = paths[2].read_bytes()
    paths[2].write_bytes(data[:keep])
    whole = len(read_segment(paths[2], "predictions").records)
    assert paths[2].name in whats(verify(home))
    commit(home, "loop")
    assert units(home) == expected(*records[:2], records[2][:whole], records[3])
    assert paths[2].name in whats(verify(home))


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_a_missing_segment_is_found_before_and_after_the_commit(home: Home, gone: int) -> None:
    paths, records = written(home)
    with LogWriter(log_folder(home.path, "loop"), "predictions") as alive:
        alive.append([prediction(99)])
        paths[gone].unlink()
        assert f"{paths[gone].name}: this segment is missing" in whats(verify(home))
        done = commit(home, "loop")
        assert f"segment {gone} of the same writer is missing" in whats(done.problems)
    commit(home, "loop")
    assert units(home) == expected(*(r for i, r in enumerate(records) if i != gone), [prediction(99)])
    assert "was missing when its neighbours were committed" in whats(verify(home))


def test_a_missing_last_segment_is_found(home: Home) -> None:
    paths, _ = written(home)
    paths[-1].unlink()
    assert f"{paths[-1].name}: this segment is missing" in whats(verify(home))


def test_all_segments_missing_is_found(home: Home) -> None:
    paths, _ = written(home)
    for path in paths:
        path.unlink()
    assert f"{paths[0].name}: this segment is missing" in whats(verify(home))


def test_segments_lost_after_a_commit_are_found(home: Home) -> None:
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        writer.append([prediction(0)])
        writer.seal()
        assert commit(home, "loop").predictions == 1
        writer.append([prediction(1)])
        [path] = folder(home).glob("*.open")
        path.rename(path.with_name("elsewhere"))
        assert "00000001.sealed: this segment is missing" in whats(verify(home))
        path.with_name("elsewhere").rename(path)
        assert verify(home) == []


DOUBLES: dict[str, Callable[[Path], Path]] = {
    "under the next number": lambda p: p.with_name(p.name.replace("00000001", "00000077")),
    "as another writer's": lambda p: p.with_name("f" * 32 + p.name[32:]),
    "as an open one": lambda p: p.with_suffix(".open"),
    "under a name of no segment": lambda p: p.with_name(f"copy of {p.name}"),
}


@pytest.mark.parametrize("how", DOUBLES)
def test_a_doubled_segment_is_found_and_its_rows_are_there_once(home: Home, how: str) -> None:
    paths, records = written(home)
    double = DOUBLES[how](paths[1])
    shutil.copy(paths[1], double)
    found = whats(verify(home))
    assert double.name in found
    commit(home, "loop")
    assert units(home) == expected(*records)
    assert double.name in whats(verify(home))


@pytest.mark.parametrize("state", ["sealed", "open"])
def test_a_segment_of_another_loop_is_found_and_its_rows_are_not_taken(home: Home, state: str) -> None:
    with LogWriter(log_folder(home.path, "other"), "predictions") as writer:
        writer.append([prediction(77)])
    _, records = written(home)
    [other] = (log_folder(home.path, "other") / "predictions").glob("*.sealed")
    foreign = folder(home) / other.with_suffix(f".{state}").name
    shutil.move(other, foreign)
    assert f"{foreign.name}: written for another loop" in whats(verify(home))
    assert len(predictions(home, "loop")) == 12
    assert "written for another loop" in whats(commit(home, "loop").problems)
    assert units(home) == expected(*records)
    assert f"{foreign.stem}.sealed.damaged: set aside by a commit" in whats(verify(home))


def test_swapped_segments_are_found_and_kept_and_their_neighbours_committed(home: Home, tmp_path: Path) -> None:
    paths, records = written(home)
    shutil.move(paths[1], tmp_path / "one")
    shutil.move(paths[2], paths[1])
    shutil.move(tmp_path / "one", paths[2])
    found = whats(verify(home))
    assert all(f"{p.name}: doubled or renamed" in found for p in paths[1:3])
    commit(home, "loop")
    assert units(home) == expected(records[0], records[3])
    kept = sorted((folder(home) / "quarantine").glob("*.damaged"))
    assert [
        len(read_segment(p.rename(folder(home) / p.name.removesuffix(".damaged")), "predictions").records) for p in kept
    ] == [3, 3]


def test_a_committed_segment_that_comes_back_is_swept(home: Home, tmp_path: Path) -> None:
    paths, records = written(home)
    shutil.copy(paths[1], tmp_path / "old")
    commit(home, "loop")
    shutil.copy(tmp_path / "old", paths[1])
    done = commit(home, "loop")
    assert (done.predictions, done.problems) == (0, [])
    assert not paths[1].exists()
    assert units(home) == expected(*records)


def test_a_segment_that_was_missing_and_comes_back_is_not_thrown_away(home: Home, tmp_path: Path) -> None:
    paths, _ = written(home)
    shutil.move(paths[1], tmp_path / "old")
    commit(home, "loop")
    shutil.move(tmp_path / "old", paths[1])
    assert "3 of its 3 records are not in the table" in whats(commit(home, "loop").problems)
    assert (folder(home) / "quarantine" / f"{paths[1].name}.damaged").exists()


def test_the_same_id_again_is_one_row_the_first(home: Home) -> None:
    first = prediction(0)
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        writer.append([first, prediction(1, id=first.id)])
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        writer.append([prediction(2, id=first.id), prediction(3)])
    assert commit(home, "loop").predictions == 2
    with LogWriter(log_folder(home.path, "loop"), "predictions") as writer:
        writer.append([prediction(4, id=first.id)])
    done = commit(home, "loop")
    assert (done.predictions, done.problems) == (0, [])
    assert list(folder(home).iterdir()) == []
    assert len(units(home)) == 2


def test_another_versions_segment_waits_and_is_named(home: Home) -> None:
    paths, _ = written(home, 1)
    data = bytearray(paths[0].read_bytes())
    data[5] = 2
    data[32:36] = zlib.crc32(data[:32]).to_bytes(4)
    paths[0].write_bytes(data)
    done = commit(home, "loop")
    assert done.predictions == 0
    assert "format 2" in whats(done.problems)
    assert "format 2" in whats(verify(home))
    assert paths[0].exists()


def test_loops_are_named_lawfully(home: Home) -> None:
    with pytest.raises(NameInvalid):
        commit(home, "../elsewhere")


def test_commit_waits_for_a_lake_that_is_away_and_loses_no_row(home: Home) -> None:
    _, before = written(home, 1)
    commit(home, "loop")
    lake = Path(home.settings.lake_root)
    lake.rename(lake.with_name("away"))
    paths, after = written(home, 2)
    with pytest.raises(Unavailable, match="put the lake back"):
        commit(home, "loop")
    assert all(path.exists() for path in paths)
    assert not lake.exists()
    lake.with_name("away").rename(lake)
    assert commit(home, "loop").problems == []
    assert units(home) == expected(*before, *after)
    assert verify(home) == []
