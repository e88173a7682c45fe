"""The tokens that callers may have, and which are too easy to guess for an address that other machines can reach."""

import re

from loopwright.base.errors import SettingInvalid
from loopwright.base.files import read_named
from loopwright.base.settings import Settings

TOKENS_BYTES = 2**20
MIN_CHARACTERS = 16
MIN_DISTINCT = 8
ADVICE = "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"

CALLER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
"""The name of a caller."""


def read_tokens(settings: Settings) -> dict[bytes, str]:
    """Each token with its name: `LOOPWRIGHT_TOKEN` has none. Raises SettingInvalid."""
    found = {settings.token.encode(): ""} if settings.token else {}
    if not settings.tokens:
        return found
    try:
        lines = read_named(settings.tokens, TOKENS_BYTES).decode().splitlines()
    except (OSError, ValueError) as error:
        raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, f"cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in line.partition(":"))
        if not (colon and token and CALLER.fullmatch(name)) or token.encode() in found:
            why = f"line {number} is no `name:token`, or a token that stands there already"  # and the line is a secret
            raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, why)
        found[token.encode()] = name
    if not found:
        raise SettingInvalid("LOOPWRIGHT_TOKENS", settings.tokens, "holds no token")
    return found


def exposed(settings: Settings) -> str:
    """Why callers' tokens cannot guard an address beyond loopback; empty if they can. Raises SettingInvalid for a bad file of tokens."""
    for token, name in read_tokens(settings).items():
        if why := token_problem(token.decode(errors="replace")):
            whose = f"the token of {name!r} (LOOPWRIGHT_TOKENS)" if name else "the token (LOOPWRIGHT_TOKEN)"
            return f"{whose} {why}"
    return ""


def token_problem(token: str) -> str:
    """Why a token cannot guard an address beyond loopback; empty if it can. The token itself is never part of it."""
    if not token.strip():
        return "is blank"
    if not (token.isascii() and token.isprintable()) or " " in token:
        return "has characters that a header does not carry (use printable ASCII without spaces)"
    if len(token) < MIN_CHARACTERS:
        return f"has {len(token)} characters, fewer than {MIN_CHARACTERS}"
    if len(set(token)) < MIN_DISTINCT or token in (token + token)[1:-1]:
        return "repeats itself"
    return ""
