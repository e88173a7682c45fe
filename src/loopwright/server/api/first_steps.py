"""The text that `serve` prints when it is ready: the console page of each loop, a sample request of one loop, and its outcome."""

import json
import shlex
from typing import Any

from loopwright.base.errors import LoopwrightError
from loopwright.base.ids import new_id, span_id
from loopwright.deploy.example import example_outcome, example_request
from loopwright.deploy.serving.release_files import folder, read_intact
from loopwright.records.declarations import Table
from loopwright.records.profiles import Profile
from loopwright.stores.home import Home

MAX_LOOPS = 5


def first_steps(home: Home, data: str, control: str) -> list[str]:
    """Lines for a person at a terminal: the console's page of each loop (at most five), and two requests as one can paste them."""
    loops = sorted(path.stem for path in folder(home).glob("*.json"))
    lines = [f"{loop}: {control}/loops/{loop}" for loop in loops[:MAX_LOOPS]]
    if len(loops) > MAX_LOOPS:
        lines.append(f"and {len(loops) - MAX_LOOPS} more: {control}/")
    if not loops:
        return ["no loop is released yet: `loopwright run LOOP` makes and releases its first package"]
    return [*lines, *next(filter(None, (_requests(home, data, loop) for loop in loops[:MAX_LOOPS])), [])]


def _requests(home: Home, data: str, loop: str) -> list[str]:
    """A curl command for a prediction of the loop, and one for its outcome; none if the package cannot be read."""
    served = read_intact(folder(home) / f"{loop}.json")
    if served is None:
        return []
    try:
        package = home.packages.partly(served.state.package_of(None), "reference.json")
        request = example_request(package.manifest, package.reference, home.clock.now())
    except LoopwrightError:
        return []
    id = new_id(home.clock.now())
    token = ' -H "Authorization: Bearer $LOOPWRIGHT_TOKEN"' if home.settings.has_token else ""

    def curl(path: str, body: dict[str, Any], headers: str = "") -> str:
        sent = shlex.quote(json.dumps(body, ensure_ascii=False))
        return f"  curl {data}/loops/{loop}/{path}{token}{headers} -H 'Content-Type: application/json' -d {sent}"

    lines = ["a request to try:", curl("predict", request, f" -H 'traceparent: 00-{id}-{span_id(id)}-01'")]
    if served.outcome is None:
        return lines
    truth = "its outcome, once you know it (an example: what you send counts as the truth):"
    return [*lines, truth, curl("outcomes", example_outcome(served.outcome, id, _common_texts(home, served.outcome)))]


def _common_texts(home: Home, table: Table) -> dict[str, list[str]]:
    """The commonest texts of a table's columns, by its newest profile; none of personal data."""
    newest = home.ledger.latest(Profile, key=table.name)
    columns = newest.record.columns if newest is not None else []
    named = {n for n, c in table.columns.items() if c.type == "string" and "pii" not in c.tags}
    return {c.name: [str(value) for value, _ in c.top] for c in columns if c.name in named}
