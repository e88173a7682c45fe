"""What the doctor says of the table that is looked up while serving, and of what is told outside."""

import socket
from importlib import metadata
from pathlib import Path

import pytest

from loopwright.records.home import Home
from loopwright.records.settings import Settings
from loopwright.verbs.keep import doctor


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

    monkeypatch.setattr(metadata, "version", version)
    with Home(Settings(home=tmp_path, grpc_port=0, traces="http://localhost:4318")) as home:
        found = said_of(home, "gRPC", "traces")
    assert [ok for _, ok, _ in found] == [False, False, True]
    assert "loopwright[grpc]" in found[0][2]
    assert "loopwright[otel]" in found[1][2]
