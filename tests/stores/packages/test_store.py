import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import ndonnx as ndx
import pytest

from loopwright.base.errors import PackageNotFound, PackageRefused
from loopwright.develop.features import build
from loopwright.records.declarations import Column
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Conversion, Manifest, Reference, Training
from loopwright.stores.packages.store import Package, Packages, encode_json

NOW = datetime(2013, 4, 1, tzinfo=UTC)
COLUMNS = {"x": Column("float")}


def manifest(**changes: Any) -> Manifest:
    made = Manifest(
        format=1, loop="late", candidate="rule", phase=1, created_at=NOW, by="me", declaration="d" * 64, request=COLUMNS, key=["x"],
        event_time="at", context=[], features=[], vocabulary={}, slices=[], threshold=0.5, params={}, seed=0,
        training=Training(examples="e", rows=1, as_of=NOW, first=NOW, last=NOW, sources={}, seconds=0.0),
        conversion=Conversion(rows=0, max_difference=0.0), commit="", environment={}, parent="", release={}, files={},
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def graph() -> bytes:
    x = ndx.argument(shape=("N",), dtype=ndx.float64)
    return build(COLUMNS, {"x": x}, {"score": ndx.astype(x, ndx.float32)})


def files() -> dict[str, bytes]:
    nan = float("nan")
    evaluation = Evaluation(
        rows=1, positives=0, threshold=0.5, metrics={"recall": Estimate(nan, nan, nan, 0)}, slices={}, latency_p50_us=1.0,
        latency_p99_us=2.0, size_bytes=3, train_seconds=0.0, value_per_prediction=0.0,
    )  # fmt: skip
    return {
        "model.onnx": graph(),
        "heuristic.onnx": graph(),
        "evaluation.json": encode_json(evaluation),
        "reference.json": encode_json(Reference(columns=[], golden=[])),
        "card.md": "# Grüße".encode(),
    }


@pytest.fixture
def store(tmp_path: Path) -> Packages:
    return Packages(tmp_path / "packages")


def test_what_is_written_is_read(store: Packages) -> None:
    written = store.write(manifest(), files())
    read = store.read(written.digest)
    assert read.files == files()
    assert read.manifest == written.manifest
    assert read.manifest.files["model.onnx"].size == len(graph())
    assert read.card == "# Grüße"
    assert read.columns == COLUMNS
    recall = read.evaluation.metrics["recall"]
    assert recall.value != recall.value  # NaN came back as NaN
    assert read.reference == Reference(columns=[], golden=[])
    assert store.manifest(written.digest) == read.manifest


def test_files_that_are_not_kept_are_checked_all_the_same(store: Packages) -> None:
    made = store.write(manifest(), files())
    read = store.read(made.digest, keep=("model.onnx", "reference.json"))
    assert read.files == {name: files()[name] for name in ("model.onnx", "reference.json")}
    assert read.reference.golden == []
    read.shed("model.onnx")
    assert set(read.files) == {"model.onnx"}
    with pytest.raises(PackageRefused, match=r"reference\.json"):
        _ = read.reference
    (store.folder / made.digest / "card.md").write_bytes(b"# other")
    with pytest.raises(PackageRefused, match=r"card\.md"):
        store.read(made.digest, keep=("model.onnx",))


def test_the_same_package_is_the_same_digest_and_another_is_not(store: Packages) -> None:
    first, again = store.write(manifest(), files()), store.write(manifest(), files())
    other = store.write(manifest(seed=1), files())
    assert first.digest == again.digest != other.digest
    assert store.list() == sorted({first.digest, other.digest})


def test_a_prefix_names_a_package(store: Packages) -> None:
    digest = store.write(manifest(), files()).digest
    assert store.resolve(digest[:4]) == store.resolve(digest) == digest
    with pytest.raises(PackageNotFound) as caught:
        store.resolve("ffff" if not digest.startswith("ffff") else "eeee")
    assert caught.value.near == [digest[:12]]
    for text in ("", digest[:3], "../../etc", "%2e%2e", digest.upper(), "x" * 10_000, digest + "\0"):
        with pytest.raises(PackageNotFound):
            store.resolve(text)
        with pytest.raises(PackageNotFound):
            store.read(text)


def test_an_ambiguous_prefix_names_the_candidates(store: Packages) -> None:
    for name in ("abcd" + "0" * 60, "abcd" + "1" * 60):
        (store.folder / name).mkdir(parents=True)
    with pytest.raises(PackageNotFound) as caught:
        store.resolve("abcd")
    assert caught.value.near == ["abcd00000000", "abcd11111111"]


def change(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def link_outside(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def put_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFSOCK)


def put_device(path: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # endless zeros
    except PermissionError:
        pytest.skip("only root may make a device")


def put_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_folder(folder: Path) -> None:
    """Whole, but elsewhere."""
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


DAMAGE: dict[str, tuple[Any, str]] = {
    "flipped bit": (lambda folder: flip(folder / "model.onnx"), "SHA-256 of model.onnx"),
    "truncated": (lambda folder: change(folder / "model.onnx", b"abc"), "3 bytes"),
    "longer": (lambda folder: change(folder / "model.onnx", (folder / "model.onnx").read_bytes() + b"x"), "model.onnx"),
    "missing file": (lambda folder: (folder / "card.md").unlink(), "'card.md' is missing"),
    "extra file": (lambda folder: change(folder / "hook.py", b"import os"), "'hook.py' is not in the manifest"),
    "manifest changed": (lambda folder: flip(folder / "manifest.json"), "manifest's SHA-256"),
    "manifest gone": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
    "manifest huge": (lambda folder: change(folder / "manifest.json", b" " * (5 * 2**20)), "more than"),
    "pipe": (lambda folder: put_pipe(folder / "model.onnx"), "model.onnx cannot be read: it is no regular file"),
    "pipe as manifest": (lambda folder: put_pipe(folder / "manifest.json"), "manifest.json cannot be read: it is no regular"),
    "socket": (lambda folder: put_socket(folder / "model.onnx"), "model.onnx cannot be read"),
    "device": (lambda folder: put_device(folder / "model.onnx"), "model.onnx cannot be read"),
    "folder": (lambda folder: put_folder(folder / "model.onnx"), "model.onnx cannot be read"),
    "linked folder": (link_folder, "its folder is a link"),
    "symbolic link": (lambda folder: link_outside(folder / "heuristic.onnx"), "heuristic.onnx cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_with_the_difference_named(store: Packages, name: str) -> None:
    digest, whole = store.write(manifest(), files()).digest, store.write(manifest(seed=1), files()).digest
    do, why = DAMAGE[name]
    do(store.folder / digest)
    with pytest.raises(PackageRefused, match=why):
        store.read(digest)
    problems = store.verify()
    assert [p.where for p in problems if p.where != "packages/outside"] == [f"packages/{digest}"]
    assert store.read(whole).digest == whole


def test_a_manifest_of_another_format_is_refused(store: Packages) -> None:
    written = store.write(manifest(), files())
    text = encode_json(msgspec.structs.replace(written.manifest, format=99))
    package = Package("", written.manifest, files())
    folder = store.folder / __import__("hashlib").sha256(text).hexdigest()
    folder.mkdir()
    for name, data in {**package.files, "manifest.json": text}.items():
        (folder / name).write_bytes(data)
    with pytest.raises(PackageRefused, match="format 99"):
        store.read(folder.name)


def test_nothing_unlawful_is_written(store: Packages) -> None:
    whole = files()
    for bad, why in (
        ({**whole, "../evil.onnx": b""}, "no file"),
        ({**whole, "run.py": b"import os"}, "no file"),
        ({k: v for k, v in whole.items() if k != "model.onnx"}, "without model.onnx"),
        ({**whole, "model.onnx": b"not a graph"}, "not an ONNX model"),
        ({**whole, "card.md": b"x" * (64 * 2**20 + 1)}, "more than"),
    ):
        with pytest.raises(PackageRefused, match=why):
            store.write(manifest(), bad)
    assert store.list() == []


def test_many_writers_of_one_package_leave_one_whole_package(store: Packages) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(store.write(manifest(), files()).digest)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert store.list() == sorted(set(found))
    assert [p.name for p in store.folder.iterdir()] == store.list()
    assert store.verify() == []


def test_leftovers_of_dead_writers_are_swept(store: Packages) -> None:
    digest = store.write(manifest(), files()).digest
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    ).stdout.strip()
    left = store.folder / f".{digest}.{dead}.00ff"
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half")
    assert store.list() == [digest]  # a half-written package is never seen
    assert store.sweep() == 1
    assert not left.exists()
    assert store.read(digest).digest == digest


def test_an_empty_store_is_empty(store: Packages) -> None:
    assert store.list() == []
    assert store.verify() == []
    assert store.sweep() == 0
