"""The releases of a loop, in a terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import share, short
from loopwright.cli.terminal.cells import table
from loopwright.cli.terminal.verdicts import verdict
from loopwright.records.releases import ReleaseState
from loopwright.verbs.history import History


def history(value: History) -> RenderableType:
    """A line a release, oldest first."""
    if not value.releases:
        return Text("nobody has served yet: `loopwright run LOOP` makes a package and releases it")
    rows = []
    for before, r in zip([None, *value.releases], value.releases, strict=False):
        package = Text(arms(r, "\n")) if value.segment is None else _of_segment(r, value.segment)
        names = Text("\n".join(value.candidates.get(arm.package, "–") for arm in r.arms))
        changed = [_changed(before, r)] if value.segment is None and any(s.segments for s in value.releases) else []
        rows.append([r.generation, r.since, r.action, package, names, *changed, r.by, r.why])
    columns = ["", "since", "", "package", "candidate", *(["segments"] if rows and len(rows[0]) == 8 else []), "by", "why"]
    shown = table(columns, rows, right=[""])
    return Group(shown, verdict(value.verdict)) if value.verdict is not None else shown


def _of_segment(value: ReleaseState, segment: str) -> str:
    own = value.segments.get(segment)
    return f"own {short(own)}" if own else f"global {arms(value)}"


def _changed(before: ReleaseState | None, now: ReleaseState) -> str:
    """Number of segments with their own package, and of added, changed and removed ones."""
    old = before.segments if before is not None else {}
    counts = {
        "new": len(now.segments.keys() - old.keys()),
        "replaced": sum(1 for name, package in now.segments.items() if old.get(name, package) != package),
        "gone": len(old.keys() - now.segments.keys()),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{len(now.segments)}" + (f" ({told})" if told else "")


def arms(value: ReleaseState, between: str = ", ") -> str:
    """The packages that serve, with name and share where there are several."""
    rules = {arm.name: ", its heuristic alone," if arm.heuristic else "" for arm in value.arms}
    shares = {arm.name: f" ({arm.name}, {share(arm.share)})" if value.is_divided else "" for arm in value.arms}
    unseen = [f"{short(value.shadow.package)} (shadow, {share(value.shadow.share)})"] if value.shadow is not None else []
    return between.join([*(short(arm.package) + shares[arm.name] + rules[arm.name] for arm in value.arms), *unseen])
