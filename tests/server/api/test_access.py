import base64
import itertools
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

from loopwright.base.clock import SimulatedClock
from loopwright.base.errors import AddressRefused, SettingInvalid
from loopwright.base.settings import Settings, load_settings
from loopwright.server.api.access import Access, check_address, is_loopback
from loopwright.server.api.auth_rate_limit import MAX_CLIENTS, AuthRateLimiter
from loopwright.server.api.routes import Permission

TOKEN = "correct-horse-battery"
GOOD = {b"host": b"127.0.0.1:8321"}


def settings(host: str = "127.0.0.1", token: str = "") -> Settings:
    return Settings(home=Path("/nowhere"), host=host, token=token)


def bearer(token: str) -> dict[bytes, bytes]:
    return {**GOOD, b"authorization": f"Bearer {token}".encode()}


def basic(token: str) -> dict[bytes, bytes]:
    return {**GOOD, b"authorization": b"Basic " + base64.b64encode(f"anybody:{token}".encode())}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "10.0.0.1"])
def test_no_other_address_without_a_token(host: str) -> None:
    with pytest.raises(AddressRefused, match="set a token"):
        check_address(settings(host))
    check_address(settings(host, TOKEN))


@pytest.mark.parametrize(
    "token",
    [
        "a",
        "changeme",
        " ",
        "password",
        "a" * 40,
        "changemechangeme",
        "loopwright" * 3,
        "with spaces in the token",
        "pässwörter-für-alle",
    ],
)
def test_weak_token_is_refused_beyond_loopback_without_being_shown(token: str, tmp_path: Path) -> None:
    with pytest.raises(AddressRefused, match=r"LOOPWRIGHT_TOKEN\).*secrets\.token_urlsafe") as refused:
        check_address(settings("0.0.0.0", token))
    assert repr(token) not in str(refused.value)
    check_address(settings("127.0.0.1", token))
    if token.strip():
        file = tmp_path / "tokens"
        file.write_text(f"ann:{token}\n")
        with pytest.raises(AddressRefused, match="'ann'"):
            check_address(Settings(home=Path("/nowhere"), host="0.0.0.0", tokens=str(file)))


def test_made_token_is_strong() -> None:
    for _ in range(1000):
        check_address(settings("0.0.0.0", secrets.token_urlsafe(32)))
        check_address(settings("0.0.0.0", secrets.token_hex(16)))


def test_guesses_of_a_client_are_bounded_and_those_of_others_are_not() -> None:
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    access = Access(settings("0.0.0.0", TOKEN), always=True, clock=clock)
    answers = [access.refuse("read", bearer(f"guess {i}"), "10.0.0.7") for i in range(5200)]
    assert (answers.count(401), answers.count(429)) == (20, 5180)
    assert access.refuse("read", bearer(TOKEN), "10.0.0.7") == 429  # looked at, a right guess would show
    assert access.refuse("read", GOOD, "10.0.0.7") == 401  # no guess
    assert access.refuse("read", bearer(TOKEN), "10.0.0.8") == 0
    clock.advance(timedelta(seconds=3))
    assert [access.refuse("read", bearer(f"more {i}"), "10.0.0.7") for i in range(5)].count(401) == 3
    clock.advance(timedelta(minutes=1))
    assert access.refuse("read", bearer(TOKEN), "10.0.0.7") == 0
    six = [access.refuse("read", bearer("x"), f"2001:db8::{i:x}") for i in range(40)]
    assert six.count(401) == 20


def test_guesses_of_one_client_shut_out_nobody_who_shares_its_address() -> None:
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    weak = "a" * 20
    for token, later in ((TOKEN, 0), (weak, 429)):  # a weak token could be guessed by way of its owner's address
        access = Access(settings("127.0.0.1", token), always=True, clock=clock)
        assert access.refuse("read", bearer(token), "127.0.0.1") == 0
        answers = [access.refuse("read", bearer(f"guess {i}"), "127.0.0.1") for i in range(100)]
        assert (answers.count(401), answers.count(429)) == (20, 80)
        assert access.refuse("read", bearer(token), "127.0.0.1") == later
        assert access.refuse("read", bearer(token), "10.0.0.9") == 0


def test_clients_that_guessed_are_remembered_up_to_a_bound() -> None:
    clock = SimulatedClock(datetime(2026, 1, 1, tzinfo=UTC))
    guesses = AuthRateLimiter(clock)
    for i in range(MAX_CLIENTS + 50):
        guesses.count(f"10.{i >> 16}.{(i >> 8) & 255}.{i & 255}")
        guesses.proved(f"10.{i >> 16}.{(i >> 8) & 255}.{i & 255}", b"token")
    assert len(guesses._left) == len(guesses._proven) == MAX_CLIENTS


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.10"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    check_address(settings(host))


PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
KEYS = {
    "none": GOOD,
    "wrong": bearer("wrong"),
    "empty": bearer(""),
    "right": bearer(TOKEN),
    "basic": basic(TOKEN),
    "basic wrong": basic("x"),
    "basic rubbish": {**GOOD, b"authorization": b"Basic !!!"},
    "token alone": {**GOOD, b"authorization": TOKEN.encode()},
}


@pytest.mark.parametrize(
    ("permission", "key", "asks"),
    list(itertools.product(PERMISSIONS, KEYS, ["control", "data on loopback", "data elsewhere", "no token"])),
)
def test_every_permission_with_every_key(permission: Permission, key: str, asks: str) -> None:
    host = "0.0.0.0" if asks == "data elsewhere" else "127.0.0.1"
    access = Access(settings(host, "" if asks == "no token" else TOKEN), always=asks == "control")
    open_ = permission == "public" or asks in ("data on loopback", "no token") or key in ("right", "basic")
    changes_nothing = permission == "write" and asks == "no token"
    assert access.refuse(permission, KEYS[key]) == (403 if changes_nothing else 0 if open_ else 401)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 0),
        ({b"sec-fetch-site": b"same-origin"}, 0),
        ({b"sec-fetch-site": b"none"}, 0),
        ({b"sec-fetch-site": b"cross-site"}, 403),
        ({b"sec-fetch-site": b"same-site"}, 403),
        ({b"origin": b"http://127.0.0.1:8321"}, 0),
        ({b"origin": b"http://127.0.0.1:9999"}, 403),
        ({b"origin": b"https://evil.example"}, 403),
        ({b"origin": b"null"}, 403),
        ({b"origin": b"http://127.0.0.1:8321", b"sec-fetch-site": b"cross-site"}, 403),
    ],
)
def test_changes_come_from_the_same_origin(headers: dict[bytes, bytes], status: int) -> None:
    access = Access(settings(token=TOKEN), always=True)
    assert access.refuse("write", {**bearer(TOKEN), **headers}) == status
    assert access.refuse("read", {**bearer(TOKEN), **headers}) == status
    assert access.refuse("observe", {**bearer(TOKEN), **headers}) == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"", 421),
        (b"evil.example", 421),
        (b"127.0.0.1.evil.example", 421),
        (b"localhost.evil", 421),
        (b"[::2]:80", 421),
        (b"127.0.0.1:80:80", 400),
        (b"[::1]evil.test", 400),
        (b"[::1", 400),
        (b"localhost, evil.test", 400),
        (b"localhost:80@evil.test", 400),
    ],
)
def test_foreign_hosts_are_refused_but_for_health(host: bytes, status: int) -> None:
    access = Access(settings(), always=True)
    assert access.refuse("read", {b"host": host}) == status
    assert access.refuse("public", {b"host": host}) == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"ml.example.com", 0),
        (b"ML.Example.com:443", 0),
        (b"a.intern.example", 0),
        (b"a.b.intern.example:8000", 0),
        (b"intern.example", 421),
        (b"evilintern.example", 421),
        (b"x.ml.example.com", 421),
        (b"[fd00::1]:80", 0),
    ],
)
def test_hosts_of_the_setting_are_answered(host: bytes, status: int) -> None:
    env = {"LOOPWRIGHT_HOSTS": "ml.example.com, *.intern.example,fd00::1"}
    read = load_settings(environ=env)
    assert load_settings(environ=read.environment()).hosts == read.hosts == ("ml.example.com", "*.intern.example", "fd00::1")
    assert Access(read, always=False).refuse("predict", {b"host": host}) == status


@pytest.mark.parametrize("text", ["http://x", "a b", "*", "*.", "x:80", "-a", "a/b"])
def test_hosts_that_are_no_names_are_refused(text: str) -> None:
    with pytest.raises(SettingInvalid, match="LOOPWRIGHT_HOSTS"):
        load_settings(environ={"LOOPWRIGHT_HOSTS": text})


def test_the_host_that_was_configured_is_ours() -> None:
    access = Access(settings("ml.example", TOKEN), always=False)
    assert access.refuse("predict", {**bearer(TOKEN), b"host": b"ml.example:8321"}) == 0


LINK = {b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"document", b"sec-fetch-user": b"?1"}


@pytest.mark.parametrize("token", ["", TOKEN])
def test_pages_are_not_loaded_by_other_sites_unless_a_person_follows_a_link(token: str) -> None:
    access = Access(settings(token=token), always=True)
    foreign = {**(bearer(token) if token else GOOD), b"sec-fetch-site": b"cross-site"}
    assert access.refuse("read", {**foreign, b"sec-fetch-mode": b"no-cors", b"sec-fetch-dest": b"image"}) == 403
    assert access.refuse("read", {**foreign, **LINK}) == 0
    for missing in LINK:
        assert access.refuse("read", {**foreign, **LINK, missing: b"other"}) == 403
    assert access.refuse("write", {**foreign, **LINK}) == 403
