import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad

from visiongraft.worlds.animated_shapes import clip_times, make_shape
from visiongraft.worlds.creatures import BODY_X, LARGEST_ANGLE, Creatures, creature_dice, draw_creatures, spread_choice

TURN_ABOUT_X = torch.tensor([1.0, -1.0, -1.0])


def creatures(count=3, frames=6, motion="mixed", seed=0):
    dice = torch.stack([creature_dice(100 * seed + i) for i in range(count)])
    return draw_creatures(dice, clip_times(frames), motion)


def uniform(*shape, seed=0):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_parameters_lie_in_the_ranges_of_the_brief():
    many = creatures(400)
    for values, low, high in ((many.radii[:, 0], 0.30, 0.40), (many.radii[:, 1:], 0.18, 0.26), (many.tail_length, 0.65, 0.85)):
        assert low <= float(values.min()) < low + 0.01 and high - 0.01 < float(values.max()) <= high
    assert float(many.tail_radius.min()) >= 0.08 and float(many.tail_radius.max()) <= 0.12
    assert float(many.angles.abs().max()) <= LARGEST_ANGLE
    assert torch.allclose(many.hinge_x, BODY_X + 0.8 * many.radii[:, 0])


def test_the_angle_follows_its_formula():
    dice = creature_dice(5)
    clip = draw_creatures(dice[None], clip_times(6), "mixed")
    swing, rate = 0.35 + 0.35 * dice[5], 0.5 + 0.5 * dice[6]
    middle = 1.2 * dice[8] * swing * (-1 if dice[9] < 0.5 else 1)
    expected = [middle + swing * math.sin(2 * math.pi * (rate * t / 6 + dice[7])) for t in range(6)]
    assert torch.allclose(clip.angles[0], torch.stack(expected).clamp(-1.25, 1.25))


def test_const_motion_stays_on_one_side_and_mixed_motion_crosses_in_about_half_of_the_clips():
    const = creatures(200, 24, "const")
    assert (const.angles > 0).all(1).logical_or((const.angles < 0).all(1)).all() and float(const.angles.abs().min()) > 0.1
    assert 0.4 < float((const.angles[:, 0] > 0).double().mean()) < 0.6
    mixed = creatures(400, 24)
    crossing = (mixed.angles > 0).any(1) & (mixed.angles < 0).any(1)
    assert 0.4 < float(crossing.double().mean()) < 0.8


def test_tracked_points_lie_on_the_surface_with_its_normals_as_gradient():
    clip = creatures(4)
    surface = clip.surface(uniform(4, 802, 4), 400)
    points, normals = surface[..., :3].detach().requires_grad_(), surface[..., 3:]
    distance = clip.sdf(points)
    outside = distance.detach() > -1e-9  # a few are inside the other part at some frames
    assert float(outside.double().mean()) > 0.95 and float(distance.detach()[outside].abs().max()) < 1e-9
    gradient = torch.autograd.grad(distance.sum(), points)[0]
    assert torch.allclose(gradient[outside], normals[outside], atol=1e-6)
    assert torch.allclose(normals.norm(dim=-1), torch.ones(1, dtype=torch.float64))
    step = clip.sdf(points.detach() + 0.01 * normals)[outside]
    assert float((step - 0.01).abs().quantile(0.95)) < 3e-4


def test_points_are_tracked_rigidly():
    clip = creatures(2)
    points = clip.surface(uniform(2, 200, 4), 100)[..., :3]
    at_hinge = points - torch.stack([clip.hinge_x, 0 * clip.hinge_x, 0 * clip.hinge_x], -1)[:, None, None]
    # distances to the hinge and heights never change, whichever part carries a point
    assert torch.allclose(at_hinge.norm(dim=-1), at_hinge[:, :1].norm(dim=-1).expand(-1, 6, -1))
    assert torch.allclose(points[..., 1], points[:, :1, :, 1].expand(-1, 6, -1))
    turned = torch.atan2(at_hinge[..., 2], at_hinge[..., 0])
    change = (turned - turned[:, :1] + math.pi) % (2 * math.pi) - math.pi
    swung = (clip.angles - clip.angles[:, :1])[..., None].expand_as(change)
    assert ((change.abs() < 1e-9) | ((change - swung).abs() < 1e-9)).all()


