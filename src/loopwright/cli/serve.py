"""The command `serve`, which only the command line has."""

import json
import os
import sys
import webbrowser
from collections.abc import Callable

from loopwright.base.printable import printable
from loopwright.server.processes import supervisor
from loopwright.stores.home import Home


def serve(home: Home, *, no_tend: bool = False, announce: Callable[[str], None] | None = None) -> None:
    """Serve predictions on one port, the control API and the console on another, until stopped.

    Also runs upkeep (`loopwright tend`).

    Args:
        no_tend: do not run upkeep; another process does.
    """
    supervisor.serve(home, tend=not no_tend, announce=announce)


def serve_and_open(home: Home) -> None:
    """Serve until stopped, and open the console in a browser where there is a screen."""

    def ready(line: str) -> None:
        print(printable(line, newlines=True), flush=True)
        if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
            webbrowser.open(json.loads((home.path / "serve.json").read_bytes())["control"])

    serve(home, announce=ready)
