"""Bad rows: looked at, written out, mended, and in again once."""

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from loopwright import Column, Home, Table
from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import IngestRefused, UsageError
from loopwright.base.settings import Settings
from loopwright.cli.terminal.tables import ingested
from loopwright.data.ingest.ingestion import files, ingest
from loopwright.data.ingest.quarantine import mend, quarantined
from loopwright.records.ingestions import Ingested

ORDERS = Table(
    "orders",
    {
        "id": Column("string", source="Order Id"),
        "at": Column("timestamp", zone="America/New_York"),
        "size": Column("float", minimum=0, nullable=True),
        "row": Column("string", filled="row_id"),
    },
    key=["id"],
    event_time="at",
    ignore=["note"],
)
CSV = """Order Id,at,size,note
a,2024-01-01,1,x
b,2024-03-10 02:30,2,x
c,2024-11-03 01:30,3,"it's; odd: '1' is"
d,2024-01-01,-4,x
e
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with Home(Settings(home=tmp_path / "home", by="tests"), SimulatedClock(datetime(2024, 12, 1, tzinfo=UTC))) as opened:
        (tmp_path / "orders.csv").write_text(CSV, encoding="utf-8")
        ingest(opened, ORDERS, tmp_path / "orders.csv")
        yield opened


def edited(file: Path, **changes: dict[str, str]) -> None:
    """Write values into the rows of an exported CSV, by order (or by what could not be cut)."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows:
        row.update(changes.get(row["Order Id"] or row["_raw"], {}))
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def landed(home: Home) -> dict[str, str]:
    return {r["id"]: r["row"] for r in home.lake.read("orders").to_pylist()}


def test_what_waits_is_counted_by_reason_and_shown(home: Home) -> None:
    found = quarantined(home, "orders", most=2)
    assert (found.rows, found.mended, found.by_source) == (4, 0, {"orders.csv": 4})
    assert found.by_reason == {
        "at: a time that America/New_York skips (the clocks go forward)": 1,
        "at: a time that America/New_York has twice, as -04:00 and as -05:00: write which": 1,
        "size: below 0": 1,
        "row: 1 fields where the header has 4": 1,
    }
    assert [r["row"] for r in found.shown] == [2, 3]
    assert "note" not in found.shown[0]["raw"], "what the contract does not take is not kept"
    assert quarantined(home, "nothing").rows == 0


