import numpy as np
import pytest
import torch

from visiongraft.methods.action_mesh.guidance import PairGuidance, guided_velocity, join_branches
from visiongraft.methods.action_mesh.sampler import Cancelled, frame_noise, sample_window, stage_one_sigmas

ONE = PairGuidance(((1, 1),), ())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toward(target: torch.Tensor):
    """The exact velocity of a distribution that is one point: (x0 - x) / sigma."""

    def denoise(latents, context, framestep, timestep, mask):
        return (target - latents) / (timestep / 1000)[:, None, None, None]

    return denoise


@pytest.mark.parametrize(
    ("steps", "shift", "times"),
    [
        (5, 3.0, [1000, 923.3425, 818.9233, 668.3267, 432.2251, 8.92857]),
        (5, 1.0, [1000, 800.2, 600.4, 400.6, 200.8, 1]),
    ],
)
def test_schedule_has_the_check_values_of_the_brief(steps, shift, times):
    assert (1000 * stage_one_sigmas(steps, shift)).tolist() == pytest.approx(times, abs=6e-5)


def test_schedule_of_the_released_setting():
    times = (1000 * stage_one_sigmas(30, 3.0)).tolist()
    assert len(times) == 31
    assert times[:3] == pytest.approx([1000, 988.6711, 976.8170], abs=1.5e-4)
    assert times[-2:] == pytest.approx([101.3400, 8.92857], abs=5e-5)


def test_schedule_against_float64_and_its_bad_input():
    lowest = 3e-3 / (1 + 2e-3)
    tau = np.linspace(1, lowest, 13)
    assert np.allclose(stage_one_sigmas(12, 3.0).double().numpy(), 3 * tau / (1 + 2 * tau), rtol=1e-7)
    assert bool((stage_one_sigmas(40, 5.0).diff() < 0).all())
    with pytest.raises(ValueError, match="at least 1 step and a positive shift; got 0 steps"):
        stage_one_sigmas(0)
    with pytest.raises(ValueError, match="positive shift"):
        stage_one_sigmas(3, 0)


def test_sampler_follows_the_straight_path_to_the_last_level():
    """With the exact velocity of one point every step is exact: (1 - sigma_n) x0 + sigma_n noise."""
    noise, target = torch.randn(2, 2, 3, 4, 5, generator=seeded())
    context, framestep = torch.zeros(2, 3, 1, 1), torch.arange(3.0).repeat(2, 1)
    got = sample_window(toward(target), noise, context, framestep, num_steps=7, guidance=ONE)
    last = float(stage_one_sigmas(7)[-1])
    assert torch.allclose(got, (1 - last) * target + last * noise, atol=2e-5)


def test_known_frames_come_back_bit_for_bit_and_nothing_is_written_to():
    noise, target, known = torch.randn(3, 1, 4, 3, 2, generator=seeded())
    context, framestep = torch.randn(1, 4, 2, 2, generator=seeded(1)), torch.tensor([[2.0, 0.0, 1.0, 3.0]])
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    given = [noise, target, known, context, framestep, mask]
    before = [value.clone() for value in given]
    seen = []

    def denoise(latents, context, framestep, timestep, mask):
        seen.append((latents.clone(), mask.clone(), framestep.clone()))
        return (target - latents) / (timestep / 1000)[:, None, None, None]

    got = sample_window(denoise, noise, context, framestep, known=known, mask=mask, num_steps=3, guidance=ONE)
    assert torch.equal(got[:, [0, 3]], known[:, [0, 3]])
    assert not torch.equal(got[:, 1:3], known[:, 1:3])
    assert all(torch.equal(latents[:, [0, 3]], known[:, [0, 3]]) for latents, _, _ in seen)
    assert all(torch.equal(one, mask) and torch.equal(steps, framestep) for _, one, steps in seen)
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


def test_noise_of_frames_is_correlated_as_asked():
    shape = (1, 3, 200, 100)
    for correlation in (0.0, 0.3, 1.0):
        noise = frame_noise(shape, seeded(), correlation)[0].flatten(1).double()
        expected = torch.full((3, 3), correlation, dtype=torch.float64).fill_diagonal_(1)
        assert torch.allclose(noise @ noise.T / noise.shape[1], expected, atol=0.03)


def test_shared_noise_is_drawn_first():
    generator = seeded(5)
    torch.randn(1, 1, 2, 2, generator=generator)
    assert torch.equal(frame_noise((1, 3, 2, 2), seeded(5)), torch.randn(1, 3, 2, 2, generator=generator))
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got 1.5"):
        frame_noise((1, 1, 1, 1), seeded(), 1.5)


