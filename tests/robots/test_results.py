import json
import math

import pytest

from visiongraft.robots.results import EpisodeResult, EvaluationResult, wilson_interval


def episode(label, index, success, reason="time out", steps=10):
    reason = "success" if success else reason
    return EpisodeResult(label=label, task=label, index=index, seed=index, success=success, steps=steps, reason=reason)


@pytest.fixture
def result():
    plate = [episode("plate", i, i < 3, steps=10 + i) for i in range(4)]
    return EvaluationResult((*plate, episode("stack", 0, False, "policy error"), episode("stack", 1, False)))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (30, 30), (1, 1), (123, 456)])
def test_interval_is_wilsons_closed_form(successes, trials):
    z = 1.959963984540054
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    assert wilson_interval(successes, trials) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_wider_confidence_is_a_wider_interval():
    (low, high), (wider_low, wider_high) = wilson_interval(5, 20, 0.9), wilson_interval(5, 20, 0.99)
    assert wider_low < low < 0.25 < high < wider_high


def test_rates_are_of_each_task_and_of_all(result):
    assert result.success() == 0.5
    assert {label: part.success() for label, part in result.by_task().items()} == {"plate": 0.75, "stack": 0}
    plate, stack, everything = result.table()
    assert (plate["successes"], plate["episodes"], plate["steps"]) == (3, 4, 11)
    assert (plate["low"], plate["high"]) == wilson_interval(3, 4)
    assert stack["steps"] is None and stack["failures"] == {"policy error": 1, "time out": 1}
    assert everything["label"] == "all" and everything["episodes"] == 6
    assert result.reasons() == {"success": 3, "time out": 2, "policy error": 1}


def test_result_survives_json(result):
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_text_tells_rate_interval_and_failures(result):
    plate, stack, _ = str(result).split("\n")
    assert "75.0%" in plate and "3/4" in plate and "11 steps" in plate and "(1 time out)" in plate
    assert "steps" not in stack and "1 policy error, 1 time out" in stack


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EvaluationResult(()).success(), "No episode has ended"),
        (lambda: wilson_interval(0, 0), "No episode has ended"),
        (lambda: wilson_interval(1, 2, 95.0), "confidence must lie in"),
        (lambda: EvaluationResult.from_dict({"runs": []}), "no record of an evaluation"),
        (lambda: EvaluationResult.from_dict({"episodes": [{"label": "x"}]}), "no record of an evaluation"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
