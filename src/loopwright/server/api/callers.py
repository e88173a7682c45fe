"""Callers: the name of each token, and the name under which a change is recorded."""

import base64
import binascii
from collections.abc import Mapping
from typing import Literal, NamedTuple

from loopwright.base.errors import RequestMalformed
from loopwright.base.tokens import CALLER

ACTOR = b"x-loopwright-actor"


class Caller(NamedTuple):
    """The caller of an HTTP request; `proof` says whether the name comes from a token, is only claimed, or is unknown."""

    name: str
    proof: Literal["token", "claimed", "none"]
    address: str

    def __str__(self) -> str:
        """Its form in the audit trail."""
        said = {"token": f"{self.name}, by token,", "claimed": f"{self.name}, as claimed,", "none": "unnamed caller"}
        return f"{said[self.proof]} from {self.address}"


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
        return user if CALLER.fullmatch(user) else ""
    name = given.decode("latin-1")
    if not CALLER.fullmatch(name):
        raise RequestMalformed("X-Loopwright-Actor must be 1 to 64 letters, digits and . _ @ + -")
    return name
