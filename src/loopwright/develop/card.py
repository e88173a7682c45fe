"""The model card of a package (Mitchell et al. 2019, Model cards for model reporting), in Markdown."""

import math
from collections.abc import Mapping, Sequence

from loopwright.base.markdown import plain, row
from loopwright.base.text import bounds, day, moment, number, spaced
from loopwright.records.declarations import SHAPES, Objective, Scope
from loopwright.records.evaluation import Evaluation
from loopwright.records.package import Manifest
from loopwright.tasks.plausibility import perfect_on_few, practically_perfect
from loopwright.tasks.registry import TASKS
from loopwright.tasks.split import says

_FEW = " (too few to tell)"


def card(
    manifest: Manifest, scope: Scope, evaluation: Evaluation, measured: dict[str, float], left_out: Mapping[str, str] = {}
) -> str:
    """The card's text; `left_out` maps candidates of the same turn that failed to the reason."""
    training = manifest.training
    sources = (
        ", ".join(f"{plain(name)} version {version}" for name, version in sorted(training.sources.items())) or "not recorded"
    )
    parts = [
        f"# {plain(manifest.loop)}: {plain(manifest.candidate)}",
        "",
        plain(scope.problem),
        "",
        (
            f"Made {moment(manifest.created_at)} UTC by {plain(manifest.by)}. Rung {manifest.phase} of the ladder "
            f"({_RUNGS.get(manifest.phase, 'model')}). Declared as `{manifest.declaration[:12]}`, code at "
            f"{f'commit `{manifest.commit[:12]}`' if manifest.commit else 'no commit'}, parent "
            f"{f'`{manifest.parent[:12]}`' if manifest.parent else 'none'}."
        ),
        "",
        "## What it is for",
        "",
        "| wanted | by | target | measured | met |",
        "| --- | --- | --- | --- | --- |",
        *(_objective(o, measured.get(o.metric, math.nan)) for o in scope.objectives),
        "",
        _answers(manifest),
        "",
        _explained(manifest),
        "",
        "## What it was trained on",
        "",
        (
            f"{training.rows:,} examples decided from {day(training.first)} to {day(training.last)}, as known at "
            f"{moment(training.as_of)} UTC; from {sources}. Fitting took {training.seconds:.1f} s."
        ),
        *_split(manifest),
        f"Hyper-parameters: {', '.join(plain(f'{k} = {v}') for k, v in manifest.params.items()) or 'as declared'}. Seed {manifest.seed}.",
        f"Features ({len(manifest.features)}): {', '.join(plain(name) for name in manifest.features)}.",
        "",
        "## How it did",
        "",
        (
            f"On {evaluation.rows:,} {'younger ' if manifest.split is None or manifest.split.boundary else ''}examples"
            f"{f' ({evaluation.positives:,} positive)' if manifest.output.shape.has_border else ''} "
            "that it was not fitted on; 95 % intervals."
        ),
        "",
        "| metric | value | interval |",
        "| --- | --- | --- |",
        *(
            f"| {spaced(name)} | {number(e.value)} | {bounds(e)}{_FEW if e.too_few else ''} |"
            for name in (TASKS[manifest.output.task].card or evaluation.metrics)
            if (e := evaluation.metrics.get(name))
        ),
        f"| one row, median / 99 % | {evaluation.latency_p50_us:.0f} / {evaluation.latency_p99_us:.0f} µs | |",
        *_loading(evaluation),
        *_reliability(evaluation),
        "",
        *_slices(evaluation, manifest),
        "## What to beware of",
        "",
        *(f"- {line}" for line in _doubts(manifest, evaluation, scope.objectives, measured)),
        *(f"- It was not compared with {plain(name)}, which is left out: {plain(why)}." for name, why in left_out.items()),
        "",
    ]
    return "\n".join(parts)


_RUNGS = {1: "a rule, no learning", 2: "the simplest model", 3: "an optimised simple model", 4: "a complex model"}


def _objective(objective: Objective, value: float) -> str:
    target = f"≥ {objective.at_least:g}" if objective.at_least is not None else f"≤ {objective.at_most:g}"
    met = "yes" if objective.met(value) else "no"
    return row([f"{objective.name} ({objective.metric})", objective.owner, target, number(value), met])


