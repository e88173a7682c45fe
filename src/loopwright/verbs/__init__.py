"""The one table of all verbs. Command line, HTTP and console read it; none of them decides anything.

A new verb is a file with its function and its answer, one row in the table, its picture in `cli/terminal` if it deserves one, and
its test; it then appears behind all three doors.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import msgspec

Door = Literal["cli", "http"]


class Verb(msgspec.Struct, frozen=True):
    """One row: the verb's name, its stage, its function, one line of help, an example of its use.

    The function is named as text, `module:function`, so that a command imports only what its own verb needs. It takes a
    `Home` first and keyword parameters after it; the caller fills in parameters named `progress`.
    `changes`: it changes something (HTTP: POST, with the permission to write). `needs_home`: it cannot work without a
    home; a verb that does not need one creates it when it writes.
    """

    name: str
    stage: str
    function: str | Callable[..., Any]
    help: str
    example: str
    changes: bool
    doors: tuple[Door, ...] = ("cli", "http")
    needs_home: bool = False

    @property
    def call(self) -> Callable[..., Any]:
        """The function, loaded."""
        return loaded(self.function) if isinstance(self.function, str) else self.function


def loaded(function: str) -> Callable[..., Any]:
    """The function that a text `module:function` names."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


VERBS: tuple[Verb, ...] = (
    Verb("demo", "loop", "loopwright.verbs.demo:demo", "Run the whole loop on a year of New York flights.", "loopwright demo --no-serve", True, ("cli",)),
    Verb("init", "scope", "loopwright.verbs.init:init", "Create a loop in a folder; infer its contract from a file.",
         "loopwright init churn --from customers.csv --label churned --time signed_up --key customer_id", True, ("cli",)),
    Verb("check", "scope", "loopwright.verbs.check:check", "Check a loop before it runs: declarations, contract, graph, leakage.", "loopwright check examples/flights", False, ("cli",)),
    Verb("ingest", "data", "loopwright.verbs.ingest:ingest", "Load rows into a table, through its contract.",
         "loopwright ingest departures departures.parquet --loop examples/flights", True, ("cli",)),
    Verb("contract", "data", "loopwright.verbs.contract:contract", "Show, export or import the contract of a table (ODCS v3).",
         "loopwright contract departures --odcs departures.yaml", True, ("cli",)),
    Verb("profile", "data", "loopwright.verbs.profile:profile", "Profile a table: nulls, ranges, common values, rows per day.",
         "loopwright profile departures", False, ("cli",), needs_home=True),
    Verb("quarantine", "data", "loopwright.verbs.quarantine:quarantine", "List the quarantined rows of a table by reason.",
         "loopwright quarantine departures --export bad.csv", False, ("cli",), needs_home=True),
    Verb("run", "loop", "loopwright.verbs.run:run", "Run one turn of the loop, or resume an interrupted one.", "loopwright run examples/flights --until develop", True, ("cli",)),
    Verb("leaderboard", "develop", "loopwright.verbs.leaderboard:leaderboard", "Compare the candidates of the latest turn by the weighted objectives.",
         "loopwright leaderboard late-arrival --weights 'catch late flights=3,answer at once=1'", False, needs_home=True),
    Verb("release", "deploy", "loopwright.verbs.release:release", "Put a package into service.", "loopwright release late-arrival 3fa91c --why 'better on night flights'", True, needs_home=True),
    Verb("rollback", "deploy", "loopwright.verbs.rollback:rollback", "Roll back to the previous package, to a time, or to a package.",
         "loopwright rollback late-arrival --to 'tuesday 09:00'", True, needs_home=True),
    Verb("cases", "deploy", "loopwright.verbs.cases:cases", "List the releases that wait: for an approval, a freeze, another release.",
         "loopwright cases late-arrival", False, needs_home=True),
    Verb("approve", "deploy", "loopwright.verbs.approve:approve", "Approve a release that waits for it.",
         "loopwright approve late-arrival 3fa91c --why 'night flights look right'", True, needs_home=True),
    Verb("reject", "deploy", "loopwright.verbs.reject:reject", "Reject a release that waits; it never begins.",
         "loopwright reject late-arrival 3fa91c --why 'wait for the new schedule'", True, needs_home=True),
    Verb("export", "deploy", "loopwright.verbs.export:export", "Export a package as one self-contained graph for ONNX Runtime, Triton or MLflow.",
         "loopwright export 3fa91c --as triton --to repository", False, ("cli",), needs_home=True),
    Verb("predict", "deploy", "loopwright.verbs.predict:predict", "Predict every row of a file, logged as requests are.",
         "loopwright predict late-arrival departures.csv --out late.csv", True, ("cli",), needs_home=True),
    Verb("history", "deploy", "loopwright.verbs.history:history", "List the releases: what served when, by whom, why.", "loopwright history late-arrival", False, needs_home=True),
    Verb("experiment", "deploy", "loopwright.verbs.experiment:experiment", "Analyse a release with two arms as an experiment, or plan one.",
         "loopwright experiment late-arrival --export units.parquet", False, ("cli",), needs_home=True),
    Verb("tend", "loop", "loopwright.verbs.tend:tend", "Run upkeep: commit logs, join outcomes, monitor, compute value, retrain.", "loopwright tend --once", True, ("cli",)),
    Verb("replay", "loop", "loopwright.verbs.replay:replay", "Run the loop against history, on a simulated clock.",
         "loopwright replay examples/flights --start 2013-04-01 --end 2013-07-01 --policy monthly", True, ("cli",)),
    Verb("status", "loop", "loopwright.verbs.status:status", "Show every loop and the state of its six stages, worst first.", "loopwright status", False, needs_home=True),
    Verb("predictions", "deploy", "loopwright.verbs.predictions:predictions", "Search the logged predictions, newest first, by key, time, flag and package.",
         "loopwright predictions late-arrival --since 'monday 06:00' --flag degraded", False, needs_home=True),
    Verb("trace", "deploy", "loopwright.verbs.trace:trace", "Trace one prediction: back to its data, forward to its outcome and value.",
         "loopwright trace 013c2f5e8b0011aa22bb33cc44dd55ee", False, needs_home=True),
    Verb("lineage", "data", "loopwright.verbs.lineage:lineage", "Trace the lineage of a package, feature, column, table or file.",
         "loopwright lineage weather.wind_speed", False, needs_home=True),
    Verb("drift", "monitor", "loopwright.verbs.drift:drift", "Show drift and quality over time.", "loopwright drift late-arrival", False, needs_home=True),
    Verb("parity", "monitor", "loopwright.verbs.parity:parity", "Compare the context of logged requests with the one that training joins.",
         "loopwright parity late-arrival --since 'yesterday'", False, needs_home=True),
    Verb("outcomes", "monitor", "loopwright.verbs.outcomes:outcomes", "Load outcomes from a file, and count matched, pending and missing ones.",
         "loopwright outcomes late-arrival landings.parquet", True, ("cli",), needs_home=True),
    Verb("report", "business", "loopwright.verbs.report:report", "Write the business report: targets, delivered value, doubts, next step (Markdown and HTML).",
         "loopwright report late-arrival", True, ("cli",), needs_home=True),
    Verb("verify", "loop", "loopwright.verbs.verify:verify", "Check every stored byte: logs, lake, packages, ledger, audit chain.", "loopwright verify", False, needs_home=True),
    Verb("doctor", "loop", "loopwright.verbs.doctor:doctor", "Check the installation: versions, settings, disks, stores.", "loopwright doctor", False),
)  # fmt: skip


def verb(name: str) -> Verb:
    """The verb of that name; raises KeyError without one."""
    return {v.name: v for v in VERBS}[name]
