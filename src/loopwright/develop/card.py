"""The model card of a package (Mitchell et al. 2019, Model cards for model reporting), in Markdown."""

import math
from collections.abc import Sequence

from loopwright.records.declarations import Objective, Scope
from loopwright.records.evaluation import Estimate, Evaluation
from loopwright.records.package import Manifest
from loopwright.records.split import says

_SHOWN = ("average_precision", "roc_auc", "brier", "calibration_error", "precision", "recall", "f1", "value_per_prediction")


def card(manifest: Manifest, scope: Scope, evaluation: Evaluation, measured: dict[str, float]) -> str:
    """The card's text."""
    training = manifest.training
    sources = ", ".join(f"`{name}` version {version}" for name, version in sorted(training.sources.items())) or "not recorded"
    parts = [
        f"# {manifest.loop}: {manifest.candidate}",
        "",
        scope.problem,
        "",
        (
            f"Made {manifest.created_at:%Y-%m-%d %H:%M} UTC by {manifest.by}. Rung {manifest.phase} of the ladder "
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
        (
            f"The score is the probability of a positive outcome; from {manifest.threshold:.3f} on the label is positive. Where the value "
            "table sets that threshold, it is right for calibrated scores only: see the calibration error."
        ),
        "",
        "## What it was trained on",
        "",
        (
            f"{training.rows:,} examples decided from {training.first:%Y-%m-%d} to {training.last:%Y-%m-%d}, as known at "
            f"{training.as_of:%Y-%m-%d %H:%M} UTC; from {sources}. Fitting took {training.seconds:.1f} s."
        ),
        *_split(manifest),
        f"Hyper-parameters: {', '.join(f'{k} = {v}' for k, v in manifest.params.items()) or 'as declared'}. Seed {manifest.seed}.",
        f"Features ({len(manifest.features)}): {', '.join(manifest.features)}.",
        "",
        "## How it did",
        "",
        f"On {evaluation.rows:,} younger examples ({evaluation.positives:,} positive) that it was not fitted on; 95 % bootstrap intervals.",
        "",
        "| metric | value | interval |",
        "| --- | --- | --- |",
        *(
            f"| {name.replace('_', ' ')} | {_number(e.value)} | {_interval(e)} |"
            for name in _SHOWN
            if (e := evaluation.metrics.get(name))
        ),
        f"| one row, median / 99 % | {evaluation.latency_p50_us:.0f} / {evaluation.latency_p99_us:.0f} µs | |",
        "",
        *_slices(evaluation, manifest.slices),
        "## What to beware of",
        "",
        *(f"- {line}" for line in _doubts(evaluation, scope.objectives, measured)),
        "",
    ]
    return "\n".join(parts)


_RUNGS = {1: "a rule, no learning", 2: "the simplest model", 3: "an optimised simple model", 4: "a complex model"}


def _objective(objective: Objective, value: float) -> str:
    target = f"≥ {objective.at_least:g}" if objective.at_least is not None else f"≤ {objective.at_most:g}"
    met = "yes" if objective.met(value) else "no"
    return f"| {objective.name} ({objective.metric}) | {objective.owner} | {target} | {_number(value)} | {met} |"


def _split(manifest: Manifest) -> list[str]:
    """How rows were divided and sampled, with the proof that nothing is on both sides."""
    lines = []
    if split := manifest.split:
        left_out = "".join(f"; left out: {n:,} {why}" for why, n in split.left_out.items())
        shared = ", ".join(f"{n} {what}" for what, n in split.overlap.items())
        groups = f" ({split.training.groups:,} and {split.validation.groups:,} groups)" if split.training.groups else ""
        lines.append(
            f"Split: {says(split.split)}. {split.training.rows:,} rows train, {split.validation.rows:,} validate{groups}; "
            f"in both: {shared}{left_out}. Row ids: `{split.training.digest[:12]}` train, `{split.validation.digest[:12]}` validate."
        )
    if sampled := manifest.sampling:
        kept = ", ".join(f"{name} {n:,} of {sampled.there[name]:,}" for name, n in sampled.kept.items())
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in sampled.weights.items())
        lines.append(
            f"Sampled: fitted on {sum(sampled.kept.values()):,} of {sum(sampled.there.values()):,} training rows ({kept}; weights "
            f"{weights}). The graph undoes it: its probabilities are those of the rows as they were."
        )
    return lines


def _number(value: float) -> str:
    return "no data" if math.isnan(value) else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f"[{estimate.low:.3f}, {estimate.high:.3f}]"


def _slices(evaluation: Evaluation, names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        values = evaluation.slices.get(name, {})
        if not values:
            continue
        lines += [
            f"### By {name}",
            "",
            "| value | rows | average precision | recall | precision |",
            "| --- | --- | --- | --- | --- |",
        ]
        for word, metrics in values.items():
            shown = [
                f"{_number(metrics[m].value)} {_interval(metrics[m])}" for m in ("average_precision", "recall", "precision")
            ]
            lines.append(f"| {word} | {metrics['recall'].n:,} | {' | '.join(shown)} |")
        lines.append("")
    return lines


def _doubts(evaluation: Evaluation, objectives: Sequence[Objective], measured: dict[str, float]) -> list[str]:
    lines = [
        f"It misses “{o.name}” ({o.owner}): {o.metric} is {_number(measured.get(o.metric, math.nan))}."
        for o in objectives
        if not o.met(measured.get(o.metric, math.nan))
    ]
    if evaluation.positives < 200:
        lines.append(f"Only {evaluation.positives} positive examples were there to judge it by.")
    error = evaluation.metrics.get("calibration_error")
    if error and error.value > 0.05:
        lines.append(f"Its scores are off by {error.value:.3f} on average: do not read them as probabilities.")
    lines.append("It was judged on the newest examples and not fitted on them; it knows nothing of what changed since.")
    return lines
