import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import perspective_from_panorama, yaw_panorama
from visiongraft.worlds.generation import make_scene
from visiongraft.worlds.rendering import render_panorama, render_perspective, to_screen, z_depth
from visiongraft.worlds.scenes import Light, Material, Sky, Solid, Thing, assemble


def rotation(yaw=0.0, pitch=0.0, roll=0.0):
    return rotation_from_angles(torch.tensor(yaw), torch.tensor(pitch), torch.tensor(roll))


def psnr(a, b):
    return -10 * math.log10(float((a - b).square().mean()))


def board(period=0.37):
    """A checkered floor under a plain sky."""
    floor = Solid(
        "plane", (0, 1.0, 0), (math.inf, 1.0, math.inf), Material((0.9, 0.9, 0.9), "checker", (0.05, 0.05, 0.05), (period, period))
    )
    sky = Sky(ambient_up=(1.0, 1.0, 1.0), clouds=0.0, haze=0.0)
    return assemble("test", "a floor", (0, 0, 0), [Thing("floor", [floor])], [Light((0, 0, 0), (0, -1, 0))], sky)


@pytest.mark.parametrize("kind", ["room", "street"])
def test_a_view_and_the_same_view_out_of_the_panorama_agree(kind):
    scene = make_scene(kind, 2)
    turn, hfov = rotation(0.6, -0.15, 0.1), math.radians(70)
    view = render_perspective(scene, scene.viewpoint, turn, hfov, (48, 64), samples=3).color
    panorama = render_panorama(scene, scene.viewpoint, 384, samples=1).color
    cut = perspective_from_panorama(panorama[None], torch.tensor([hfov]), turn[None], (48, 64))[0]
    assert psnr(view, cut) > 28
    # and a neighbouring view does not
    other = perspective_from_panorama(panorama[None], torch.tensor([hfov]), rotation(0.66, -0.15, 0.1)[None], (48, 64))[0]
    assert psnr(view, other) < 24


def test_depth_of_a_view_and_of_a_panorama_are_the_same_distances():
    scene = make_scene("room", 2)
    view = render_perspective(scene, scene.viewpoint, None, math.radians(60), (33, 33), samples=1)
    panorama = render_panorama(scene, scene.viewpoint, 512, samples=1, shadows=False)
    cut = perspective_from_panorama(
        panorama.depth[None, None], torch.tensor([math.radians(60)]), torch.eye(3)[None], (33, 33), antialias=False
    )
    assert ((cut[0, 0] - view.depth).abs() / view.depth).median() < 4e-3


def test_a_wall_seen_head_on_has_the_same_z_depth_everywhere():
    wall = Solid("box", (0, 0, 3.5), (50.0, 50.0, 0.5), Material())
    scene = assemble("test", "a wall", (0, 0, 0), [Thing("wall", [wall])], [], Sky())
    hfov = math.radians(100)
    view = render_perspective(scene, torch.zeros(3), None, hfov, (20, 30), samples=1)
    assert torch.allclose(z_depth(view.depth, hfov), torch.tensor(3.0), rtol=1e-5)
    assert view.depth.max() > 4


@pytest.mark.parametrize("period", [0.37, 1.5])
def test_more_samples_come_closer_to_a_reference_of_sixteen_a_side(period):
    scene = board(period)
    errors = []
    reference = render_panorama(scene, scene.viewpoint, 32, samples=16).color
    for samples in (1, 2, 4):
        errors.append(float((render_panorama(scene, scene.viewpoint, 32, samples=samples).color - reference).square().mean().sqrt()))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.8 * errors[1]
    assert errors[1] < 0.05


def test_distant_patterns_fade_to_their_mean_instead_of_flickering():
    floor = render_panorama(board(0.1), torch.zeros(3), 64, samples=1).color[0, 34:37]
    mean = float(to_screen(torch.tensor((0.9 + 0.05) / 2)))
    assert (floor - mean).abs().max() < 0.02


def test_turning_the_camera_by_whole_pixels_rolls_the_panorama():
    scene = make_scene("landscape", 4)
    level = render_panorama(scene, scene.viewpoint, 32, samples=1)
    turned = render_panorama(scene, scene.viewpoint, 32, rotation(5 * 2 * math.pi / 64), samples=1)
    moved = yaw_panorama(level.color, 5)
    # single rays may fall on the other side of an edge
    assert ((moved - turned.color).abs().amax(0) < 0.02).float().mean() > 0.98


def test_frames_are_the_single_pictures():
    scene = make_scene("street", 1)
    positions = scene.viewpoint + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
    times = torch.tensor([0.0, 0.5])
    film = render_panorama(scene, positions, 16, time=times, samples=2)
    assert film.color.shape == (2, 3, 16, 32)
    assert film.depth.shape == film.instance.shape == (2, 16, 32)
    assert film.normal.shape == (2, 3, 16, 32)
    for i in range(2):
        alone = render_panorama(scene, positions[i], 16, time=float(times[i]), samples=2)
        assert torch.equal(alone.color, film.color[i])
        assert torch.equal(alone.instance, film.instance[i])
    film = render_perspective(scene, positions, rotation(), math.radians(80), (8, 12), times)
    assert film.color.shape == (2, 3, 8, 12)


def test_colors_are_in_the_unit_range_and_the_same_every_time():
    scene = make_scene("tabletop", 7)
    first, again = (render_panorama(scene, scene.viewpoint, 32) for _ in range(2))
    assert torch.equal(first.color, again.color)
    assert first.color.min() >= 0
    assert first.color.max() <= 1
    assert not first.color.requires_grad


def test_screen_values_are_those_of_the_standard():
    assert torch.allclose(to_screen(torch.tensor([0.0, 0.002, 0.2140, 1.0, 3.0])), torch.tensor([0.0, 0.02584, 0.5, 1.0, 1.0]), atol=1e-4)


def test_pictures_that_cannot_be_are_refused():
    scene = board()
    with pytest.raises(ValueError, match="a picture needs at least 1x1 pixels; got 0x0"):
        render_panorama(scene, scene.viewpoint, 0)
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        render_panorama(scene, scene.viewpoint, 4, samples=0)
    with pytest.raises(ValueError, match=r"hfov must be in \(0, pi\) radians; got 70; did you pass degrees\?"):
        render_perspective(scene, scene.viewpoint, None, 70.0, (4, 4))
    with pytest.raises(ValueError, match="rays must be finite"):
        render_panorama(scene, torch.tensor([0.0, math.nan, 0.0]), 4)
