from loopwright import Aggregate, Column, Context, Outcome, Table
from loopwright.data.examples.lineage import column_origins, label_origins

FLIGHTS = Table(
    "flights", {"id": Column("integer"), "at": Column("timestamp"), "origin": Column("string"), "dest": Column("string")},
    key=["id"], event_time="at",
)  # fmt: skip
WEATHER = Table(
    "weather",
    {
        "site": Column("string"),
        "seen_at": Column("timestamp"),
        "told_at": Column("timestamp"),
        "wind": Column("float", nullable=True),
        "gust": Column("float", nullable=True),
    },
    key=["site"],
    event_time="seen_at",
    known_time="told_at",
)
LANDED = Table(
    "landed", {"id": Column("integer"), "landed_at": Column("timestamp"), "Delay": Column("float"), "dest": Column("string")},
    key=["id"], event_time="landed_at",
)  # fmt: skip


def test_a_table_joined_twice_is_told_apart_and_renamed_columns_lead_to_their_own() -> None:
    found = column_origins(
        FLIGHTS,
        [
            Context(WEATHER, by={"site": "origin"}, columns={"wind_origin": "wind"}),
            Context(WEATHER, by={"site": "dest"}, columns={"wind_dest": "wind", "gust_dest": "gust"}),
        ],
        [],
    )
    assert list(found) == ["id", "at", "origin", "dest", "wind_origin", "wind_dest", "gust_dest"]
    assert (found["origin"].of, found["origin"].by) == (["flights.origin"], [])
    assert found["wind_origin"].of == found["wind_dest"].of == ["weather.wind"]
    assert found["gust_dest"].of == ["weather.gust"]
    times = ["weather.seen_at", "weather.told_at"]
    assert found["wind_origin"].by == ["weather.site", *times, "flights.origin", "flights.at"]
    assert found["wind_dest"].by == ["weather.site", *times, "flights.dest", "flights.at"]


def test_an_aggregate_is_of_what_its_expression_names_and_found_by_keys_and_times() -> None:
    late = Aggregate(name="late", table=LANDED, by={"dest": "dest"}, function="share", of="delay > 15", window="1d")
    many = Aggregate(name="many", table=LANDED, by={"dest": "dest"}, function="count", window="1d")
    found = column_origins(FLIGHTS, [], [late, many])
    assert found["late"].of == ["landed.Delay"], "names in SQL have no case"
    assert found["many"].of == []
    assert (
        found["late"].by == found["many"].by == ["landed.dest", "landed.id", "landed.landed_at", "flights.dest", "flights.at"]
    )


def test_labels_one_by_one() -> None:
    several = Outcome(LANDED, {"late": "delay", "far": "delay + length(dest)"}, task="regression")
    found = label_origins(FLIGHTS, several)
    assert {name: origin.of for name, origin in found.items()} == {
        "late": ["landed.Delay"],
        "far": ["landed.Delay", "landed.dest"],
    }
    assert found["late"].by == ["landed.id", "landed.landed_at", "flights.id", "flights.at"]
    assert label_origins(FLIGHTS, Outcome(LANDED, "Delay > 15"))["label"].of == ["landed.Delay"]
