"""The section "Serving" of RESULTS.md."""

import math
from importlib.metadata import version
from typing import NamedTuple

from benchmarks.report import machine, table
from benchmarks.serving.flights import DISK, LOOP
from benchmarks.serving.found import Found

CONNECTIONS = (1, 8, 32)
OURS, BY_HAND = (
    "loopwright",
    {
        "FastAPI + onnxruntime": "the whole pipeline as one graph",
        "FastAPI + onnxruntime, tuned": "strings looked up in Python, a graph of trees alone",
    },
)
ECHOES = ("echo on uvicorn", "echo on our HTTP layer")
OPEN = (OURS, "FastAPI + onnxruntime", "echo on our HTTP layer")
"""Who gets open-loop arrivals. The echo gets as many as ours: it tells how much of the tail is the machine's."""

LIBRARIES = ("onnxruntime", "msgspec", "uvicorn", "httptools", "uvloop", "lightgbm", "numpy")


class Target(NamedTuple):
    """One line of the table: a ratio and its bound."""

    what: str
    ratio: float
    bound: float
    at_least: bool

    def cells(self) -> list[str]:
        """The line."""
        sign = ">=" if self.at_least else "<="
        if math.isnan(self.ratio):
            return [self.what, "", f"{sign} {self.bound:g}", "**not measured**"]
        met = self.ratio >= self.bound if self.at_least else self.ratio <= self.bound
        digits = 0 if self.ratio >= 20 else 1 if self.ratio >= 10 else 2
        return [self.what, f"{self.ratio:,.{digits}f}", f"{sign} {self.bound:g}", "met" if met else "**not met**"]


def targets(found: Found) -> list[Target]:
    """All that this run can tell."""

    def over(what: str, a: str, b: str) -> float:
        return found.median(what, a) / found.median(what, b)

    return [
        *(
            Target(f"throughput at 32 connections / {peer}", over("rate 32", OURS, peer), 100, True)
            for peer in ("MLflow", "Ray Serve")
        ),
        *(Target(f"... / {peer}", over("rate 32", OURS, peer), 50, True) for peer in ("BentoML", "MLServer", "LitServe")),
        *(
            Target(f"... / {peer} by hand, async ({how})", over("rate 32", OURS, peer), 3, True)
            for peer, how in BY_HAND.items()
        ),
        *(Target(f"... / bare {echo}", over("rate 32", OURS, echo), 0.4, True) for echo in ECHOES),
        *(
            Target(f"p50 at one connection: {peer}'s / ours", over("p50 1", peer, OURS), 20, True)
            for peer in ("MLflow", "BentoML", "MLServer", "LitServe")
        ),
        *(Target(f"... {peer} by hand's / ours", over("p50 1", peer, OURS), 1, True) for peer in BY_HAND),
        *(Target(f"... ours / bare {echo}", over("p50 1", OURS, echo), 2.5, False) for echo in ECHOES),
        Target("p99 / p50 at 60 % of capacity, open-loop arrivals", found.median("open tail", OURS), 6, False),
        Target(
            "durability `disk` / `process`, throughput at 32 connections",
            found.median(f"rate 32 {DISK}", OURS) / found.median(f"rate 32 {LOOP}", OURS),
            0.5,
            True,
        ),
        Target("cold start, process to first answer: MLflow's / ours", over("start", "MLflow", OURS), 5, True),
    ]


def _number(value: float, digits: int = 0) -> str:
    return "" if math.isnan(value) else f"{value:,.{digits}f}"


def _servers(found: Found, names: list[str]) -> str:
    head = [
        "server",
        *(f"requests/s, {c}" for c in CONNECTIONS),
        *(f"p50 ms, {c}" for c in CONNECTIONS),
        "CPU us a request, 32",
        "of it in the kernel",
        "first answer after s",
        "MiB",
    ]
    rows = []
    for name in names:
        cells = [_number(found.median(f"rate {c}", name)) for c in CONNECTIONS]
        cells += [_number(found.median(f"p50 {c}", name) / 1e3, 3) for c in CONNECTIONS]
        user, kernel = found.median("user 32", name), found.median("kernel 32", name)
        cells += [_number(user + kernel), _number(kernel)]
        rows.append([name, *cells, _number(found.median("start", name), 1), _number(found.median("memory", name))])
    text = table(head, rows)
    for how, told in (
        ("failed", found.failed),
        ("failed once", {n: w for n, w in found.stumbled.items() if n not in found.failed}),
    ):
        text += "".join(f"\n**{name} {how}**: `{why.replace('`', '')}`\n" for name, why in told.items())
    return text


def _open(found: Found) -> str:
    head = ["open-loop arrivals", "a second", "p50 us", "p99 us", "p99.9 us", "p99 / p50", "late by, p99 us"]
    rows = [
        [
            name,
            *(_number(found.median(f"open {key}", name)) for key in ("rate", "p50", "p99", "p999")),
            _number(found.median("open tail", name), 1),
            _number(found.median("open lag_p99", name)),
        ]
        for name in OPEN
        if found.has("open p50", name)
    ]
    return table(head, rows) if rows else ""


def section(found: Found, names: list[str], *, seconds: float, rounds: int) -> str:
    """The whole text."""
    text = machine(LIBRARIES) + "\n"
    text += (
        f"One worker, one row a request, medians of {rounds} rounds in turn (A B C ... A B C ...) of {seconds:g} s each, wrk in a second\n"
        "process sending 64 flights in turn; each server runs alone, is started anew for each round, and gives the same probabilities\n"
        "for all of them (1e-6), also under load. The model is LightGBM with 200 trees of 31 leaves over 15 raw columns. Ours has contract,\n"
        "log (durability `process`), metrics and trace ids on; the peers have what they bring.\n\n"
    )
    text += table(["what", "ratio", "target", ""], [target.cells() for target in targets(found)])
    text += "\n" + _servers(found, names)
    text += (
        "\nCPU: all processes of the server. First answer: from the start of the process, everything on a warm disk.\n"
        "Memory: all processes of the server after the load, shared pages counted once.\n"
    )
    if arrivals := _open(found):
        text += "\n" + arrivals
        text += (
            "\nPoisson arrivals at 60 % of the throughput at 32 connections (the echo: as many as ours), over 128 connections; latency counts\n"
            "from when a request was due, and a server that stalls is charged for all who would have waited.\n"
            "The last column is the generator's own delay, which latency contains.\n"
        )
    told = "; ".join(
        f"{environment}: {', '.join(f'{k} {v}' for k, v in found.versions[environment].items())}"
        for environment in found.versions
    )
    text += f"\nEnvironments: {told or 'none'}. Ours: loopwright {version('loopwright')}.\n"
    text += '\n5,000 packages loaded on demand, the memory of 1,000, a fleet of 500 segments: section "Many models" (`make bench-many`). Where the\n'
    text += 'microseconds of a request go: section "Request path".\n'
    return text + "\nReproduce: `make bench-serving`.\n"
