import inspect
import math
import re
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import loopwright
from loopwright.base.errors import DeclarationInvalid
from loopwright.records.declarations import (
    Budget,
    Candidate,
    Column,
    Context,
    Declaration,
    Heuristic,
    Monitor,
    Objective,
    Outcome,
    Release,
    Retrain,
    Scope,
    Slice,
    Table,
    TimeSplit,
    Value,
    declaration_digest,
    duration,
    source_of,
    to_builtins,
    to_json,
)

TIME = Column("timestamp")
WEATHER = Table("weather", {"origin": Column("string"), "at": TIME, "wind": Column("float", nullable=True)}, ["origin"], "at")


def rule(f: Any) -> Any:
    return f.dep_delay > 15


def fields(make: Any) -> list[str]:
    """The fields that a declaration's refusal names."""
    with pytest.raises(DeclarationInvalid) as caught:
        make()
    assert all(problem.reason for problem in caught.value.problems)
    return [problem.field for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("15m", 900),
        ("3h", 10800),
        ("7d", 604800),
        ("2w", 1209600),
        ("250ms", 0.25),
        ("1d 12h", 129600),
        ("1.5h", 5400),
        ("0s", 0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "7 days", "7d, 2h", "1e3s", "7y", "9" * 30 + "d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration(text)
    assert fields(lambda: TimeSplit(validation=text)) == ["validation"]


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_sum_of_durations_is_their_sum(days: int, seconds: int) -> None:
    assert duration(f"{days}d {seconds}s") == timedelta(days=days, seconds=seconds)


def test_every_wrong_field_is_named_at_once() -> None:
    def wrong() -> Table:
        columns = {
            "origin": Column("string", nullable=True),
            "at": Column("string"),
            "1st": Column("float"),
            "_x": Column("float"),
        }
        return Table("Weather!", columns, ["origin", "gate"], "at", known_time="seen", known_after="soon")

    assert fields(wrong) == [
        "name", "columns.1st", "columns._x", "known_after", "key", "known_time", "columns.at", "key.origin",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Objective("a", "b", "auc"), ["at_least/at_most"]),
        (lambda: Objective("a", "b", "auc", at_least=0.1, at_most=0.2), ["at_least/at_most"]),
        (lambda: Objective("a", "b", "auc", at_least=0.1, weight=-1), ["weight"]),
        (lambda: Objective("a", "b", "auc", at_least=0.1, weight=math.nan), ["weight"]),
        (lambda: Scope(problem=" ", objectives=[], heuristic=Heuristic(rule)), ["problem", "objectives"]),
        (
            lambda: Scope(problem="p", objectives=[Objective("a", "b", "auc", at_least=0.1)] * 2, heuristic=Heuristic(rule)),
            ["objectives[1].name"],
        ),
        (lambda: Heuristic(3, name="No"), ["name", "rule"]),
        (lambda: Column("float", categories=["a"]), ["categories"]),
        (lambda: Column("string", minimum=1), ["minimum/maximum"]),
        (lambda: Column("integer", minimum=2, maximum=1), ["minimum"]),
        (lambda: Context(WEATHER, {"carrier": "carrier"}, ["snow"], max_age="old"), ["max_age", "columns", "by"]),
        (lambda: Outcome(WEATHER, " ", wait="x"), ["label", "wait"]),
        (lambda: Slice("Night!", 1), ["name", "of"]),
        (lambda: Candidate("lr", None), ["estimator"]),
        (lambda: Candidate("lr", lambda: None, trials=5), ["trials"]),
        (lambda: Monitor(every="weekly"), ["every"]),
        (lambda: Retrain(every="x", cooldown="y", window="z"), ["every", "cooldown", "window"]),
    ],
)
def test_what_is_wrong_is_named(make: Any, names: list[str]) -> None:
    assert fields(make) == names


def test_a_table_knows_when_a_row_became_known() -> None:
    assert WEATHER.known == "at"
    seen = Table("t", {"id": Column("string"), "at": TIME, "seen": TIME}, ["id"], "at", known_time="seen", known_after="20m")
    assert seen.known == "seen"


