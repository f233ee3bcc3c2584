import pytest
import torch

from visiongraft.geometry.point_sets import farthest_points
from visiongraft.methods.action_mesh.grouped_sampling import encode_clips, grouped_indices, independent_indices


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(batch=3, frames=4, points=60, seed=0):
    return torch.randn(batch, frames, points, 6, generator=generator(seed))


class Posterior:
    def __init__(self, mean):
        self.mean = mean

    def mode(self):
        return self.mean

    def sample(self, generator=None):
        return self.mean + torch.randn(self.mean.shape, generator=generator)


class Copying:
    """A VAE whose latents are the chosen points."""

    def encode(self, surface, num_tokens, generator=None, indices=None):
        assert indices.shape == (len(surface), num_tokens)
        return Posterior(surface.gather(1, indices[..., None].expand(-1, -1, surface.shape[-1])))


def test_the_same_points_are_tokens_in_every_frame():
    points = clips()
    latents = encode_clips(Copying(), points, 7, generator(1), sample=False)
    indices = grouped_indices(points, 7, generator(1))
    for batch in range(3):
        for frame in range(4):
            assert torch.equal(latents[batch, frame], points[batch, frame, indices[batch]])


def test_tokens_are_farthest_points_of_the_first_frame():
    points = clips(points=28)
    # with 4 N = all points the candidates are all of them, and only their order is random
    chosen = grouped_indices(points, 7, generator(2))
    for batch in range(3):
        start = int(chosen[batch, 0])
        expected = farthest_points(points[batch : batch + 1, 0, :, :3], 7, start)
        assert torch.equal(chosen[batch], expected[0])


def test_only_the_first_frame_decides():
    points = clips()
    other = points.clone()
    other[:, 1:] = torch.randn(points[:, 1:].shape, generator=generator(9))
    other[:, 0, :, 3:] = 0
    assert torch.equal(grouped_indices(points, 6, generator(1)), grouped_indices(other, 6, generator(1)))


def test_candidates_are_four_times_as_many_as_tokens_and_differ():
    points = torch.zeros(200, 1, 40, 6)
    points[:, 0, :, 0] = torch.arange(40.0)
    chosen = grouped_indices(points, 2, generator())
    assert (chosen[:, 0] != chosen[:, 1]).all()
    # of 8 random points of a line the first is any of them, and the second an end of the eight
    assert float((chosen[:, 0].double().mean() - 19.5).abs()) < 3 and len(chosen.unique()) > 35


def test_small_clouds_are_drawn_with_repetition():
    chosen = grouped_indices(clips(points=5), 4, generator(3))
    assert chosen.shape == (3, 4) and int(chosen.max()) < 5
    assert grouped_indices(clips(points=3), 9, generator(3)).shape == (3, 9)


def test_independent_sampling_differs_between_frames():
    points = clips()[:, :1].expand(-1, 5, -1, -1)
    each = independent_indices(points, 6, generator(1))
    assert each.shape == (3, 5, 6) and not (each == each[:, :1]).all()
    latents = encode_clips(Copying(), points, 6, generator(1), sample=False, grouped=False)
    assert torch.equal(latents, points.gather(2, each[..., None].expand(-1, -1, -1, 6)))


def test_sampling_is_seeded_and_the_mean_has_no_noise():
    points = clips()
    once, again, other = (encode_clips(Copying(), points, 5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    mean = encode_clips(Copying(), points, 5, generator(1), sample=False)
    assert 0.8 < float((once - mean).std()) < 1.2
    assert torch.equal(grouped_indices(points, 5), grouped_indices(points, 5))


@pytest.mark.parametrize(("shape", "tokens"), [((2, 3, 4, 6), 0), ((2, 0, 4, 6), 2), ((2, 3, 0, 6), 2), ((2, 3, 4, 2), 2)])
def test_clips_without_tokens_are_refused(shape, tokens):
    with pytest.raises(ValueError, match=r"batch x frames x points x \(xyz, ...\) with at least one of each; got"):
        grouped_indices(torch.zeros(shape), tokens)


def test_points_that_are_not_finite_are_refused():
    points = clips()
    points[1, 0, :, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        grouped_indices(points, 4)
