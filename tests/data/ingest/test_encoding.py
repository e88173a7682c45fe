import gzip
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pytest

from loopwright.base.errors import IngestRefused, UsageError
from loopwright.data.ingest.source import open_source
from loopwright.data.ingest.source_reader import Reading

NAMES = "id,city,note\n" + "".join(f"{i},{c},{n}\n" for i, (c, n) in enumerate([
    ("Zürich", "café"), ("São Paulo", "naïve"), ("Århus", "smørrebrød"), ("Málaga", "¿qué?"), ("Besançon", "à côté de l’œuvre"),
]))  # fmt: skip
LATIN = NAMES.replace("’", "'").replace("œ", "oe")


def read(folder: Path, name: str, data: bytes, reading: Reading | None = None) -> Any:
    path = folder / name
    path.write_bytes(data)
    return open_source(path, reading=reading or Reading())


@pytest.mark.parametrize(
    ("encoding", "text", "detected"),
    [
        ("utf-8", NAMES, ""),
        ("utf-8-sig", NAMES, ""),
        ("cp1252", NAMES, "cp1252"),
        ("latin-1", LATIN, "cp1252"),
        ("utf-16", NAMES, "utf-16"),
        ("utf-16-le", NAMES, "utf-16-le"),
        ("utf-16-be", NAMES, "utf-16-be"),
        ("utf-32", NAMES, "utf-32"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_encoding_of_a_csv_is_detected_and_every_letter_kept(
    tmp_path: Path, encoding: str, text: str, detected: str, packed: bool
) -> None:
    data = text.encode(encoding)
    opened = read(tmp_path, "cities.csv.gz" if packed else "cities.csv", gzip.compress(data, mtime=0) if packed else data)
    assert opened.encoding == detected
    assert opened.whole().frame["city"].to_pylist() == ["Zürich", "São Paulo", "Århus", "Málaga", "Besançon"]
    assert opened.whole().frame["note"].to_pylist()[3] == "¿qué?"


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", "id,name\n1,Wałęsa\n2,Kościuszko\n3,Łódź\n"),
        ("iso-8859-2", "id,name\n1,Wałęsa\n2,Mićković\n3,Kościuszko\n"),
        ("cp1251", "id,name\n1,Москва\n2,Казань\n"),
        ("shift_jis", "id,name\n1,東京\n2,大阪府\n"),
        ("gb18030", "id,name\n1,上海市\n2,北京市\n"),
        ("mac-roman", "id,name\n1,cafés\n2,Zürich\n3,naïve\n"),
        ("cp437", "id,name\n1,cafés\n2,Zürich\n3,naïve\n"),
    ],
)
def test_encoding_that_cannot_be_told_is_refused_and_read_where_it_is_named(tmp_path: Path, encoding: str, text: str) -> None:
    with pytest.raises(
        IngestRefused, match=r"not UTF-8, and does not look like Windows-1252: name its encoding with --encoding"
    ):
        read(tmp_path, "names.csv", text.encode(encoding))
    opened = read(tmp_path, "names.csv", text.encode(encoding), Reading(encoding=encoding))
    assert opened.whole().frame["name"].to_pylist() == [line.split(",")[1] for line in text.splitlines()[1:]]


WORDS = {
    "cp1252": "Genève Zürich José São Köln Málaga Århus Ærø Øresund naïve créée façade Šabac œuvre États-Unis Île MÜNCHEN Gießen d’été l’Île "
    "20°C 5€ £5 m³ µg Nº señora Åse Garðabær",
    "shift_jis": "東京 大阪 山田 田中 鈴木 佐藤 男 女 日 本 中 名 テスト カタカナ ひらがな 会社 ｱｲｳ はい いいえ 晴れ 雨 曇り 月 火 木 金 札幌",
    "euc_kr": "서울 부산 김 이 박 남 여 예 아니오 대구 인천 맑음 비 한국 월 수 목 금",
    "gb18030": "北京 上海 男 是 否 张三 李四 王 晴 雨 广州 深圳 二 三 人民 好",
    "big5": "台北 高雄 男 女 是 否 大 小 中 王 李 陳 林 晴 雨 台中 一 二 三 人",
    "euc_jp": "東京 大阪 男 女 はい いいえ 山田 日 本",
    "cp1251": "Москва да нет Иванов и Пермь муж жен М Ж",
}


@pytest.mark.parametrize("encoding", WORDS)
def test_encoding_of_a_file_of_one_word_is_no_guess(tmp_path: Path, encoding: str) -> None:
    """Any bytes decode as Windows-1252: a word of another script is refused, its encoding among the candidates; a Western one is read.

    Left out are words whose bytes are lawful UTF-8 as well, e.g. 女 in GBK.
    """
    for word in WORDS[encoding].split():
        data = f"id,name,x\n1,{word},3\n2,{word},4\n".encode(encoding)
        if encoding == "cp1252":
            assert read(tmp_path, "a.csv", data).encoding == "cp1252", word
            continue
        with pytest.raises(IngestRefused, match=r"with --encoding; its bytes are valid in") as refused:
            read(tmp_path, "a.csv", data)
        assert encoding in refused.value.why, word


def test_encoding_is_told_from_the_whole_file_not_from_its_beginning(tmp_path: Path) -> None:
    rows = "id,city\n" + "1,Bern\n" * 50_000
    assert read(tmp_path, "late.csv", (rows + "2,Genève\n").encode("cp1252")).encoding == "cp1252"
    opened = read(tmp_path, "late.csv", (rows + "2,Genève\n").encode())
    assert (opened.encoding, opened.whole().frame["city"][-1].as_py()) == ("", "Genève")


def test_encoding_that_is_named_is_part_of_what_the_content_is(tmp_path: Path) -> None:
    data = LATIN.encode("latin-1")
    detected = read(tmp_path, "a.csv", data)
    assert read(tmp_path, "a.csv", data, Reading(encoding="windows-1252")).digest == detected.digest
    other = read(tmp_path, "a.csv", data, Reading(encoding="cp1250"))
    assert other.digest != detected.digest
    assert (
        read(tmp_path, "a.csv", NAMES.encode(), Reading(encoding="utf-8")).digest
        == read(tmp_path, "a.csv", NAMES.encode()).digest
    )


@pytest.mark.parametrize("encoding", ["utf8x", "hex", "rot13"])
def test_encoding_that_does_not_exist_is_named(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UsageError, match=f"--encoding '{encoding}': no such encoding"):
        read(tmp_path, "a.csv", NAMES.encode(), Reading(encoding=encoding))


def test_encoding_that_the_bytes_are_not_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="not readable as CSV in UTF-8"):
        read(tmp_path, "a.csv", LATIN.encode("latin-1"), Reading(encoding="utf-8")).whole()


