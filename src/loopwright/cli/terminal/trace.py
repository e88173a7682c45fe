"""One prediction, in a terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import count, number
from loopwright.cli.terminal.cells import fact_table, heading, plain, state, table
from loopwright.records.prediction import Contributions, explained
from loopwright.render.words import cell, word
from loopwright.verbs.trace import Trace


def trace(value: Trace) -> RenderableType:
    """One prediction with its origin and its outcome."""
    numbers = (
        f"score {value.score:.4f}, threshold {value.threshold:.4f}"
        if isinstance(value.label, bool) and not value.package_error
        else f"score {value.score:,.6g}"
    )
    trained = f"{count(value.training_rows, 'row')}, the newest of {word(value.trained_until)}" if value.candidate else None
    release = value.release
    parts: list[RenderableType] = [
        heading(f"{value.loop}: prediction {value.id}"),
        fact_table(
            "",
            [
                ("answered", f"{word(value.at)} UTC in {number(value.latency_us)} µs"),
                ("answer", Text(word(value.answer) + (f" ({numbers})" if value.label is not None else ""), style="bold")),
                *value.values.items(),
                ("heuristic", value.rule_answer),
                ("flags", value.flags),
                ("arm", value.arm),
            ],
        ),
        *(plain(line) for line in explained(value.flags)),
        fact_table("Request", value.request_shown.items()),
        *([fact_table("Context", [*value.context.items(), *_age(value.context_age_s)])] if value.context else []),
        _contributions(value.explained),
        fact_table("Features", value.features.items()),
        fact_table(
            "Package",
            [
                ("package", value.package_error or value.package),
                ("candidate", value.candidate),
                ("trained on", trained),
                ("as known at", value.known_at),
                ("commit", value.commit),
            ],
        ),
        heading("Training data"),
        table(
            ["table", "version", "file", "sha256"],
            [[f.table, f.version, f.file, f.sha256] for f in value.files],
            right=["version"],
        ),
        fact_table("Release", [] if release is None else [("since", release.since), ("by", release.by), ("why", release.why)]),
    ]
    several = len(value.statements) > 1 or (value.outcome is None and value.statements)
    received = [fact_table("Outcomes received", [(word(s.received_at), s.words) for s in value.statements])] if several else []
    outcome = value.outcome
    if outcome is None:
        missing = plain(value.truth_missing) if value.package_error else state(value.truth_missing)
        return Group(*parts, heading("Outcome"), missing, plain(f"value: {value.worth}"), *received)
    worth = outcome.value or 0.0
    sign = "green" if worth > 0 else "red" if worth < 0 else ""
    facts: list[tuple[str, Any]] = [
        ("truth", f"{word(cell(outcome.truth))}, known {word(outcome.known_at)}"),
        *([("so it was", outcome.kind)] if outcome.kind else []),
        ("value", Text(word(value.worth), style=sign)),
        *outcome.values.items(),
    ]
    return Group(*parts, fact_table("Outcome", facts), *received)


def _contributions(value: Contributions | None) -> RenderableType:
    if value is None or value.contributions is None:
        return fact_table("Contributions", [("none", value.why if value is not None else "")])
    of = f" of {value.of}" if value.of is not None else ""
    moved = [(name, f"{by:+.4g}") for name, by in value.largest.items()]
    return fact_table(f"Contributions to the {value.unit}{of}", [*moved, ("base", f"{value.base:+.4g}")])


def _age(seconds: float | None) -> list[tuple[str, str]]:
    return [] if seconds is None else [("age", f"{number(seconds)} s")]
