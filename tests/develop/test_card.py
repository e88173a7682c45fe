"""The model card: names out of data and declarations are text in it, never markup."""

from pathlib import Path

import msgspec
from markdown_it import MarkdownIt
from tests.deploy.loops import opened, package

from loopwright.develop.card import card
from loopwright.records.declarations import Heuristic, Objective, Scope
from loopwright.records.evaluation import Estimate

HOSTILE = 'a | b\n\n# <img src=x onerror="alert(1)"> [click](https://evil.example) `x`'


def test_card_shows_hostile_names_as_text(tmp_path: Path) -> None:
    made = package(opened(tmp_path).packages)
    one = Estimate(0.8, 0.75, 0.85, 1000)
    measured = {"average_precision": one, "recall": one, "precision": one}
    evaluation = msgspec.structs.replace(made.evaluation, slices={"origin_slice": {HOSTILE: measured, "JFK": measured}})
    manifest = msgspec.structs.replace(
        made.manifest, candidate=HOSTILE, by=HOSTILE, params={HOSTILE: HOSTILE}, features=[HOSTILE]
    )
    line = HOSTILE.replace("\n", " ")  # names have one line
    scope = Scope(
        problem=HOSTILE,
        objectives=[Objective(line, owner=line, metric="average_precision", at_least=0.9)],
        heuristic=Heuristic("f.delay > 15"),
    )
    text = card(manifest, scope, evaluation, {"average_precision": 0.8})
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<img" not in html
    assert "<a " not in html
    assert html.count("<h1>") == 1
    assert html.count("<table>") == 3
    slices = html.split("<table>")[3]
    assert slices.count("<tr>") == 3
    assert slices.count("<td>") == 2 * 5
