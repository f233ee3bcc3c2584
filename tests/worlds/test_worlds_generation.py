import dataclasses
import math
import re

import pytest
import torch

from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.worlds.colors import COLORS
from visiongraft.worlds.dice import Dice
from visiongraft.worlds.generation import KINDS, make_scene
from visiongraft.worlds.lighting import TIMES, daylight
from visiongraft.worlds.raycaster import cast
from visiongraft.worlds.scenes import SHAPES


def same(first, second):
    fields = [f.name for f in dataclasses.fields(first)]
    equal = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return all(equal(getattr(first, name), getattr(second, name)) for name in fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_fixes_the_scene_and_another_seed_gives_another(kind):
    torch.manual_seed(1)
    first = make_scene(kind, 11)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(first, make_scene(kind, 11))
    assert torch.equal(state, torch.get_rng_state())
    assert not same(first, make_scene(kind, 12))


@pytest.mark.parametrize("kind", KINDS)
def test_solids_are_sorted_by_shape_and_belong_to_named_things(kind):
    scene = make_scene(kind, 0)
    assert len(scene.counts) == len(SHAPES)
    assert sum(scene.counts) == len(scene.position) == len(scene.material)
    assert set(scene.instance.tolist()) == set(range(len(scene.names)))
    assert torch.allclose(scene.rotation @ scene.rotation.mT, torch.eye(3).expand_as(scene.rotation), atol=1e-5)
    assert torch.allclose(torch.linalg.det(scene.rotation), torch.tensor(1.0), atol=1e-5)


def named(text):
    """The coloured things of a caption, as names: "a person in a red coat" is one of them, "a white house with a red roof" another."""
    colors = "|".join(COLORS)
    text = re.sub(r" with an? \w+ (floor|roof)", "", text)
    people = re.findall(rf"person in an? (?:{colors}) coat", text)
    text = re.sub(rf"person in an? (?:{colors}) coat", "", text)
    two = re.findall(rf"((?:{colors}) and (?:{colors})) hot-air (balloon)", text)
    text = re.sub(rf"(?:{colors}) and (?:{colors}) (hot-air balloon|houses)", "", text)
    one = re.findall(
        rf"\ban? ((?:{colors}) (?:parked car|car|house|sofa|bed|rug|ball|mug|bottle|candle|vase|pencil|floor lamp|chest of drawers))", text
    )
    return people + [" ".join(pair) for pair in two] + one


@pytest.mark.parametrize("kind", KINDS)
def test_captions_name_coloured_things_that_are_there(kind):
    found = []
    for seed in range(8):
        scene = make_scene(kind, seed)
        things = named(scene.caption)
        found += things
        for name in things:
            assert any(known.endswith(name) for known in scene.names), (scene.caption, name, scene.names)
    assert len(found) >= (2 if kind == "landscape" else 10)


def test_captions_of_landscapes_name_what_is_there_and_nothing_else():
    pairs = {"lake": "lake", "fence": "fence", "firs": "fir", "rocks": "rock", "balloon": "balloon"}
    for seed in range(12):
        scene = make_scene("landscape", seed)
        words, known = re.findall(r"\w+", scene.caption), {word for name in scene.names for word in name.split()}
        for word, name in pairs.items():
            assert (word in words) == (name in known), (scene.caption, word)


def test_captions_of_rooms_and_tables_name_pictures_that_hang_there():
    for seed in range(25):
        scene = make_scene("room", seed)
        listed = re.findall(r"walls \((.*)\)", scene.caption)
        hung = sorted(re.findall(r"\((\w+)\)", " ".join(name for name in scene.names if name.startswith("picture"))))
        assert sorted(listed[0].split(", ") if listed else []) == hung


def test_times_of_day_differ_in_light_and_captions_tell_them():
    ambient = {time: max(daylight(time, Dice(0))[1].ambient_up) for time in TIMES}
    assert ambient["at night"] < 0.4 * min(value for time, value in ambient.items() if time != "at night")
    assert daylight("on an overcast day", Dice(0))[1].sun is None
    noon, sunset = (daylight(time, Dice(0))[1].sun for time in ("at noon", "at sunset"))
    assert noon is not None
    assert sunset is not None
    assert noon[1] < -0.8 < -0.25 < sunset[1] < 0
    for kind in ("street", "landscape"):
        for seed in range(4):
            scene = make_scene(kind, seed)
            (told,) = [time for time in TIMES if f" {time} " in scene.caption]
            assert (max(scene.sky.ambient_up) == ambient["at night"]) == (told == "at night")


@pytest.mark.parametrize("kind", KINDS)
def test_the_viewpoint_is_clear_of_all_solids_and_at_eye_level(kind):
    rays = panorama_rays(16, 32)
    for seed in range(6):
        scene = make_scene(kind, seed)
        hits = cast(scene, scene.viewpoint, rays, color=False)
        assert hits.distance.min() > (0.03 if kind == "tabletop" else 0.2)
        up = -float(scene.viewpoint[1])
        assert (0.9 < up < 1.1) if kind == "tabletop" else (1.5 < up < 1.8)


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_show_many_things_in_many_colours(kind):
    rays = panorama_rays(32, 64)
    for seed in range(2):
        scene = make_scene(kind, seed)
        hits = cast(scene, scene.viewpoint, rays, footprint=math.pi / 32)
        assert len(hits.instance.unique()) >= 8
        if "night" not in scene.caption:
            assert 0.08 < hits.color.mean() < 0.8
        assert hits.color.std() > 0.03 or "night" in scene.caption


def test_every_kind_has_something_that_moves_in_some_scene():
    for kind in KINDS:
        assert any(make_scene(kind, seed).moving for seed in range(10))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind must be one of room, street, landscape, tabletop; got 'beach'"):
        make_scene("beach", 0)


def test_a_scene_moves_to_other_floats_and_keeps_its_whole_numbers():
    scene = make_scene("room", 0).to(torch.float64)
    assert scene.position.dtype == scene.material.dtype == torch.float64
    assert scene.instance.dtype == torch.int64
    assert cast(scene, scene.viewpoint, panorama_rays(4, 8)).color.dtype == torch.float64
