import pytest
import torch
from torch.utils.data import Dataset, default_collate

from visiongraft.methods.action_mesh.data import ProceduralAnimations, Queries, draw_steps
from visiongraft.methods.action_mesh.frames import prepare_frames
from visiongraft.methods.action_mesh.toy_video import toy_context
from visiongraft.training.order import SeededItems, Share
from visiongraft.worlds.animated_shapes import KINDS, clip_times


def small(**options):
    return ProceduralAnimations(**({"num_points": 40, "near": 6, "uniform": 5, "length": 50} | options))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kinds", [("creature",), KINDS])
def test_an_item_is_a_function_of_seed_and_index_alone(kinds):
    data = small(kinds=kinds, image_size=8)
    batch = data.__getitems__([4, 0, 9])
    assert all(same(item, small(kinds=kinds, image_size=8)[index]) for item, index in zip(batch, (4, 0, 9), strict=True))
    assert not torch.equal(data[4]["points"], data[0]["points"])
    assert not torch.equal(data[4]["points"], small(kinds=kinds, image_size=8, seed=1)[4]["points"])


def test_global_randomness_plays_no_part():
    data = small()
    torch.manual_seed(1)
    first = data[3]
    torch.manual_seed(2)
    assert same(first, data[3]) and same(first, SeededItems(data, 7).__getitems__(Share(12, [3]))[0])


def test_points_and_distances_of_a_creature_are_its_own():
    data = small(near=30, uniform=20, num_frames=3)
    item, creature = data[7], data.creatures([7])
    steps = item["framestep"].long()
    at = creature.frames(steps[None])
    assert torch.allclose(at.sdf(item["queries"][None])[0], item["sdf"])
    surface = at.sdf(item["points"][None, ..., :3])[0]
    assert float(surface.max()) < 1e-5 and float((surface > -1e-5).float().mean()) > 0.9
    near = item["sdf"][:, :30]
    assert float(near.abs().max()) < 0.06 * 4.5 and float(item["queries"][:, 30:].abs().max()) <= 1
    assert torch.allclose(item["frames"][:, 3], creature.silhouettes(16, "box")[0, steps])
    shape = data.shape(7)
    vertices = shape.vertices(clip_times(6))[steps]
    assert float(at.sdf(vertices[None]).max()) < 1e-4  # the mesh of the shape is that creature's


def test_distances_of_other_kinds_are_those_of_their_shape():
    data = small(kinds=("twist",), image_size=8, num_frames=2)
    item, shape = data[2], data.shape(2)
    times = clip_times(6)[item["framestep"].long()]
    assert torch.equal(item["sdf"], shape.sdf(item["queries"], times))
    assert float(shape.sdf(item["points"][..., :3], times).abs().max()) < 1e-5
    assert float(item["frames"][:, 3].mean()) > 0.1


@pytest.mark.parametrize("kind", ["creature", "blob"])
def test_fewer_frames_are_different_ones_in_order(kind):
    item = small(kinds=(kind,), num_frames=4, image_size=8)[1]
    steps = item["framestep"].tolist()
    assert steps == sorted(set(steps)) and len(steps) == 4 and set(steps) <= set(range(6))
    single = [small(kinds=(kind,), num_frames=1, image_size=8)[i]["framestep"].item() for i in range(12)]
    assert len(set(single)) > 2
    assert torch.equal(small(kinds=(kind,), image_size=8)[1]["framestep"], torch.arange(6.0))


def test_every_frame_is_drawn_equally_often():
    counts = torch.zeros(5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        counts[draw_steps(5, 2, generator)] += 1
    assert ((counts / 4000 - 0.2).abs() < 0.02).all()


def test_kinds_come_equally_often():
    data = ProceduralAnimations(kinds=("bend", "blob"), length=2000)
    share = sum(data.kind(i) == "bend" for i in range(2000)) / 2000
    assert 0.45 < share < 0.55


@pytest.mark.parametrize("kind", ["creature", "bend"])
def test_box_framing_fills_the_frame_and_world_framing_does_not(kind):
    world, box = (small(kinds=(kind,), framing=framing, image_size=60)[0]["frames"][:, 3] for framing in ("world", "box"))
    extent = lambda seen, axis: (lambda places: int(places.max() - places.min()) + 1)((seen > 0.5).any(0).any(axis).nonzero())
    assert abs(max(extent(box, 0), extent(box, 1)) - 50) <= 2  # a tenth of the side on both sides of it
    assert max(extent(world, 0), extent(world, 1)) <= 56


@pytest.mark.parametrize("kind", ["creature", "bend"])
def test_pictures_of_the_training_are_those_that_the_pipeline_prepares(kind):
    seen = small(kinds=(kind,))[3]["frames"]
    video = small(kinds=(kind,), framing="world", image_size=256)[3]["frames"]
    difference = (toy_context(seen) - toy_context(prepare_frames(video)))[..., :16].abs()
    assert float(difference.mean()) < 0.03 and float(difference.quantile(0.99)) < 0.35  # silhouettes run from -1 to 1


def test_a_creature_is_rasterised_as_its_silhouette():
    data = small(image_size=32)
    fast = data[5]["frames"][:, 3]
    slow = data._shape_item(5)["frames"][:, 3]
    assert float((fast - slow).abs().mean()) < 0.01


def test_random_views_differ_and_look_from_above():
    frames = [small(kinds=("walk",), image_size=24, num_frames=1, random_view=True)[i]["frames"][0, 3] for i in range(3)]
    assert not torch.equal(frames[0], frames[1]) and all(0.02 < float(frame.mean()) < 0.5 for frame in frames)
    assert float(small(image_size=24, random_view=True)[0]["frames"][:, 3].mean()) > 0.01


def test_batches_collate_and_queries_are_left_out_where_none_are_wanted():
    data = small(near=0, uniform=0)
    assert isinstance(data, Dataset) and len(data) == 50
    batch = default_collate(data.__getitems__(range(3)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "points": (3, 6, 40, 6),
        "frames": (3, 6, 4, 16, 16),
        "framestep": (3, 6),
    }
    assert data.__getitems__([]) == []


def test_near_queries_have_the_spread_that_is_asked_for():
    points = torch.zeros(1, 3, 6)
    drawn = Queries(near=4000, uniform=4000, sigma=0.1).draw(points, torch.Generator().manual_seed(0))[0]
    assert float(drawn[:4000].std()) == pytest.approx(0.1, rel=0.03) and float(drawn[4000:].std()) == pytest.approx(3**-0.5, rel=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("dog",)}, "kinds are of bend, twist, walk, cloth, blob, creature.*got dog"),
        ({"kinds": ()}, "got no kinds"),
        ({"motion": "wild"}, "motion is mixed or const.*'wild'"),
        ({"framing": "tight"}, "framing is world or box.*'tight'"),
        ({"num_frames": 7}, "from 1 to 6 frames, those of a clip; got num_frames 7"),
        ({"num_points": 0}, "must be at least 1; got 6, 0, 16 and 50"),
        ({"near": -1}, "near, uniform and near_sigma must not be negative; got -1, 5 and 0.06"),
    ],
)
def test_data_that_cannot_be_made_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_indices_outside_the_data_set_are_refused():
    with pytest.raises(IndexError, match="has 50 items; got index 50"):
        small()[50]
    with pytest.raises(ValueError, match="Item 0 is a bend, no creature"):
        small(kinds=("bend",)).creatures([0])