def reads_everything(latents, context, framestep, timestep, mask):
    """A velocity in which every input can be told apart."""
    return latents * 0.1 + context.sum((2, 3))[..., None, None] + 3 * mask[..., None, None] + timestep[:, None, None, None] / 1000


def test_guidance_joins_branches_as_the_formula_says():
    v = torch.randn(3, 4, generator=seeded()).unbind()
    assert torch.allclose(join_branches(v, [2.0, 5.0]), v[0] + 2 * (v[1] - v[0]) + 5 * (v[2] - v[1]))
    assert torch.equal(join_branches(v[:1], []), v[0])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("pairs", "scales"), [(((0, 1), (1, 1)), (7.5,)), (((0, 0), (0, 1), (1, 1)), (2.0, 4.0)), (((1, 0),), ())])
def test_guided_velocity_turns_conditions_off_in_the_branches(pairs, scales, split):
    latents, context = torch.randn(2, 3, 4, 5, generator=seeded()), torch.rand(2, 3, 2, 2, generator=seeded(1))
    framestep, timestep, mask = torch.zeros(2, 3), torch.tensor([500.0, 250.0]), torch.tensor([[1.0, 0, 0], [0, 1.0, 1.0]])
    got = guided_velocity(reads_everything, latents, context, framestep, timestep, mask, PairGuidance(pairs, scales), split=split)
    branches = [reads_everything(latents, context * image, framestep, timestep, mask * known) for image, known in pairs]
    expected = branches[0] + sum(g * (b - a) for g, a, b in zip(scales, branches[:-1], branches[1:], strict=True))
    assert torch.allclose(got, expected, atol=1e-5)


def test_branches_are_one_batch_unless_they_are_split():
    sizes = []

    def denoise(latents, context, framestep, timestep, mask):
        sizes.append(len(latents))
        return latents

    args = (torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3), PairGuidance())
    guided_velocity(denoise, *args)
    guided_velocity(denoise, *args, split=True)
    assert sizes == [4, 2, 2]


def test_image_guidance_of_one_is_a_single_branch():
    assert PairGuidance.image(1).pairs == ((1, 1),)
    assert PairGuidance.image(3.0) == PairGuidance(((0, 1), (1, 1)), (3.0,))


def test_progress_and_cancel():
    noise = torch.zeros(1, 2, 1, 1)
    steps = []
    args = (toward(noise), noise, torch.zeros(1, 2, 1, 1), torch.zeros(1, 2))
    sample_window(*args, num_steps=3, callback=lambda *progress: steps.append(progress))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    steps.clear()
    with pytest.raises(Cancelled, match="before step 3 of 5"):
        sample_window(*args, num_steps=5, callback=lambda *progress: steps.append(progress), cancel=lambda: len(steps) == 2)


def test_bad_guidance_is_refused():
    with pytest.raises(ValueError, match=r"len\(scales\) must be len\(pairs\)-1.*got 2 scales for 2 pairs"):
        PairGuidance(((0, 1), (1, 1)), (1.0, 2.0))
    with pytest.raises(ValueError, match=r"one of \[0, 0\], \[0, 1\], \[1, 0\], \[1, 1\]; got \[2, 1\]"):
        PairGuidance(((2, 1), (1, 1)), (1.0,))
    with pytest.raises(ValueError, match=r"got \[0.5, 1\]"):
        PairGuidance(((0.5, 1), (1, 1)), (1.0,))
    with pytest.raises(ValueError, match="for 0 pairs"):
        PairGuidance((), ())


def test_bad_masks_are_refused():
    noise, context, framestep = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), torch.zeros(1, 2)

    def call(mask, known=noise):
        return sample_window(toward(noise), noise, context, framestep, known=known, mask=mask, num_steps=1)

    with pytest.raises(ValueError, match="All frames are sources, nothing to generate"):
        call(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"\(batch, frames\) = \(1, 2\) of 0 and 1; got shape \(1, 3\)"):
        call(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="of 0 and 1"):
        call(torch.tensor([[0.5, 0]]))
    with pytest.raises(ValueError, match="no known latents"):
        call(torch.tensor([[1.0, 0]]), known=None)
    with pytest.raises(ValueError, match=r"noise's shape \(1, 2, 1, 1\); got \(1, 2, 2, 1\)"):
        call(torch.tensor([[1.0, 0]]), known=torch.zeros(1, 2, 2, 1))
