"""Who calls: the names that tokens stand for, and the name under which a change is recorded."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from loopwright.records.errors import RequestMalformed, SettingInvalid
from loopwright.records.settings import Settings

ACTOR = b"x-loopwright-actor"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")


class Caller(NamedTuple):
    """Somebody who asked over HTTP: `proof` says whether the name is the token's, only claimed, or not known."""

    name: str
    proof: Literal["token", "claimed", "none"]
    address: str

    def __str__(self) -> str:
        """As it stands in the audit trail."""
        said = {"token": f"{self.name}, by token,", "claimed": f"{self.name}, as claimed,", "none": "unnamed caller"}
        return f"{said[self.proof]} from {self.address}"


def read_tokens(settings: Settings) -> dict[bytes, str]:
    """Each token with the name that it stands for: `LOOPWRIGHT_TOKEN` has none. Raises SettingInvalid."""
    found = {settings.token.encode(): ""} if settings.token else {}
    if not settings.tokens:
        return found
    try:
        lines = Path(settings.tokens).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, f"cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in line.partition(":"))
        if not (colon and token and _NAME.fullmatch(name)) or token.encode() in found:
            why = f"line {number} is no `name:token`, or a token that stands there already"  # and the line is a secret
            raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, why)
        found[token.encode()] = name
    if not found:
        raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, "holds no token")
    return found


def credentials(authorization: bytes) -> tuple[str, bytes]:
    """The user and the token of an Authorization header: `Bearer`, or `Basic` with the token as the password of any user."""
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return "", value.strip()
    if scheme.lower() == b"basic":
        try:
            user, _, token = base64.b64decode(value.strip(), validate=True).partition(b":")
        except (ValueError, binascii.Error):
            return "", b""
        return user.decode("latin-1"), token
    return "", b""


def claimed_name(headers: Mapping[bytes, bytes], user: str) -> str:
    """The name that a caller gives itself. Raises RequestMalformed for a header that is no name."""
    given = headers.get(ACTOR)
    if given is None:
        return user if _NAME.fullmatch(user) else ""
    name = given.decode("latin-1")
    if not _NAME.fullmatch(name):
        raise RequestMalformed("X-Loopwright-Actor must be 1 to 64 letters, digits and . _ @ + -")
    return name
