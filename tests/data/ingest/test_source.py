import gzip
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from loopwright.base.errors import FileMissing, IngestRefused
from loopwright.base.ids import digest
from loopwright.data.ingest import csv_text, encoding, source
from loopwright.data.ingest import source_reader as opened_module
from loopwright.data.ingest.source import open_source

CSV = b"id,size\na,1.5\nb,2\n"


def opened(given: Any, name: str | None = None) -> Any:
    """A source with all of its rows."""
    found = open_source(given, name)
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
        ("cut.csv.gz", gzip.compress(CSV * 100, mtime=0)[:-10], "damaged or cut off"),
        ("cut.zip", b"PK\x03\x04garbage", "damaged or cut off"),
    ],
    ids=["empty", "blank", "magic only", "not parquet", "binary", "cut gzip", "cut zip"],
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
    with pytest.raises(FileMissing, match="no file"):
        opened(tmp_path / "absent.csv")
    with pytest.raises(IngestRefused, match="neither a path, a data frame"):
        opened({"id": ["a"]})


@pytest.mark.parametrize("made", [pa.table, pd.DataFrame, pl.DataFrame])
def test_data_frames_come_in_through_arrow(made: Any) -> None:
    first = opened(made({"id": ["a", "b"], "size": [1.5, 2.0]}), "frame")
    assert first.frame.to_pydict() == {"id": ["a", "b"], "size": [1.5, 2.0]}
    assert first.digest == opened(made({"id": ["a", "b"], "size": [1.5, 2.0]})).digest
    assert first.digest != opened(made({"id": ["a", "b"], "size": [1.5, 2.5]})).digest


LAZY = pa.table({"id": [f"k{i}" for i in range(150_000)], "size": [float(i) for i in range(150_000)]})


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: ds.dataset(LAZY),
        lambda folder: ds.dataset(str(folder)),
        lambda folder: ds.dataset([ds.dataset(str(folder))]),
        lambda folder: ds.dataset(str(folder)).scanner(columns=["id", "size"], batch_size=999),
        lambda folder: pl.scan_parquet(folder / "*.parquet"),
        lambda folder: pl.DataFrame(LAZY).lazy(),
    ],
    ids=["in memory", "files", "union", "scanner", "polars scan", "polars frame"],
)
def test_lazy_frames_and_datasets_are_sources_and_the_same_rows_have_the_same_digest(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    pq.write_table(LAZY.slice(0, 70_000), tmp_path / "a.parquet", row_group_size=7_000)
    pq.write_table(LAZY.slice(70_000), tmp_path / "b.parquet")
    found = open_source(make(tmp_path))
    parts = list(found.batches())
    assert len(parts) > 1, "read in parts"
    assert pa.concat_tables(p.frame for p in parts).equals(LAZY)
    assert np.concatenate([p.rows for p in parts]).tolist() == list(range(1, 150_001))
    assert parts[-1].done == 1
    assert found.digest == open_source(ds.dataset(LAZY)).digest


def test_a_lazy_source_without_rows_has_its_columns() -> None:
    for empty in (ds.dataset(LAZY.slice(0, 0)), pl.DataFrame({"id": ["a"], "size": [1.0]}).lazy().filter(pl.col("id") == "b")):
        assert opened(empty).frame.schema.equals(LAZY.schema)


def test_a_lazy_source_that_gives_other_rows_when_read_again_is_refused(tmp_path: Path) -> None:
    found = open_source(pl.DataFrame({"id": range(1000)}).lazy().select(pl.col("id").shuffle()))
    with pytest.raises(IngestRefused, match="second reading gave other rows"):
        found.whole()
    with pytest.raises(IngestRefused, match="a LazyFrame was not ingested: it cannot be read"):
        open_source(pl.scan_parquet(tmp_path / "absent.parquet"))
    with pytest.raises(IngestRefused, match="it cannot be read"):
        open_source(pl.DataFrame({"id": ["a"]}).lazy().select("absent"))


_MOMENTS = [datetime(2500, 1, 1, tzinfo=UTC), datetime(1500, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, microsecond=7, tzinfo=UTC)]
FAR = pa.table({"at": pa.array(_MOMENTS, pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))})


def test_spark_times_of_96_bits_are_the_moments_that_were_written(tmp_path: Path) -> None:
    path = tmp_path / "spark.parquet"
    pq.write_table(FAR, path, use_deprecated_int96_timestamps=True)
    assert opened(path).frame.equals(FAR)
    with pytest.raises(IngestRefused, match="INT96 times are read as nanoseconds"):
        open_source(ds.dataset(path))
    microseconds = ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(coerce_int96_timestamp_unit="us"))
    assert opened(ds.dataset(path, format=microseconds)).frame.equals(FAR)