def _split(manifest: Manifest) -> list[str]:
    """The split and sampling of rows, with the proof that no row is on both sides."""
    lines = []
    if split := manifest.split:
        left_out = "".join(f"; left out: {n:,} {plain(why)}" for why, n in split.left_out.items())
        shared = ", ".join(f"{n} {what}" for what, n in split.overlap.items())
        groups = f" ({split.training.groups:,} and {split.validation.groups:,} groups)" if split.training.groups else ""
        lines.append(
            f"Split: {plain(says(split.split))}{f'; {plain(split.extended)}' if split.extended else ''}. {split.training.rows:,} rows train, {split.validation.rows:,} validate{groups}; "
            f"in both: {shared}{left_out}. Row ids: `{split.training.digest[:12]}` train, `{split.validation.digest[:12]}` validate."
        )
    if sampled := manifest.sampling:
        kept = ", ".join(f"{plain(name)} {n:,} of {sampled.available[name]:,}" for name, n in sampled.sampled.items())
        weights = ", ".join(f"{plain(name)} {weight:.3g}" for name, weight in sampled.weights.items())
        lines.append(
            f"Sampled: fitted on {sum(sampled.sampled.values()):,} of {sum(sampled.available.values()):,} training rows ({kept}; weights "
            f"{weights}). The graph undoes it: its probabilities are those of the rows as they were."
        )
    return lines


def _loading(evaluation: Evaluation) -> list[str]:
    if evaluation.load_ms is None or evaluation.memory_bytes is None:
        return []
    return [f"| loading / memory then | {evaluation.load_ms:.1f} ms / {evaluation.memory_bytes / 1024:,.0f} KiB | |"]


def _reliability(evaluation: Evaluation) -> list[str]:
    """The reliability curve as a table (Murphy and Winkler 1977, Reliability of subjective probability forecasts)."""
    rows = [
        f"| {number(b.low)} to {number(b.high)} | {number(b.score)} | {number(b.share.value)} {bounds(b.share)} | {b.share.n:,} |"
        for b in evaluation.reliability
    ]
    return ["", "| scores | mean score | share positive | rows |", "| --- | --- | --- | --- |", *rows] if rows else []


def _answers(manifest: Manifest) -> str:
    """The meaning of score, label and values."""
    output, border = manifest.output, manifest.threshold
    names = ", ".join(plain(name) for name in output.names[:20]) + (
        f" and {len(output.names) - 20} more" if len(output.names) > 20 else ""
    )
    text = TASKS[output.task].describe(output).format(names=names, border=border, group=plain(manifest.group))
    made = manifest.calibration
    return text if made is None else f"{text} {plain(made.words[0].upper() + made.words[1:])}."


def _explained(manifest: Manifest) -> str:
    """The model card's sentence on explanations: the method and unit, or why there are none."""
    told = manifest.explained
    if told is None or told.why:
        return f"Its answers are not explained: {plain(told.why) if told is not None else 'made before'}."
    return (
        f"Its answers are explained feature by feature ({plain(told.method)}), in the unit {plain(told.unit)}: `explain=true`."
    )


def _slices(evaluation: Evaluation, manifest: Manifest) -> list[str]:
    task = TASKS[manifest.output.task]
    shown = task.card_slices or task.summary
    lines = []
    for name in manifest.slices:
        values = evaluation.slices.get(name, {})
        if not values:
            continue
        lines += [
            f"### By {plain(name)}",
            "",
            f"| value | rows | {' | '.join(spaced(name) for name in shown)} |",
            "| --- | --- |" + " --- |" * len(shown),
        ]
        for word, found in values.items():
            cells = [f"{number(found[m].value)} {bounds(found[m])}{_FEW if found[m].too_few else ''}" for m in shown]
            lines.append(row([word, f"{found[shown[0]].n:,}", *cells]))
        if few := evaluation.small_groups.get(name):
            named = ", ".join(f"{plain(word)} ({n:,})" for word, n in few.items())
            lines += ["", f"Too few rows to be shown by themselves (gaps count them as far as they tell): {named}."]
        lines.append("")
    return lines


def _doubts(
    manifest: Manifest, evaluation: Evaluation, objectives: Sequence[Objective], measured: dict[str, float]
) -> list[str]:
    task = manifest.output.task
    perfect = practically_perfect(evaluation, task)
    lines = [f"LEAK SUSPECTED: {plain(perfect)}."] if perfect else []
    lines += [f"{plain(few)}."] if (few := perfect_on_few(evaluation, task)) else []
    lines += [f"LEAK SUSPECTED: {plain(f'{s.what} {s.why}')}." for s in evaluation.suspects if s.used]
    lines += [
        f"It misses “{plain(o.name)}” ({plain(o.owner)}): {o.metric} is {number(measured.get(o.metric, math.nan))}."
        for o in objectives
        if not o.met(measured.get(o.metric, math.nan))
    ]
    lines += [
        f"The best of several candidates looks better than it is: expect {number(one.value)} {bounds(one)} {spaced(name)} of it."
        for name, one in evaluation.shrunk.items()
    ]
    if evaluation.positives < 200 and SHAPES[task].has_border:
        lines.append(f"Only {evaluation.positives} positive examples were there to judge it by.")
    error = evaluation.metrics.get("calibration_error")
    if error and error.value > 0.05:
        lines.append(f"Its scores are off by {error.value:.3f} on average: do not read them as probabilities.")
    lines.append("It was judged on the newest examples and not fitted on them; it knows nothing of what changed since.")
    return lines
