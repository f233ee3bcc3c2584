"""Panoramas of worlds and what cameras see of them."""

import math

import torch

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import perspective_from_panorama
from visiongraft.methods.panorama.world_samples import short_caption, world_samples


def test_the_input_is_what_its_camera_sees_of_the_panorama():
    samples = world_samples(4, 5, height=128, size=32, draws=2, progress=False)
    rotation = rotation_from_angles(*samples.cameras[:, 1:].unbind(1))
    views = perspective_from_panorama(samples.panoramas.float() / 255, samples.cameras[:, 0], rotation, (32, 32))
    errors = (views - samples.inputs.float() / 255).abs().mean((1, 2, 3))
    other = (views - samples.inputs.roll(1, 0).float() / 255).abs().mean((1, 2, 3))
    # what is left is the panorama's coarser sampling
    assert errors.max() < 0.08 and errors.mean() < other.mean() / 3


def test_clips_keep_the_yaw_of_their_first_frame_and_see_what_their_camera_sees():
    samples = world_samples(1, 2, height=128, size=32, frames=3, progress=False)
    assert samples.panoramas.shape == (1, 3, 3, 128, 256) and samples.inputs.shape == (1, 3, 3, 32, 32)
    camera = samples.cameras[0]
    assert float(camera[1]) == 0
    first = perspective_from_panorama(samples.panoramas[0, :1].float() / 255, camera[:1], rotation_from_angles(*camera[1:])[None], (32, 32))
    assert (first - samples.inputs[0, :1].float() / 255).abs().mean() < 0.08


def test_a_scene_depends_on_the_seed_and_its_number_alone_and_the_cache_gives_the_same(tmp_path):
    few, many = (world_samples(n, 9, height=16, size=8, draws=2, progress=False, cache=tmp_path) for n in (1, 2))
    again = world_samples(2, 9, height=16, size=8, draws=2, progress=False, cache=tmp_path)
    assert torch.equal(few.panoramas, many.panoramas[:2]) and torch.equal(few.inputs, many.inputs[:2])
    assert torch.equal(again.panoramas, many.panoramas) and again.captions == many.captions
    assert torch.equal(again.cameras, many.cameras)
    assert len(list(tmp_path.iterdir())) == 2


def test_cameras_lie_in_their_ranges():
    degrees = world_samples(4, 1, height=8, size=4, draws=8, progress=False).cameras * (180 / math.pi)
    assert ((degrees[:, 0] >= 50) & (degrees[:, 0] <= 110)).all()
    assert (degrees[:, 2].abs() <= 30).all() and (degrees[:, 3].abs() <= 15).all()


def test_a_short_caption_keeps_whole_parts():
    caption = "A street at noon with brick houses, a red parked car, trees, a person in a black coat and street lamps."
    assert short_caption(caption, 11) == "a street at noon with brick houses, a red parked car"
    assert short_caption("A room with a very long first part of many words", 3) == "a room with a very long first part of many words"
