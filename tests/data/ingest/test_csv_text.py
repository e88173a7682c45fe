from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from loopwright import Column, Home, Table
from loopwright.base.errors import IngestRefused
from loopwright.base.settings import Settings
from loopwright.data.ingest.encoding import detect
from loopwright.data.ingest.header import looks_like_a_row
from loopwright.data.ingest.ingestion import ingest
from loopwright.data.ingest.source import open_source
from loopwright.data.ingest.source_reader import Reading


def read(folder: Path, data: bytes | str, reading: Reading | None = None, name: str = "t.csv") -> Any:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return open_source(path, reading=reading or Reading()).whole()


def test_quotes_escaped_by_backslashes_are_read_as_they_were_written(tmp_path: Path) -> None:
    whole = read(tmp_path, 'id,s,t\n1,"He said \\"hi\\"",a\n2,"x\\\\y",b\n3,"\\"",c\n4,"a, \\"b\\"\nc",d\n')
    assert whole.frame["s"].to_pylist() == ['He said "hi"', "x\\y", '"', 'a, "b"\nc']
    assert (whole.rows.tolist(), len(whole.broken)) == ([1, 2, 3, 4], 0)


def test_backslashes_of_a_file_whose_quotes_are_doubled_stay(tmp_path: Path) -> None:
    whole = read(tmp_path, 'id,path,n\n1,"C:\\dir\\",1\n2,"say ""\\""",2\n3,D:\\x,3\n')
    assert whole.frame["path"].to_pylist() == ["C:\\dir\\", 'say "\\"', "D:\\x"]


@pytest.mark.parametrize("header", [True, False])
def test_text_after_a_closing_quote_is_a_bad_row_with_its_line(tmp_path: Path, header: bool) -> None:
    rows = '1,"abc"def\n2,"two\nlines"\n\n4,"a "b" c"\n5,z\n6\n7,"x"y\n'
    whole = read(tmp_path, ("id,s\n" if header else "") + rows, Reading(names=() if header else ("id", "s")))
    assert whole.frame.to_pydict() == {"id": ["2", "5"], "s": ["two\nlines", "z"]}
    assert whole.rows.tolist() == [2, 5]
    broken = {b["_row"]: (b["_reason"], b["_raw"]) for b in whole.broken.to_pylist()}
    assert sorted(broken) == [1, 4, 6, 7]
    assert "text follows a closing quote" in broken[1][0]
    assert broken[1][1] == '1,"abc"def'
    assert "1 fields where the header has 2" in broken[6][0]


def test_quote_within_unquoted_text_is_a_letter(tmp_path: Path) -> None:
    assert read(tmp_path, 'id,s\n1,5" pipe\n2,a"b"c\n').frame["s"].to_pylist() == ['5" pipe', 'a"b"c']


def test_quotes_that_never_close_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="quotes that open in the row on line 3 are never closed"):
        read(tmp_path, 'id,s\n1,x\n2,"open\n3,y\n4,z\n')


def test_nul_byte_anywhere_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="NUL byte on line 40002"):
        read(tmp_path, b"id,s\n" + b"1,ab\n" * 40_000 + b"2,a\0b\n")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\r"])
def test_header_without_rows_is_a_table_without_rows(tmp_path: Path, end: str) -> None:
    whole = read(tmp_path, "id,s" + end)
    assert whole.frame.to_pydict() == {"id": [], "s": []}


