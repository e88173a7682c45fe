"""The release in service, in a terminal."""

from rich.console import RenderableType
from rich.text import Text

from loopwright.base.text import count as _count
from loopwright.base.text import short
from loopwright.cli.terminal.history import arms
from loopwright.cli.terminal.loops import STANDINGS, standing
from loopwright.render.words import word
from loopwright.verbs.switched import Switched


def switched(value: Switched) -> RenderableType:
    """The release in service and since when, and the state of the workers on this machine."""
    beside = f", {_count(len(value.segments), 'package')} of segments by {value.fleet} beside it," if value.segments else ""
    text = f"{value.loop}: {arms(value)}{beside} serves since {word(value.since)} ({value.action}, generation {value.generation}): {word(value.why)}"
    there = sum(1 for worker in value.workers if worker.state not in STANDINGS)
    serve = f"\n{there} of {_count(len(value.workers), 'worker')} here {'serves' if there == 1 else 'serve'} it"
    serve = serve if value.workers else "\nno worker runs here; one that starts serves it"
    others = standing(value.workers)
    again = ""
    if value.action == "rollback" and value.returns_to:
        again = (
            f"\n`loopwright rollback {value.loop}` once more returns to {short(value.returns_to)}; "
            "`--to PACKAGE` or `--to TIME` goes further back"
        )
    lost = (
        ""
        if value.ok
        else "\nThe change is recorded, but no worker here follows it: see `GET /readyz` and what the server logs"
    )
    return Text(text + serve + (f"; {others}" if others else "") + again + lost)
