import os
from pathlib import Path

import msgspec
import pytest
from tests.deploy.loops import LOOP, flight, opened, package
from tests.server.processes.test_supervisor import ledger_away
from tests.server.running import running, until

from loopwright.base.clock import RealClock
from loopwright.base.errors import LedgerUnavailable
from loopwright.deploy import releases
from loopwright.deploy.serving.registry import StandIn
from loopwright.monitor.alerts import open_alerts
from loopwright.server.processes.stand_ins import StandIns
from loopwright.stores.home import Home
from loopwright.tend import tend

PREDICT = f"/loops/{LOOP}/predict"


def alerts(home: Home) -> list[tuple[str, str]]:
    return [(a.key.partition(":")[0], a.severity) for a in open_alerts(home, LOOP)]


def test_an_alert_is_open_while_something_stands_in(tmp_path: Path) -> None:
    home, folder = opened(tmp_path / "home"), tmp_path / "stand-in"
    stand_ins = StandIns(folder)
    stand_ins.record(home)  # the folder need not be there
    folder.mkdir()
    (folder / f"{LOOP}.json").write_bytes(msgspec.json.encode(StandIn(package="a" * 64, instead="b" * 64, why="it is damaged")))
    (folder / ".half").write_bytes(b"{")
    stand_ins.record(home)
    stand_ins.record(home)
    (alert,) = open_alerts(home, LOOP)
    assert (alert.severity, alert.repeats) == ("critical", 0)
    assert "it is damaged. Until it can, package bbbbbbbbbbbb" in alert.detail
    (folder / f"{LOOP}.json").unlink()
    stand_ins.record(home)
    assert alerts(home) == []


def test_an_alert_waits_for_the_ledger(tmp_path: Path) -> None:
    home, folder = opened(tmp_path / "home", RealClock()), tmp_path / "stand-in"
    folder.mkdir()
    (folder / f"{LOOP}.json").write_bytes(msgspec.json.encode(StandIn(package="a" * 64, instead="", why="it is damaged")))
    stand_ins = StandIns(folder)
    with ledger_away(home), pytest.raises(LedgerUnavailable):
        stand_ins.record(home)
    fresh = Home(home.settings, home.clock)
    stand_ins.record(fresh)
    assert alerts(fresh) == [("damaged-package", "critical")]
    fresh.close()


def test_a_server_started_on_a_pipe_instead_of_a_model_serves_the_package_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home = opened(tmp_path, RealClock())
    whole, declared = package(home.packages).digest, package(home.packages, weight=0.06).digest
    for digest in (whole, declared):
        releases.release(home, LOOP, digest, why="next")
    model = home.path / "packages" / declared / "model.onnx"
    model.unlink()
    os.mkfifo(model)
    with running(home) as server:
        client = server.data()
        assert client.post(PREDICT, flight()).json["package"] == whole
        assert client.get("/readyz").status == 200
        until(lambda: alerts(home), 60)
        assert alerts(home) == [("damaged-package", "critical")]
    tend(home, owner="after", retrain=False)
    assert alerts(home) == [], "the server that told of it has stopped"
    said = capfd.readouterr().err
    assert "CRITICAL loopwright worker-0: loop late-arrival: package" in said
    assert f"package {whole[:12]}, which served before, stands in" in said
