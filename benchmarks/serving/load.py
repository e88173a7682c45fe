"""Closed-loop load by wrk, with a second client that checks answers meanwhile."""

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.serving.started import Failed, Server

CHECK_EVERY = 0.5
_SCRIPT = """local bodies = {BODIES}
local made, at = {}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function init(arguments)
  for n, body in ipairs(bodies) do made[n] = wrk.format(nil, nil, nil, body) end
end
function request()
  at = at % #made + 1
  return made[at]
end
"""
_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


class Closed(NamedTuple):
    """What wrk measured: requests a second, median and 99th percentile in microseconds."""

    rate: float
    p50: float
    p99: float


def script(bodies: list[bytes], folder: Path) -> Path:
    """The Lua file that makes wrk send these bodies in turn."""
    path = folder / "bodies.lua"
    path.write_text(_SCRIPT.replace("BODIES", ",\n".join(f"[==[{body.decode()}]==]" for body in bodies)))
    return path


def wrk(
    server: Server, lua: Path, *, connections: int, seconds: float, checks: list[tuple[bytes, Callable[[Any], bool]]]
) -> Closed:
    """Load for `seconds`; every half second one of `checks` is asked and must be answered right. Raises Failed."""
    stop, wrong = threading.Event(), list[str]()

    def check() -> None:
        number = 0
        while not stop.wait(CHECK_EVERY):
            body, right = checks[number % len(checks)]
            number += 7
            try:
                status, answer = server.ask(body)
            except (OSError, ValueError) as error:
                wrong.append(f"a check under load got {type(error).__name__}: {error}")
                return
            if status != 200 or not right(answer):
                wrong.append(f"wrong answer under load, {status}: {str(answer)[:200]}")
                return

    line = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "--latency", "-s", str(lua)]
    asking = threading.Thread(target=check, daemon=True)
    asking.start()
    try:
        done = subprocess.run(
            [*line, f"http://127.0.0.1:{server.port}{server.path}"],
            capture_output=True,
            text=True,
            timeout=seconds + 90,
            check=True,
        ).stdout
    except subprocess.SubprocessError as error:
        raise Failed(f"wrk: {error} {getattr(error, 'stderr', '')}") from error
    finally:
        stop.set()
        asking.join(60)
    if wrong or "Non-2xx" in done or "Socket errors" in done:
        raise Failed(
            wrong[0] if wrong else " ".join(line for line in done.splitlines() if "Non-2xx" in line or "Socket" in line)
        )
    return said(done)


def said(text: str) -> Closed:
    """What wrk printed, read."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    quantile = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+(?:us|ms|s|m))", text, re.MULTILINE))
    if rate is None or len(quantile) != 2:
        raise Failed(f"cannot read what wrk said: {text[-300:]}")
    if not float(rate[1]):
        raise Failed("not one answer while the load ran")
    p50, p99 = (_microseconds(quantile[q]) for q in ("50", "99"))
    return Closed(float(rate[1]), p50, p99)


def _microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()  # type: ignore[union-attr]  # the caller's expression has matched
    return float(number) * _UNITS[unit]
