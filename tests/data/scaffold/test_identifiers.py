"""Numbers that name something are told from those that count or measure."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn import datasets

from loopwright.data.scaffold.identifiers import identifies

N = 4000


def accounts() -> dict[str, Any]:
    """Rows [N] of 200 accounts, each with its branch, its postcode and the town of that."""
    rng = np.random.default_rng(3)
    account = rng.integers(0, 200, N)
    numbers, postcodes = rng.integers(10**7, 10**8, 200), rng.integers(10_000, 99_999, 300)[rng.integers(0, 300, 200)]
    towns = {code: f"town {rng.integers(30)}" for code in np.unique(postcodes)}
    return {
        "account": numbers[account],
        "postcode": postcodes[account],
        "town": np.array([towns[code] for code in postcodes[account]]),
        "branch": rng.choice(list("xyz"), 200)[account],
    }


@pytest.mark.parametrize(
    "name",
    ["customer_no", "customerId", "CustomerNumber", "client_key", "account", "accountNumber", "zip", "zip_code", "plz", "patient", "sku", "orderno"],
)  # fmt: skip
def test_whole_numbers_called_like_names_are_identifiers(name: str) -> None:
    numbers = np.random.default_rng(0).integers(1, 200, N)
    assert "called like names" in identifies(name, pa.table({name: numbers}))
    gaps = pa.array(numbers.astype(np.float64), mask=numbers < 20)
    assert "called like names" in identifies(name, pa.table({name: gaps})), "numbers of a data frame with gaps are floats"


@pytest.mark.parametrize("column", ["account", "postcode"])
def test_numbers_of_any_name_that_fix_another_column_are_identifiers(column: str) -> None:
    rows = accounts()
    frame = pa.table({"reference": rows[column], "amount": np.random.default_rng(1).gamma(2, 30, N), "town": rows["town"]})
    assert "each always with the same town" in identifies("reference", frame)
    alone = frame.set_column(2, "town", pa.array(np.random.default_rng(2).permutation(rows["town"])))
    assert identifies("reference", alone) == "", "evenly spread numbers alone may be a measurement"


def honest() -> dict[str, Any]:
    """Counts, amounts, ages, years, readings [N], and columns that are made of them or come with them."""
    rng = np.random.default_rng(5)
    product, salary = rng.integers(0, 150, N), rng.integers(20_000, 99_999, N)
    day = rng.integers(1, 367, N)
    return {
        "count": rng.poisson(90, N),
        "number_of_items": rng.poisson(60, N),
        "no_of_visits": rng.poisson(70, N),
        "amount": np.round(rng.gamma(2, 3000, N)).astype(np.int64),
        "price_cents": np.round(np.exp(rng.normal(9, 1, 150))).astype(np.int64)[product],
        "category": rng.choice(list("abcdef"), 150)[product],
        "salary": salary,
        "salary_band": np.digitize(salary, [40_000, 60_000, 80_000]).astype(str),
        "salary_thousands": salary // 1000,
        "income": np.round(rng.lognormal(10, 0.6, N), -2),
        "age": rng.integers(18, 95, N),
        "birth_year": rng.integers(1920, 2010, N),
        "week_no": rng.integers(1, 54, N),
        "day_number": day,
        "weekday": (day % 7).astype(str),
        "heat_index": rng.integers(40, 140, N),
        "pressure_pa": rng.normal(101_325, 300, N).astype(np.int64),
        "altitude": rng.integers(0, 30_000, N),
        "steps": rng.integers(0, 40_000, N),
        "store_id": rng.integers(0, 12, N),
        "temperature": np.round(rng.normal(15, 8, N), 1),
    }


def test_honest_numbers_are_no_identifiers() -> None:
    frame = pa.table(honest())
    assert {n: why for n in frame.column_names if (why := identifies(n, frame))} == {}


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "iris", "diabetes", "digits", "linnerud"])
def test_columns_of_public_data_are_no_identifiers(name: str) -> None:
    found = getattr(datasets, f"load_{name}")(as_frame=True).frame
    frame = pa.Table.from_pandas(found, preserve_index=False).rename_columns([str(c).replace(" ", "_") for c in found.columns])
    assert [n for n in frame.column_names if identifies(n, frame)] == []
    whole = pa.table({n: np.round(frame[n].to_numpy() * 1000).astype(np.int64) for n in frame.column_names})
    assert [n for n in whole.column_names if identifies(n, whole)] == [], "written as thousandths"
