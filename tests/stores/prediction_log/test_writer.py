import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stores.prediction_log.samples import outcome, prediction

from loopwright.base import failpoints
from loopwright.base.errors import LogUnavailable
from loopwright.stores.prediction_log.segment import LogSegment, log_folder, parse_name, read_segment
from loopwright.stores.prediction_log.writer import LogWriter


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def read(folder: Path, kind: str = "predictions") -> list[LogSegment]:
    return [read_segment(p, kind) for p in sorted((folder / kind).iterdir()) if parse_name(p.name)]


def ids(folder: Path) -> list[str]:
    return [record.id for segment in read(folder) for record in segment.records]


def states(folder: Path, kind: str = "predictions") -> list[str]:
    return [p.suffix for p in sorted((folder / kind).iterdir()) if parse_name(p.name)]


def test_what_was_appended_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    records = [prediction(i) for i in range(5)]
    with LogWriter(log_folder(tmp_path, "late-arrival"), "predictions") as writer:
        writer.append(records[:1])
        writer.append(records[1:])
        [segment] = read(tmp_path / "log" / "late-arrival")
        assert segment.records == records
        assert (segment.path.suffix, segment.problems, segment.torn) == (".open", [], None)
    [segment] = read(tmp_path / "log" / "late-arrival")
    assert segment.path.suffix == ".sealed"
    assert segment.footer is not None
    assert segment.footer.final
    assert segment.records == records


def test_outcomes_have_a_log_of_their_own(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "outcomes") as writer:
        writer.append([outcome(1), outcome(2)])
    assert [r.unit for s in read(tmp_path, "outcomes") for r in s.records] == ["AA|1", "AA|2"]


