import math

import pytest
import torch

from visiongraft.geometry.cameras import focal_length, rotation_from_angles
from visiongraft.worlds.generation import make_scene
from visiongraft.worlds.optical_flow import Pose, panorama_flow, perspective_flow
from visiongraft.worlds.rendering import render_panorama, render_perspective, z_depth
from visiongraft.worlds.scenes import Material, Sky, Solid, Thing, assemble

HFOV = math.radians(60)
EYE = torch.eye(3)


def rotation(yaw=0.0, pitch=0.0, roll=0.0):
    return rotation_from_angles(torch.tensor(yaw), torch.tensor(pitch), torch.tensor(roll))


def wall_and(*things):
    wall = Thing("wall", [Solid("box", (0, 0, 10.5), (60.0, 60.0, 0.5), Material())])
    return assemble("test", "a wall", (0, 0, 0), [wall, *things], [], Sky())


def test_a_camera_that_moves_sideways_shifts_a_wall_by_focal_length_over_depth():
    flow = perspective_flow(wall_and(), Pose(torch.zeros(3), EYE), Pose(torch.tensor([0.5, -0.2, 0.0]), EYE), HFOV, (24, 32))
    focal = float(focal_length(torch.tensor(HFOV), 32))
    assert torch.allclose(flow.pixels[0], torch.tensor(-0.5 * focal / 10), atol=1e-4)
    assert torch.allclose(flow.pixels[1], torch.tensor(0.2 * focal / 10), atol=1e-4)
    # pixels that leave the picture at the left and at the bottom are not visible any more
    assert flow.visible[:23, 2:].all()
    assert not flow.visible[:, 0].any()


def test_a_moving_sphere_moves_by_its_own_velocity():
    ball = Thing("ball", [Solid("ellipsoid", (0, 0, 5.0), (0.5, 0.5, 0.5), Material())], velocity=(0.6, 0.0, 0.0))
    scene = wall_and(ball)
    first = render_perspective(scene, torch.zeros(3), None, HFOV, (48, 64), samples=1)
    flow = perspective_flow(scene, Pose(torch.zeros(3), EYE, 0.0), Pose(torch.zeros(3), EYE, 0.5), HFOV, (48, 64))
    on_ball = first.instance == 1
    focal = float(focal_length(torch.tensor(HFOV), 64))
    depth = z_depth(first.depth, HFOV)
    assert torch.allclose(flow.pixels[0][on_ball], focal * 0.3 / depth[on_ball], atol=1e-3)
    assert flow.pixels[1][on_ball].abs().max() < 1e-3
    assert flow.pixels[:, ~on_ball].abs().max() < 1e-4
    # the ball covers a part of the wall that was visible
    covered = ~flow.visible & ~on_ball
    assert 5 < covered.sum() < on_ball.sum()


def test_a_turning_camera_turns_a_panorama_by_whole_columns_sky_included():
    scene = make_scene("landscape", 0)
    step = 2 * math.pi / 64
    flow = panorama_flow(scene, Pose(scene.viewpoint, EYE), Pose(scene.viewpoint, rotation(3 * step)), 32)
    assert torch.allclose(flow.pixels[0], torch.tensor(-3.0), atol=2e-3)
    assert flow.pixels[1].abs().max() < 2e-3
    assert flow.visible.float().mean() > 0.97


@pytest.mark.parametrize("kind", ["room", "street"])
def test_following_the_flow_finds_the_same_things_at_the_predicted_depth(kind):
    scene = make_scene(kind, 3)
    height, moved = 64, scene.viewpoint + torch.tensor([0.15, 0.05, 0.2])
    turned = rotation(0.1, 0.05, -0.05)
    flow = panorama_flow(scene, Pose(scene.viewpoint, EYE, 0.0), Pose(moved, turned, 0.25), height)
    first = render_panorama(scene, scene.viewpoint, height, samples=1, shadows=False)
    second = render_panorama(scene, moved, height, turned, time=0.25, samples=1, shadows=False)
    v, u = torch.meshgrid(torch.arange(height), torch.arange(2 * height), indexing="ij")
    to_u = (u + flow.pixels[0]).round().long() % (2 * height)
    to_v = (v + flow.pixels[1]).round().long().clamp(0, height - 1)
    same = second.instance[to_v, to_u] == first.instance
    assert same[flow.visible].float().mean() > 0.93
    assert flow.visible.float().mean() > 0.8


def test_flow_of_nothing_is_refused():
    scene, pose = wall_and(), Pose(torch.zeros(3), EYE)
    with pytest.raises(ValueError, match="a panorama needs at least 1 pixel of height; got 0"):
        panorama_flow(scene, pose, pose, 0)
    with pytest.raises(ValueError, match="a picture needs at least 1x1 pixels; got 4x0"):
        perspective_flow(scene, pose, pose, HFOV, (4, 0))
    with pytest.raises(ValueError, match=r"hfov must be in \(0, pi\) radians; got 60"):
        perspective_flow(scene, pose, pose, 60.0, (4, 4))
