"""Names of columns as a loop file can write them: letters, digits and `_`, each name once."""

import keyword
import re
import unicodedata
from collections.abc import Sequence

_SPELT = """
äae öoe üue ßss æae œoe øoe åaa þth ðd đd łl ıi
аa бb вv гg ґg дd еe єye ёe жzh зz иi іi їyi йi кk лl мm нn оo пp рr сs тt уu фf хkh цts чch шsh щshch ъ ыy ь эe юyu яya ђdj јj љlj њnj ћc џdz
αa βv γg δd εe ζz ηi θth ιi κk λl μm νn ξx οo πp ρr σs ςs τt υy φf χch ψps ωo
"""
_LETTERS = str.maketrans(
    {letter: spelt for word in _SPELT.split() for letter, spelt in ((word[0], word[1:]), (word[0].upper(), word[1:].capitalize()))
     if len(letter) == 1} | {"ẞ": "SS"}
)  # fmt: skip
"""Letters that are written with others where there is ASCII only, or that no decomposition leads to; of all others the accents go."""


def clean(name: str) -> str:
    """A valid column name from any text, usable after `f.`: `Zähler-Nr.` becomes `Zaehler_Nr`, `Возраст` `Vozrast`; may be empty."""
    written = unicodedata.normalize("NFKD", unicodedata.normalize("NFC", name).translate(_LETTERS))
    plain = "".join(c for c in written if not unicodedata.combining(c)).translate(_LETTERS)
    cleaned = re.sub(r"[^A-Za-z0-9_]+", "_", plain).strip("_")
    cleaned = (cleaned if not cleaned or cleaned[0].isalpha() else f"c_{cleaned}")[:60]
    return f"{cleaned}_" if keyword.iskeyword(cleaned) or keyword.issoftkeyword(cleaned) else cleaned


def clean_names(written: Sequence[str], notes: list[str]) -> list[str]:
    """Names for columns, unique ignoring case (databases cannot distinguish it)."""
    names: list[str] = []
    for i, name in enumerate(written):
        cleaned = clean(name) or f"column_{i + 1}"
        taken = {n.lower() for n in names}
        names.append(cleaned if cleaned.lower() not in taken else f"{cleaned[:54]}_{i + 1}")
        if names[-1] != name:
            notes.append(f"column {name!r} is called {names[-1]!r} here")
    return names