def test_nothing_appears_before_the_first_record(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "loop", "predictions") as writer:
        writer.tick()
        writer.seal()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_batch_writes_nothing(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([])
        assert ids(tmp_path) == []


def test_segments_are_sealed_by_size_and_run_on(tmp_path: Path) -> None:
    records = [prediction(i) for i in range(40)]
    with LogWriter(tmp_path, "predictions", segment_bytes=2000) as writer:
        for record in records:
            writer.append([record])
    segments = read(tmp_path)
    assert len(segments) > 4
    assert [s.number for s in segments] == list(range(len(segments)))
    assert [f.sequence for s in segments for f in s.frames] == list(range(40))
    assert [r for s in segments for r in s.records] == records
    assert [s.footer is not None and s.footer.final for s in segments] == [False] * (len(segments) - 1) + [True]
    assert all(s.problems == [] for s in segments)


def test_segments_are_sealed_by_age_at_a_tick_but_never_empty(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "predictions", segment_seconds=0.0) as writer:
        writer.append([prediction()])
        writer.tick()
        writer.tick()
        writer.seal()
        assert states(tmp_path) == [".sealed", ".open"]


def test_the_open_segment_is_locked_while_its_writer_lives(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path, "predictions")
    writer.append([prediction()])
    fd = os.open(read(tmp_path)[0].path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer.close()
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_many_threads_may_append(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "predictions", segment_bytes=5000) as writer:

        def work(number: int) -> None:
            for i in range(50):
                writer.append([prediction(1000 * number + i)])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    segments = read(tmp_path)
    assert [f.sequence for s in segments for f in s.frames] == list(range(400))
    assert len(set(ids(tmp_path))) == 400


def test_a_record_that_cannot_be_encoded_costs_nothing_else(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        with pytest.raises(TypeError):
            writer.append([prediction(1), prediction(2, request={"x": object()})])
        writer.append([prediction(3)])
        assert [r.unit for r in read(tmp_path)[0].records] == ["AA|0", "AA|3"]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    wrong: Any = "notes"
    with pytest.raises(ValueError, match="notes"):
        LogWriter(tmp_path, wrong)


@pytest.mark.parametrize("failure", ["log.append.write=ENOSPC@2", "log.append.write=short@2", "log.append.written=EIO@2"])
def test_a_batch_that_cannot_be_written_is_refused_whole_and_the_next_goes_to_a_new_segment(
    tmp_path: Path, failure: str
) -> None:
    failpoints.arm(failure)
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        with pytest.raises(LogUnavailable, match=r"cannot be written"):
            writer.append([prediction(i) for i in (1, 2, 3)])
        writer.append([prediction(4)])
    segments = read(tmp_path)
    assert [[r.unit for r in s.records] for s in segments] == [["AA|0"], ["AA|4"]]
    assert [f.sequence for s in segments for f in s.frames] == [0, 1]
    assert all(s.problems == [] for s in segments)


def test_no_new_segment_means_log_unavailable_until_there_is_room(tmp_path: Path) -> None:
    failpoints.arm("log.create=ENOSPC@1;log.created=EIO@1")
    with LogWriter(tmp_path, "predictions") as writer:
        for _ in range(2):
            with pytest.raises(LogUnavailable):
                writer.append([prediction(0)])
        writer.append([prediction(1)])
    assert [r.unit for s in read(tmp_path) for r in s.records] == ["AA|1"]


def test_a_disk_limit_of_the_kernel_is_met_the_same_way(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from loopwright.base.errors import LogUnavailable
from loopwright.stores.prediction_log.writer import LogWriter
from tests.stores.prediction_log.samples import prediction

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
writer = LogWriter(Path(sys.argv[1]), "predictions")
refused = 0
for i in range(60):
    try:
        writer.append([prediction(i), prediction(i + 1000)])
        print(i)
    except LogUnavailable:
        refused += 1
assert refused >= 3, refused
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    answered = [int(line) for line in done.stdout.split()]
    assert [r.unit for s in read(tmp_path) for r in s.records] == [f"AA|{j}" for i in answered for j in (i, i + 1000)]
    assert all(s.problems == [] and s.torn is None for s in read(tmp_path))
    assert 0 < len(answered) < 60


def test_a_failed_seal_leaves_the_segment_for_the_committer(tmp_path: Path) -> None:
    failpoints.arm("log.seal.write=ENOSPC@1")
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        writer.seal()
        writer.append([prediction(1)])
    assert states(tmp_path) == [".open", ".sealed"]
    assert [r.unit for s in read(tmp_path) for r in s.records] == ["AA|0", "AA|1"]


def test_those_that_wait_at_the_same_time_share_a_sync(tmp_path: Path) -> None:
    failpoints.arm("log.sync=delay:0.01")
    with LogWriter(tmp_path, "predictions") as writer:

        def work(number: int) -> None:
            for i in range(5):
                writer.append([prediction(100 * number + i)])
                writer.sync(writer.mark())

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        syncs = failpoints.hits("log.sync")
    assert len(ids(tmp_path)) == 80
    assert 5 <= syncs <= 30


def test_what_is_on_the_disk_is_not_synced_again(tmp_path: Path) -> None:
    failpoints.arm("log.sync=delay:0")
    with LogWriter(tmp_path, "predictions") as writer:
        writer.sync(writer.mark())
        writer.append([prediction(0)])
        mark = writer.mark()
        for _ in range(3):
            writer.sync(mark)
        assert failpoints.hits("log.sync") == 1
        writer.append([prediction(1)])
        writer.seal()
        writer.sync(writer.mark())
        writer.sync(mark)
        assert failpoints.hits("log.sync") <= 3


@pytest.mark.parametrize("failure", ["log.sync=EIO@2", "log.synced=EIO@2"])
def test_a_failed_sync_loses_what_waited_and_is_never_tried_again_on_that_file(
    tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    synced: list[str] = []
    fdatasync = os.fdatasync

    def noted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name[-13:])
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", noted)
    failpoints.arm(failure)
    with LogWriter(tmp_path, "predictions", losing=lambda: told.append(1)) as writer:
        writer.append([prediction(0)])
        first = writer.mark()
        writer.sync(first)
        before = writer.mark()
        writer.append([prediction(1)])
        with pytest.raises(LogUnavailable, match="cannot be synced"):
            writer.sync(writer.mark())
        tried = len(synced)
        # Whoever appended before the loss is told, also if nobody waited then; who comes after is not.
        with pytest.raises(LogUnavailable):
            writer.sync(writer.mark(before.lost))
        writer.append([prediction(2)])
        writer.sync(writer.mark())
        assert (told, writer.lost) == ([1], 1)
    assert all(name.startswith("00000001") for name in synced[tried:])
    assert states(tmp_path) == [".open", ".sealed"]
    assert [r.unit for s in read(tmp_path) for r in s.records] == ["AA|0", "AA|1", "AA|2"]


def test_a_segment_that_cannot_be_sealed_is_lost_to_those_that_wait_for_it(tmp_path: Path) -> None:
    failpoints.arm("log.seal.footer=EIO@1")
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        mark = writer.mark()
        writer.seal()
        with pytest.raises(LogUnavailable):
            writer.sync(mark)
        writer.append([prediction(1)])
        writer.sync(writer.mark())


def test_what_was_appended_before_a_full_disk_is_synced_all_the_same(tmp_path: Path) -> None:
    failpoints.arm("log.append.write=ENOSPC@2")
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        mark = writer.mark()
        with pytest.raises(LogUnavailable):
            writer.append([prediction(1)])
        writer.append([prediction(2)])
        writer.sync(mark)
        writer.sync(writer.mark())
    assert [r.unit for s in read(tmp_path) for r in s.records] == ["AA|0", "AA|2"]


def test_without_descriptors_nothing_is_taken_for_synced(tmp_path: Path) -> None:
    with LogWriter(tmp_path, "predictions") as writer:
        writer.append([prediction(0)])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(LogUnavailable):
                writer.sync(writer.mark())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        writer.append([prediction(1)])
        writer.sync(writer.mark())