@pytest.mark.parametrize("text", ["id,s\r1,x\r2,y\r", "id,s\r\n1,x\n2,y\r\n", "id,s\n1,x\r\n2,y"])
def test_line_ends_may_be_mixed(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).frame.to_pydict() == {"id": ["1", "2"], "s": ["x", "y"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id;amount\n1;2,5\n2;3,75\n", {"id": ["1", "2"], "amount": ["2,5", "3,75"]}),
        ('"a,b,c";d\n1;2\n3;4\n', {"a,b,c": ["1", "3"], "d": ["2", "4"]}),
        ("id\tname, first\n1\tx, y\n2\tz\n", {"id": ["1", "2"], "name, first": ["x, y", "z"]}),
        ("a,b|c,d|e\n1,2|3,4|5\n6|7|8\n", {"a,b": ["1,2", "6"], "c,d": ["3,4", "7"], "e": ["5", "8"]}),
        ("note\nhello; you\nbye, now\n", {"note": ["hello; you", "bye, now"]}),
    ],
)
def test_delimiter_is_the_one_that_cuts_the_rows_like_the_header(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert read(tmp_path, text).frame.to_pydict() == expected


ADULT = "".join(
    f"{20 + i % 40},{('Private', 'State-gov')[i % 2]},{1000 + 37 * i},{('>50K', '<=50K')[i % 3 > 0]}\n" for i in range(60)
)


def test_file_without_a_header_is_refused_and_the_options_named(tmp_path: Path) -> None:
    with pytest.raises(
        IngestRefused, match=r"its first line \(20, Private, 1000, >50K\) looks like a row.*--no-header or --names"
    ):
        read(tmp_path, ADULT)
    numbered = read(tmp_path, ADULT, Reading(no_header=True))
    assert numbered.frame.column_names == ["column_1", "column_2", "column_3", "column_4"]
    assert (len(numbered.frame), numbered.rows[0], numbered.rows[-1]) == (60, 1, 60)
    named = read(tmp_path, ADULT, Reading(names=("age", "work", "weight", "income")))
    assert named.frame.slice(0, 1).to_pylist() == [{"age": "20", "work": "Private", "weight": "1000", "income": ">50K"}]
    with pytest.raises(IngestRefused, match="--names has 2 names and its first line 4 columns"):
        read(tmp_path, ADULT, Reading(names=("a", "b")))


def test_names_of_the_first_line_itself_keep_it_as_the_header(tmp_path: Path) -> None:
    years = "2019,2020\n" + "".join(f"{2000 + i},{2001 + i}\n" for i in range(40))
    with pytest.raises(IngestRefused, match="looks like a row"):
        read(tmp_path, years)
    assert len(read(tmp_path, years, Reading(names=("2019", "2020"))).frame) == 40


@pytest.mark.parametrize(
    ("first", "rows", "is_row"),
    [
        (["id", "x"], [[str(i), "1.5"] for i in range(9)], False),
        (["country", "2019", "2020"], [[f"c{i}", str(i / 7), str(i / 9)] for i in range(50)], False),
        (["0", "1", "2"], [[str(i), "1", str(i)] for i in range(50)], False),
        (["", "a"], [[str(i), "x"] for i in range(9)], False),
        (["p", "x", "s"], [["pe"[i % 2], "xs"[i % 2], "sn"[i % 2]] for i in range(50)], True),
        (["2024-01-01", "3.5"], [[f"2024-01-{2 + i:02}", f"{i},5"] for i in range(20)], True),
        (["1", "2"], [["3", "4"]], False),
        (["-1.5", "abc"], [[str(-2 + i / 3), f"w{i}"] for i in range(20)], True),
    ],
)
def test_first_line_looks_like_a_row_only_where_its_values_do(first: list[str], rows: list[list[str]], is_row: bool) -> None:
    assert looks_like_a_row(first, rows) is is_row


def test_json_key_that_comes_twice_is_a_bad_row(tmp_path: Path) -> None:
    lines = [
        '{"a": 1, "a": 2}', '{"a": 3, "b": {"c": 1, "c": 2}}', '{"a": 4, "b": {"c": 1, "d": 2}}', '{"a": "x \\":y", "b": null}',
    ]  # fmt: skip
    whole = read(tmp_path, "\n".join(lines), name="t.jsonl")
    assert whole.frame["a"].to_pylist() == ["4", 'x ":y']
    assert [(b["_row"], "comes twice" in b["_reason"]) for b in whole.broken.to_pylist()] == [(1, True), (2, True)]


@pytest.mark.parametrize(("encoding", "native"), [("utf-8", True), ("utf-16", False)])
def test_csv_in_utf8_is_read_without_python_on_the_thread_that_reads_ahead(tmp_path: Path, encoding: str, native: bool) -> None:
    """A thread of Arrow that needs Python while the interpreter ends aborts the process."""
    path = tmp_path / "a\udcff.csv"
    path.write_text("a,b\n1,2\n", encoding)
    with detect(path, path.name).open_for_arrow() as file:
        assert isinstance(file, pa.OSFile) == native
        assert file.read(100) == b"a,b\n1,2\n"
    assert open_source(path).whole().frame.to_pylist() == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("columns", ["id,other", "id,at,size"])
def test_reader_of_a_csv_that_is_refused_is_closed(tmp_path: Path, encoding: str, columns: str) -> None:
    """Also while the error is held, and after only the first rows."""
    path = tmp_path / "a.csv"
    path.write_text(f"{columns}\n" + f"1,2,{'3' * 50}\n" * 120_000, encoding)
    things = Table("things", {"id": Column("string"), "at": Column("timestamp"), "size": Column("float")}, ["id"], "at")

    def is_open() -> bool:
        return any(link.exists() and link.samefile(path) for link in Path("/proc/self/fd").iterdir())

    with Home(Settings(home=tmp_path / "home", by="tests")) as home:
        if columns == "id,other":
            with pytest.raises(IngestRefused) as refused:
                ingest(home, things, path)
            assert refused.value.__traceback__ is not None
        else:
            assert len(open_source(path).whole(10).frame)
    assert not is_open()
