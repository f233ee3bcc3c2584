import pytest
import torch

from visiongraft.flow.guidance import Guidance, condition_dropout, guide, guide_two, guided
from visiongraft.flow.sampling import sample
from visiongraft.flow.times import time_grid


def predictions(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, generator=g, dtype=torch.float64) for _ in range(3)]


class Network:
    """Four constant predictions, and a record of which were asked for."""

    def __init__(self):
        self.calls = []
        self.values = {(False, False): 1.0, (True, False): 3.0, (False, True): 100.0, (True, True): 10.0}

    def __call__(self, y, t, keep_condition, keep_text):
        self.calls.append((keep_condition, keep_text))
        return torch.full_like(y, self.values[keep_condition, keep_text])


def run(guidance, t=0.5, batch=2):
    network = Network()
    times = torch.full((batch,), t) if isinstance(t, float) else torch.tensor(t)
    return guided(network, guidance)(torch.zeros(batch, 3), times), network.calls


def test_scale_one_is_the_conditional_prediction_and_zero_the_null():
    null, both, _ = predictions()
    assert torch.equal(guide(both, null, 1.0), both) and torch.allclose(guide(both, null, 0.0), null)
    assert torch.allclose(guide(both, null, 4.0), null + 4 * (both - null))


def test_equal_predictions_are_not_changed():
    same, *_ = predictions()
    assert torch.equal(guide(same, same, 7.5), same) and torch.equal(guide_two(same, same, same, 3.0, 7.5), same)


def test_two_conditions_follow_the_formula_and_its_limits():
    neither, condition, both = predictions()
    expected = neither + 2.0 * (condition - neither) + 5.0 * (both - condition)
    assert torch.allclose(guide_two(neither, condition, both, 2.0, 5.0), expected)
    assert torch.equal(guide_two(neither, condition, both, 1.0, 1.0), both)
    assert torch.allclose(guide_two(neither, condition, both, 1.0, 5.0), guide(both, condition, 5.0))
    assert torch.allclose(guide_two(neither, condition, both, 4.0, 4.0), guide(both, neither, 4.0))


@pytest.mark.parametrize(
    ("guidance", "value", "calls"),
    [
        (Guidance(mode="none", scale=9.0), 10.0, [(True, True)]),
        (Guidance(mode="joint", scale=1.0), 10.0, [(True, True)]),
        (Guidance(mode="joint", scale=2.0), 1 + 2 * 9.0, [(True, True), (False, False)]),
        (Guidance(mode="text", scale=2.0), 3 + 2 * 7.0, [(True, True), (True, False)]),
        (Guidance(mode="two", scale=2.0, condition_scale=3.0), 1 + 3 * 2.0 + 2 * 7.0, [(True, True), (True, False), (False, False)]),
        (Guidance(mode="two", scale=2.0, condition_scale=1.0), 3 + 2 * 7.0, [(True, True), (True, False)]),
        (Guidance(mode="two", scale=1.0, condition_scale=1.0), 10.0, [(True, True)]),
    ],
)
def test_modes_ask_for_the_passes_they_need(guidance, value, calls):
    result, asked = run(guidance)
    assert torch.allclose(result, torch.full_like(result, value)) and asked == calls


def test_guidance_acts_within_its_interval_only():
    guidance = Guidance(mode="joint", scale=2.0, interval=(0.2, 0.8))
    assert run(guidance, 0.9)[1] == [(True, True)] and float(run(guidance, 0.1)[0][0, 0]) == 10
    assert float(run(guidance, 0.5)[0][0, 0]) == 19
    mixed, _ = run(guidance, [0.1, 0.5])
    assert mixed[:, 0].tolist() == [10, 19]


def test_a_guided_field_is_sampled_like_any_other():
    network = Network()
    field = guided(network, Guidance(mode="joint", scale=2.0, interval=(0.5, 1.0)))
    result = sample(field, torch.zeros(1, 1), time_grid(4))
    # steps from t = 1, .75, .5 with guidance (19), the last one without (10)
    assert float(result) == pytest.approx(-0.25 * (3 * 19 + 10))


def test_dropout_has_its_shares_and_its_events_exclude_one_another():
    count = 100_000
    keep_condition, keep_text = condition_dropout(count, torch.Generator().manual_seed(0))
    for expected, event in (
        (0.10, ~keep_condition & ~keep_text),
        (0.05, keep_condition & ~keep_text),
        (0.05, ~keep_condition & keep_text),
        (0.80, keep_condition & keep_text),
    ):
        assert float(event.float().mean()) == pytest.approx(expected, abs=5 * (expected * (1 - expected) / count) ** 0.5)
    again = condition_dropout(count, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], keep_condition) and torch.equal(again[1], keep_text)


def test_dropout_may_be_all_or_nothing():
    g = torch.Generator().manual_seed(0)
    assert all(bool(keep.all()) for keep in condition_dropout(50, g, both=0.0, text=0.0, condition=0.0))
    assert not any(bool(keep.any()) for keep in condition_dropout(50, g, both=1.0, text=0.0, condition=0.0))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"sum to at most 1; got both=0\.9, text=0\.2, condition=0"):
        condition_dropout(4, torch.Generator(), both=0.9, text=0.2, condition=0.0)
    with pytest.raises(ValueError, match=r"within \[0, 1\]; got \(0.8, 0.2\)"):
        Guidance(interval=(0.8, 0.2))
