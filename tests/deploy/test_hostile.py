"""No foreign graph is parsed or run outside the confined child before it passed its probe there, on whatever path it comes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.deploy.hostile import EXAMPLES, GOOD, HOSTILE, PATHS, SECRET, put
from tests.deploy.loops import opened, package
from tests.deploy.test_gate import examples
from tests.services import needed

from loopwright.base.errors import PackageRefused
from loopwright.stores.packages.store import Packages

__all__ = ["examples"]

FEW = ["external sparse initializer", "endless model", "no golden requests"]
"""One of each kind: all paths lead through one door, and there every package is tried."""


@pytest.fixture(scope="module")
def forged(tmp_path_factory: pytest.TempPathFactory, examples: pa.Table) -> tuple[Path, dict[str, str]]:
    """A home with every hostile package, by its name, and the file outside that some of them want."""
    home = opened(tmp_path_factory.mktemp("home"))
    good = package(home.packages)
    (home.path / GOOD).write_text(good.digest)
    (home.path / SECRET).write_bytes(b"\x00\x00\x80?")
    pq.write_table(examples, home.path / EXAMPLES)
    digests = {name: put(home, good, changes) for name, (changes, _) in HOSTILE.items()}
    home.close()
    return home.path, digests


@pytest.mark.parametrize("path", PATHS)
def test_hostile_packages_on_every_path_are_refused_and_read_nothing(forged: tuple[Path, dict[str, str]], path: str) -> None:
    home, digests = forged
    names = list(HOSTILE) if path == "gate" else FEW
    strace, calls = needed(shutil.which("strace"), "strace", "strace"), home / f"{path}.calls"
    traced = [strace, "-f", "-qq", "-s", "400", "--seccomp-bpf", "-e", "trace=open,openat,openat2,execve", "-o", str(calls)]
    command = [sys.executable, "-m", "tests.deploy.hostile", str(home), path, *(digests[name] for name in names)]
    done = subprocess.run([*traced, *command], capture_output=True, text=True, timeout=900, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    said = msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, str])
    for name, digest in ((name, digests[name]) for name in names):
        why = "left out" if path == "beside" else HOSTILE[name][1]
        assert re.search(why, said[digest]), (name, said[digest][:500])
    seen = calls.read_text(errors="replace")
    assert "loopwright.stores.packages.sandbox" in seen, "the tracer saw what the children did"
    assert SECRET not in seen


def test_verify_names_what_is_nested_too_deep(forged: tuple[Path, dict[str, str]]) -> None:
    home, digests = forged
    found = {p.where.rpartition("/")[2]: p.what for p in Packages(home / "packages").verify()}
    for name in ("deep manifest", "deep parameters", "deep evaluation", "deep reference", "deep golden request"):
        assert "nested more than" in found[digests[name]], name


SEEN = [name for name, (_, why) in HOSTILE.items() if why in ("outside the graph", "training information", "local functions")]


@pytest.mark.parametrize("name", SEEN)
def test_what_can_be_seen_without_running_a_graph_is_not_written_either(forged: tuple[Path, dict[str, str]], name: str) -> None:
    store = Packages(forged[0] / "packages")
    good, (changes, why) = store.read((forged[0] / GOOD).read_text()), HOSTILE[name]
    with pytest.raises(PackageRefused, match=why):
        store.write(msgspec.structs.replace(good.manifest, files={}), {**good.files, **changes})
