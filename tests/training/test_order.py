import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Points
from torch.utils.data import DataLoader, Dataset

from visiongraft.training.order import SeededItems, Share, StepBatches, derived_seed


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 40),
    share=st.integers(1, 5),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 3),
    start=st.integers(0, 7),
    seed=st.integers(0, 2**31),
)
def test_every_division_of_a_step_sees_the_samples_of_the_whole(length, share, accumulate, processes, start, seed):
    common = {"length": length, "batch_size": share * accumulate * processes, "seed": seed, "steps": 8}
    whole = [batch.indices for batch in StepBatches(**common)]

    parts = [list(StepBatches(**common, start=start, accumulate=accumulate, rank=r, processes=processes)) for r in range(processes)]

    for i, step in enumerate(range(start, 8)):
        micro_batches = range(i * accumulate, (i + 1) * accumulate)
        assert [index for m in micro_batches for part in parts for index in part[m].indices] == whole[step]
    assert all(len(part) == (8 - start) * accumulate for part in parts)


def test_each_epoch_holds_every_sample_once_in_its_own_order():
    drawn = [index for batch in StepBatches(length=10, batch_size=4, seed=0, steps=5) for index in batch.indices]

    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_derived_seeds_are_those_written_down():
    assert derived_seed(0, "epoch", 0) == 3436799098431864646  # sha256sum of 0/epoch/0, first 63 bits
    assert len({derived_seed(0, "step", step, rank) for step in range(100) for rank in range(4)}) == 400


def test_augmentation_depends_on_the_position_in_the_run_alone():
    torch.manual_seed(0)
    items = SeededItems(Points(jitter=1.0), seed=3)
    together = items.__getitems__(Share(16, [5, 5, 2]))
    torch.manual_seed(1)
    alone = [items.__getitems__(Share(16 + i, [index]))[0] for i, index in enumerate([5, 5, 2])]

    assert all(torch.equal(one[0], other[0]) for one, other in zip(together, alone, strict=True))
    assert not torch.equal(together[0][0], together[1][0])


def test_items_leave_global_randomness_alone():
    before = torch.get_rng_state()
    order = StepBatches(length=41, batch_size=8, seed=0, steps=2)
    list(DataLoader(SeededItems(Points(jitter=1.0), 0), batch_sampler=order, generator=torch.Generator()))

    assert torch.equal(torch.get_rng_state(), before)


def test_data_set_that_reads_whole_batches_is_asked_for_them():
    class Batched(Dataset):
        def __getitems__(self, indices):
            return [(index, torch.rand(())) for index in indices]

    one, other = (SeededItems(Batched(), 0).__getitems__(Share(8, [4, 1])) for _ in range(2))

    assert one == other
    assert [index for index, _ in one] == [4, 1]


def test_batch_size_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size 9 .* must be divisible by accumulate x processes = 2 x 2"):
        StepBatches(length=5, batch_size=9, seed=0, steps=1, accumulate=2, processes=2)


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="data set is empty; training needs at least one sample"):
        StepBatches(length=0, batch_size=2, seed=0, steps=1)
