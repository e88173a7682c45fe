"""The names on the wire and on disk are those of docs/reference/compatibility.md: a program or a home of an older version finds them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "docs" / "compatibility.py"


@pytest.fixture(scope="module")
def compatibility() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_compatibility", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_frozen_name_is_gone_and_every_name_is_frozen(compatibility: ModuleType) -> None:
    frozen, now = (
        compatibility.read(compatibility.PAGE.read_text()),
        compatibility.read(compatibility.written(compatibility.names())),
    )
    assert sorted(frozen - now) == [], (
        "a rename breaks other programs and older homes: see the first lines of docs/reference/compatibility.md"
    )
    assert sorted(now - frozen) == [], "a new name is frozen from now on: python docs/generate.py"


@pytest.mark.parametrize(
    "name",
    [
        "HTTP: paths / data plane / POST /loops/{loop}/predict (predict)",
        "HTTP: predictions and outcomes / Answer / score: float",
        "Error codes / 422 / request_invalid",
        "Metrics / loopwright_predictions (counter) / arm",
        "Metrics / loopwright_drift_state (gauge) / state",
        "Exit codes / WRONG_USE / 2",
        "Settings / LOOPWRIGHT_HOME",
        "Ledger: tables / entry / chain: VARCHAR(64)",
        "Ledger: kinds / release / generation: int",
        "Lake: columns / predictions / _latency_us: double",
        "Packages / Manifest / threshold: float",
        "Packages / format 1 / manifest.json",
        "Prediction log / Prediction / latency_us: float",
    ],
)
def test_page_freezes_names_of_every_kind(compatibility: ModuleType, name: str) -> None:
    assert name in compatibility.read(compatibility.PAGE.read_text())


def test_name_that_goes_is_refused_and_not_dropped_from_the_page(
    compatibility: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "compatibility.md"
    page.write_text(compatibility.PAGE.read_text().replace("`LOOPWRIGHT_HOME`", "`LOOPWRIGHT_HOUSE`"))
    monkeypatch.setattr(compatibility, "PAGE", page)
    assert compatibility.gone() == ["Settings / LOOPWRIGHT_HOUSE"]
