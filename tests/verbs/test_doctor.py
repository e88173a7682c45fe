"""What the doctor says of the table that is looked up while serving, and of what is told outside."""

import socket
import sqlite3
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import HomeNotFound
from loopwright.base.settings import Settings
from loopwright.records.windows import Trigger
from loopwright.stores.home import Home
from loopwright.verbs import doctor as doctor_module
from loopwright.verbs.doctor import doctor
from loopwright.verbs.verify import verify


def test_an_online_table_that_does_not_answer_is_no_good_health(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path)) as home:
        [item] = [i for i in doctor(home).items if i.name == "online table"]
        assert item.ok
    with socket.socket() as nobody:  # bound and not listening: whoever calls is refused
        nobody.bind(("127.0.0.1", 0))
        with Home(Settings(home=tmp_path, online=f"redis://:hidden@127.0.0.1:{nobody.getsockname()[1]}/0")) as home:
            said = doctor(home)
    [item] = [i for i in said.items if i.name == "online table"]
    assert not item.ok
    assert not said.ok
    assert "does not answer" in item.detail
    assert "hidden" not in str(said)


@pytest.mark.parametrize("password", ["secret", "sec?ret", "sec:ret/1", "sec%40ret%25"])
def test_doctor_shows_no_part_of_the_ledgers_password(tmp_path: Path, password: str) -> None:
    with Home(Settings(home=tmp_path, ledger=f"postgresql://ann:{password}@127.0.0.1:1/shop?sslpassword=secret")) as home:
        said = doctor(home)
    [item] = [i for i in said.items if i.name == "LOOPWRIGHT_LEDGER"]
    assert item.detail == "postgresql://127.0.0.1:1/shop"
    assert "sec" not in "".join(i.detail for i in said.items if i.name in ("LOOPWRIGHT_LEDGER", "ledger"))


def said_of(home: Home, *names: str) -> list[tuple[str, bool, str]]:
    return [(i.name, i.ok, i.detail) for i in doctor(home).items if i.name in names]


def test_spans_and_events_go_where_they_may(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path)) as home:
        assert said_of(home, "gRPC", "traces", "events") == []
    settings = Settings(home=tmp_path, grpc_port=0, traces="http://localhost:4318", events="http://receiver.example/in")
    with Home(settings) as home:
        found = said_of(home, "gRPC", "traces", "events")
    assert [(name, ok) for name, ok, _ in found] == [("gRPC", True), ("traces", True), ("traces", True), ("events", False)]
    assert "needs https" in found[-1][2]


def test_what_a_setting_needs_and_is_not_installed_is_said_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version

    def version(library: str) -> str:
        if library in ("grpcio", "opentelemetry-proto"):
            raise metadata.PackageNotFoundError(library)
        return real(library)

    monkeypatch.setattr(doctor_module, "version", version)
    with Home(Settings(home=tmp_path, grpc_port=0, traces="http://localhost:4318")) as home:
        found = said_of(home, "gRPC", "traces")
    assert [ok for _, ok, _ in found] == [False, False, True]
    assert "loopwright[grpc]" in found[0][2]
    assert "loopwright[otel]" in found[1][2]


def test_secrets_in_urls_are_not_shown_and_a_webhook_that_cannot_be_called_is_not_well(tmp_path: Path) -> None:
    secret = "https://hooks.example.invalid/services/T0/hidden?token=hidden"
    settings = Settings(
        home=tmp_path,
        webhook=secret,
        traces="http://localhost:4318/hidden",
        events=secret,
        openlineage="http://localhost:1/hidden",
        token="hidden",
    )
    with Home(settings) as home:
        said = doctor(home)
    assert "hidden" not in str(said)
    shown = {item.name: item.detail for item in said.items if item.name.startswith("LOOPWRIGHT_")}
    assert shown["LOOPWRIGHT_WEBHOOK"] == "https://hooks.example.invalid/…"
    assert [item.ok for item in said.items if item.name == "webhook"] == [False]


def test_doctor_names_variables_that_are_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOPWRIGHT_WEBHOK", "https://hooks.example.com/secret")
    monkeypatch.setenv("LOOPWRIGHT_KEEP", "")
    with Home(Settings(home=tmp_path)) as home:
        said = doctor(home)
    [item] = [i for i in said.items if i.name == "LOOPWRIGHT_WEBHOK"]
    assert item.warning
    assert "LOOPWRIGHT_WEBHOOK?" in item.detail
    assert "secret" not in str(said)


def test_doctor_says_of_tokens_what_keeps_the_server_from_starting(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    for text, word in (("ann:abc\n", "'ann'"), ("ann:0123456789abcdefg\n", ""), ("nothing", "line 1"), (None, "No such file")):
        file.unlink(missing_ok=True) if text is None else file.write_text(text)
        for host in ("0.0.0.0", "127.0.0.1"):
            with Home(Settings(home=tmp_path / "home", host=host, tokens=str(file))) as home:
                [(_, ok, detail)] = said_of(home, "exposure")
            refused = bool(word) and (host == "0.0.0.0" or word != "'ann'")
            assert ok == (not refused)
            assert not refused or word in detail
            assert "abc" not in detail


def test_an_sqlite_that_can_lose_commits_is_a_doubt_and_no_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version, doubtful in (((3, 45, 1), True), ((3, 51, 3), False)):
        monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
        with Home(Settings(home=tmp_path)) as home:
            [item] = [i for i in doctor(home).items if i.name == "sqlite"]
        assert item.warning == doubtful


def test_the_doctor_tells_of_a_clock_that_jumped_and_of_entries_of_the_future(tmp_path: Path) -> None:
    later = SimulatedClock(datetime(2028, 1, 1, tzinfo=UTC))
    with Home(Settings(home=tmp_path, by="tests"), later) as home:
        home.ledger.put(Trigger(cause="manual", reason="ahead"))
    with Home(Settings(home=tmp_path, by="tests"), SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))) as home:
        [(_, ok, detail)] = said_of(home, "clock")
    assert not ok
    assert "2028-01-01" in detail


def test_verify_of_a_home_that_is_not_there_says_so_and_makes_none(tmp_path: Path) -> None:
    with Home(Settings(home=tmp_path / "typo")) as home, pytest.raises(HomeNotFound, match="typo"):
        verify(home)
    assert not (tmp_path / "typo").exists()
