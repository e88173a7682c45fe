"""The memory that a process may use, in and out of containers."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from loopwright.base.memory import memory_limit

MIB = 2**20


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "67108864"}, 64),  # version 2, inside a container
        ("0::/a.slice/b", {"sys/fs/cgroup/a.slice/memory.max": "67108864", "sys/fs/cgroup/a.slice/b/memory.max": "max"}, 64),
        ("0::/a", {"sys/fs/cgroup/a/memory.max": "67108864", "sys/fs/cgroup/a/memory.high": "33554432"}, 32),
        ("4:memory:/docker/1", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "67108864"}, 64),  # version 1, inside a container
        ("9:cpu,memory:/x\n0::/", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "67108864"}, 64),
        ("0::/../other", {"sys/fs/cgroup/memory.max": "67108864"}, 64),
    ],
)
def test_memory_limit_is_that_of_the_cgroup(tmp_path: Path, groups: str, limits: dict[str, str], expected: int) -> None:
    for name, text in {"proc/self/cgroup": groups, **limits}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert memory_limit(tmp_path) == expected * MIB


def test_memory_limit_is_the_machine_where_no_cgroup_says_less(tmp_path: Path) -> None:
    whole = memory_limit(tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/\n0::/\n")
    (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_limit(tmp_path) == whole > 64 * MIB


def test_memory_limit_counts_the_address_space() -> None:
    code = "from loopwright.base.memory import memory_limit; print(memory_limit())"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 * MIB, 512 * MIB))

    found = subprocess.run([sys.executable, "-c", code], preexec_fn=limited, capture_output=True, text=True, check=True)
    assert int(found.stdout) <= 512 * MIB
