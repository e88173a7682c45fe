import json
import sys

import msgspec
import pytest

from loopwright.base.printable import encoded, printable, printable_json

ODD = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if not c.isprintable())


def test_printable_leaves_words_and_spaces_of_any_script_alone() -> None:
    for text in (
        "",
        "arr_delay 15 %",
        "Größe 東京 𝔸 日本 1\u00a0000 \u3000",
        "naïve 👍",
        "می\u200cخواهم",
        "क्\u200dष",
        "👩🏽\u200d🚀 ❤️\u200d🔥",
        "e\u0301",
        "דניאל",
    ):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\x08c\x7f", r"a\rb\x08c\x7f"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("pay\u200dpal م\u200c", r"pay\u200dpal م\u200c"),
        ("م\u200d\u200dم\u200c\u202eم", r"م\u200d\u200dم\u200c\u202eم"),
        ("x\u2028y", r"x\u2028y"),
        ("\udc9b", r"\udc9b"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_printable_escapes_what_a_terminal_obeys_or_hides(text: str, shown: str) -> None:
    assert printable(text) == printable(text, newlines=True) == shown


def test_printable_escapes_every_character_that_is_not_printable_but_spaces() -> None:
    assert set(printable(ODD)) - set("\\0123456789abcdefxuUnrt") == set(
        filter(lambda c: c.isspace() and ord(c) > 127 and c not in "\x85\u2028\u2029", ODD)
    )
    printable(ODD).encode()


def test_printable_keeps_the_lines_of_a_message_where_asked() -> None:
    assert printable("a:\n\tb\x1b") == r"a:\n\tb\x1b"
    assert printable("a:\n\tb\x1b", newlines=True) == "a:\n\tb\\x1b"


def test_printable_json_is_the_same_value_without_control_characters() -> None:
    value = {"name": "\x9b2J \u202e x\n\t 👍", "all": [c for c in ODD if not 0xD800 <= ord(c) < 0xE000]}
    document = printable_json(msgspec.json.encode(value).decode())
    assert json.loads(document) == value
    assert "\x9b" not in document
    assert "\u202e" not in document
    assert "👍" in document


def test_encoded_takes_names_of_files_that_are_no_utf8() -> None:
    class Said(msgspec.Struct):
        where: str
        more: list[dict[str, float]]

    assert encoded(Said("Größe", [])) == msgspec.json.encode(Said("Größe", []))
    odd = Said("packages/\udcff", [{"\udc80": float("nan")}])
    assert json.loads(encoded(odd)) == {"where": r"packages/\udcff", "more": [{r"\udc80": None}]}
