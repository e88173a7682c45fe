"""The verb `report`."""

from pathlib import Path

import msgspec

from loopwright.business.report import report as build
from loopwright.render import notebook
from loopwright.render.report import html, markdown
from loopwright.stores.home import Home
from loopwright.verbs.known_loop import known_loop


class ReportFile(msgspec.Struct, frozen=True, kw_only=True):
    """The report a manager reads: Markdown text, and where both forms were written."""

    loop: str
    markdown: str
    markdown_file: str
    html_file: str

    def _repr_html_(self) -> str:
        """In a notebook: the page that was written, charts included, in a frame of its own."""
        return notebook.page(self.html_file, self.markdown)


def report(home: Home, loop: str, *, out: Path | None = None) -> ReportFile:
    """Write the business report (Markdown and HTML with charts): targets, delivered value, doubts, next step.

    Args:
        loop: name of the loop.
        out: output folder (default: reports/ in home).
    """
    declared = known_loop(home, loop)
    built = build(
        home, loop_name=loop, scope=declared.scope, outcome=declared.outcome, monitor=declared.monitor, unit=declared.unit or ""
    )
    folder = out or home.folder("reports")
    folder.mkdir(parents=True, exist_ok=True)
    text, page = markdown(built), html(built)
    files = folder / f"{loop}.md", folder / f"{loop}.html"
    files[0].write_text(text, encoding="utf-8")
    files[1].write_text(page, encoding="utf-8")
    return ReportFile(loop=loop, markdown=text, markdown_file=str(files[0]), html_file=str(files[1]))
