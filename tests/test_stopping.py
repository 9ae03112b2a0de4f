"""What the results say about the target is computed, and right."""
import math

import pytest

from benchmark_utils.analysis.outcome import first_crossing
from benchmark_utils.harness.stopping import complete_curve


def curve(losses, target=3.0):
    """Evaluations every 10 steps of 100 tokens and 2 seconds."""
    return [
        {
            "objective_value": loss, "objective_target": target,
            "objective_step": 10 * i, "objective_tokens": 1000 * i,
            "time": 2.0 * i,
        }
        for i, loss in enumerate(losses)
    ]


def test_crossing_is_interpolated_between_evaluations():
    rows = curve([5.0, 4.0, 3.2, 2.4])
    complete_curve(rows, "target")
    for row in rows:
        assert row["objective_steps_to_target"] == pytest.approx(22.5)
        assert row["objective_tokens_to_target"] == pytest.approx(2250)
        assert row["objective_seconds_to_target"] == pytest.approx(4.5)
        assert row["objective_stop_reason"] == "target"


def test_a_run_that_never_crosses_is_censored_and_not_missing():
    rows = curve([5.0, 4.0, 3.0])
    complete_curve(rows, "horizon")
    assert rows[0]["objective_steps_to_target"] == math.inf
    assert rows[-1]["objective_seconds_to_target"] == math.inf


@pytest.mark.parametrize("losses, expected", [
    ([2.0], (0, 1.0)),
    ([4.0, 2.0], (1, 0.5)),
    ([math.inf, 2.0], (1, 1.0)),
    ([4.0, 3.0], None),
    # The first crossing counts, whatever comes after.
    ([4.0, 2.0, 5.0, 1.0], (1, 0.5)),
])
def test_first_crossing(losses, expected):
    assert first_crossing(losses, 3.0) == expected
