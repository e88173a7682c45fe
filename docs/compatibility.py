"""The names on the wire and on disk, read from the code: what docs/reference/compatibility.md freezes. `docs/generate.py` writes the page.

A name that is new is added to the page. A name of the page that the code does not have any more is refused: whoever means it takes its
line out of the page by hand, with a migration or a line in CHANGELOG.md.
"""

import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import msgspec
from prometheus_client import metrics as prometheus

import loopwright
from loopwright.base import errors
from loopwright.base.settings import SETTINGS
from loopwright.cli import answer as exits
from loopwright.cli.main import table
from loopwright.console.app import PAGES
from loopwright.data.ingest.quarantine_writer import QUARANTINE, QUARANTINE_SCHEMA
from loopwright.deploy.serving import cloudevents
from loopwright.records.answer import Accepted, Answer, ExplainedAnswer
from loopwright.records.entries import Record, Untyped
from loopwright.records.evaluation import Evaluation
from loopwright.records.package import Manifest, Reference
from loopwright.records.prediction import FLAGS
from loopwright.render.http_errors import DOOR, STATUS, describe
from loopwright.server.api import openapi
from loopwright.server.api.callers import ACTOR
from loopwright.server.api.control import control_routes
from loopwright.server.api.metrics import Failures, Metrics, UpkeepMetrics
from loopwright.server.api.routes import DATA_ROUTES
from loopwright.server.processes.supervisor import Serving
from loopwright.stores import examples
from loopwright.stores.ledger import schema as ledger
from loopwright.stores.packages import store as packages
from loopwright.stores.prediction_log import arrow, segment
from loopwright.stores.upkeep_state import LoopState, UpkeepState, write_upkeep_state
from loopwright.verbs.loop_page import loop_page

PAGE = Path(__file__).parent / "reference" / "compatibility.md"

Names = dict[str, dict[str, list[str]]]
"""Section to row to names."""

INTRODUCTION = """# Compatibility

Names on the wire and on disk. A name of this page does not change its meaning and does not go within a major version: other programs,
dashboards and homes of older versions depend on it. New names may come at any time, so ignore those that you do not know.
`tests/test_compatibility.py` compares the page with the code.

To add a name: `python docs/generate.py` writes it here. To remove or rename one: take it out of this page by hand, and give old homes a
migration or the reader a line in CHANGELOG.md; `docs/generate.py` refuses to drop a name that is still here.

Everything of the Open Inference Protocol, OpenLineage, CloudEvents and the Open Data Contract Standard is named by those standards.
"""


def names() -> Names:
    """Every frozen name, by section and row."""
    return {
        "HTTP: paths": {
            "data plane": [f"{r.method} {r.path} ({r.permission})" for r in DATA_ROUTES],
            "control API": [f"{r.method} {r.path} ({r.permission})" for r in control_routes()],
            "console": [path for path, _ in PAGES],
        },
        "HTTP: predictions and outcomes": structs([Answer, ExplainedAnswer, Accepted]) | {"error": list(describe(errors.NotFound("", ""))["error"])},
        "HTTP: headers": headers(openapi.predict_instances("LOOP")),
        "HTTP: arguments of the control API": {v.name: arguments(v.call) for v in table() if "http" in v.doors},
        "Error codes": {
            str(status): sorted(
                {kind.code for kind in all_errors() if next(s for k, s in STATUS if issubclass(kind, k)) == status}
                | {code for at, (code, _) in DOOR.items() if at == status}
            )
            for status in sorted({*DOOR, *(s for _, s in STATUS)})
        },
        "Answers of commands (`--json`, `/api/`, `.json` pages)": structs(answers()),
        "Flags of predictions": {"flags": list(FLAGS)},
        "Events and webhooks": {"event": [cloudevents.TYPE, *event_fields()]},
        "Metrics": metrics(),
        "Exit codes": {n: [str(getattr(exits, n))] for n in ("DONE", "NO", "WRONG_USE", "INTERRUPTED")},
        "Settings": {s.env: [] for s in SETTINGS},
        "Ledger: tables": {t.name: [f"{c.name}: {c.type}" for c in t.columns] for t in ledger.metadata.sorted_tables},
        "Ledger: kinds": {kind.kind: fields(kind) for kind in sorted(records(), key=lambda k: k.kind)},
        "Ledger: what the kinds hold": {n: f for n, f in structs(records()).items() if n not in {k.__name__ for k in records()}},
        "Lake: columns": {
            **{kind: [f"{f.name}: {f.type}" for f in found] for kind, found in arrow.FIXED.items()},
            "predictions, optional": ["_values: list<float>", "_of_file: bool", "_generation: int64"],
            f"{QUARANTINE}TABLE": [f"{f.name}: {f.type}" for f in QUARANTINE_SCHEMA],
        },
        "Files of examples": {"columns": [*(f"{n}: {t}" for n, t in examples.FIXED.items()), "_label"]},
        "Prediction log": {
            f"version {segment.VERSION}": [f"header {segment.HEADER.format}", f"frame {segment.FRAME.format}", f"footer {segment.FOOTER.format}"],
            **structs([record for _, record in segment.KINDS.values()]),
        },
        "Packages": {f"format {packages.FORMAT}": ["manifest.json", *packages.FILES], **structs([Manifest, Evaluation, Reference])},
        "serve.json": structs([Serving]),
    }  # fmt: skip


