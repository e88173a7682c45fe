"""The door to DuckDB: bounded, locked, and without extensions from elsewhere."""

from pathlib import Path

import pyarrow as pa
import pytest

from loopwright.base.settings import Settings
from loopwright.sql import engine as module
from loopwright.sql.engine import sql_engine, sql_error
from loopwright.stores.home import Home


def test_memory_is_a_third_of_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_limit", lambda: 300 * 2**20)
    with sql_engine() as database:
        assert database.sql("SELECT current_setting('memory_limit')").fetchall() == [("100.0 MiB",)]


def test_a_query_beyond_its_memory_spills_into_home_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "memory_limit", lambda: 240 * 2**20)
    monkeypatch.chdir(tmp_path)
    home = Home(Settings(home=tmp_path / "home"))
    query = "SELECT count(*) FROM (SELECT DISTINCT md5(a::VARCHAR) AS d, a FROM rows ORDER BY d)"
    rows = pa.table({"a": pa.array(range(3_000_000), pa.int64())})
    with sql_engine(home, ordered=False) as database:
        database.register("rows", rows)
        assert database.sql(query).fetchall() == [(3_000_000,)]
        assert list((home.path / "tmp").iterdir()) != []
    assert list((home.path / "tmp").iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    with sql_engine() as database:
        database.register("rows", rows)
        with pytest.raises(sql_error(), match="Memory"):
            database.sql(query).fetchall()
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    "sql",
    [
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM 'http://127.0.0.1:1/a.parquet'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH 'a.db'",
        "SET memory_limit = '1TiB'",
        "SELECT st_area(1)",
    ],
)
def test_no_extension_file_network_or_setting_is_reachable(sql: str) -> None:
    with sql_engine() as database, pytest.raises(sql_error()):
        database.sql(sql).fetchall()


def test_no_extension_is_installed_or_loaded_by_itself() -> None:
    with sql_engine() as database:
        query = "SELECT DISTINCT value FROM duckdb_settings() WHERE name IN ('autoinstall_known_extensions', 'autoload_known_extensions')"
        assert database.sql(query).fetchall() == [("false",)]
