import base64
import os
from pathlib import Path

import pytest

from loopwright.base.errors import RequestMalformed, SettingInvalid
from loopwright.base.settings import Settings
from loopwright.server.api.access import Access, check_address

HOST = {b"host": b"127.0.0.1"}


def settings(folder: Path, lines: str, token: str = "") -> Settings:
    file = folder / "tokens"
    file.write_text(lines)
    return Settings(home=folder, token=token, tokens=str(file))


def bearer(token: str) -> dict[bytes, bytes]:
    return {**HOST, b"authorization": f"Bearer {token}".encode()}


def basic(user: str, token: str) -> dict[bytes, bytes]:
    return {**HOST, b"authorization": b"Basic " + base64.b64encode(f"{user}:{token}".encode())}


def test_caller_is_the_name_of_the_token_or_what_it_claims(tmp_path: Path) -> None:
    access = Access(settings(tmp_path, "# people\nann:t-of-ann\n\nci.bot : t:of:bot \n", token="shared"), always=True)
    callers = {
        "ann, by token, from 10.0.0.7": {**bearer("t-of-ann"), b"x-loopwright-actor": b"bob"},
        "ci.bot, by token, from 10.0.0.7": basic("ann", "t:of:bot"),
        "bob, as claimed, from 10.0.0.7": {**basic("carl", "shared"), b"x-loopwright-actor": b"bob"},
        "carl, as claimed, from 10.0.0.7": basic("carl", "shared"),
        "unnamed caller from 10.0.0.7": basic("not, a name", "shared"),
    }
    for said, headers in callers.items():
        assert access.refuse("write", headers) == 0
        assert str(access.caller(headers, "10.0.0.7")) == said
    for token in ("", "t-of-an", "ann", "ann:t-of-ann"):
        assert access.refuse("read", bearer(token)) == 401
    for name in (b"", b"ann, by token,", b"x" * 65, b"\x1b[2J"):
        with pytest.raises(RequestMalformed, match="X-Loopwright-Actor"):
            access.caller({**bearer("shared"), b"x-loopwright-actor": name}, "10.0.0.7")


@pytest.mark.parametrize("lines", ["", "# nobody", "secret-alone", "ann:", ":secret", "a b:secret", "ann:secret\nbob:secret"])
def test_file_of_tokens_that_cannot_be_used_stops_the_server_and_is_not_told(tmp_path: Path, lines: str) -> None:
    with pytest.raises(SettingInvalid) as told:
        check_address(settings(tmp_path, lines))
    assert "secret" not in str(told.value)
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", "."):
        with pytest.raises(SettingInvalid):
            Access(Settings(home=tmp_path, tokens=str(tmp_path / name)), always=True)


def test_file_of_tokens_may_be_a_link_as_mounted_secrets_are(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("ann:t-of-ann")
    (tmp_path / "tokens").symlink_to("data")
    access = Access(Settings(home=tmp_path, tokens=str(tmp_path / "tokens")), always=True)
    assert access.refuse("read", bearer("t-of-ann")) == 0