def test_json_lines_in_another_encoding_are_read(tmp_path: Path) -> None:
    line = '{"id": 1, "city": "Zürich"}\n'
    for encoding in ("cp1252", "utf-16", "utf-16-le"):
        assert read(tmp_path, "a.jsonl", line.encode(encoding)).whole().frame["city"].to_pylist() == ["Zürich"]


def zipped(files: dict[str, bytes], path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.read_bytes()


def sqlite_file(path: Path) -> bytes:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE t (x)")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "an HTML page"),
        (b"\xef\xbb\xbf<HTML><body></body></HTML>", "an HTML page"),
        (b"<?xml version='1.0'?><rows/>", "XML"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 512, r"an Excel workbook of the old format \(.xls\)"),
        ({"word/document.xml": b"<w/>"}, "a Word document"),
        ({"META-INF/manifest.xml": b"<m/>", "content.xml": b"<c/>"}, r"an OpenDocument file \(.ods\)"),
        ({"readme.md": b"hello"}, "a zip archive that holds 0 CSV files"),
        ({"a.csv": b"x\n1\n", "b.csv": b"x\n1\n"}, "a zip archive that holds 2 CSV files"),
        (b"BZh91AY&SY", "compressed by bzip2"),
        (b"\xfd7zXZ\0\0", "compressed by xz"),
        (b"\x28\xb5\x2f\xfd\0", "compressed by Zstandard"),
        (gzip.compress(b"%PDF-1.7\n", mtime=0), "a PDF document"),
        (b"\x89PNG\r\n\x1a\n\0", "an image"),
        (b'[{"id": 1}]', "one JSON array"),
        (b'{\n  "id": 1\n}\n', "one JSON document over several lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\0" * 4096, "only NUL bytes"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "file",
)
def test_file_of_another_kind_called_csv_is_named_as_what_it_is(tmp_path: Path, data: Any, what: str) -> None:
    data = zipped(data, tmp_path / "made.zip") if isinstance(data, dict) else data
    with pytest.raises(IngestRefused, match=f"data.csv was not ingested: it (is|holds) {what}"):
        read(tmp_path, "data.csv", data)


def test_database_called_csv_says_how_to_query_it(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="an SQLite database: use --query"):
        read(tmp_path, "data.csv", sqlite_file(tmp_path / "made.db"))


def test_gzip_and_zip_called_csv_are_read(tmp_path: Path) -> None:
    for data in (
        gzip.compress(b"id,x\n1,2\n"),
        zipped({"__MACOSX/a.csv": b"x", "a.tsv": b"id\tx\n1\t2\n"}, tmp_path / "made.zip"),
    ):
        assert read(tmp_path, "data.csv", data).whole().frame.to_pydict() == {"id": ["1"], "x": ["2"]}


def test_option_that_a_kind_of_file_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="--sheet says nothing about CSV"):
        read(tmp_path, "a.csv", NAMES.encode(), Reading(sheet="one"))
    with pytest.raises(IngestRefused, match="--no-header says nothing about JSON Lines"):
        read(tmp_path, "a.jsonl", b'{"id": 1}\n', Reading(no_header=True))
