import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.windows import plan_windows, target_times


def span(start: int, stop: int) -> list[int]:
    step = 1 if stop > start else -1
    return list(range(start, stop + step, step))


def test_windows_of_the_brief():
    assert plan_windows(0, 31) == [span(0, 15), span(15, 30)]
    assert plan_windows(0, 61) == [span(0, 15), span(15, 30), span(30, 45), span(45, 60)]
    assert plan_windows(0, 40) == [span(0, 15), span(15, 30), span(24, 39)]


def test_a_clip_that_fits_is_one_window_that_begins_with_the_anchor():
    assert plan_windows(5, 16) == [[5, *span(0, 4), *span(6, 15)]]
    assert plan_windows(1, 2) == [[1, 0]]
    assert plan_windows(14, 15) == [[14, *span(0, 13)]]


def test_last_anchor_runs_backwards():
    """Upstream stops here: the source of the second window, frame 15, is the frame that it dropped."""
    assert plan_windows(30, 31) == [span(30, 15), span(15, 0)]
    first = plan_windows(30, 31)[0]
    assert 15.0 in target_times([float(k) for k in first])


def test_anchor_in_the_middle_goes_to_the_longer_side_first():
    assert plan_windows(14, 20) == [span(14, 0), span(4, 19)]  # a window of 15, which upstream's assertion refuses
    assert plan_windows(5, 20) == [span(5, 19), span(15, 0)]
    assert plan_windows(20, 31) == [span(20, 5), span(15, 0), span(15, 30)]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_every_window_begins_with_a_known_frame_and_brings_new_ones(data):
    total = data.draw(st.integers(2, 80))
    anchor = data.draw(st.integers(0, total - 1))
    size = data.draw(st.integers(2, 20))
    slide = data.draw(st.integers(1, size - 1))
    known = {anchor}
    for window in plan_windows(anchor, total, size, slide):
        assert window[0] in known
        assert not known.issuperset(window)
        assert 2 <= len(window) <= size
        assert min(window) >= 0 and max(window) < total
        assert sorted(window) == span(min(window), max(window))
        known.update([window[0], *(int(time) for time in target_times([float(k) for k in window]))])
    assert known == set(range(total))


def test_targets_are_all_times_but_the_source():
    assert target_times([0.0, 1.0, 2.0]) == [1.0, 2.0]
    assert target_times([2.0, 0.0, 1.0, 3.0]) == [0.0, 1.0, 3.0]  # upstream: 1, 2, 3
    assert target_times([3.0, 2.0, 1.0]) == [1.0, 2.0]


def test_super_resolution_halves_the_spacing_at_each_level():
    assert target_times([0.0, 1.0, 2.0], 2) == [0.5, 1.0, 1.5, 2.0]
    assert target_times([5.0, 4.0, 6.0], 3) == [4.0, 4.25, 4.5, 4.75, 5.25, 5.5, 5.75, 6.0]


def test_bad_windows_are_refused():
    with pytest.raises(ValueError, match="need at least 2 frames, got 1"):
        plan_windows(0, 1)
    with pytest.raises(IndexError, match="0 to 4; got 5"):
        plan_windows(5, 5)
    with pytest.raises(IndexError, match="got -1"):
        plan_windows(-1, 5)
    for slide in (0, 16):
        with pytest.raises(ValueError, match=f"less than the window of 16 frames; got {slide}"):
            plan_windows(0, 20, 16, slide)
    with pytest.raises(ValueError, match="stage II needs at least two distinct timesteps"):
        target_times([3.0, 3.0])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        target_times([0.0, 1.0], 0)


def test_bank_adds_and_never_overwrites():
    bank = TimeBank({3: torch.ones(2)})
    bank.add(3.0, torch.zeros(2))
    bank.add(1 / 3, torch.full((2,), 5.0))
    assert torch.equal(bank[3], torch.ones(2))
    assert 2 / 6 in bank and 3 in bank and 1 not in bank and len(bank) == 2
    assert bank.times == pytest.approx([1 / 3, 3], abs=1e-6)
    assert torch.equal(bank.stack(), torch.tensor([[5.0, 5], [1, 1]]))
    assert torch.equal(bank.stack([3, 1 / 3], dim=1), torch.tensor([[1.0, 5], [1, 5]]))


def test_copy_of_a_bank_is_independent():
    bank = TimeBank({0: torch.ones(1)})
    bank.copy().add(1, torch.ones(1))
    assert bank.times == [0]


def test_bank_refuses_other_shapes_and_unknown_times():
    bank = TimeBank({0: torch.ones(4, 2)})
    with pytest.raises(ValueError, match=r"equal numbers of tokens\); there is \(4, 2\), and time 1.5 has \(5, 2\)"):
        bank.add(1.5, torch.ones(5, 2))
    with pytest.raises(KeyError, match="Nothing is known at time 2; there are 0"):
        bank[2]