def headers(operation: dict[str, Any]) -> dict[str, list[str]]:
    """The headers of requests and of answers that the OpenAPI document of an operation names."""
    asked = [p["name"] for p in operation["parameters"] if p["in"] == "header"]
    answered = [name for response in operation["responses"].values() for name in response.get("headers", {})]
    return {"request": [*asked, "Authorization", ACTOR.decode()], "answer": list(dict.fromkeys(answered))}


def arguments(call: Any) -> list[str]:
    """The arguments of a verb that a client may give."""
    return [name for name in inspect.signature(call).parameters if name not in ("home", "progress", "announce")]


def all_errors(kind: type[errors.LoopwrightError] = errors.LoopwrightError) -> list[type[errors.LoopwrightError]]:
    """A class of errors and all below it."""
    below = [found for sub in kind.__subclasses__() if sub.__module__ == errors.__name__ for found in all_errors(sub)]
    return [kind, *below]


def answers() -> list[type]:
    """The types of what commands answer."""
    found = [inspect.signature(v.call).return_annotation for v in table()]
    found.append(inspect.signature(loop_page).return_annotation)
    kinds = [get_args(kind)[0] if get_args(kind) else kind for kind in found]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]


def records() -> list[type[Record]]:
    """Every kind of record that the ledger may hold."""
    for module in pkgutil.walk_packages(loopwright.__path__, "loopwright."):
        if not module.name.endswith(("__main__", ".migrations.env")) and ".migrations." not in module.name:
            import_module(module.name)
    found, waiting = list[type[Record]](), Record.__subclasses__()
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        if kind is not Untyped and kind.__module__.startswith("loopwright."):
            found.append(kind)
    return [k for k in found if not k.__module__.startswith("loopwright.verbs.")]  # these read records of other kinds in part


def structs(kinds: list[Any]) -> dict[str, list[str]]:
    """These structs and all that their fields hold, by name, with their fields."""
    found: dict[str, list[str]] = {}
    for kind in kinds:
        for struct in reachable(kind):
            found.setdefault(struct.__name__, fields(struct))
    return dict(sorted(found.items()))


def reachable(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """A struct and the structs in the types of its fields."""
    waiting, seen = [kind], set()
    while waiting:
        of = waiting.pop()
        waiting += [part for part in get_args(of) if part not in seen]
        if isinstance(of, type) and issubclass(of, msgspec.Struct) and of not in seen:
            seen.add(of)
            waiting += [f.type for f in msgspec.structs.fields(of)]
            yield of


def fields(struct: Any) -> list[str]:
    """The fields of a struct as they are written, with their types."""
    return [f"{f.encode_name}: {typed(f.type)}" for f in msgspec.structs.fields(struct)]


def typed(kind: Any) -> str:
    """A type as the page writes it."""
    text = inspect.formatannotation(kind)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text).replace("NoneType", "None")


def event_fields() -> list[str]:
    """What an event of a prediction holds."""
    row = {**dict.fromkeys(arrow.FIXED["predictions"].names, None), "_id": "0" * 32, "_at": 0, "_unit": "", "_segment": "a"}
    found = cloudevents.event("loop", row, None)
    return [*found, *(f"data.{name}" for name in found["data"]), "data.values", "subject"]


def metrics() -> dict[str, list[str]]:
    """Each metric with its labels."""
    own = [m for m in vars(Metrics()).values() if isinstance(m, prometheus.MetricWrapperBase)]
    found = {f"{about.name} ({about.type})": list(m._labelnames) for m in own for about in m.describe()}
    with TemporaryDirectory() as folder:
        loop = LoopState(stages={"scope": "ok"}, alerts={"info": 1}, failed=1)
        write_upkeep_state(Path(folder), UpkeepState(at=0.0, loops={"loop": loop}, alerts={"info": 1}, failed=1))
        families = [*UpkeepMetrics(Path(folder)).collect(), *Failures("0", None).collect()]
    for m in families:  # `_labelnames` also where nothing has been counted yet
        found[f"{m.name} ({m.type})"] = sorted({*getattr(m, "_labelnames", ()), *(n for s in m.samples for n in s.labels)})
    return dict(sorted(found.items()))


def written(frozen: Names) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for section, rows in frozen.items():
        lines = [f"- `{row}`" + (": " if held else "") + ", ".join(f"`{name}`" for name in held) for row, held in rows.items()]
        parts.append("\n".join([f"## {section}", "", *lines, ""]))
    return "\n".join(parts)


def read(page: str) -> set[str]:
    """Every name of a page, as `section / row / name`."""
    found, section = set(), ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("- `"):
            row, *held = re.findall(r"`([^`]*)`", line)
            found |= {f"{section} / {row}", *(f"{section} / {row} / {name}" for name in held)}
    return found


def gone() -> list[str]:
    """The names of the page that the code does not have any more."""
    page = PAGE.read_text() if PAGE.is_file() else ""
    return sorted(read(page) - read(written(names())))
