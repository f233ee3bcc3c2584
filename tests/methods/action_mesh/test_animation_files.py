import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.methods.action_mesh.animation_files import AnimationFolder, list_animations, read_animation, write_animations
from visiongraft.methods.action_mesh.data import ProceduralAnimations


def arrays(frames=4, points=30, size=6, seed=0):
    """A clip whose i-th point moves along x and keeps y = i / points."""
    rng = np.random.default_rng(seed)
    positions = np.zeros((frames, points, 6), np.float32)
    positions[..., 0] = np.linspace(-0.5, 0.5, frames)[:, None]
    positions[..., 1] = np.arange(points) / points
    positions[..., 5] = 2  # normals of any length
    return {"points": positions, "frames": rng.integers(0, 255, (frames, 4, size, size), dtype=np.uint8)}


def write(folder, name="clip.npz", **changes):
    content = arrays() | changes
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def bench(folder, sizes=(8, 8, 8), images="images"):
    folder.mkdir(parents=True)
    np.save(folder / "surfaces.npy", arrays(frames=len(sizes))["points"])
    (folder / images).mkdir(exist_ok=True)
    for k, size in enumerate(sizes):
        pixels = np.full((size, size, 4), 10 * k, np.uint8)
        Image.fromarray(pixels).save(folder / images / f"{k}.png")
    return folder


def test_made_up_clips_come_back_from_their_files(tmp_path):
    data = ProceduralAnimations(kinds=("creature", "bend"), num_points=30, near=8, uniform=4, image_size=16, length=10)
    paths = write_animations(data, tmp_path, 3, first=2)
    assert [path.name for path in paths] == [f"{data.kind(i)}_{i:06d}.npz" for i in (2, 3, 4)]
    folder = AnimationFolder(tmp_path, num_frames=6, num_points=None, near=8, uniform=4)
    for place, path in enumerate(folder.files):
        index = int(path.stem[-6:])
        item, made = folder[place], data[index]
        assert item.keys() == made.keys() and folder.caption(place) == data.shape(index).caption
        for name in ("points", "framestep"):
            assert torch.allclose(item[name], made[name], atol=1e-6)
        assert float((item["frames"] - made["frames"]).abs().max()) <= 0.5 / 255 + 1e-6
        order = item["sdf"].argsort(1), made["sdf"].argsort(1)
        assert torch.allclose(item["sdf"].gather(1, order[0]), made["sdf"].gather(1, order[1]))


def test_a_stopped_writing_goes_on_with_what_is_missing(tmp_path):
    data = ProceduralAnimations(num_points=10, length=5)
    first, second = write_animations(data, tmp_path, 2, names=["a", "b"])
    second.unlink()
    before = first.stat().st_mtime_ns
    assert write_animations(data, tmp_path, 2, names=["a", "b"]) == [first, second]
    assert first.stat().st_mtime_ns == before and second.is_file()


def test_items_are_stretches_of_tracked_points(tmp_path):
    write(tmp_path)
    folder = AnimationFolder(tmp_path, num_frames=2, num_points=12, draws=20)
    starts = set()
    for item in (folder[i] for i in range(20)):
        points, start = item["points"], int(item["framestep"][0])
        starts.add(start)
        assert item["framestep"].tolist() == [start, start + 1]
        assert torch.equal(points[0, :, 1], points[1, :, 1]) and len(points[0, :, 1].unique()) == 12
        x = torch.linspace(-0.5, 0.5, 4)[[start, start + 1]]
        assert torch.allclose(points[..., 0], x[:, None].expand(-1, 12))
        assert torch.allclose(points[..., 3:], torch.tensor([0.0, 0.0, 1.0]))
    assert starts == {0, 1, 2}


def test_an_item_depends_on_the_name_of_its_file_and_not_on_the_others(tmp_path):
    write(tmp_path, "b.npz")
    alone = AnimationFolder(tmp_path, num_frames=2, num_points=5, near=3, draws=2, seed=4)[1]
    write(tmp_path, "a.npz")
    beside = AnimationFolder(tmp_path, num_frames=2, num_points=5, near=3, draws=2, seed=4)
    assert all(torch.equal(alone[name], beside[3][name]) for name in alone)
    assert not torch.equal(beside[1]["points"], beside[3]["points"])


def test_distances_are_measured_where_files_have_none(tmp_path):
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.randn(4000, 3, generator=generator), dim=-1)
    radius = torch.tensor([0.4, 0.7])[:, None, None]
    sphere = torch.cat([radius * normal, normal.expand(2, -1, -1)], -1).numpy()
    write(tmp_path, points=sphere, frames=arrays(frames=2)["frames"])
    item = AnimationFolder(tmp_path, num_frames=2, num_points=100, near=300, uniform=100)[0]
    exact = item["queries"].norm(dim=-1) - radius[:, 0]
    assert float((item["sdf"] - exact).abs().max()) < 0.02 and float((item["sdf"] - exact).abs().mean()) < 0.002


def test_stored_features_and_smaller_frames_are_given(tmp_path):
    context = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    steps = np.array([2.0, 3.0, 5.0, 9.0])
    write(tmp_path, context=context, framestep=steps)
    item = AnimationFolder(tmp_path, num_frames=4, num_points=60, image_size=3)[0]
    assert torch.equal(item["context"], torch.from_numpy(context)) and item["framestep"].tolist() == steps.tolist()
    whole = read_animation(tmp_path / "clip.npz")["frames"]
    assert torch.allclose(item["frames"][0, 0, 0, 0], whole[0, 0, :2, :2].mean())
    assert item["points"].shape == (4, 60, 6)  # repeated where there are too few


