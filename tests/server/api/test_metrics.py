from pathlib import Path

import pytest

from loopwright.records.prediction import Prediction
from loopwright.records.releases import Arm
from loopwright.server.api.metrics import MAX_LOOPS, OTHERS, Metrics
from loopwright.stores.upkeep_state import LoopState, UpkeepState, write_upkeep_state


def prediction(*flags: str) -> Prediction:
    return Prediction(
        id="", at=0, package="p", arm="champion", probability=1.0, request={}, context={}, context_age_s=None, score=0.5,
        label=True, flags=list(flags), latency_us=1.0, unit="",
    )  # fmt: skip


def test_of_many_loops_the_first_have_names_and_the_others_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics()
    for i in range(MAX_LOOPS + 50):
        metrics.swapped(f"l{i}", [Arm(package=f"{i:064d}")])
        metrics.ran(f"l{i}", [prediction("degraded")])
        metrics.answered(f"l{i}", 0.003)
        metrics.failed(f"l{i}", "request_invalid")
    metrics.failed("", "request_invalid")
    text = metrics.text().decode()
    named = f"l{MAX_LOOPS - 1}"
    for line in (
        f'loopwright_predictions_total{{arm="champion",loop="{named}"}} 1.0',
        f'loopwright_predictions_total{{arm="champion",loop="{OTHERS}"}} 50.0',
        f'loopwright_degraded_total{{arm="champion",loop="{OTHERS}"}} 50.0',
        f'loopwright_request_seconds_count{{loop="{OTHERS}"}} 50.0',
        f'loopwright_request_errors_total{{code="request_invalid",loop="{OTHERS}"}} 50.0',
        'loopwright_request_errors_total{code="request_invalid",loop=""} 1.0',
        f'loopwright_swaps_total{{loop="{OTHERS}"}} 50.0',
    ):
        assert line in text, line
    assert f'loop="l{MAX_LOOPS}"' not in text


def test_counts_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics()
    metrics.ran("a", [prediction(), prediction("degraded", "out_of_range:x", "out_of_range:y")])
    metrics.answered("a", 0.003)
    metrics.accepted("a", 3)
    metrics.failed("a", "request_invalid")
    metrics.unlogged("a", 2)
    metrics.refused("a", "damaged")
    metrics.swapped("a", [Arm(package="1" * 64)])
    metrics.swapped("a", [Arm(package="1" * 64)])
    metrics.swapped("a", [Arm(package="2" * 64)])
    text = metrics.text().decode()
    for line in (
        'loopwright_predictions_total{arm="champion",loop="a"} 2.0',
        'loopwright_degraded_total{arm="champion",loop="a"} 1.0',
        'loopwright_runs_total{loop="a"} 1.0',
        'loopwright_flags_total{arm="champion",flag="out_of_range",loop="a"} 2.0',
        'loopwright_request_seconds_bucket{le="0.005",loop="a"} 1.0',
        'loopwright_outcomes_total{loop="a"} 3.0',
        'loopwright_request_errors_total{code="request_invalid",loop="a"} 1.0',
        'loopwright_unlogged_total{loop="a"} 2.0',
        'loopwright_packages_refused_total{loop="a"} 1.0',
        'loopwright_swaps_total{loop="a"} 2.0',
        'loopwright_serving_info{arm="champion",loop="a",package="222222222222"} 1.0',
    ):
        assert line in text, line


def test_series_exist_before_the_first_event_and_only_the_current_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics()
    metrics.swapped("a", [Arm(package="1" * 64)])
    text = metrics.text().decode()
    for line in (
        'loopwright_predictions_total{arm="champion",loop="a"} 0.0',
        'loopwright_degraded_total{arm="champion",loop="a"} 0.0',
        'loopwright_unlogged_total{loop="a"} 0.0',
        'loopwright_request_errors_total{code="request_invalid",loop="a"} 0.0',
        'loopwright_request_errors_total{code="unauthorized",loop=""} 0.0',
        'loopwright_request_seconds_count{loop="a"} 0.0',
        'loopwright_traced_requests_total{result="lost"} 0.0',
    ):
        assert line in text, line
    metrics.swapped("a", [Arm(package="2" * 64)])
    metrics.swapped("a", [Arm(package="1" * 64)])
    serving = [line for line in metrics.text().decode().splitlines() if line.startswith("loopwright_serving_info{")]
    assert serving == ['loopwright_serving_info{arm="champion",loop="a",package="111111111111"} 1.0']


def test_upkeep_drift_and_alerts_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics = Metrics(upkeep=tmp_path)
    assert "loopwright_upkeep_last_round_timestamp_seconds 0.0" in metrics.text().decode()
    state = LoopState(
        windows=4, window_end=60.0, state="drift", drifted=2, quality="decayed", alerts={"critical": 1, "warning": 2}, failed=1
    )
    write_upkeep_state(tmp_path, UpkeepState(at=100.0, loops={"a": state}, alerts={"critical": 3}, failed=0))
    text = metrics.text().decode()
    for line in (
        "loopwright_upkeep_last_round_timestamp_seconds 100.0",
        'loopwright_upkeep_failed_steps{loop="a"} 1.0',
        'loopwright_windows_closed_total{loop="a"} 4.0',
        'loopwright_window_end_timestamp_seconds{loop="a"} 60.0',
        'loopwright_drifted_columns{loop="a"} 2.0',
        'loopwright_drift_state{loop="a",state="drift"} 1.0',
        'loopwright_drift_state{loop="a",state="ok"} 0.0',
        'loopwright_quality_state{loop="a",state="decayed"} 1.0',
        'loopwright_alerts_open{loop="a",severity="critical"} 1.0',
        'loopwright_alerts_open{loop="a",severity="info"} 0.0',
        'loopwright_alerts_open{loop="",severity="critical"} 3.0',
    ):
        assert line in text, line
    (tmp_path / "upkeep.json").write_text("{")
    assert "loopwright_upkeep_last_round_timestamp_seconds 0.0" in metrics.text().decode()
