"""Every field of every declaration, with every value that it must not hold: refused where it is declared, by name."""

import copy
import functools
import math
import sys
from typing import Any, get_args, get_origin

import msgspec
import pytest
from sklearn.linear_model import LogisticRegression

from loopwright.base.errors import DeclarationInvalid
from loopwright.records import declarations
from loopwright.records.declarations import (
    AB,
    Aggregate,
    Budget,
    Canary,
    Candidate,
    Column,
    Context,
    Declaration,
    Fleet,
    Full,
    GroupSplit,
    Guard,
    Heuristic,
    Loop,
    Monitor,
    Objective,
    Outcome,
    Release,
    Retrain,
    Sampling,
    Scope,
    Shadow,
    Slice,
    StratifiedSplit,
    Table,
    TimeSplit,
    Value,
    declaration_digest,
    model_inputs,
    to_builtins,
)
from loopwright.records.field_rules import ITEMS, KEYS, RULES, UNDIRECTED, Duration, Number
from loopwright.tasks import metrics

TABLE = Table("orders", {"k": Column("string"), "at": Column("timestamp")}, ["k"], "at", known_time="at", ignore=["x"])
SCOPE = Scope(problem="p", objectives=[Objective("o", "me", "recall", at_least=0.5)], heuristic=Heuristic(lambda f: f.k == "a"))
WELL: list[Declaration] = [
    SCOPE.objectives[0],
    Objective("o", "me", "brier", at_most=0.5),
    Budget(train_minutes=1.0, usd_per_month=1.0),
    Value(),
    SCOPE.heuristic,
    SCOPE,
    Column("float", minimum=0.0, maximum=1.0),
    Column("array", shape=[2]),
    Column("string", categories=["a", "b"], tags=["pii"], source="A", missing=["?"]),
    Column("timestamp", zone="UTC", format="%d/%m/%Y"),
    TABLE,
    Context(TABLE, {"k": "k"}, ["at"], max_age="1d"),
    Context(TABLE, {"k": "k"}, {"seen": "at"}),
    Aggregate(name="n", table=TABLE, by={"k": "k"}, function="count", window="1d"),
    Outcome(TABLE, "k", task="regression", quantiles=[0.5]),
    Outcome(TABLE, {"one": "k", "two": "k"}, task="regression"),
    Outcome(TABLE, "k", task="ranking", group="k"),
    Slice("s", lambda f: f.k),
    TimeSplit(),
    GroupSplit("k"),
    StratifiedSplit("k"),
    Sampling(keep={"true": 0.5}),
    Sampling(weights={"true": 2.0}),
    Fleet(by="k"),
    Candidate("c", LogisticRegression),
    Guard("recall", tolerance=0.1, slices=["s"]),
    Release(guards=[Guard("recall")], plan=[Canary(share=0.1), Full()], freeze=["fri 16:00/mon 08:00"]),
    Shadow(flips=0.1),
    Canary(share=0.1),
    AB(metric="recall", minimum_effect=0.1),
    Full(),
    Monitor(),
    Retrain(every="1d", drift=2, decay=0.1, window="1d"),
    Loop(name="l", scope=SCOPE, requests=TABLE, outcome=Outcome(TABLE, "k"), features=lambda f: {}, candidates=[Candidate("c", LogisticRegression)],
         context=[Context(TABLE, {"k": "k"}, {"seen": "at"})], aggregates=[Aggregate(name="n", table=TABLE, by={"k": "k"}, function="count", window="1d")],
         slices=[Slice("s", lambda f: f.k)]),
]  # fmt: skip
"""Each declaration, so that every field holds something in one of them."""

TRAINS_AGAIN = {
    "Aggregate": "name table by function of window lag description",
    "Budget": "train_minutes",
    "Candidate": "name estimator phase encoding trials",
    "Column": "type nullable minimum maximum categories tags description zone shape source format missing optional retired filled",
    "Context": "table by columns max_age lag",
    "Fleet": "by minimum_rows most",
    "GroupSplit": "column validation",
    "Guard": "metric tolerance slices",
    "Heuristic": "rule name",
    "Loop": "name scope requests outcome features candidates context aggregates slices unit split sampling fleet release seed",
    "Objective": "name metric at_least at_most weight",
    "Outcome": "table label task wait absent quantiles group alert_share",
    "Release": "guards cannot_tell durability on_unloggable deadline_ms",
    "Sampling": "keep weights balanced",
    "Scope": "objectives heuristic value budget",
    "Slice": "name of",
    "StratifiedSplit": "column validation",
    "Table": "name columns key event_time known_time known_after",
    "TimeSplit": "validation embargo late_outcomes",
    "Value": "currency true_positive false_positive true_negative false_negative correct wrong under over",
}
"""Fields whose change makes the next turn train: they decide the examples, the models or their measures, or stand in the package."""