def test_the_digest_of_a_frame_does_not_depend_on_its_chunks() -> None:
    whole = pa.table({"id": ["a", "b", "c"]})
    assert opened(pa.concat_tables([whole.slice(0, 1), whole.slice(1)])).digest == opened(whole).digest


def test_json_lines_are_text_in_every_column_but_lists(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"id": 1, "x": 0.1, "ok": true, "v": [1, 2], "s": "a"}',
        b"",
        b'{"id": 123456789012345678901, "x": null, "v": [3, 4], "s": ""}',
        b"[1, 2]",
        b'{"id": 3, "x": "1e3", "v": null, "s": 7} trailing',
        b'{"x": 2, "id": 4, "o": {"k": 1}}',
    ]
    found = opened(written(tmp_path, "things.jsonl", b"\n".join(lines)))
    assert found.frame.to_pydict() == {
        "id": ["1", "123456789012345678901", "4"],
        "x": ["0.1", None, "2"],
        "ok": ["true", None, None],
        "v": [[1, 2], [3, 4], None],
        "s": ["a", "", None],
        "o": [None, None, '{"k":1}'],
    }
    assert found.rows.tolist() == [1, 3, 6]
    assert found.broken["_row"].to_pylist() == [4, 5]
    assert opened(written(tmp_path, "t.ndjson.gz", gzip.compress(lines[2], mtime=0))).frame["x"].to_pylist() == [None]
    with pytest.raises(IngestRefused, match="one object a line"):
        opened(written(tmp_path, "array.json", b'[{"a": 1}]'))


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    frame = pa.table({"id": [1, 2, 3], "v": [[0.5], [1.5], None]})
    for name, make in (("things.arrow", pa.ipc.new_file), ("things.arrows", pa.ipc.new_stream)):
        with make(tmp_path / name, frame.schema) as sink:
            sink.write_table(frame, max_chunksize=2)
        found = opened(tmp_path / name)
        assert (found.frame.to_pydict(), found.rows.tolist()) == (frame.to_pydict(), [1, 2, 3])
    cut = (tmp_path / "things.arrow").read_bytes()[:200]
    with pytest.raises(IngestRefused, match="damaged or cut off"):
        opened(written(tmp_path, "cut.arrow", cut))
    with pytest.raises(IngestRefused, match="not Arrow"):
        opened(written(tmp_path, "no.feather", CSV))


@pytest.mark.parametrize("pack", [bytes, lambda data: gzip.compress(data, mtime=0)], ids=["plain", "gzip"])
def test_a_large_csv_comes_in_parts_with_every_row_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr(csv_text, "BATCH_BYTES", 4096)
    monkeypatch.setattr(opened_module, "BATCH_BYTES", 4096)
    bad = {7, 500, 501, 1999}
    lines = [f"{i}" if i in bad else f'{i},"a\nb"' if i % 100 == 0 else f"{i},x" for i in range(1, 2001)]
    found = open_source(written(tmp_path, "large.csv", pack(("id,s\n" + "\n".join(lines)).encode())))
    parts = list(found.batches())
    assert len(parts) > 3
    for part in parts:
        assert part.frame["id"].to_pylist() == [str(n) for n in part.rows]
    assert [r for p in parts for r in p.broken["_row"].to_pylist()] == sorted(bad)
    assert sum(len(p.frame) for p in parts) == 1996
    assert [p.done for p in parts] == sorted(p.done for p in parts)
    assert parts[-1].done == 1
    assert (found.whole().done, found.whole(500).done < 1) == (1, True)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "things.csv", CSV)
    found = open_source(path)
    path.write_bytes(CSV + b"c,3\n")
    with pytest.raises(IngestRefused, match="changed while it was read"):
        found.whole()


BOMBS = {
    "closed": b'b,"' + b"x" * 9_000_000 + b'"\n',
    "open": b'b,"' + b"x" * 9_000_000,
    "rows inside": b'b,"' + b"y,z\n" * 2_250_000,
    "quotes": b'"' * 9_000_001,
}


