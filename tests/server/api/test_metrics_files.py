import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from loopwright.server.api import metrics_files
from loopwright.server.api.metrics_files import WrittenFile, install, write_all


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setattr(values, "MmapedDict", values.MmapedDict)  # type: ignore[attr-defined]
    monkeypatch.setattr(metrics_files, "_files", [])
    return tmp_path


def scraped() -> str:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()


def made(worker: str) -> tuple[Counter, Gauge]:
    install(worker)
    counter = Counter("asked", "help", ["loop"], registry=None)
    return counter, Gauge("held", "help", registry=None, multiprocess_mode="livesum")


def test_the_library_reads_what_is_written_of_several_workers_and_restarts(folder: Path) -> None:
    for worker in ("worker-0", "worker-1", "worker-0"):  # the last one goes on where the first one was
        counter, gauge = made(worker)
        for i in range(3000):  # beyond the size at which a mapped file would grow
            counter.labels(f"l\u00f6op-{i}").inc(1)
        counter.labels("a").inc(2)
        gauge.set(5)
        write_all()
    text = scraped()
    assert 'asked_total{loop="a"} 6.0' in text
    assert text.count("asked_total{") == 3001
    assert 'asked_total{loop="l\u00f6op-2999"} 3.0' in text
    assert "held 10.0" in text


def test_a_file_that_is_torn_is_read_as_far_as_it_is_whole(folder: Path) -> None:
    file = WrittenFile(str(folder / "counter_w.db"))
    for key in ("one", "two", "three"):
        file.write_value(key, 7.0, 0.0)
    file.write()
    path = folder / "counter_w.db"
    path.write_bytes(path.read_bytes()[:-10])
    again = WrittenFile(str(path))
    assert [again.read_value(key)[0] for key in ("one", "two", "three")] == [7.0, 7.0, 0.0]
    path.write_bytes(b"\x07")
    assert WrittenFile(str(path)).read_value("one") == (0.0, 0.0)


def test_what_cannot_be_written_is_counted_in_memory_and_written_later(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        counter, _ = made("worker-0")
        counter.labels("a").inc()
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_all()
        assert list(folder.iterdir()) == []  # no file without a head, which the library could not read
        assert "asked" not in scraped()
        counter.labels("a").inc()
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        with pytest.raises(OSError, match="File too large"):
            write_all()
        scraped()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    write_all()
    assert 'asked_total{loop="a"} 2.0' in scraped()


FULL = """
import os, subprocess, sys
from pathlib import Path
home = Path(sys.argv[1])
home.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(home)], check=True)
print("mounted", flush=True)
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.running import running, until
from loopwright.deploy import releases
from loopwright.base.clock import RealClock
opened_home = opened(home, RealClock())
releases.release(opened_home, LOOP, package(opened_home.packages).digest, why="first")
with running(opened_home, workers=2, check=False) as server:
    client, workers = server.data(), server.state.workers
    client.post(f"/loops/{LOOP}/predict", flight())
    with (home / "fill").open("wb", buffering=0) as fill:
        for size in (65536, 1):
            try:
                while True:
                    fill.write(bytes(size))
            except OSError:
                pass
    for i in range(200):
        assert client.post(f"/loops/{LOOP}/predict", flight(i, delay=[1.0, 1e9][i % 2])).status == 200
        assert client.post(f"/loops/{LOOP}/predict", {}).status == 422
        assert client.get("/metrics").status == 200
    assert server.state.workers == workers
    assert server.process.poll() is None
    (home / "fill").unlink()
    until(lambda: 'code="request_invalid"' in client.get("/metrics").body.decode(), 60)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_full_disk_kills_no_worker_and_metrics_go_on_once_there_is_room(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", sys.executable, "-c", FULL, str(tmp_path / "home")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")},
        timeout=600,
    )
    if "mounted" not in done.stdout:
        pytest.skip(f"no file system of one's own may be mounted here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    assert "SIGBUS" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "could not be logged" in line]
    assert 1 <= len(lines) < 40, lines  # of 200 predictions: each worker says it once a minute, and how often
