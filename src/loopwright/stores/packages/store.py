"""The store of packages: immutable flat folders named by the SHA-256 of their manifest. See `records.package` for the files.

A package is written into a hidden folder next to its place, synced, then renamed: a folder with a digest's name is complete.
Reading takes each file once, checks size and SHA-256, and hands out those very bytes. Nothing here parses a graph
except `write`, which refuses unsafe ones (`graph.check`) before anything is on the disk.
"""

import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from loopwright.base import failpoints
from loopwright.base.errors import PackageNotFound, PackageRefused
from loopwright.base.files import read_regular, replace_file, sync
from loopwright.base.ids import digest
from loopwright.records.declarations import Column
from loopwright.records.entries import Problem
from loopwright.records.evaluation import Evaluation
from loopwright.records.package import FileInfo, Manifest, Reference
from loopwright.stores.packages.environments import FILES as ENVIRONMENT

FORMAT = 1
FILE_BYTES = 64 * 2**20
PACKAGE_BYTES = 256 * 2**20
MANIFEST_BYTES = 4 * 2**20
FILES = (
    "model.onnx", "heuristic.onnx", "slices.onnx", "explain.onnx", "explanation.msgpack", "evaluation.json", "reference.json",
    "MLmodel", *ENVIRONMENT, "card.md",
)  # fmt: skip
REQUIRED = ("model.onnx", "heuristic.onnx", "evaluation.json", "reference.json")

Problems = list[Problem]
Names = list[str]

DEPTH = 32
"""Maximum depth of a package's JSON; a deeper one would crash its reader."""

PROBE = 1
"""The rules that a package was probed by: a higher number makes every mark stale."""

