import subprocess
import sys
import threading
from pathlib import Path

import pytest

from loopwright.base.lock import FileLock

HOLDER = """
import sys
from pathlib import Path
from loopwright.base.lock import FileLock
with FileLock(Path(sys.argv[1])).hold(5):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_holder_among_threads(tmp_path: Path) -> None:
    lock, count, most = FileLock(tmp_path / "lock"), 0, 0

    def work() -> None:
        nonlocal count, most
        for _ in range(50):
            with lock.hold(10):
                count += 1
                most = max(most, count)
                count -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (count, most) == (0, 1)
    lock.close()


def test_one_holder_among_processes_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        lock = FileLock(path)
        with pytest.raises(TimeoutError, match="another process holds lock"), lock.hold(0.05):
            pass
        holder.kill()
        holder.wait()
        with lock.hold(1):
            pass
        lock.close()


def test_a_thread_waits_no_longer_than_it_has_patience(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with lock.hold(1), pytest.raises(TimeoutError, match="another thread"), lock.hold(0.02):
        pass
    with lock.hold(0):
        pass
    lock.close()


def test_an_exception_inside_frees_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(KeyError), lock.hold(1):
        raise KeyError
    with lock.hold(0):
        pass
    lock.close()


def test_a_place_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "nowhere" / "lock")
    with pytest.raises(FileNotFoundError), lock.hold(1):
        pass
