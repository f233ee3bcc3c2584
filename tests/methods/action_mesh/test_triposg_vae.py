import action_mesh_reference as reference
import pytest
import torch

from visiongraft.geometry.point_sets import farthest_points
from visiongraft.methods.action_mesh.config import SIZES, create
from visiongraft.methods.action_mesh.embeddings import point_features
from visiongraft.methods.action_mesh.triposg_vae import Posterior, TripoSGVAE, choose_points

HEADS, OCTAVES = SIZES["tiny"]["vae"]["num_attention_heads"], SIZES["tiny"]["vae"]["embed_frequency"]


@pytest.fixture(scope="module")
def vae() -> TripoSGVAE:
    torch.manual_seed(0)
    model = create("vae", "tiny").double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def sphere(batch: int = 2, points: int = 60, seed: int = 3) -> torch.Tensor:
    """Points beside their normals."""
    normals = torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    normals = torch.nn.functional.normalize(normals, dim=-1)
    return torch.cat([0.7 * normals, normals], dim=-1)


def random(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_point_features_by_hand():
    features = point_features(torch.tensor([0.25, -1.0, 2.0], dtype=torch.float64), 2)
    x, y, z = 0.25, -1.0, 2.0
    angles = torch.tensor([x, 2 * x, y, 2 * y, z, 2 * z], dtype=torch.float64)  # by coordinate, then by octave
    torch.testing.assert_close(features, torch.cat([torch.tensor([x, y, z], dtype=torch.float64), angles.sin(), angles.cos()]))
    with_pi = point_features(torch.tensor([0.5, 0.0, 1.0]), 1, include_pi=True)
    torch.testing.assert_close(with_pi[3:6], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_encoding_is_the_reference(vae):
    surface, indices = sphere(), torch.tensor([[0, 5, 9], [59, 1, 30]])
    posterior = vae.encode(surface, 3, indices=indices)
    mean, logvar = reference.encode(vae.state_dict(), surface, indices, HEADS, OCTAVES)
    torch.testing.assert_close(posterior.mean, mean)
    torch.testing.assert_close(posterior.logvar, logvar)
    assert torch.equal(posterior.query_indices, indices)


def test_decoding_is_the_reference(vae):
    latents, points = random(2, 6, 4), random(2, 30, 3)
    logits = vae.query(vae.decode_context(latents), points)
    torch.testing.assert_close(logits, reference.decode(vae.state_dict(), latents, points, HEADS, OCTAVES))


def test_chunks_do_not_change_the_answer(vae):
    context, points = vae.decode_context(random(2, 6, 4)), random(2, 30, 3)
    whole = vae.query(context, points)
    for chunk in (1, 7, 29, 30):
        torch.testing.assert_close(vae.query(context, points, chunk), whole)


def test_latents_are_a_set(vae):
    latents, points = random(1, 6, 4), random(1, 9, 3)
    order = torch.tensor([4, 1, 0, 5, 3, 2])
    a, b = (vae.query(vae.decode_context(values), points) for values in (latents, latents[:, order]))
    torch.testing.assert_close(a, b)


def test_surface_points_are_a_set_and_tokens_follow_their_points(vae):
    surface, indices = sphere(1), torch.tensor([[3, 40, 11, 7]])
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    where = torch.argsort(order)  # point i is at where[i] of the shuffled cloud
    plain = vae.encode(surface, 4, indices=indices).mean
    torch.testing.assert_close(vae.encode(surface[:, order], 4, indices=where[indices]).mean, plain)
    torch.testing.assert_close(vae.encode(surface, 4, indices=indices[:, [2, 0, 3, 1]]).mean, plain[:, [2, 0, 3, 1]])


def test_tokens_are_farthest_points_of_four_times_as_many():
    surface = sphere(2, 500)
    chosen = choose_points(surface, 10, torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == 10 for row in chosen)
    assert torch.equal(chosen, choose_points(surface, 10, torch.Generator().manual_seed(0)))
    assert not torch.equal(chosen, choose_points(surface, 10, torch.Generator().manual_seed(1)))

    def closest(indices: torch.Tensor) -> float:
        points = surface[0, indices, :3]
        return float((torch.cdist(points, points) + 9 * torch.eye(len(points))).min())

    assert closest(chosen[0]) > closest(torch.arange(10))  # spread out
    few = sphere(1, 25)
    assert sorted(choose_points(few, 6, torch.Generator().manual_seed(0))[0].tolist()) != list(range(6))
    exactly = choose_points(sphere(1, 40), 10, torch.Generator().manual_seed(2))  # all points are candidates: only the start is drawn
    start = int(exactly[0, 0])
    assert exactly[0].tolist() == farthest_points(sphere(1, 40)[..., :3].float(), 10, start)[0].tolist()


def test_small_clouds_repeat_points():
    chosen = choose_points(sphere(1, 5), 8, torch.Generator().manual_seed(0))
    assert chosen.shape == (1, 8) and int(chosen.max()) < 5
    assert len(set(chosen[0].tolist())) == 5


def test_posterior_draws_have_its_mean_and_spread():
    posterior = Posterior(torch.full((1, 4000, 1), 2.0), torch.full((1, 4000, 1), 2 * 0.5**0.5), torch.zeros(1, 4000, dtype=torch.long))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean()) - 2.0) < 0.1
    assert abs(float(drawn.std()) - torch.tensor(0.5**0.5).exp().item()) < 0.1
    assert torch.equal(posterior.mode(), posterior.mean)
    assert torch.equal(drawn, posterior.sample(torch.Generator().manual_seed(0)))


def test_log_variances_are_clipped(vae):
    import copy

    model = copy.deepcopy(vae)
    model.quant.bias[4:] = torch.tensor([100.0, -100.0, 0.0, 0.0], dtype=torch.float64)
    logvar = model.encode(sphere(1), 3, torch.Generator().manual_seed(0)).logvar
    assert float(logvar[..., 0].min()) == 20.0 and float(logvar[..., 1].max()) == -30.0


def test_checkpointed_gradients_are_the_gradients():
    torch.manual_seed(0)
    model = create("vae", "tiny").double().train()
    surface, points, indices = sphere(), random(2, 7, 3), torch.tensor([[0, 5, 9], [59, 1, 30]])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(surface, points, num_tokens=3, indices=indices).square().mean().backward()
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_logits_are_differentiable_in_the_points(vae):
    context, points = vae.decode_context(random(1, 4, 4)), random(1, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: vae.query(context, p), points)


def test_wrong_inputs_are_named(vae):
    with pytest.raises(ValueError, match="latents have 5 channels; this VAE has latent_channels=4"):
        vae.decode_context(random(1, 4, 5))
    with pytest.raises(ValueError, match="indices choose 2 points, but num_tokens is 3"):
        vae.encode(sphere(1), 3, indices=torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match="at least 1 point; num is 0"):
        vae.encode(sphere(1), 0)
    with pytest.raises(ValueError, match="embeds 3 coordinates by 'frequency'; got 3 and 'fourier'"):
        create("vae", "tiny", embedding_type="fourier")
    with pytest.raises(ValueError, match="width 32 must be a multiple of the 3"):
        create("vae", "tiny", num_attention_heads=3)
