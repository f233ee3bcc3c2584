import json
import math

import pytest
import torch

from visiongraft.geometry.cameras import rotation_from_angles, rotation_from_quaternion
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.media.images import read_image
from visiongraft.methods.panorama.crops import CropConfig, export_crops, view_rotations


def world(directions):
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    return torch.stack([0.5 + 0.4 * (2 * x + y).sin(), 0.5 + 0.4 * x * z, 0.5 + 0.4 * (2 * y - z).cos()], 0)


PANORAMA = world(panorama_rays(64, 128))


def read_model(folder):
    """Names, world-to-camera rotations and translations, and (fx, fy, cx, cy), read as the COLMAP text format says."""
    rows = [line for line in (folder / "cameras.txt").read_text().splitlines() if not line.startswith("#")]
    number, model, width, height, *params = rows[0].split()
    assert (len(rows), number, model, width) == (1, "1", "PINHOLE", height)
    lines = [line for line in (folder / "images.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(line == "" for line in lines[1::2])  # an image's second line holds its points
    fields = [line.split() for line in lines[::2]]
    poses = torch.tensor([[float(v) for v in f[1:8]] for f in fields], dtype=torch.float64)
    assert [int(f[0]) for f in fields] == list(range(1, len(fields) + 1)) and {f[8] for f in fields} == {"1"}
    return [f[9] for f in fields], rotation_from_quaternion(poses[:, :4]), poses[:, 4:], [float(p) for p in params]


@pytest.mark.parametrize(
    "config", [CropConfig(size=32), CropConfig(layout="cube", size=32), CropConfig(views=6, hfov_deg=75.0, pitch_deg=20.0, size=32)]
)
def test_the_colmap_model_explains_every_pixel_of_the_views(tmp_path, config):
    files = export_crops([PANORAMA], tmp_path, config)
    names, rotations, translations, (fx, fy, cx, cy) = read_model(tmp_path / "sparse" / "0")
    assert [tmp_path / "images" / n for n in names] == files and len(files) == (6 if config.layout == "cube" else config.views)
    assert fx == fy == pytest.approx(16 / math.tan(math.radians(config.hfov_deg / 2))) and cx == cy == 16
    assert translations.abs().max() == 0
    pixels = torch.stack(torch.meshgrid(torch.arange(32.0) + 0.5, torch.arange(32.0) + 0.5, indexing="xy"), -1).double()
    rays = torch.cat([(pixels - 16) / fx, torch.ones(32, 32, 1)], -1)
    for file, rotation in zip(files, rotations, strict=True):
        assert (read_image(file).double() - world(rays @ rotation)).abs().max() < 0.02  # rays @ w2c is (w2c^T ray)


def test_known_points_reproject_from_the_model_and_from_transforms(tmp_path):
    g = torch.Generator().manual_seed(0)
    positions = torch.randn(3, 3, generator=g)
    turns = rotation_from_angles(*torch.randn(3, 3, generator=g))
    config = CropConfig(views=6, size=16)
    export_crops([PANORAMA] * 3, tmp_path, config, positions, turns)
    names, rotations, translations, (fx, _, cx, _) = read_model(tmp_path / "sparse" / "0")
    transforms = json.loads((tmp_path / "transforms.json").read_text())
    point = torch.tensor([0.3, -0.2, 5.0], dtype=torch.float64)
    views = list(view_rotations(config).values())
    for i, (name, rotation, translation) in enumerate(zip(names, rotations, translations, strict=True)):
        frame, view = divmod(i, 6)
        expected = (turns[frame].double() @ views[view]).mT @ (point - positions[frame].double())
        assert torch.allclose(rotation @ point + translation, expected, atol=1e-6)
        entry = transforms["frames"][i]
        assert entry["file_path"] == f"images/{name}" and name == f"view_{view}/frame_{frame:05d}.png"
        to_world = torch.tensor(entry["transform_matrix"], dtype=torch.float64)
        z_up_point = torch.tensor([point[0], point[2], -point[1], 1.0], dtype=torch.float64)
        opengl = torch.linalg.inv(to_world) @ z_up_point
        assert torch.allclose(opengl[:3] * torch.tensor([1.0, -1.0, -1.0]), expected, atol=1e-6)
    assert (transforms["fl_x"], transforms["cx"], transforms["w"]) == (pytest.approx(fx), cx, 16)


def test_the_rig_turns_the_first_view_into_the_others(tmp_path):
    config = CropConfig(views=4, size=8)
    export_crops([PANORAMA], tmp_path, config)
    _, rotations, _, _ = read_model(tmp_path / "sparse" / "0")
    (rig,) = json.loads((tmp_path / "rig_config.json").read_text())
    assert rig["cameras"][0] == {"image_prefix": "view_0/", "ref_sensor": True}
    for camera, rotation in zip(rig["cameras"][1:], rotations[1:], strict=True):
        from_rig = rotation_from_quaternion(torch.tensor(camera["cam_from_rig_rotation"], dtype=torch.float64))
        assert torch.allclose(from_rig @ rotations[0], rotation, atol=1e-12) and camera["cam_from_rig_translation"] == [0, 0, 0]


def test_an_interrupted_export_goes_on_and_every_nth_frame_is_taken(tmp_path):
    config = CropConfig(views=2, size=8, every=2)

    def frames(fail_at=None):
        for i in range(5):
            if i == fail_at:
                raise KeyboardInterrupt
            yield PANORAMA

    with pytest.raises(KeyboardInterrupt):
        export_crops(frames(fail_at=4), tmp_path, config)
    kept = tmp_path / "images" / "view_0" / "frame_00002.png"
    before = kept.stat().st_mtime_ns
    files = export_crops(frames(), tmp_path, config)
    assert kept.stat().st_mtime_ns == before
    assert [f.name for f in files[::2]] == ["frame_00000.png", "frame_00002.png", "frame_00004.png"]
    with pytest.raises(ValueError, match="holds crops of other settings"):
        export_crops(frames(), tmp_path, CropConfig(views=3, size=8))


def test_a_folder_takes_one_panorama_only(tmp_path):
    """Its pictures are kept, so that a second panorama would get those of the first."""
    config = CropConfig(views=2, size=8)
    files = export_crops([PANORAMA], tmp_path, config)
    before = [file.read_bytes() for file in files]
    for other in (PANORAMA.roll(1, -1), PANORAMA[:, ::2, ::2]):
        with pytest.raises(ValueError, match="holds crops of another panorama; delete it or choose another folder"):
            export_crops([other], tmp_path, config)
    assert [file.read_bytes() for file in files] == before
    files[1].unlink()
    assert [file.read_bytes() for file in export_crops([PANORAMA.clone()], tmp_path, config)] == before


@pytest.mark.parametrize("name", ["positions", "rotations"])
def test_the_same_panorama_at_other_poses_is_another_one(tmp_path, name):
    config = CropConfig(views=1, size=8)
    given = {"positions": torch.zeros(1, 3), "rotations": torch.eye(3)[None]}
    other = {"positions": torch.ones(1, 3), "rotations": rotation_from_angles(*torch.full((3, 1), 0.1))}
    export_crops([PANORAMA], tmp_path, config, **given)
    export_crops([PANORAMA], tmp_path, config, **given)
    with pytest.raises(ValueError, match="holds crops of another panorama"):
        export_crops([PANORAMA], tmp_path, config, **given | {name: other[name]})


def test_a_refused_first_frame_leaves_the_folder_to_others(tmp_path):
    for frames in ([], [torch.rand(3, 8, 8)]):
        with pytest.raises(ValueError):
            export_crops(frames, tmp_path, CropConfig(size=8))
    assert len(export_crops([PANORAMA], tmp_path, CropConfig(views=2, size=8))) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hfov_deg": 1.57}, "did you pass radians"),
        ({"layout": "cube", "hfov_deg": 60.0}, "Use layout=ring"),
        ({"pitch_deg": 91.0}, "pitch_deg must be in"),
        ({"every": 0}, "every must be at least 1; got 0"),
        ({"views": 0}, "views must be at least 1"),
    ],
)
def test_views_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        CropConfig(**settings)


def test_exports_of_nothing_or_of_pictures_that_are_no_panoramas_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        export_crops([], tmp_path / "a")
    with pytest.raises(ValueError, match="W = 2H; got 8x8"):
        export_crops([torch.rand(3, 8, 8)], tmp_path / "b")
    with pytest.raises(ValueError, match="got 1 and at least 2 frames"):
        export_crops([PANORAMA] * 2, tmp_path / "c", CropConfig(views=1, size=8), positions=torch.zeros(1, 3))
