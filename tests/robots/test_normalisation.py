import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visiongraft.robots.normalisation import POSE_NAMES, MinMax, statistics


def test_the_formula_is_the_papers():
    limits = MinMax(np.array([1.0, -2.0]), np.array([3.0, 2.0]))
    values = np.array([[1.0, -2.0], [3.0, 2.0], [2.0, 0.0]])
    expected = (values - [1, -2]) / (np.array([2.0, 4.0]) + 1e-5)
    np.testing.assert_allclose(limits.normalise(values), expected, rtol=1e-12)
    np.testing.assert_allclose(limits.denormalise(np.array([[0.5, 1.0]])), [[2.0, 2.0]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 10))
def test_denormalising_undoes_normalising(seed, scale):
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(50, 4)) * scale
    limits = statistics({"x": data})["x"]
    back = limits.denormalise(limits.normalise(data))
    assert np.abs(back - data).max() <= 1.01e-5  # the authors' epsilon, at the top of the range
    assert limits.normalise(data).min() == 0 and limits.normalise(data).max() < 1


def test_tensors_and_arrays_give_the_same_in_their_own_precision():
    limits = MinMax(np.zeros(3), np.array([1.0, 2.0, 4.0]))
    values = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    normalised = limits.normalise(values)
    as_tensor = limits.normalise(torch.from_numpy(values))
    assert normalised.dtype == np.float32 and as_tensor.dtype == torch.float32
    np.testing.assert_allclose(as_tensor.numpy(), normalised, rtol=1e-6)
    assert limits.denormalise(as_tensor.double()).dtype == torch.float64
    tensor = torch.zeros(3, requires_grad=True)
    limits.normalise(tensor).sum().backward()
    assert tensor.grad is not None


def test_a_floor_keeps_small_ranges_from_amplifying_noise():
    limits = MinMax(np.array([0.0, 5.0]), np.array([1e-4, 5.0]), range_floor=0.1)
    np.testing.assert_allclose(limits.normalise(np.array([1e-4, 5.0])), [1e-4 / 0.10001, 0])


def test_statistics_of_many_episodes_are_those_of_all_rows():
    rng = np.random.default_rng(1)
    episodes = [{"a": rng.normal(size=(n, 8, 3)), "b": rng.normal(size=(n, 2))} for n in (3, 7, 5)]
    found = statistics(iter(episodes))
    everything = np.concatenate([e["a"].reshape(-1, 3) for e in episodes])
    np.testing.assert_array_equal(found["a"].minimum, everything.min(0))
    np.testing.assert_array_equal(found["a"].maximum, everything.max(0))
    assert found["b"].minimum.shape == (2,)


def test_json_round_trip_is_exact():
    limits = MinMax(np.array([0.1, np.pi]), np.array([1 / 3, 4.0]), range_floor=0.1)
    back = MinMax.from_dict(json.loads(json.dumps(limits.to_dict())))
    assert np.array_equal(back.minimum, limits.minimum) and np.array_equal(back.maximum, limits.maximum) and back.range_floor == 0.1


def test_a_dimension_that_never_changes_is_named():
    data = np.random.default_rng(0).normal(size=(9, 10))
    data[:, 6] = 0.5
    with pytest.raises(ValueError, match=r"proprioception dimension 6 \(rotation row 2 x\) have zero range: the data never rotates; pass"):
        statistics({"proprioception": data}, names={"proprioception": POSE_NAMES})
    with pytest.raises(ValueError, match=r"statistics of dimension 0 have zero range.*pass range_floor or drop the dimension"):
        MinMax(np.zeros(1), np.zeros(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinMax(np.zeros(2), np.ones(3)), "same length"),
        (lambda: MinMax(np.ones(2), np.zeros(2)), "maximum below the minimum in dimension 0"),
        (lambda: MinMax(np.array([np.nan]), np.ones(1)), "not finite"),
        (lambda: MinMax(np.zeros(1), np.ones(1), -1.0), "range_floor must be 0 or more"),
        (lambda: MinMax.from_dict({"minimum": [0]}), "keys minimum, maximum and range_floor"),
        (lambda: MinMax(np.zeros(2), np.ones(2)).normalise(np.zeros((4, 3))), "2 dimensions do not fit values of shape"),
        (lambda: statistics([]), "no episodes"),
        (lambda: statistics({"x": np.array([[np.inf]])}), "x of episode 0 is empty or holds numbers that are not finite"),
        (lambda: statistics([{"x": np.eye(2)}, {"y": np.eye(2)}]), "Episode 1 has y; the first has x"),
        (lambda: statistics([{"x": np.eye(2)}, {"x": np.eye(3)}]), "x of episode 1 has 3 dimensions; the first episode's has 2"),
    ],
)
def test_bad_statistics_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_it_imports_without_heavy_packages():
    code = "import visiongraft.robots.normalisation, sys; print([m for m in ('torch', 'mujoco', 'h5py', 'gymnasium') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
