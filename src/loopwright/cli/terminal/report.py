"""A report, in a terminal."""

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.text import Text

from loopwright.base.printable import printable
from loopwright.render.words import word
from loopwright.verbs.report import ReportFile


def report(value: ReportFile) -> RenderableType:
    """The report as it means itself, without the signs of Markdown; links in it are text."""
    shown = Markdown(printable(value.markdown, newlines=True), hyperlinks=False)
    return Group(shown, Text(f"\nwritten to {word(value.markdown_file)} and {word(value.html_file)}", style="dim"))
