"""Odd machines: user ids without a name, paths with any character, homes that are read-only, closed streams, any umask."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from tests.deploy.loops import LOOP, opened, package
from tests.services import needed

from loopwright.base.errors import SettingInvalid, Unavailable
from loopwright.base.scratch import scratch_folder
from loopwright.base.settings import Settings, load_settings
from loopwright.deploy import releases
from loopwright.records.windows import Trigger
from loopwright.sql.engine import sql_engine
from loopwright.stores.home import Home
from loopwright.stores.online.steps import Fed, pack

COMMAND = (sys.executable, "-m", "loopwright")


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("USER", "LOGNAME", "LNAME", "USERNAME")}
    return kept | {"LOOPWRIGHT_HOME": str(home)} | more


def call(arguments: Sequence[str], home: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, env=environment(home, **more), capture_output=True, text=True, timeout=300)


def as_nobody_known() -> list[str]:
    """The beginning of a command that runs as a user id without a passwd entry and without a superuser's rights."""
    unshare = needed(shutil.which("unshare"), "unshare", "util-linux")
    prefix = [unshare, "--user", "--map-user=1000670000", "--map-group=1000670000"]
    works = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0
    needed(works or None, "the right to make user namespaces", "util-linux")
    return prefix


@pytest.mark.parametrize(
    "name", ["what?", "#hash", "sp ace", "änder", "100%", "a&b=c", "~", "a~b", "a{b}", "a*b", "a'b\"c", "a@b:c", "a;b", "<a>"]
)
def test_home_may_have_any_other_character_and_everything_is_in_it(tmp_path: Path, name: str) -> None:
    with Home(load_settings({"home": tmp_path / name}, {})) as home:
        home.ledger.put(Trigger(cause="manual", reason="test"))
        home.lake.write("rows", pa.table({"a": [1, 2]}))
        home.online.write("weather", [("JFK", pack([1], [[1, 3.5]]))], Fed(0, 0, 1))
        with sql_engine(home) as database:
            assert database.sql("SELECT 1").fetchall() == [(1,)]
    with Home(load_settings({"home": tmp_path / name}, {})) as again:
        assert again.ledger.count() == 1
        assert again.lake.dataset("rows").to_table().num_rows == 2
        assert again.lake.verify("rows") == again.ledger.verify() == []
        assert again.online.fed("weather") is not None
    assert (tmp_path / name / "ledger.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["feature%2Flogin", "a[b]", "back\\slash", "a|b", "a^b", "line\nfeed", "a%25b"])
def test_home_that_delta_would_read_wrongly_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingInvalid, match=r"LOOPWRIGHT_HOME.*LOOPWRIGHT_LAKE") as refused:
        load_settings({"home": tmp_path / name}, {})
    assert refused.value.value == str(tmp_path / name)
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_LAKE"):
        load_settings({"home": tmp_path, "lake": str(tmp_path / name)}, {})
    with Home(load_settings({"home": tmp_path / name, "lake": str(tmp_path / "lake")}, {})) as home:
        home.ledger.put(Trigger(cause="manual", reason="test"))
        home.lake.write("rows", pa.table({"a": [1]}))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "lake"])
    assert (tmp_path / name / "ledger.db").is_file()


def test_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = call([*COMMAND, "status"], tmp_path / "file")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is a file" in done.stderr
    with pytest.raises(Unavailable, match="LOOPWRIGHT_HOME"):
        Home(Settings(home=tmp_path / "file" / "below")).ledger.count()


def test_port_that_is_no_number_is_refused_in_plain_words() -> None:
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_PORT = 'abc': must be a whole number"):
        load_settings({}, {"LOOPWRIGHT_PORT": "abc"})


