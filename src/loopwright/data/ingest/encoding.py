"""The bytes of a text file as UTF-8: decompress, detect the encoding, and name a foreign file format in the error.

Detection is by strict decoding, in this order: byte order mark, UTF-16 by its zero bytes, UTF-8, Windows-1252 (which holds
ISO 8859-1). Windows-1252 is accepted only where its non-ASCII characters read as text, and refused in doubt: any single-byte
encoding decodes, so a guess would be silent.
"""

import codecs
import gzip
import io
import os
import re
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from loopwright.base.errors import IngestRefused, UsageError, first_line

MAX_UNPACKED = 8 << 30
"""Bytes that a compressed file may unpack to; more is refused before it fills the disk."""

_CHUNK = 1 << 20
_TEXTS = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip

FOREIGN: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE if pattern.startswith(rb"\s*") else 0), what)
    for pattern, what in (
        (rb"%PDF", "a PDF document: export the table in it as CSV"),
        (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook of the old format (.xls): save it as .xlsx or CSV"),
        (rb"\s*<(!doctype html|html|head|body|table)\b", "an HTML page: download the file that the page links to"),
        (rb"\s*<(\?xml|[a-z][\w:.-]*[\s>/])", "XML: convert it to CSV or JSON Lines"),
        (rb"SQLite format 3\0", "an SQLite database: use --query SELECT... --from-url sqlite:///FILE"),
        (rb"BZh[1-9]", "compressed by bzip2: unpack it, or compress it by gzip"),
        (rb"\xfd7zXZ\0", "compressed by xz: unpack it, or compress it by gzip"),
        (rb"\x28\xb5\x2f\xfd", "compressed by Zstandard: unpack it, or compress it by gzip"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!", "a 7-Zip or RAR archive: unpack it"),
        (rb"[^\0]{1,100}\0[\s\S]{156,256}ustar", "a tar archive: unpack it and name the folder"),
        (rb"ORC", "an ORC file: write Parquet"),
        (rb"Obj\x01", "an Avro file: write Parquet"),
        (rb"\x89HDF|\x93NUMPY|\x80[\x02-\x05]", "HDF5, NumPy or pickled data: write Parquet"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8", "an image"),
        (rb"\{\\rtf", "an RTF document: save it as CSV"),
        (rb"\s*\[\s*[\[{]", "one JSON array: write JSON Lines, one object a line"),
        (rb"\s*\{\s*[\r\n]", "one JSON document over several lines: write JSON Lines, one object a line"),
        (rb"version https://git-lfs", "a pointer of Git LFS: run `git lfs pull`"),
    )
)
"""Signatures of files that are not text tables, with their names."""

_NOT_WESTERN = re.compile(
    # Runs of letters as only other scripts have; signs inside a word (Polish as ISO 8859-2 or Windows-1250); capitals inside
    # a word (Mac OS Roman, code pages of DOS); bytes that Windows-1252 does not have.
    rb"[\x80-\xff]{4,}|[A-Za-z][\x82\x84\x86-\x89\x8b\x93\x94\x98\x99\xa1-\xa8\xab\xac\xaf\xb1-\xb4\xb6\xb8\xb9\xbb-\xbf][a-z]"
    rb"|[a-z][\x8a\x8c\x8e\x9f\xc0-\xd6\xd8-\xde](?![A-Z])|[\x81\x8d\x8f\x90\x9d]"
)


_RUN = re.compile(rb"([\0-\x7f]?)([\x80-\xff]+)(?=([\0-\x7f]?))")
_LETTERS = rb"[\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xd6\xd8-\xf6\xf8-\xff]{1,3}"
_MARKS_IN_TEXT = rb"[\x82\x84\x85\x8b\x91-\x97\x9b\xa0\xab\xbb]"
_WESTERN = re.compile(
    rb"(?s)[A-Za-z]\x92?"
    + _LETTERS
    + _MARKS_IN_TEXT
    + rb"?[\0-\x7f]|[\0-\x7f]"
    + _MARKS_IN_TEXT
    + rb"?"
    + _LETTERS
    + rb"[A-Za-z']"
    rb"|[A-Za-z]\x92[A-Za-z]|[\d ]\xb0.|.\xb0[CFKNSEW]|[^A-Za-z]\x80[^A-Za-z]|.[\xa3\xa5\xa7\xb1][\d ]|[A-Za-z][\xb2\xb3][^A-Za-z]"
    rb"|.\xb5[gmsSlLMAVFW]|[\d ][\xbc-\xbe].|[A-Za-z\d][\x99\xaa\xae\xba][^A-Za-z]|[\d ]\xd7[\d ]|[\s\d][\x96\x97][\s\d]"
)
"""High bytes with their neighbours that read as Windows-1252: letters at a letter, signs where one writes them."""
_NEUTRAL = re.compile(
    rb"(?s)[^A-Za-z][\x80-\xff][^A-Za-z@\[\\\]^_`{}~]|[^A-Za-z\d][\x82\x84\x8b\x91\x93\xa1\xab\xbf][A-Za-z]"
    rb"|[\w.!?%)][\x85\x92\x94\x9b\xa0\xbb].|.\xa0.|." + _MARKS_IN_TEXT + rb"{2,3}."
)
"""High bytes that Windows-1252 and other encodings have alike: no evidence."""

CANDIDATES = ("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5", "cp1250", "cp1251", "cp1253", "koi8-r", "iso-8859-2", "mac-roman", "cp437", "cp1252")  # fmt: skip
"""Encodings tried to suggest possible ones for a file."""


class TextFile(NamedTuple):
    """A text file and the encoding it is read in."""

    path: Path
    name: str
    encoding: str

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Its bytes as UTF-8, unpacked and decoded as they are read."""
        with unpacked(self.path, self.name) as data:
            yield data if self.encoding == "utf-8" else _Decoded(data, self.encoding)

    @contextmanager
    def open_for_arrow(self) -> Iterator[pa.NativeFile]:
        """The same for readers that read ahead on a thread of Arrow: where nothing is decoded without Python, which may be about to end."""
        with self.open() as data:
            plain = isinstance(data, io.BufferedReader)
            with pa.OSFile(os.fsencode(self.path)) if plain else pa.PythonFile(data, mode="r") as file:
                yield file


def detect(path: Path, name: str, declared: str = "") -> TextFile:
    """Detect the encoding of a text file; `declared` is the user's choice.

    Raises UsageError for an encoding that Python does not know, IngestRefused for a file that is not text, or whose encoding
    cannot be detected.
    """
    if declared:
        declared = _known(declared)
    with refusing(name, "it is damaged or cut off"), unpacked(path, name) as data:
        start = data.read(65536)
    if not start.strip(b"\xef\xbb\xbf\xff\xfe \t\r\n\0"):
        raise IngestRefused(name, "it is empty" if b"\0" not in start else "it holds only NUL bytes: it is damaged")
    if what := next((what for pattern, what in FOREIGN if pattern.match(start.removeprefix(codecs.BOM_UTF8))), ""):
        raise IngestRefused(name, f"it is {what}")
    encoding = declared or next((e for mark, e in _MARKS if start.startswith(mark)), "") or _wide(start)
    if not encoding and b"\0" in start:
        raise IngestRefused(name, "it is neither Parquet nor text")
    with refusing(name, "it is damaged or cut off"):
        return TextFile(path, name, encoding or _narrow(path, name))


def _known(encoding: str) -> str:
    """The name that Python has for an encoding of text. Raises UsageError."""
    try:
        "a".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise UsageError(
            f"--encoding {encoding!r}: no such encoding; say e.g. utf-8, cp1252, latin-1, utf-16, cp1251"
        ) from error


def _wide(start: bytes) -> str:
    """UTF-16 without a mark, by where its zero bytes lie: every second byte of mostly Latin text."""
    even, odd = start[::2], start[1::2]
    zeros = even.count(0) / max(len(even), 1), odd.count(0) / max(len(odd), 1)
    return "utf-16-le" if zeros[0] < 0.01 < 0.5 < zeros[1] else "utf-16-be" if zeros[1] < 0.01 < 0.5 < zeros[0] else ""


def _narrow(path: Path, name: str) -> str:
    """UTF-8 if the whole file is valid, else Windows-1252 if it reads as text. Raises IngestRefused if neither."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    runs, odd, utf8 = Counter[bytes](), 0, True
    with unpacked(path, name) as data:
        while chunk := data.read(_CHUNK):
            if utf8:
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError:
                    utf8 = False
            if not chunk.isascii() and runs.total() < _CHUNK:
                runs.update((before or b"\n") + run + (after or b"\n") for before, run, after in _RUN.findall(chunk))
                odd += len(_NOT_WESTERN.findall(chunk))
    if utf8 and not decoder.getstate()[0]:
        return "utf-8"
    western = sum(n for run, n in runs.items() if _WESTERN.fullmatch(run))
    neutral = sum(n for run, n in runs.items() if not _WESTERN.fullmatch(run) and _NEUTRAL.fullmatch(run))
    if not western or max(odd, runs.total() - western - neutral) > runs.total() / 20:
        near = ", ".join(_candidates(path, name))
        raise IngestRefused(
            name,
            "it is not UTF-8, and does not look like Windows-1252: name its encoding with --encoding; "
            + (f"its bytes are valid in {near}" if near else "e.g. cp1250, iso-8859-2, shift_jis"),
        )
    return "cp1252"


def _candidates(path: Path, name: str) -> list[str]:
    """The encodings in which the start of a file decodes to letters and signs, without control characters."""
    with unpacked(path, name) as data:
        start = data.read(65536)
    found = []
    for encoding in CANDIDATES:
        with suppress(UnicodeDecodeError):
            text = codecs.getincrementaldecoder(encoding)("strict").decode(start)
            high = [c for c in text if not c.isascii()]
            if (
                high
                and 2 * sum(c.isalpha() for c in high) > len(high)
                and not any(unicodedata.category(c)[0] == "C" for c in high)
            ):
                found.append(encoding)
    return found


# --- unpacking -------------------------------------------------------------------------------------------------------


@contextmanager
def refusing(name: str, what: str) -> Iterator[None]:
    """Turn a library's error about a source into IngestRefused, in one line."""
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, pa.ArrowException,
            UnicodeError) as error:  # fmt: skip
        why = error.strerror if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else None
        raise IngestRefused(name, f"{what} ({why or first_line(error)})") from error


class _Stream(io.BufferedIOBase):
    """Bytes that are made of a file as they are read."""

    def readable(self) -> bool:
        """Always."""
        return True

    def read1(self, size: int | None = -1, /) -> bytes:
        """As `read`."""
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Bounded(_Stream):
    """Decompressed bytes of a file, at most MAX_UNPACKED."""

    def __init__(self, packed: Any, file: Any, name: str) -> None:
        self._packed, self._file, self._name, self._count = packed, file, name, 0

    def tell(self) -> int:
        """Position in the compressed file, in bytes."""
        return int(self._file.tell())

    def read(self, size: int | None = -1, /) -> bytes:
        """Read and count."""
        data = self._packed.read(size)
        self._count += len(data)
        if self._count > MAX_UNPACKED:
            raise IngestRefused(self._name, f"it unpacks to more than {MAX_UNPACKED >> 30} GiB; split it")
        return data  # type: ignore[no-any-return]  # gzip and zipfile files are alike but share no type


class _Decoded(_Stream):
    """Bytes in another encoding as UTF-8."""

    def __init__(self, data: Any, encoding: str) -> None:
        self._data, self._decoder, self._ready = data, codecs.getincrementaldecoder(encoding)("strict"), b""

    def tell(self) -> int:
        """Position in the file on disk, in bytes."""
        return int(self._data.tell())

    def read(self, size: int | None = -1, /) -> bytes:
        """Read and decode."""
        wanted = size if size is not None and size >= 0 else sys.maxsize
        parts, count = [self._ready], len(self._ready)
        while count < wanted:
            chunk = self._data.read(_CHUNK)
            parts.append(self._decoder.decode(chunk, final=not chunk).encode())
            count += len(parts[-1])
            if not chunk:
                break
        data = b"".join(parts)
        self._ready = data[wanted:]
        return data[:wanted]


def lines(data: Any) -> Any:
    """The same bytes, with `readline`."""
    return io.BufferedReader(data, _CHUNK) if isinstance(data, _Stream) else data


@contextmanager
def unpacked(path: Path, name: str) -> Iterator[Any]:
    """The bytes of a text file, unpacked as they are read."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=file) as packed:
                yield _Bounded(packed, file, name)
        elif start == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive, archive.open(_member(archive, name)) as packed:
                yield _Bounded(packed, file, name)
        else:
            yield file


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The one text file in an archive. Raises IngestRefused, naming documents that are archives inside."""
    names = [i.filename for i in archive.infolist()]
    for inside, what in (
        ("word/document.xml", "a Word document: save its table as CSV"),
        ("ppt/presentation.xml", "a PowerPoint presentation: save its table as CSV"),
        ("xl/workbook.bin", "an Excel workbook of the binary format (.xlsb): save it as .xlsx or CSV"),
        ("META-INF/manifest.xml", "an OpenDocument file (.ods): save it as .xlsx or CSV"),
    ):
        if inside in names:
            raise IngestRefused(name, f"it is {what}")
    texts = [i for i in archive.infolist() if i.filename.lower().endswith(_TEXTS) and not i.filename.startswith("__MACOSX/")]
    found = [i for i in texts if i.filename.lower().endswith(".csv")] or texts
    if len(found) != 1:
        raise IngestRefused(name, f"it is a zip archive that holds {len(found)} CSV files; give it one, or unpack it")
    return found[0]
