"""Ingested sources and the contents of tables, for a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from loopwright.base.text import ABSENT, count, duration_text, moment, share
from loopwright.cli.terminal.cells import ALIKE, heading, table
from loopwright.records.ingestions import DOUBT, Ingested, OutcomesMended, Quarantined
from loopwright.records.profiles import ColumnProfile, Profile
from loopwright.render.words import word

SINCE = "came in before {} was declared: null in its rows; to read it, give the table another name in the loop file, and ingest again"


def ingested(done: Sequence[Ingested]) -> RenderableType:
    """Ingested sources: one line a source, the reasons of quarantined rows, and where to look for them."""
    sources = [f"{d.source}, outcomes of {d.loop}" if isinstance(d, OutcomesMended) else d.source for d in done]
    came = ["there before" if d.already and not d.mended else d.rows for d in done]
    rows = [[s, c, d.good, d.quarantined, d.version or ABSENT] for s, c, d in zip(sources, came, done, strict=True)]
    parts: list[RenderableType] = [
        heading(f"table {done[0].table}"),
        table(["source", "rows", "landed", "in quarantine", "version"], rows[:ALIKE]),
    ]
    if len(rows) > ALIKE:
        new = [d for d in done if not d.already]
        total = f"... {len(rows):,} sources, {len(new):,} new: {count(sum(d.good for d in new), 'row')} landed"
        parts.append(Text(f"{total}, {sum(d.quarantined for d in new):,} in quarantine"))
    reasons: Counter[str] = Counter()
    for d in done:
        reasons.update({} if d.already else d.reasons)
    told = sorted({f"{d.source} has no column {n}: null there" for d in done for n in d.absent})
    told += sorted({f"{d.source} {SINCE.format(', '.join(d.declared_since))}" for d in done if d.declared_since})
    told += sorted({f"{d.source} was read as {d.encoding}" + DOUBT * (d.encoding == "cp1252") for d in done if d.encoding})
    told += [
        f"{d.source}: rows that repeat key and moment of earlier ones: {d.repeated:,}; the last counts"
        for d in done
        if d.repeated
    ]
    told += [
        f"{d.source}: rows that it mends more than once: {d.replaced:,} times; the last counts" for d in done if d.replaced
    ]
    told += [f"{d.table}: {d.repeated_keys}" for d in done if d.repeated_keys]
    parts += [Text(word(line), style="yellow") for line in told[:ALIKE]]
    return Group(*parts, *(quarantine_lines(done[0].table, reasons) if any(d.quarantined for d in done) else []))


def quarantine_lines(table: str, reasons: Mapping[str, int]) -> list[RenderableType]:
    """Reasons of quarantined rows of a table, and the next step."""
    why = [Text(word(f"  {reason}: {count:,}")) for reason, count in Counter(reasons).most_common(ALIKE)]
    mend = f"`loopwright quarantine {table} --export FILE` writes what waits, then mend it and `loopwright ingest {table} FILE --mend`"
    return [*why, Text(mend, style="dim")]


def quarantined(value: Quarantined) -> RenderableType:
    """Rows in a quarantine, by reason, and how to mend them."""
    if not value.rows:
        mended = f"; {value.mended:,} mended" if value.mended else ""
        return Text(f"nothing waits in the quarantine of {value.table}{mended}")
    parts: list[RenderableType] = [
        heading(f"quarantine of {value.table}: {count(value.rows, 'row')}, {value.mended:,} mended before"),
        table(["reason", "rows"], [[r, n] for r, n in list(value.by_reason.items())[:ALIKE]]),
        table(
            ["source", "row", "why", "as it was"], [[r["source"], r["row"], r["reason"], r["raw"][:200]] for r in value.shown]
        ),
    ]
    if value.rows > len(value.shown):
        parts.append(Text(f"... and {value.rows - len(value.shown):,} more"))
    mend = f"mend them, then `loopwright ingest {value.table} {value.file or 'FILE'} --mend`"
    export = f"`loopwright quarantine {value.table} --export FILE` writes them to a file; "
    parts.append(Text(f"written to {value.file}; {mend}" if value.file else export + mend, style="dim"))
    return Group(*parts)


def profile(value: Profile) -> RenderableType:
    """A table's rows: a line a column, the days as bars, how fresh it is."""
    columns = [
        [
            c.name,
            c.type,
            share(c.nulls / value.rows) if c.nulls else "",
            c.distinct or ABSENT,
            _typical(c),
            bars(c.histogram) or ", ".join(f"{word(v)[:24]} {share(n / value.rows)}" for v, n in c.top[:3]),
        ]
        for c in value.columns
    ]
    head = f"{value.table}: {count(value.rows, 'row')} at version {value.version}"
    if not value.rows:
        return Text(f"{head}: no data")
    parts: list[RenderableType] = [
        heading(head),
        table(["column", "type", "null", "distinct", "least .. median .. most", "distribution"], columns),
    ]
    if value.days:
        counts = [d.rows for d in value.days]
        per_day = f"{sum(counts) / len(counts):,.1f} rows a day from {value.days[0].day} to {value.days[-1].day}"
        parts.append(Text(f"{bars(counts)}  {per_day}"))
    if value.newest:
        parts.append(
            Text(f"newest row {moment(value.newest)} UTC, {duration_text(value.at - value.newest)} before this profile")
        )
    if value.left_out:
        parts.append(Text(f"{value.left_out:,} more columns are not profiled", style="dim"))
    return Group(*parts)


def bars(counts: Sequence[int]) -> str:
    """Counts as bars of one line."""
    most = max(counts, default=0)
    return "".join("▁▂▃▄▅▆▇█"[min(7, n * 8 // (most + 1))] if n else " " for n in counts)


def _typical(c: ColumnProfile) -> str:
    """The range of a column with its median: `0 .. 3.1 .. 99`."""
    said = [c.minimum, *c.quantiles[2:3], c.maximum]
    return "" if c.type == "boolean" or c.minimum is None else " .. ".join(word(v)[:16] for v in said)
