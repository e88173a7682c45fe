import gzip
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopwright.data.source import open_source
from loopwright.records.errors import IngestRefused
from loopwright.records.ids import digest

CSV = b"id,size\na,1.5\nb,2\n"


def opened(source: Any, name: str | None = None) -> Any:
    """A source with all of its rows."""
    found = open_source(source, name)
    whole = found.whole()
    return SimpleNamespace(frame=whole.frame, rows=whole.rows, broken=whole.broken, digest=found.digest, name=found.name)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_csv_is_text_in_every_column_with_the_digest_of_its_bytes(tmp_path: Path) -> None:
    found = opened(written(tmp_path, "things.csv", CSV))
    assert found.frame.to_pydict() == {"id": ["a", "b"], "size": ["1.5", "2"]}
    assert found.digest == digest(CSV)
    assert (found.name, found.rows.tolist(), len(found.broken)) == ("things.csv", [1, 2], 0)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + CSV,
        CSV.replace(b"\n", b"\r\n"),
        CSV.replace(b",", b";"),
        CSV.replace(b",", b"\t"),
        CSV.rstrip(b"\n"),
        CSV + b"\n\n",
        gzip.compress(CSV, mtime=0),
    ],
    ids=["mark", "windows", "semicolon", "tab", "no last newline", "blank lines", "gzip"],
)
def test_csv_as_it_comes(tmp_path: Path, data: bytes) -> None:
    found = opened(str(written(tmp_path, "things.csv", data)))
    assert found.frame.to_pydict() == {"id": ["a", "b"], "size": ["1.5", "2"]}
    assert len(found.broken) == 0


def test_a_zip_with_one_csv(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "things.zip", "w") as archive:
        archive.writestr("inside/things.csv", CSV)
        archive.writestr("readme.txt", "hello")
    assert opened(tmp_path / "things.zip").frame.num_rows == 2
    with zipfile.ZipFile(tmp_path / "things.zip", "a") as archive:
        archive.writestr("more.csv", CSV)
    with pytest.raises(IngestRefused, match="2 CSV files"):
        opened(tmp_path / "things.zip")


def test_rows_keep_their_number_when_others_are_cut_wrongly(tmp_path: Path) -> None:
    data = b'id,size\na,1\nb\n\nc,"3\n4"\nd,5,6\ne,\n'
    found = opened(written(tmp_path, "things.csv", data))
    assert found.frame.to_pydict() == {"id": ["a", "c", "e"], "size": ["1", "3\n4", None]}
    assert found.rows.tolist() == [1, 4, 6]
    assert found.broken.to_pylist() == [
        {"_row": 2, "_reason": "1 fields where the header has 2", "_raw": "b"},
        {"_row": 5, "_reason": "3 fields where the header has 2", "_raw": "d,5,6"},
    ]


def test_text_in_quotes_is_not_missing(tmp_path: Path) -> None:
    found = opened(written(tmp_path, "things.csv", b'id,size\n"",1\n,2\nNA,3\n'))
    assert found.frame["id"].to_pylist() == ["", None, "NA"]


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("nothing.csv", b"", "empty"),
        ("nothing.csv", b"\n \n", "empty"),
        ("cut.parquet", b"PAR1", "damaged or cut off"),
        ("not.parquet", CSV, "not Parquet"),
        ("binary.csv", b"\x7fELF\0\0\0", "neither Parquet nor text"),
        ("latin.csv", "id,size\nä,1\n".encode("latin-1"), "UTF-8"),
        ("cut.csv.gz", gzip.compress(CSV * 100, mtime=0)[:-10], "damaged or cut off"),
        ("cut.zip", b"PK\x03\x04garbage", "damaged or cut off"),
    ],
    ids=["empty", "blank", "magic only", "not parquet", "binary", "latin-1", "cut gzip", "cut zip"],
)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    with pytest.raises(IngestRefused, match=why) as refused:
        opened(written(tmp_path, name, data))
    assert refused.value.source == name
    assert str(tmp_path) not in str(refused.value)


def test_a_parquet_file_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "things.parquet"
    pq.write_table(pa.table({"id": list("abcdefgh") * 1000}), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(IngestRefused, match="damaged or cut off"):
        opened(path)


def test_no_file_and_no_frame_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="No such file"):
        opened(tmp_path / "absent.csv")
    with pytest.raises(IngestRefused, match="neither a path nor a data frame"):
        opened({"id": ["a"]})


@pytest.mark.parametrize("made", [pa.table, pd.DataFrame, pl.DataFrame])
def test_data_frames_come_in_through_arrow(made: Any) -> None:
    first = opened(made({"id": ["a", "b"], "size": [1.5, 2.0]}), "frame")
    assert first.frame.to_pydict() == {"id": ["a", "b"], "size": [1.5, 2.0]}
    assert first.digest == opened(made({"id": ["a", "b"], "size": [1.5, 2.0]})).digest
    assert first.digest != opened(made({"id": ["a", "b"], "size": [1.5, 2.5]})).digest


def test_the_digest_of_a_frame_does_not_depend_on_its_chunks() -> None:
    whole = pa.table({"id": ["a", "b", "c"]})
    assert opened(pa.concat_tables([whole.slice(0, 1), whole.slice(1)])).digest == opened(whole).digest