@pytest.mark.parametrize(
    ("objective", "met", "missed"),
    [
        (Objective("a", "b", "auc", at_least=0.8), [0.8, 1.0], [0.79, math.nan]),
        (Objective("a", "b", "ms", at_most=5), [5, 0, -1], [5.1, math.nan]),
        (Objective("a", "b", "gap", at_most=0), [0], [0.1]),
    ],
)
def test_an_objective_is_met_at_its_target_and_never_by_nan(
    objective: Objective, met: list[float], missed: list[float]
) -> None:
    assert all(objective.met(value) for value in met)
    assert not any(objective.met(value) for value in missed)


@given(*[st.floats(-1000, 1000)] * 4, st.floats(0, 1))
def test_above_the_threshold_acting_is_worth_more(tp: float, fp: float, tn: float, fn: float, probability: float) -> None:
    """Elkan 2001: act exactly when its expected value is at least that of not acting."""
    if tp - fn < 0 or (tp == fn and tn > fp):
        with pytest.raises(DeclarationInvalid, match="never pays" if tn >= fp else "pays where the truth is negative"):
            Value(true_positive=tp, false_positive=fp, true_negative=tn, false_negative=fn)
        return
    value = Value(true_positive=tp, false_positive=fp, true_negative=tn, false_negative=fn)
    gain = (probability * tp + (1 - probability) * fp) - (probability * fn + (1 - probability) * tn)
    if abs(gain) > 1e-6:
        assert (probability >= value.threshold()) == (gain > 0)


def test_a_declaration_is_json_both_ways() -> None:
    declarations: list[Declaration] = [
        WEATHER,
        Budget(train_minutes=3),
        Value(currency="EUR"),
        Context(WEATHER, {"origin": "origin"}, ["wind"]),
    ]
    for declaration in declarations:
        assert msgspec.json.decode(to_json(declaration), type=type(declaration)) == declaration
        assert msgspec.convert(to_builtins(declaration), type(declaration)) == declaration


def test_json_with_an_unknown_or_wrong_field_is_refused() -> None:
    for text, match in (
        (b'{"type":"float","unit":"kt"}', "unit"),
        (b'{"type":"money"}', "money"),
        (b'{"nullable":true}', "type"),
    ):
        with pytest.raises(msgspec.ValidationError, match=match):
            msgspec.json.decode(text, type=Column)


def test_code_is_written_as_its_source() -> None:
    heuristic = Heuristic(rule)
    assert to_builtins(heuristic)["rule"] == "def rule(f: Any) -> Any:\n    return f.dep_delay > 15"
    assert source_of("already text") == "already text"
    assert source_of(len) == "builtins.len"
    back = msgspec.json.decode(to_json(heuristic), type=Heuristic)
    assert back.rule == source_of(rule)
    assert declaration_digest(back) == declaration_digest(heuristic)


def test_the_digest_changes_with_the_declaration_and_with_its_code() -> None:
    def other(f: Any) -> Any:
        return f.dep_delay > 16

    digests = {declaration_digest(d) for d in (Heuristic(rule), Heuristic(other), Heuristic(rule, name="rule"))}
    assert len(digests) == 3
    assert declaration_digest(Heuristic(rule)) in digests


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        to_json(object())


@pytest.mark.parametrize("wrong", [0, -1, 600_001, 1.5, True])
def test_a_deadline_is_milliseconds(wrong: Any) -> None:
    with pytest.raises(DeclarationInvalid, match="deadline_ms"):
        Release(deadline_ms=wrong)


def declared_classes() -> list[type[Declaration]]:
    public = [getattr(loopwright, name) for name in loopwright.__all__]
    return [cls for cls in public if isinstance(cls, type) and issubclass(cls, Declaration)]


@pytest.mark.parametrize("cls", declared_classes(), ids=lambda cls: cls.__name__)
def test_declaration_documents_every_field_and_an_example(cls: type[Declaration]) -> None:
    text = inspect.getdoc(cls) or ""
    attributes, _, example = text.partition("Attributes:")[2].partition("Example:")
    assert re.findall(r"^    (\w+): ", attributes, re.MULTILINE) == [f.name for f in msgspec.structs.fields(cls)]
    assert example.strip().startswith(f"{cls.__name__}(")