TRAINS_NOTHING = {
    "Budget": "usd_per_month usd_per_hour",
    "Loop": "monitor retrain",
    "Monitor": "every false_alarms_per_year psi jensen_shannon minimum_rows",
    "Objective": "owner",
    "Release": "strategy plan alpha freeze zone",
    "AB": "metric minimum_effect share time",
    "Canary": "share time rows",
    "Shadow": "share time rows flips",
    "Full": "watch hold_back",
    "Retrain": "every drift decay decay_metric cooldown window",
    "Scope": "problem horizon tier approvers approvals",
    "Table": "description ignore",
}
"""Fields whose change trains nothing as long as the examples are the same."""


def every_field() -> list[tuple[Declaration, msgspec.structs.FieldInfo]]:
    return [(each, field) for each in WELL for field in msgspec.structs.fields(type(each))]


def kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation names, however nested."""
    return {annotation, *(kind for inner in get_args(annotation) for kind in kinds(inner))}


def held(annotation: Any) -> set[Any]:
    """The same without the keys of dictionaries."""
    inner = get_args(annotation)[1:] if get_origin(annotation) is dict else get_args(annotation)
    return {annotation, *(kind for each in inner for kind in held(each))}


def changed(value: Any, to: Any) -> Any:
    """The same list or dictionary with `to` for its first element; `to` where it is neither."""
    if isinstance(value, dict) and value:
        return {**value, next(iter(value)): to}
    return [to, *value[1:]] if isinstance(value, list) and value else to


def refused(declaration: Declaration, field: str, value: Any) -> bool:
    """Whether it is refused, naming the field."""
    try:
        msgspec.structs.replace(declaration, **{field: value}).__post_init__()
    except DeclarationInvalid as error:
        return any(p.field.split("[")[0].split(".")[0].split("/")[0] == field for p in error.problems)
    return False


def test_every_declaration_is_walked() -> None:
    known = {c for c in vars(declarations).values() if isinstance(c, type) and issubclass(c, Declaration)} - {Declaration}
    assert {type(each) for each in WELL} == known | {Loop}


def named(fields: dict[str, str]) -> set[str]:
    return {f"{kind}.{name}" for kind, names in fields.items() for name in names.split()}


def altered(whole: Declaration, field: str, value: Any) -> Declaration:
    """A copy with another value, lawful or not."""
    other = copy.copy(whole)
    msgspec.structs.force_setattr(other, field, value)
    return other


def test_change_of_a_field_trains_again_or_not_as_listed() -> None:
    """A new field must be put into one of the two lists."""
    again, nothing = named(TRAINS_AGAIN), named(TRAINS_NOTHING)
    assert again | nothing == {f"{type(each).__name__}.{field.name}" for each, field in every_field()}
    assert not again & nothing
    [loop] = [each for each in WELL if isinstance(each, Loop)]
    for each, field in every_field():
        name, whole, other = f"{type(each).__name__}.{field.name}", each, altered(each, field.name, "another")
        if isinstance(each, Monitor | Retrain):  # they count as what a loop holds
            whole, other = (altered(loop, type(each).__name__.lower(), part) for part in (each, other))
        if isinstance(each, Shadow | Canary | AB | Full):
            whole, other = (altered(Release(), "plan", [part]) for part in (each, other))
        assert declaration_digest(whole) != declaration_digest(other), name
        same = declaration_digest(model_inputs(whole)) == declaration_digest(model_inputs(other))
        assert same == (name in nothing), name


def test_every_field_has_the_rules_of_its_type_and_every_rule_a_field() -> None:
    """A new field with a number, a text, a list or a dictionary cannot forget what it may hold."""
    ruled = {f"{type(each).__name__}.{field.name}" for each, field in every_field()}
    assert set(RULES) | set(KEYS) | set(ITEMS) <= ruled
    for each, field in every_field():
        name = f"{type(each).__name__}.{field.name}"
        numeric = kinds(field.type) & {int, float}
        assert isinstance(RULES.get(name), Number) if numeric else not isinstance(RULES.get(name), Number), name
        assert (bool(numeric) or str in held(field.type)) == (name in RULES), name
        assert any(get_origin(kind) is list for kind in kinds(field.type)) == (name in ITEMS), name
        assert any(get_origin(kind) is dict for kind in kinds(field.type)) == (name in KEYS), name
        value = getattr(each, field.name)
        if isinstance(value, str) and value[:1].isdigit():
            assert isinstance(RULES[name], Duration), name


def texts() -> list[tuple[Declaration, str, Any]]:
    """Each field that holds a text, with a function that puts another one in its place (also as a key of a dictionary)."""
    found: list[tuple[Declaration, str, Any]] = []
    for each, field in every_field():
        value = getattr(each, field.name)
        if str in held(field.type) and value not in ([], {}, None):
            found.append((each, field.name, lambda to, value=value: changed(value, to)))
        if isinstance(value, dict) and value:
            found.append((each, field.name, lambda to, value=value: {to: next(iter(value.values()))}))
    return found


def rule_of(each: Declaration, field: str, bad: Any) -> Any:
    """The rule that a text meets there, of the keys where it became one."""
    name = f"{type(each).__name__}.{field}"
    return (
        KEYS[name] if isinstance(bad, dict) and len(bad) == 1 and next(iter(bad)) not in getattr(each, field) else RULES[name]
    )


@pytest.mark.parametrize(
    "bad", ["", " ", "a\x1b[2Jb", "a\u202eb", "a\x00", "\ud800", "x" * 20_001], ids=lambda bad: ascii(bad)[:20]
)
def test_text_refuses_what_is_empty_invisible_or_endless(bad: str) -> None:
    tried = 0
    for each, field, put in texts():
        value = put(bad)
        rule = rule_of(each, field, value)
        if not rule.problem(bad):  # a text that data hold, or one that is optional
            assert bad == "" or rule.raw or rule.lines, f"{type(each).__name__}.{field}"
            assert len(bad) < 10_000
            assert bad.isascii() or bad.encode()
            continue
        tried += 1
        assert refused(each, field, value), f"{type(each).__name__}.{field} = {bad!r:.40}"
    assert tried > 20


@pytest.mark.parametrize("field", [name for name, items in ITEMS.items() if items.least])
def test_list_that_needs_an_element_refuses_none(field: str) -> None:
    kind, _, name = field.partition(".")
    assert any(refused(each, name, []) for each in WELL if type(each).__name__ == kind)


def test_list_refuses_the_same_element_twice() -> None:
    for each, field in every_field():
        value = getattr(each, field.name)
        items = ITEMS.get(f"{type(each).__name__}.{field.name}")
        if items is not None and isinstance(value, list) and value and not items.repeat:
            assert refused(each, field.name, [*value, value[0]]), f"{type(each).__name__}.{field.name}"


def test_metric_without_direction_guards_and_decays_nothing() -> None:
    assert all(metrics.METRICS[name].best is None for name in UNDIRECTED)
    for name in UNDIRECTED:
        assert refused(Retrain(decay=0.1), "decay_metric", name)
        assert refused(Guard("recall"), "metric", name)
    assert not refused(Objective("o", "me", "recall", at_least=0.5), "metric", "positive_rate")


def test_zone_refused_names_the_nearest() -> None:
    with pytest.raises(DeclarationInvalid, match=r"'Europe/Berln' is no zone: did you mean Europe/Berlin"):
        Column("timestamp", zone="Europe/Berln")


def test_wrong_texts_are_named_in_words_that_can_be_printed() -> None:
    with pytest.raises(DeclarationInvalid) as caught:
        Column("string", categories=["\ud800", "a", "a"], tags=["\x1b[2J"], source="")
    assert [tuple(p) for p in caught.value.problems] == [
        ("categories[2]", "'a' is there twice"),
        ("categories[0]", r"'\\ud800' holds '\ud800', half of a character: write it as UTF-8"),
        ("tags[0]", r"'\\x1b[2J' holds characters that cannot be seen: write it without them"),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 10**400, -(10**400), "12", True, [[]], None, object()])
def test_number_refuses_what_is_no_finite_number_of_its_type(bad: Any) -> None:
    for each, field in every_field():
        optional = bad is None and type(None) in kinds(field.type) and not isinstance(getattr(each, field.name), list | dict)
        value = getattr(each, field.name)
        if kinds(field.type) & {int, float} and not optional and value not in ([], {}, None):
            assert refused(each, field.name, changed(value, bad)), f"{type(each).__name__}.{field.name} = {bad!r}"


def test_number_refuses_what_is_beyond_its_range() -> None:
    for each, field in every_field():
        rule, value = RULES.get(f"{type(each).__name__}.{field.name}"), getattr(each, field.name)
        if not isinstance(rule, Number) or value in ([], {}, None):
            continue
        whole = float not in kinds(field.type)
        for beyond in (rule.least - 1 if not rule.above else rule.least, rule.most * 10 if not rule.below else rule.most):
            made: Any = int(beyond) if whole else float(beyond)
            if rule.problem(made) == "":  # there is no finite number beyond
                assert rule.most == sys.float_info.max
                continue
            assert refused(each, field.name, changed(value, made)), f"{type(each).__name__}.{field.name} = {made!r}"


@pytest.mark.parametrize("bad", ["", "x", "-1d", "7", "1e9d", "9999999d", "nan", 7, 7.0, True, [], object()])
def test_duration_refuses_what_is_none_or_out_of_range(bad: Any) -> None:
    for each, field in every_field():
        if isinstance(RULES.get(f"{type(each).__name__}.{field.name}"), Duration):
            assert refused(each, field.name, bad), f"{type(each).__name__}.{field.name} = {bad!r}"


def test_length_of_nothing_is_refused() -> None:
    """`Monitor(every="0d")` ended upkeep of all loops in a division by zero."""
    for name in (
        "Monitor.every",
        "Retrain.every",
        "Retrain.window",
        "TimeSplit.validation",
        "Context.max_age",
        "Aggregate.window",
    ):
        kind, field = name.split(".")
        each = next(w for w in WELL if type(w).__name__ == kind)
        assert refused(each, field, "0d")
        assert refused(each, field, "1ms")


def test_field_of_any_other_type_refuses_a_wrong_one() -> None:
    """Every field that is typed, not `Any`: a set is of no type that a declaration has."""
    for each, field in every_field():
        if field.type is not Any:
            assert refused(each, field.name, {1, 2}), f"{type(each).__name__}.{field.name}"


def test_dictionary_in_place_of_a_declaration_is_refused_by_name() -> None:
    seen = set()
    for well in WELL:
        for name in well.__struct_fields__:
            value = getattr(well, name)
            parts: list[Any] = [
                value,
                *(value.values() if isinstance(value, dict) else value if isinstance(value, list) else []),
            ]
            for part in parts:
                if isinstance(part, Declaration):
                    plain = {field: getattr(part, field) for field in part.__struct_fields__}
                    wrong = (
                        dict.fromkeys(value, plain)
                        if isinstance(value, dict)
                        else [plain]
                        if isinstance(value, list)
                        else plain
                    )
                    with pytest.raises(
                        DeclarationInvalid, match=r"is a dictionary: write [A-Z]\w+\(\.\.\.\)|missing required field"
                    ):
                        msgspec.structs.replace(well, **{name: wrong})
                    seen.add(f"{type(well).__name__}.{name}")
    assert {"Loop.release", "Loop.sampling", "Loop.slices", "Table.columns", "Scope.objectives"} <= seen


def test_text_in_place_of_an_estimator_takes_no_trial() -> None:
    assert not Candidate("a", "logistic").takes_trial


def test_each_wrong_field_is_named_at_once_with_its_range() -> None:
    with pytest.raises(DeclarationInvalid) as caught:
        Monitor(every="0d", psi=math.nan, minimum_rows=0)
    assert [tuple(p) for p in caught.value.problems] == [
        ("every", "'0d' is not at least 1m and at most 36500d"),
        ("psi", "nan is not above 0 and at most 1,000,000,000,000,000"),
        ("minimum_rows", "0 is not at least 1 and at most 1,000,000,000"),
    ]
    with pytest.raises(DeclarationInvalid, match="minimum_rows: expected `int`, got `str`"):
        Monitor(minimum_rows="many")  # type: ignore[arg-type]  # the point
    with pytest.raises(DeclarationInvalid, match=r"weights\.true: 0\.0 is not above 0"):
        Sampling(weights={"true": 0.0})


def regression(c: float, seed: int = 0) -> Any:
    return LogisticRegression(C=c, random_state=seed)


def test_partial_function_is_an_estimator_whose_arguments_are_in_the_declaration() -> None:
    one, same, other = (Candidate("c", functools.partial(regression, c)) for c in (1.0, 1.0, 2.0))
    assert not one.takes_trial
    assert one.estimator().C == 1.0
    assert declaration_digest(one) == declaration_digest(same) != declaration_digest(other)
    assert to_builtins(one)["estimator"].startswith("partial(def regression(")
    assert Candidate("c", functools.partial(LogisticRegression, C=0.1)).estimator().C == 0.1


def test_callable_object_is_an_estimator() -> None:
    class Makes:
        def __call__(self) -> Any:
            return LogisticRegression()

    assert "Makes" in to_builtins(Candidate("c", Makes()))["estimator"]
