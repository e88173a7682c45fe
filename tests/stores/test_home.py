import getpass
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from loopwright.base.clock import SimulatedClock
from loopwright.base.settings import Settings
from loopwright.records.windows import Trigger
from loopwright.stores.home import Home


def test_stores_live_in_home_and_share_its_clock(tmp_path: Path) -> None:
    moment = datetime(2013, 4, 1, tzinfo=UTC)
    with Home(Settings(home=tmp_path / "home", by="ada"), SimulatedClock(moment)) as home:
        assert not (tmp_path / "home").exists()
        entry = home.ledger.put(Trigger(cause="manual", reason="test"))
        assert (entry.at, entry.by) == (moment, "ada")
        assert home.ledger is home.ledger
        assert home.lake.names() == []
        assert home.online.fed("weather") is None
        assert home.folder("examples") == tmp_path / "home" / "examples"
    assert sorted(path.name for path in (tmp_path / "home").glob("*") if path.is_dir()) == ["examples"]
    assert (tmp_path / "home" / "ledger.db").is_file()


def test_a_home_that_was_closed_opens_again(tmp_path: Path) -> None:
    home = Home(Settings(home=tmp_path))
    id = home.ledger.put(Trigger(cause="manual", reason="test")).id
    home.close()
    home.close()
    assert home.ledger.get(id, Trigger).by == getpass.getuser()
    home.close()


def test_a_relative_home_stays_where_it_was_opened(tmp_path: Path) -> None:
    script = """
import os
from pathlib import Path
from loopwright.stores.home import Home
from loopwright.base.settings import Settings
home = Home(Settings(home=Path("here")))
os.chdir("/")
print(home.folder("x"))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "here" / "x")


def test_a_home_without_its_stores_loads_no_heavy_library() -> None:
    script = """
import sys
from loopwright.stores.home import Home
from loopwright.base.settings import Settings
Home(Settings()).path
print([name for name in ("sqlalchemy", "deltalake", "pyarrow", "pandas", "sklearn", "onnx", "duckdb") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