_PROBED = ".probed"
"""The folder of marks, hidden so that it is not listed as a package."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


class Package:
    """A package in memory: its manifest and the verified bytes of its files."""

    def __init__(self, digest: str, manifest: Manifest, files: Mapping[str, bytes]) -> None:
        self.digest, self.manifest, self.files = digest, manifest, dict(files)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Measured quality on the validation rows."""
        decoded: Evaluation = self._decode("evaluation.json", Evaluation)
        return decoded

    @cached_property
    def reference(self) -> Reference:
        """The reference of drift detection, and the golden requests."""
        decoded: Reference = self._decode("reference.json", Reference)
        return decoded

    @cached_property
    def card(self) -> str:
        """The model card, Markdown."""
        return self.files.get("card.md", b"").decode("utf-8", errors="replace")

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns that graphs see: request columns, then context columns."""
        context = {name: column for need in self.manifest.context for name, column in need.columns.items()}
        return {**self.manifest.request, **context}

    def shed(self, *keep: str) -> None:
        """Drop the bytes of all files but `keep`, and the objects parsed from them."""
        self.files = {name: self.files[name] for name in keep}
        for name in ("evaluation", "reference", "card"):
            self.__dict__.pop(name, None)

    def _decode(self, name: str, type: Any) -> Any:
        try:
            return decode_json(self.files[name], type)
        except (KeyError, ValueError) as error:
            raise PackageRefused(self.digest, f"{name} cannot be read: {error}") from error


def check_files(files: Mapping[str, bytes]) -> None:
    """Refuse files that no package may have: an unknown name, too many bytes, an unsafe graph. Raises PackageRefused."""
    from loopwright.graph.check import check_graph  # here: it loads onnx, and is needed only for adding packages

    for name, data in files.items():
        if name not in FILES:
            raise PackageRefused("(new)", f"a package has no file {name!r}")
        if len(data) > FILE_BYTES:
            raise PackageRefused("(new)", f"{name} has {len(data)} bytes, more than {FILE_BYTES}")
        if name.endswith(".onnx"):
            check_graph(data, name=name)
    if sum(map(len, files.values())) > PACKAGE_BYTES:
        raise PackageRefused("(new)", f"more than {PACKAGE_BYTES} bytes")


class Packages:
    """The packages in one folder. Several processes may read and write at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._probed: set[str] = set()

    def write(self, manifest: Manifest, files: Mapping[str, bytes]) -> Package:
        """Store a package and return it; its manifest's `files` is filled in here. The same package again is the same digest.

        Raises PackageRefused when a file is missing, unknown, too large, or a graph is unsafe.
        """
        check_files(files)
        if missing := [name for name in REQUIRED if name not in files]:
            raise PackageRefused("(new)", f"without {', '.join(missing)}")
        infos = {name: FileInfo(sha256=digest(data), size=len(data)) for name, data in sorted(files.items())}
        manifest = msgspec.structs.replace(manifest, format=FORMAT, files=infos)
        text = encode_json(manifest)
        name = digest(text)
        if not (self.folder / name).is_dir():
            self._place(name, {**files, "manifest.json": text})
        return Package(name, manifest, files)

    def _place(self, name: str, files: Mapping[str, bytes]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.{os.getpid()}.{os.urandom(4).hex()}"
        temporary.mkdir(mode=0o755)
        try:
            for file, data in files.items():
                (temporary / file).write_bytes(data)
                sync(temporary / file)
                failpoints.hit("package.partly")
            sync(temporary)
            try:
                temporary.rename(self.folder / name)
            except OSError:
                if not (self.folder / name).is_dir():  # else another process wrote the same package meanwhile
                    raise
            failpoints.hit("package.renamed")
            sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def read(self, digest: str, *, keep: Container[str] = FILES) -> Package:
        """The package of that digest (all 64 digits), every byte checked; only the files `keep` are held.

        Raises PackageNotFound when it is missing, PackageRefused naming the difference when it is damaged.
        """
        if not _DIGEST.fullmatch(digest) or not (self.folder / digest).is_dir():
            raise self._missing(digest)
        files = {}
        with _opened(self.folder / digest, digest) as folder:
            manifest = self._manifest(folder, digest)
            present = set(os.listdir(folder)) - {"manifest.json"}  # noqa: PTH208  # of the folder that is open
            if missing := sorted(set(manifest.files) - present):
                raise PackageRefused(digest, f"file {missing[0]!r} is missing")
            if extra := sorted(present - set(manifest.files)):
                raise PackageRefused(digest, f"file {extra[0][:80]!r} is not in the manifest")
            if sum(info.size for info in manifest.files.values()) > PACKAGE_BYTES:
                raise PackageRefused(digest, f"more than {PACKAGE_BYTES} bytes")
            for name, info in manifest.files.items():
                data = _checked(folder, name, digest, info)
                if name in keep:
                    files[name] = data
        return Package(digest, manifest, files)

    def _missing(self, digest: str) -> PackageNotFound:
        """A package may be known to the ledger and have been made in another home."""
        if not _DIGEST.fullmatch(digest):
            return PackageNotFound(digest, self._near(digest))
        step = f"it is not in {self.folder}: copy its folder there from the home that made it, or train it again (`run LOOP --fresh`)"
        return PackageNotFound(digest, self._near(digest), next_step=step)

    def is_probed(self, digest: str) -> bool:
        """Whether the package of that digest passed its probe (`stores.packages.probe`)."""
        if digest not in self._probed and _DIGEST.fullmatch(digest):
            with suppress(OSError):
                if read_regular(self.folder / _PROBED / digest, MANIFEST_BYTES) == self._mark():
                    self._probed.add(digest)
        return digest in self._probed

    def mark_probed(self, digest: str) -> None:
        """Record that a package passed its probe. If the mark cannot be written, as in a read-only home, it is valid for this process."""
        self._probed.add(digest)
        with suppress(OSError):
            (self.folder / _PROBED).mkdir(exist_ok=True)
            replace_file(self.folder / _PROBED / digest, self._mark(), durable=False)

    def _mark(self) -> bytes:
        """Content of a mark: valid only in the folder where it was made, so marks copied along with foreign packages do not count."""
        return f"probed by rules {PROBE} in {(self.folder / _PROBED).stat().st_ino}\n".encode()

    def manifest(self, digest: str) -> Manifest:
        """Only the manifest, its digest checked: cheap. Raises as `read`."""
        return self.partly(digest).manifest

    def partly(self, digest: str, *names: str) -> Package:
        """The package with these files only, and only they are checked. Raises as `read`."""
        if not _DIGEST.fullmatch(digest) or not (self.folder / digest).is_dir():
            raise self._missing(digest)
        with _opened(self.folder / digest, digest) as folder:
            manifest = self._manifest(folder, digest)
            files = {name: _checked(folder, name, digest, manifest.files[name]) for name in names}
        return Package(digest, manifest, files)

    def _manifest(self, folder: int, name: str) -> Manifest:
        data = _bytes(folder, "manifest.json", name, MANIFEST_BYTES)
        if digest(data) != name:
            raise PackageRefused(name, f"the manifest's SHA-256 is {digest(data)[:12]}, not the folder's name")
        try:
            manifest: Manifest = decode_json(data, Manifest)
        except ValueError as error:
            raise PackageRefused(name, f"manifest.json cannot be read: {error}") from error
        if manifest.format != FORMAT:
            raise PackageRefused(name, f"format {manifest.format}; this version reads format {FORMAT}")
        if unlawful := sorted(set(manifest.files) - set(FILES)):
            raise PackageRefused(name, f"a package has no file {unlawful[0][:80]!r}")
        if missing := [file for file in REQUIRED if file not in manifest.files]:
            raise PackageRefused(name, f"without {', '.join(missing)}")
        return manifest

    def resolve(self, text: str) -> str:
        """The digest that begins with `text` (at least 4 hexadecimal digits). Raises PackageNotFound when none or several do."""
        found = [name for name in self.list() if name.startswith(text)] if _PREFIX.fullmatch(text) else []
        if len(found) == 1:
            return found[0]
        if _DIGEST.fullmatch(text):
            raise self._missing(text)
        raise PackageNotFound(text, [name[:12] for name in found[:5]] or self._near(text))

    def list(self) -> Names:
        """The digests of all packages, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _DIGEST.fullmatch(path.name) and path.is_dir())

    def verify(self) -> Problems:
        """Read every package; each refused one is a problem, and so is any file that does not belong here."""
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not _DIGEST.fullmatch(path.name) or not path.is_dir():
                if not path.name.startswith("."):
                    found.append(Problem(where=f"packages/{path.name[:80]}", what="is not a package"))
                continue
            try:
                package = self.read(path.name)
                _ = package.evaluation, package.reference  # either raises where it cannot be read
            except PackageRefused as refused:
                found.append(Problem(where=f"packages/{path.name}", what=refused.why))
        return found

    def sweep(self) -> int:
        """Remove incomplete packages of dead writers; returns their number. Call it only while this process writes none."""
        left = [path for path in self.folder.glob(".*.*.*") if path.is_dir()] if self.folder.is_dir() else []
        for path in left:
            if not _alive(path.name.rsplit(".", 2)[1]):
                shutil.rmtree(path, ignore_errors=True)
        return sum(not path.exists() for path in left)

    def _near(self, text: str) -> Names:
        names = self.list()
        for length in range(min(len(text), 8), 0, -1):
            if near := [name[:12] for name in names if name.startswith(text[:length])]:
                return near[:5]
        return [name[:12] for name in names[:5]]


def encode_json(value: Any) -> bytes:
    """A record as JSON, the same bytes for the same value; NaN becomes null."""
    return msgspec.json.encode(value, order="deterministic")


def decode_json(data: bytes, type: Any) -> Any:
    """A record from JSON; null where an estimate has a number becomes NaN again. Raises ValueError."""
    try:
        plain = msgspec.json.decode(data)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error
    return msgspec.convert(_mend_estimates(plain, 1), type)


def _mend_estimates(value: Any, depth: int) -> Any:
    if depth > DEPTH and isinstance(value, dict | list):
        raise ValueError(f"nested more than {DEPTH} deep")
    if isinstance(value, dict):
        if {"value", "low", "high", "n"} <= value.keys() <= {"value", "low", "high", "n", "too_few"}:
            return {key: float("nan") if item is None else item for key, item in value.items()}
        return {key: _mend_estimates(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_mend_estimates(item, depth + 1) for item in value]
    return value


@contextmanager
def _opened(path: Path, package: str) -> Iterator[int]:
    """The folder of a package, open, and not by way of a link: a package never reads a file outside itself. Raises PackageRefused."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        why = "is a link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise PackageRefused(package, f"its folder {why}") from error
    try:
        yield folder
    finally:
        os.close(folder)


def _bytes(folder: int, name: str, package: str, limit: int) -> bytes:
    try:
        data = read_regular(name, limit, folder=folder)
    except OSError as error:
        raise PackageRefused(package, f"{name} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise PackageRefused(package, f"{name} has more than {limit} bytes")
    return data


def _checked(folder: int, name: str, package: str, info: FileInfo) -> bytes:
    data = _bytes(folder, name, package, min(FILE_BYTES, max(info.size, 0)))
    if len(data) != info.size:
        raise PackageRefused(package, f"{name} has {len(data)} bytes, the manifest says {info.size}")
    if digest(data) != info.sha256:
        raise PackageRefused(package, f"the SHA-256 of {name} is {digest(data)[:12]}, the manifest says {info.sha256[:12]}")
    return data


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()