def test_rgb_frames_get_the_alpha_of_what_is_not_white(tmp_path):
    frames = np.full((4, 3, 2, 2), 255, np.uint8)
    frames[:, 0, 0, 0] = 0
    write(tmp_path, frames=frames)
    found = read_animation(tmp_path / "clip.npz")["frames"]
    assert found.shape == (4, 4, 2, 2) and found[0, 3].tolist() == [[1, 0], [0, 0]]


def test_actionbench_folders_are_read_in_natural_order(tmp_path):
    folder = bench(tmp_path / "data" / "uid", sizes=[8] * 11)
    assert list_animations(tmp_path) == [folder]
    animation = read_animation(folder)
    assert torch.allclose(animation["frames"][:, 3, 0, 0] * 25.5, torch.arange(11.0)) and animation["points"].shape == (11, 30, 6)
    assert len(AnimationFolder(tmp_path, num_frames=11, num_points=5)[0]["frames"]) == 11


def test_hidden_files_are_left_out(tmp_path):
    write(tmp_path / ".cache")
    write(tmp_path / "a")
    assert [path.parent.name for path in list_animations(tmp_path)] == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": None}, r"lacks 'points' \(it has frames\)"),
        ({"frames": None}, r"lacks 'frames' \(it has framestep, points\)|lacks 'frames'"),
        ({"points": np.zeros((4, 30, 3), np.float32)}, r"points are \(frames, points, 6\), xyz and normal; got \(4, 30, 3\)"),
        ({"points": np.zeros((4, 6), np.float32)}, r"points is a numeric array of 3 axes; got float32 of shape \(4, 6\)"),
        ({"points": np.full((4, 30, 6), np.nan, np.float32)}, "points has values that are not finite"),
        ({"points": np.zeros((4, 30, 6), np.float32)}, "120 normals have no length"),
        ({"frames": np.zeros((3, 4, 6, 6), np.uint8)}, "frames has 3 frames, but points has 4"),
        ({"frames": np.full((4, 4, 6, 6), 7.0)}, r"uint8 or in \[0, 1\]; got shape \(4, 4, 6, 6\), values from 7 to 7"),
        ({"frames": np.zeros((4, 2, 6, 6))}, r"3 or 4, height, width"),
        ({"frames": np.array(["x"])}, "frames is a numeric array of 4 axes"),
        ({"context": np.zeros((5, 2, 2))}, "context has 5 frames, but points has 4"),
        ({"queries": np.zeros((4, 2, 3))}, "has one of queries and sdf"),
    ],
)
def test_animations_that_do_not_fit_are_refused_by_name(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        AnimationFolder(tmp_path, num_frames=2, num_points=4)[0]
    assert str(path) in str(caught.value)


def test_too_short_animations_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"clip.npz has 4 frames, fewer than the 16 of a clip"):
        AnimationFolder(tmp_path)[0]


def test_points_outside_the_world_are_warned_about(tmp_path):
    points = arrays()["points"]
    points[..., 0] *= 6
    write(tmp_path, points=points)
    with pytest.warns(UserWarning, match=r"points reach 3, but models see \[-1, 1\]\^3"):
        read_animation(tmp_path / "clip.npz")


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 cut off"])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.npz is damaged or no npz file of plain arrays"):
        AnimationFolder(tmp_path)[0]


def test_files_cut_short_and_pickles_are_refused(tmp_path):
    path = write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"clip.npz is damaged"):
        read_animation(path)
    np.savez(path, points=np.array([{"a": 1}], dtype=object), frames=arrays()["frames"])
    with pytest.raises(ValueError, match=r"clip.npz is damaged or no npz file of plain arrays .*pickle"):
        read_animation(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").replace(tmp_path / "array.npz")
    with pytest.raises(ValueError, match=r"array.npz is damaged"):
        read_animation(tmp_path / "array.npz")


def test_bad_actionbench_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1.png has 9x9 pixels, the first frame 8x8; all frames have one size"):
        read_animation(bench(tmp_path / "sizes", (8, 9, 8)))
    folder = bench(tmp_path / "empty", (8, 8))
    for picture in (folder / "images").iterdir():
        picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"has surfaces.npy but no pictures"):
        read_animation(folder)
    folder = bench(tmp_path / "damaged", (8, 8))
    (folder / "images" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"1.png is damaged or no picture"):
        read_animation(folder)
    (folder / "surfaces.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"surfaces.npy is damaged or no plain array"):
        read_animation(folder)


def test_missing_folders_and_bad_options_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        AnimationFolder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no .npz files and no folders with surfaces.npy"):
        AnimationFolder(tmp_path)
    write(tmp_path)
    for options in ({"num_frames": 0}, {"num_points": 0}, {"image_size": 0}, {"draws": 0}):
        with pytest.raises(ValueError, match=r"num_frames, num_points, image_size and draws must be at least 1"):
            AnimationFolder(tmp_path, **options)
    with pytest.raises(IndexError, match=r"has 1 items; got index 1"):
        AnimationFolder(tmp_path)[1]
    with pytest.raises(ValueError, match=r"Items 0 to 5 of 5 cannot be written to 6 files"):
        write_animations(ProceduralAnimations(length=5), tmp_path, 6)
