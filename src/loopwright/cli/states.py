"""How states look: a sign and a colour each, so that a terminal without colours shows them too."""

from rich.text import Text

STYLES = {
    "ok": "green",
    "done": "green",
    "watch": "yellow",
    "no data": "yellow",
    "too few": "yellow",
    "pending": "yellow",
    "running": "cyan",
    "alert": "bold red",
    "drift": "bold red",
    "decayed": "bold red",
    "failed": "bold red",
    "not yet": "dim",
}
SIGNS = {
    "ok": "●",
    "done": "●",
    "watch": "◐",
    "no data": "◐",
    "too few": "◐",
    "pending": "◐",
    "alert": "▲",
    "drift": "▲",
    "decayed": "▲",
    "running": "◌",
    "not yet": "○",
}


def state(word: str) -> Text:
    """A state with its sign and colour; numbers may follow it in brackets."""
    name = word.partition(" (")[0]
    return Text(f"{SIGNS.get(name, '●')} {word}", style=STYLES.get(name, ""))
