"""How states look in a terminal: a sign and a colour each, so that one without colours shows them too."""

from rich.text import Text

from loopwright.records.conditions import LOOKS, StateStyle


def state(word: str) -> Text:
    """A state with its sign and colour; numbers may follow it in brackets."""
    sign, style = LOOKS.get(word.partition(" (")[0], StateStyle("●", ""))
    return Text(f"{sign} {word}", style=style)