def test_points_are_uniform_by_area():
    base = creatures(1, 1)
    clip = Creatures(base.radii, base.tail_length, base.tail_radius, torch.zeros(1, 1, dtype=torch.float64))
    num = 20_000
    points = clip.surface(uniform(1, 3 * num, 4), num)[0, 0, :, :3]
    a, b, c = base.radii[0].tolist()
    length, radius, hinge = float(base.tail_length), float(base.tail_radius), float(base.hinge_x)

    def band(t):
        """Area of the ellipsoid for a unit of t = cos of the angle from x, averaged about x."""
        ring = lambda u: math.sqrt((b * c * t) ** 2 + (1 - t * t) * ((a * c * math.cos(u)) ** 2 + (a * b * math.sin(u)) ** 2))
        return quad(ring, 0, 2 * math.pi)[0]

    left_half = quad(band, -1, 0)[0]  # no tail there
    free_tail = 2 * math.pi * radius * (length + radius - (BODY_X + a - hinge))  # beyond the body's tip
    found = (points[:, 0] < BODY_X).double().sum() / (points[:, 0] > BODY_X + a).double().sum()
    assert float(found) == pytest.approx(left_half / free_tail, rel=0.03)


def test_the_wrong_side_is_the_right_animal_turned_and_has_the_same_silhouette():
    clip = creatures(3)
    mirrored = replace(clip, angles=-clip.angles)
    points = 2 * uniform(3, 6, 50, 3) - 1
    assert torch.allclose(clip.sdf(points), mirrored.sdf(points * TURN_ABOUT_X))
    assert torch.equal(clip.silhouettes(), mirrored.silhouettes())


def test_silhouettes_show_where_a_ray_along_z_meets_the_animal():
    clip = creatures(2, 3)
    size = 32
    pictures = clip.silhouettes(size)
    grid = (torch.arange(size, dtype=torch.float64) + 0.5) * 2 / size - 1
    z = torch.linspace(-1, 1, 101, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(-grid, grid, z, indexing="ij"), -1)[..., [1, 0, 2]]
    nearest = clip.sdf(points.reshape(1, 1, -1, 3).expand(2, 3, -1, -1)).view(2, 3, size, size, -1).amin(-1)
    sure = nearest.abs() > 0.06  # a pixel is 0.063 wide and z is sampled each 0.02
    assert float(sure.double().mean()) > 0.7
    assert torch.equal(pictures[sure] > 0.5, nearest[sure] < 0)
    assert ((pictures > 0) & (pictures < 1)).any()


def test_box_framing_leaves_a_tenth_of_the_side_as_margin():
    pictures = creatures(5).silhouettes(120, "box")
    seen = (pictures > 0.5).any(1)
    columns = seen.any(1).nonzero()
    for clip in range(5):
        extent = columns[columns[:, 0] == clip, 1]
        assert abs(int(extent.min()) - 10) <= 1 and abs(int(extent.max()) - 109) <= 1
        rows = seen[clip].any(1).nonzero()[:, 0]
        assert abs(int(rows.min()) + int(rows.max()) - 119) <= 1


def test_a_creature_of_the_batch_is_the_animated_shape_of_its_seed():
    shape = make_shape("creature", 7, "const")
    clip = draw_creatures(creature_dice(7)[None], clip_times(5).double(), "const")
    points = (2 * uniform(5, 40, 3) - 1).float()
    # the shape divides by its gradient: equal to first order near the surface
    near = clip.sdf(points.double()[None])[0]
    assert torch.equal(shape.sdf(points, clip_times(5)) < 0, near < 0)
    close = near.abs() < 0.05
    assert torch.allclose(shape.sdf(points, clip_times(5)).double()[close], near[close], atol=5e-3)


def test_frames_are_picked_for_each_animal():
    clip = creatures(2)
    picked = clip.frames(torch.tensor([[0, 3], [5, 5]]))
    assert torch.equal(picked.angles, torch.stack([clip.angles[0, [0, 3]], clip.angles[1, [5, 5]]]))


def test_spread_choice_follows_its_weights_with_little_variance():
    weight = torch.tensor([[1.0, 0.0, 2.0, 5.0]], dtype=torch.float64)
    chosen = spread_choice(weight, uniform(1, 800))
    assert torch.bincount(chosen[0], minlength=4).tolist() == pytest.approx([100, 0, 200, 500], abs=1)
    even = spread_choice(torch.ones(1, 50, dtype=torch.float64), uniform(1, 25))
    assert len(even.unique()) == 25 and not torch.equal(even, even.sort().values)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="motion must be one of mixed, const; got 'wild'"):
        draw_creatures(creature_dice(0)[None], clip_times(2), "wild")
    with pytest.raises(ValueError, match="needs 10 dice; got 3"):
        draw_creatures(torch.zeros(1, 3), clip_times(2), "mixed")