@pytest.mark.parametrize("pack", [bytes, lambda data: gzip.compress(data, 1, mtime=0)], ids=["plain", "gzip"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_csv_row_longer_than_a_block_is_refused_with_its_line(
    tmp_path: Path, bomb: bytes, pack: Callable[[bytes], bytes]
) -> None:
    good = b"".join(b"k%d,x\n" % i for i in range(1000)) + b'm,"two\nlines"\n'
    path = written(tmp_path, "bomb.csv", pack(b"id,size\n" + good + bomb + b"last,z\n"))
    with pytest.raises(
        IngestRefused, match=r"bomb\.csv .* the row that begins on line 1004 is longer than 4 MiB: close its quotes"
    ):
        list(open_source(path).batches())
    with pytest.raises(IngestRefused, match="its header on line 1 cannot be cut into columns"):
        list(open_source(written(tmp_path, "header.csv", b'id,"' + b"x" * 9_000_000 + b'"\n')).batches())


def test_a_quote_bomb_ends_no_process_and_takes_no_memory(tmp_path: Path) -> None:
    path = written(tmp_path, "bomb.csv", b"id,size\n" + b'b,"' + b"x" * 30_000_000 + b'"\n' + b"k,x\n" * 3_000_000)
    script = (
        "import resource, sys\nfrom loopwright.data.ingest.source import open_source\nfrom loopwright.base.errors import IngestRefused\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    list(open_source(sys.argv[1]).batches())\nexcept IngestRefused as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    said, kilobytes = done.stdout.splitlines()
    assert "line 2 is longer than 4 MiB" in said
    assert int(kilobytes) < 300_000


def test_a_header_that_repeats_a_name_numbers_it(tmp_path: Path) -> None:
    assert opened(written(tmp_path, "t.csv", b'x,"a\nb",x,\n1,2,3,4\n')).frame.column_names == ["x", "a\nb", "x#3", ""]


def test_what_a_compressed_file_unpacks_to_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "bomb.csv.gz", gzip.compress(b"id\n" + b"1\n" * 200_000, mtime=0))
    monkeypatch.setattr(encoding, "MAX_UNPACKED", 100_000)
    with pytest.raises(IngestRefused, match="unpacks to more than"):
        opened(path)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("line.jsonl", b'{"a": "' + b"x" * 3_000_000 + b'"}\n', "line 1 is longer than 1 MiB"),
        ("line.jsonl.gz", gzip.compress(b'{"a": "' + b"x" * 3_000_000 + b'"}\n', mtime=0), "line 1 is longer than 1 MiB"),
        ("line.csv", b'a,b\n1,"' + b"x" * 9_000_000 + b'"\n', "line 2 is longer than 4 MiB"),
        ("line.csv.gz", gzip.compress(b'a,b\n1,"' + b"x" * 9_000_000 + b'"\n', mtime=0), "line 2 is longer than 4 MiB"),
        ("header.csv", b'a,"b' + b"x\n" * 200_000, "its header on line 1"),
        ("wide.csv", b"," * 300_000 + b"\n", "more than 10,000 columns"),
        ("wide.jsonl", b"{%s}\n" % b", ".join(b'"k%d": 1' % i for i in range(10_001)), "more than 10,000 columns"),
    ],
    ids=[
        "JSON line",
        "JSON line packed",
        "CSV field",
        "CSV field packed",
        "header without an end",
        "CSV columns",
        "JSON names",
    ],
)
def test_lines_and_columns_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, why: str
) -> None:
    monkeypatch.setattr(source, "LONGEST_LINE", 1 << 20)
    with pytest.raises(IngestRefused, match=why):
        opened(written(tmp_path, name, data))


def test_a_json_value_of_any_depth_is_text_or_a_bad_line(tmp_path: Path) -> None:
    data = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b'}\n{"a": ' + b'{"b": ' * 500 + b"1" + b"}" * 500 + b"}\n"
    found = opened(written(tmp_path, "deep.jsonl", data))
    assert (len(found.frame), len(found.broken)) == (1, 1)


def test_a_folder_gives_its_own_files_and_neither_hidden_ones_nor_what_links_lead_to(tmp_path: Path) -> None:
    folder, outside = tmp_path / "in", tmp_path / "outside"
    for made in (folder / ".hidden", folder / "deeper", outside):
        made.mkdir(parents=True)
        (made / "a.csv").write_bytes(CSV)
    (folder / ".b.csv").write_bytes(CSV)
    (folder / "round").symlink_to(folder)
    (folder / "away").symlink_to(outside)
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    os.mkfifo(folder / "pipe.csv")
    assert source.expand(folder) == [folder / "deeper" / "a.csv"]
    with pytest.raises(IngestRefused, match="no file that can be read to its end"):
        opened(folder / "pipe.csv")
