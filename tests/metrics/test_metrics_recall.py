import pytest
import torch

from visiongraft.metrics.recall import angular_error_deg, error_summary, recall_auc


def errors(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_area_worked_out_by_hand():
    # recall .5 up to 1 degree (two of four errors), .75 at 3, 1 at 7
    areas = recall_auc(errors(3.0, 0.2, 7.0, 0.9))
    at_5 = 0.5 * 1 + (0.5 + 0.75) / 2 * 2 + 0.75 * 2
    at_10 = 0.5 * 1 + (0.5 + 0.75) / 2 * 2 + (0.75 + 1) / 2 * 4 + 1 * 3
    assert areas.tolist() == pytest.approx([0.5, at_5 / 5, at_10 / 10])


def test_area_without_a_floor_starts_at_zero_recall():
    # straight from (0, 0) to (2, 1/2) to (4, 1), then flat
    assert recall_auc(errors(2.0, 4.0), (5.0,), min_error=0.0).tolist() == pytest.approx([(0.5 + 1.5 + 1) / 5])


def test_area_at_the_floor_is_the_recall_there():
    assert float(recall_auc(errors(0.1, 0.99, 1.0, 1.01, 30.0), (1.0,))) == pytest.approx(3 / 5)


def test_perfect_and_failed_estimates_are_the_limits():
    assert recall_auc(errors(0.0, 0.0)).tolist() == [1, 1, 1]
    assert recall_auc(errors(float("inf"), 50.0)).tolist() == [0, 0, 0]


def test_summary_has_mean_median_and_areas():
    summary = error_summary(errors(1.0, 2.0, 6.0, 3.0))
    assert summary["mean"] == 3 and summary["median"] == 2.5 and list(summary) == ["mean", "median", "auc@1", "auc@5", "auc@10"]
    assert summary["auc@1"] == 0.25


def test_angles_differ_the_short_way_round():
    assert angular_error_deg(errors(179.0, -10.0, 5.0), errors(-179.0, 20.0, 5.0)).tolist() == pytest.approx([2, 30, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recall_auc(errors(1.0, float("nan"))), "negative or NaN"),
        (lambda: recall_auc(errors(-1.0)), "negative or NaN"),
        (lambda: recall_auc(errors()), "at least one"),
        (lambda: recall_auc(errors(1.0), (0.5,)), r"at least min_error; got \(0\.5,\) and min_error=1"),
    ],
)
def test_unusable_errors_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