def test_tilde_is_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({"home": "~/loops"}, {}).home == tmp_path / "loops"
    assert load_settings({"home": "./~/loops"}, {}).home == Path("./~/loops")


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"]])
def test_closed_standard_output_is_no_fault_and_no_database_becomes_it(tmp_path: Path, arguments: list[str]) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    (tmp_path / "home").mkdir(0o700)
    closed = call([shell, "-c", 'exec "$@" >&-', "sh", *COMMAND, *arguments], tmp_path / "home")
    assert (closed.returncode, closed.stderr) == (0, "")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(tmp_path / "home"),
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [["status"], ["status", "--json"], ["doctor"]])
def test_standard_output_on_a_full_disk_is_one_line_and_not_a_traceback(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "home").mkdir(0o700)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(tmp_path / "home"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    line = "loopwright: standard output or a file cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_every_looking_command_works_for_a_user_id_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(0o700)
    for verb in ("status", "doctor"):
        done = call([*as_nobody_known(), *COMMAND, verb, "--json"], tmp_path / "home")
        assert (done.returncode, done.stderr) == (0, ""), verb
    with Home(Settings(home=tmp_path / "home")) as home:
        assert home.ledger.count() == 0
    code = "from loopwright import Home; home = Home(); print(home.by)"
    assert call([*as_nobody_known(), sys.executable, "-c", code], tmp_path / "home").stdout == "uid 1000670000\n"


def test_looking_commands_read_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with opened(folder) as home:
        releases.release(home, LOOP, package(home.packages).digest, why="first")
        home.lake.write("rows", pa.table({"a": [1, 2]}))
        (home.path / "log" / LOOP / "predictions").mkdir(parents=True)
    writable = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path, mode in writable.items():
        path.chmod(mode & ~0o222)
    try:
        for arguments in (["status"], ["history", LOOP], ["verify"]):
            done = call([*as_nobody_known(), *COMMAND, *arguments], folder)
            assert (done.returncode, done.stderr) == (0, ""), arguments
            assert done.stdout
        refused = call([*as_nobody_known(), *COMMAND, "rollback", LOOP], folder)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
        for more in ([], ["--json"]):
            report = call([*as_nobody_known(), *COMMAND, "report", LOOP, "--out", str(folder / "out"), *more], folder)
            assert report.returncode == 1
            assert "Traceback" not in report.stderr
            assert "/out' cannot be used: Permission denied" in (report.stderr, report.stdout)[len(more)]
    finally:
        for path, mode in writable.items():
            path.chmod(mode)


def test_a_home_that_this_user_cannot_reach_is_an_error_that_says_so(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    try:
        for arguments in (["status"], ["doctor"]):
            done = call([*as_nobody_known(), *COMMAND, *arguments], closed / "home")
            assert done.returncode == 2
            assert "LOOPWRIGHT_HOME" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        closed.chmod(0o700)


def test_no_temporary_folder_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(Unavailable, match="set TMPDIR"), scratch_folder("x"):
        raise AssertionError


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_home_and_all_that_commands_make_in_it_is_the_owners_alone(tmp_path: Path, umask: int) -> None:
    folder, files = tmp_path / "home", tmp_path / "files"
    files.mkdir()
    rows = "".join(f"c{i},2024-01-{1 + i // 24:02d}T{i % 24:02d}:00:00Z,{i % 5},{i % 2}\n" for i in range(200))
    (files / "a.csv").write_text("id,at,calls,churned\n" + rows)
    first = ["init", str(files / "churn"), "--from", str(files / "a.csv"), "--label", "churned", "--time", "at", "--key", "id"]
    commands = (
        first,
        ["ingest", "churn-requests", str(files / "a.csv"), "--loop", str(files / "churn")],
        ["status"],
        ["doctor"],
    )
    for arguments in commands:
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=environment(folder),
            umask=umask,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    made = [folder, *folder.rglob("*")]
    assert len(made) > 8
    assert [str(path) for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []
    loop = files / "churn" / "loop.py"
    assert stat.S_IMODE(loop.stat().st_mode) == 0o666 & ~umask


def test_doctor_names_a_home_that_others_can_read_and_one_shared_with_a_group_stays_shared(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    done = call([*COMMAND, "doctor"], folder)
    assert done.returncode == 1
    assert "chmod -R go=" in " ".join(done.stdout.split())  # the line may be wrapped
    folder.chmod(0o770)
    with Home(Settings(home=folder)) as home, home.private_files():
        (folder / "a").touch()
        assert stat.S_IMODE(home.folder("runs").stat().st_mode) == 0o770
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o660


def test_an_exported_model_may_be_read_by_whom_the_users_umask_lets(tmp_path: Path) -> None:
    folder, model = tmp_path / "home", tmp_path / "model"
    with opened(folder) as home:
        made = package(home.packages).digest
    done = subprocess.run(
        [*COMMAND, "export", made, "--to", str(model)],
        env=environment(folder),
        umask=0o022,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stat.S_IMODE(path.stat().st_mode) for path in model.rglob("*") if path.is_file()} == {0o644}
