"""Which tokens are too easy to guess for an address that other machines can reach."""

MIN_CHARACTERS = 16
MIN_DISTINCT = 8
ADVICE = "make one with `python -c 'import secrets; print(secrets.token_urlsafe(32))'`"


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