def test_mended_rows_leave_once_and_keep_their_name(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    [first] = home.ledger.find(Ingested, key="orders")
    assert quarantined(home, "orders", export=file).file == str(file)
    edited(
        file,
        b={"at": "2024-03-10 03:30"},
        c={"at": "2024-11-03T01:30:00-05:00"},
        e={"Order Id": "e", "at": "2024-01-02", "size": ""},
    )
    done = mend(home, ORDERS, file)
    assert (done.rows, done.good, done.quarantined, done.reasons) == (4, 3, 1, {"size: below 0": 1})
    assert done.mended == {first.record.digest: [2, 3, 5]}
    assert landed(home) == {k: f"{first.record.digest[:12]}-{n}" for k, n in {"a": 1, "b": 2, "c": 3, "e": 5}.items()}
    again = mend(home, ORDERS, file)
    assert (again.good, again.quarantined) == (0, 1)
    assert len(landed(home)) == home.lake.count("orders") == 4
    left = quarantined(home, "orders")
    assert (left.rows, left.mended, list(left.by_reason)) == (1, 3, ["size: below 0"])
    assert home.lake.count("quarantine.orders") == 4, "history stays"
    assert set(files(home, "orders", done.version)) == {"orders.csv", "bad.csv"}


def test_of_two_mended_versions_of_a_row_the_last_counts_and_the_record_says_so(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    quarantined(home, "orders", export=file)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    versions = [row | {"at": at} for row in rows if row["Order Id"] == "b" for at in ("2024-03-10 03:30", "2024-03-10 05:30")]
    file.write_text("\n".join(json.dumps(row) for row in versions), encoding="utf-8")
    done = mend(home, ORDERS, file)
    assert (done.rows, done.good, done.replaced) == (1, 1, 1)
    [at] = [r["at"] for r in home.lake.read("orders").to_pylist() if r["id"] == "b"]
    assert at.isoformat() == "2024-03-10T09:30:00+00:00"
    [entry] = [e for e in home.ledger.find(Ingested, key="orders") if e.record.mended]
    assert entry.record.replaced == 1
    out = StringIO()
    Console(file=out, width=200).print(ingested([done]))
    assert "rows that it mends more than once: 1 times; the last counts" in out.getvalue()


def test_mended_file_without_a_column_of_its_rows_is_refused(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    quarantined(home, "orders", export=file)
    edited(file, b={"at": "2024-03-10 03:30"})
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [{k: v for k, v in row.items() if k != "size"} for row in csv.DictReader(opened)]
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(IngestRefused, match="lacks the column 'size', in which its rows have values"):
        mend(home, ORDERS, file)
    assert sorted(landed(home)) == ["a"], "a null in place of 2 would be a wrong value"


def test_mended_file_of_another_table_or_with_changed_marks_is_refused(home: Home, tmp_path: Path) -> None:
    file, changed = tmp_path / "bad.csv", tmp_path / "changed.csv"
    quarantined(home, "orders", export=file)
    edited(file, b={"at": "2024-03-10 03:30"})
    other = msgspec.structs.replace(ORDERS, name="returns")
    ingest(home, other, pa.table({"Order Id": ["z"], "at": ["2024-01-01"], "size": ["1"], "note": ["x"]}))
    with pytest.raises(IngestRefused, match=r"is not in the quarantine of table 'returns' \(4 such rows\)"):
        mend(home, other, file)
    changed.write_text(file.read_text(encoding="utf-8").replace('"4"', '"40"').replace(",4,", ",40,"), encoding="utf-8")
    with pytest.raises(IngestRefused, match="row 40 of source"):
        mend(home, ORDERS, changed)
    assert sorted(landed(home)) == ["a"]
    assert mend(home, ORDERS, file).good == 1


def test_after_a_wider_contract_the_rows_come_in_as_they_are(home: Home) -> None:
    wider = msgspec.structs.replace(ORDERS, columns={**ORDERS.columns, "size": Column("float", nullable=True)})
    assert mend(home, wider).good == 1
    assert sorted(landed(home)) == ["a", "d"]
    assert mend(home, wider).good == 0


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_every_format_comes_back(home: Home, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"bad{suffix}"
    quarantined(home, "orders", export=file)
    wider = msgspec.structs.replace(ORDERS, columns={**ORDERS.columns, "size": Column("float", nullable=True)})
    assert mend(home, wider, file).good == 1
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl or \.parquet"):
        quarantined(home, "orders", export=tmp_path / "bad.xlsx")


def test_a_mending_that_died_before_its_record_is_told_by_the_next(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bad.csv"
    quarantined(home, "orders", export=file)
    edited(file, b={"at": "2024-03-10 03:30"})

    class Died(Exception):
        pass

    put = home.ledger.put

    def die(record: Any, **given: Any) -> Any:
        if isinstance(record, Ingested):
            raise Died
        return put(record, **given)

    with monkeypatch.context() as patched:
        patched.setattr(home.ledger, "put", die)
        with pytest.raises(Died):
            mend(home, ORDERS, file)
    assert sorted(landed(home)) == ["a", "b"]
    assert mend(home, ORDERS, file).good == 0
    assert sorted(landed(home)) == ["a", "b"]
    assert quarantined(home, "orders").mended == 1


def test_a_file_that_was_not_exported_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(IngestRefused, match="quarantine orders --export"):
        mend(home, ORDERS, tmp_path / "orders.csv")
    pq.write_table(pa.table({"_digest": ["x"], "_row": ["one"]}), tmp_path / "odd.parquet")
    with pytest.raises(IngestRefused, match="_row"):
        mend(home, ORDERS, tmp_path / "odd.parquet")
