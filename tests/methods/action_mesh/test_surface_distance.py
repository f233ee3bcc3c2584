import pytest
import torch

from visiongraft.methods.action_mesh.surface_distance import signed_distance
from visiongraft.worlds.animated_shapes import clip_times, make_shape


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sphere(num, radius=0.5):
    normal = torch.nn.functional.normalize(torch.randn(num, 3, generator=generator(), dtype=torch.float64), dim=-1)
    return torch.cat([radius * normal, normal], -1)


def test_distances_to_a_sphere_converge_with_the_number_of_points():
    queries = 2 * torch.rand(2000, 3, generator=generator(1), dtype=torch.float64) - 1
    exact = queries.norm(dim=-1) - 0.5
    errors = [float((signed_distance(queries, sphere(num)) - exact).abs().mean()) for num in (200, 2000, 20_000)]
    assert errors[0] < 0.02 and errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1] and errors[2] < 5e-4
    wrong = signed_distance(queries, sphere(2000)).sign() != exact.sign()
    assert not wrong[exact.abs() > 0.01].any()


def test_close_to_the_surface_the_plane_counts_and_not_the_nearest_point():
    normal = torch.tensor([[0.0, 0, 1]], dtype=torch.float64).expand(400, -1)
    plane = torch.cat(
        [torch.rand(400, 2, generator=generator(), dtype=torch.float64), torch.zeros(400, 1, dtype=torch.float64), normal], -1
    )
    queries = torch.rand(100, 3, generator=generator(1), dtype=torch.float64) * torch.tensor([1, 1, 0.02]) - torch.tensor([0, 0, 0.01])
    assert torch.allclose(signed_distance(queries, plane), queries[:, 2])


def test_signs_agree_with_the_fields_of_shapes():
    shape, times = make_shape("blob", 5), clip_times(1)
    surface = shape.surface(4000, times, generator())[0]
    queries = surface[:500, :3] + 0.06 * torch.randn(500, 3, generator=generator(1))
    exact = shape.sdf(queries[None], times)[0]
    found = signed_distance(queries, surface)
    assert float((found - exact).abs().mean()) < 0.01
    assert ((found < 0) == (exact < 0))[exact.abs() > 0.01].all()


def test_gradients_play_no_part_and_the_kind_of_number_is_kept():
    surface = sphere(50).float()
    found = signed_distance(torch.zeros(1, 3, requires_grad=True), surface)
    assert found.dtype == torch.float32 and not found.requires_grad and float(found) == pytest.approx(-0.5, abs=1e-5)


def test_clouds_that_are_no_surface_are_refused():
    with pytest.raises(ValueError, match="at least 3 finite surface points with normals; got 2"):
        signed_distance(torch.zeros(1, 3), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="finite surface points"):
        signed_distance(torch.full((1, 3), torch.nan), torch.zeros(5, 6))
