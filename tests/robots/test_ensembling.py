import math

import numpy as np
import pytest

from visiongraft.robots.actions import pose_of_absolute
from visiongraft.robots.ensembling import ChunkQueue, TemporalEnsemble
from visiongraft.robots.normalisation import MinMax


def table_reference(chunks, decay):
    """The paper's full table A[t_pred, t_exec], in float64."""
    actions = []
    for t in range(len(chunks)):
        covering = [chunks[s][t - s] for s in range(t + 1) if t - s < len(chunks[s])]
        weights = np.exp(-decay * np.arange(len(covering)))
        actions.append(np.sum(weights[:, None] * covering, axis=0) / weights.sum())
    return np.array(actions)


@pytest.mark.parametrize("length", [1, 3, 7])
@pytest.mark.parametrize("decay", [0.0, 0.005, 0.7])
def test_ensemble_is_the_weighted_mean_of_the_full_table(length, decay):
    chunks = np.random.default_rng(0).normal(size=(25, length, 10))
    ensemble = TemporalEnsemble(decay)
    np.testing.assert_allclose([ensemble.step(chunk) for chunk in chunks], table_reference(chunks, decay), rtol=1e-12)


def test_oldest_prediction_weighs_most():
    ensemble = TemporalEnsemble(decay=math.log(3))
    ensemble.step(np.array([[9.0], [1.0]]))
    assert ensemble.step(np.array([[0.0], [9.0]]))[0] == pytest.approx(0.75)  # weights 1 and 1/3


def test_zero_is_a_prediction_like_any_other():
    ensemble = TemporalEnsemble(0.0)
    ensemble.step(np.array([[5.0], [0.0]]))
    assert ensemble.step(np.array([[1.0], [5.0]]))[0] == pytest.approx(0.5)


def test_averaging_before_and_after_denormalisation_is_the_same_action():
    rng = np.random.default_rng(1)
    statistics = MinMax(rng.uniform(-2, 0, 10), rng.uniform(0.1, 3, 10), range_floor=0.5)
    normalised = rng.uniform(0, 1, (15, 5, 10))
    inside, outside = TemporalEnsemble(0.1), TemporalEnsemble(0.1)
    for chunk in normalised:
        before = statistics.denormalise(inside.step(chunk))
        after = outside.step(statistics.denormalise(chunk))
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-14)
        np.testing.assert_allclose(pose_of_absolute(after), pose_of_absolute(before), atol=1e-12)


def test_orthonormalising_first_would_be_another_action():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(2, 1, 10))
    mean_first = pose_of_absolute(rows.mean(0)[0])[:3, :3]
    mean_last = np.mean(pose_of_absolute(rows[:, 0]), axis=0)[:3, :3]
    assert np.abs(mean_first - mean_last).max() > 0.05


def test_reset_forgets_the_episode_and_allows_another_length():
    ensemble = TemporalEnsemble()
    ensemble.step(np.full((4, 2), 7.0))
    ensemble.reset()
    np.testing.assert_array_equal(ensemble.step(np.ones((3, 2))), [1, 1])


def test_memory_is_bounded_over_an_endless_episode():
    ensemble = TemporalEnsemble()
    chunk = np.random.default_rng(0).normal(size=(6, 10))
    for _ in range(5000):
        ensemble.step(chunk)
    assert sum(np.asarray(value).nbytes for value in vars(ensemble).values()) < 6 * 6 * 10 * 8 + 100


def test_ensemble_keeps_its_own_copy_of_a_chunk():
    ensemble, chunk = TemporalEnsemble(), np.ones((2, 1))
    ensemble.step(chunk)
    chunk[:] = 100
    assert ensemble.step(np.ones((2, 1)))[0] == pytest.approx(1.0)


def test_queue_runs_the_first_actions_of_every_chunk():
    queue, actions, asked = ChunkQueue(3), [], 0
    for t in range(9):
        chunk = None
        if queue.needs_chunk:
            asked += 1
            chunk = np.arange(t, t + 5.0)[:, None]
        actions.append(queue.step(chunk)[0])
    assert actions == list(range(9))
    assert asked == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TemporalEnsemble(-0.1), "decay of the temporal ensemble must be a number of at least 0; got -0.1"),
        (lambda: TemporalEnsemble(math.nan), "got nan"),
        (lambda: ChunkQueue(0), "execute must be at least 1 action"),
        (lambda: ChunkQueue(4).step(np.ones((3, 2))), "predicts 3 actions at a time, and 4 of them were to be run; lower execute"),
        (lambda: ChunkQueue(4).step(), "the queue is empty"),
        (lambda: TemporalEnsemble().step(np.ones((0, 3))), "at least one step"),
        (lambda: TemporalEnsemble().step(None), "takes a chunk at every step"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_chunk_that_changes_shape_within_an_episode_is_refused():
    ensemble = TemporalEnsemble()
    ensemble.step(np.ones((4, 10)))
    with pytest.raises(ValueError, match=r"one shape; got \(5, 10\) after \(4, 10\)"):
        ensemble.step(np.ones((5, 10)))


def test_chunk_that_is_not_needed_is_refused():
    queue = ChunkQueue(2)
    queue.step(np.ones((2, 1)))
    with pytest.raises(ValueError, match="the queue has one"):
        queue.step(np.ones((2, 1)))
