"""What `serve` prints when it is ready: where each loop is in the console, and a request that one of them answers."""

import json
import shlex

from loopwright.deploy.example import example_request
from loopwright.deploy.served import folder, read_intact
from loopwright.records.errors import LoopwrightError
from loopwright.records.home import Home

MAX_LOOPS = 5


def first_steps(home: Home, data: str, control: str) -> list[str]:
    """Lines for a person at a terminal: the console's page of each loop (at most five), and a request as one can paste it."""
    loops = sorted(path.stem for path in folder(home).glob("*.json"))
    lines = [f"{loop}: {control}/loops/{loop}" for loop in loops[:MAX_LOOPS]]
    if len(loops) > MAX_LOOPS:
        lines.append(f"and {len(loops) - MAX_LOOPS} more: {control}/")
    if not loops:
        return ["no loop is released yet: `loopwright run LOOP` makes and releases its first package"]
    request = next(filter(None, (_request(home, data, loop) for loop in loops[:MAX_LOOPS])), "")
    return [*lines, "a request to try:", f"  {request}"] if request else lines


def _request(home: Home, data: str, loop: str) -> str:
    """A curl command that the loop answers; empty where its package cannot be read."""
    served = read_intact(folder(home) / f"{loop}.json")
    if served is None:
        return ""
    try:
        row = example_request(home.packages.manifest(served.state.package_of(None)))
    except LoopwrightError:
        return ""
    token = ' -H "Authorization: Bearer $LOOPWRIGHT_TOKEN"' if home.settings.has_token else ""
    body = shlex.quote(json.dumps(row, ensure_ascii=False))
    return f"curl {data}/loops/{loop}/predict{token} -H 'Content-Type: application/json' -d {body}"
