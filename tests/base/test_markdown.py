import pytest
from markdown_it import MarkdownIt

from loopwright.base.markdown import plain, table

HOSTILE = [
    "a | b",
    "a\nb",
    "line\r\n\r\n# heading",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](https://evil.example)",
    "![x](https://evil.example/pixel)",
    "`code` | `more`",
    "\\| already",
    "**bold** and *thin*",
    "&lt;b&gt;",
    "\x1b]0;title\x07",
    "# heading",
    "``` fence",
    "<!-- comment",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_is_one_cell_and_no_markup(text: str) -> None:
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(table(["name", "n"], [[text, "1"], ["b", "2"]]))
    assert html.count("<tr>") == 3
    assert html.count("<td>") == 4
    inside = html.split("<tbody>")[1].split("<td>")[1].split("</td>")[0]
    assert "<" not in inside
    assert plain(text).isprintable()


def test_plain_names_stay_as_they_are() -> None:
    assert plain("support_calls (2024): R&D, 5 % – Köln") == "support_calls (2024): R&D, 5 % – Köln"
