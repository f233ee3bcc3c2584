import av
import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays
from visiongraft.media.images import save_image
from visiongraft.methods.panorama.augmentation import CameraRanges, crop_at, training_pair
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.data import PanoramaFolder, check_full_panorama, list_panoramas, read_caption, read_panorama

IMAGE = GraftConfig.image(height=32, condition_size=16)
VIDEO = GraftConfig.video(height=32, condition_size=16, num_frames=5)


def world(height: int = 64, turn: float = 0.0) -> torch.Tensor:
    """A smooth function on the sphere, with enough detail that no two neighbouring columns are equal."""
    x, y, z = panorama_rays(height, 2 * height).unbind(-1)
    return torch.stack([0.5 + 0.3 * torch.sin(5 * x + turn), 0.5 + 0.3 * torch.cos(4 * z + y), 0.5 + 0.2 * y + 0.2 * torch.sin(7 * x * z)])


def write_video(path, frames: list[torch.Tensor], fps: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[1], frames[0].shape[2], "bgr0"
        for frame in frames:
            pixels = (frame * 255).round().byte().permute(1, 2, 0).numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())


@pytest.fixture
def folder(tmp_path):
    for name, turn in (("a.png", 0.0), ("b.png", 1.0), ("deep/er/c.png", 2.0)):
        save_image(world(turn=turn), tmp_path / name)
    (tmp_path / "a.txt").write_text("a room\nwith waves ")
    (tmp_path / "deep" / "er" / "c.txt").write_text("A 360° image of a lake")
    (tmp_path / ".hidden").mkdir()
    save_image(world(), tmp_path / ".hidden" / "d.png")
    return tmp_path


def test_pair_is_the_training_pair_of_its_draw(folder):
    pairs = PanoramaFolder(list_panoramas(folder, "image"), IMAGE, draws=3)
    panorama, condition = pairs[4]  # the second file's second draw

    wanted = training_pair(read_panorama(folder / "b.png"), pairs.draw(4).view, 32, 16)

    assert len(pairs) == 9
    assert torch.equal(panorama, wanted[0]) and torch.equal(condition, wanted[1])
    assert (panorama.shape, condition.shape) == ((3, 32, 64), (3, 16, 16))


def test_pair_depends_on_name_draw_and_seed_alone(folder):
    files = list_panoramas(folder, "image")
    pairs, fewer, other = (
        PanoramaFolder(chosen, IMAGE, draws=2, seed=seed, root=folder) for chosen, seed in ((files, 0), (files[1:], 0), (files, 1))
    )
    torch.manual_seed(1)
    first = pairs[2]
    torch.manual_seed(2)

    assert all(torch.equal(a, b) for a, b in zip(first, fewer[0], strict=True))
    assert pairs.draw(2) != pairs.draw(3) != other.draw(3)


def test_captions_are_read_and_prefixed(folder):
    pairs = PanoramaFolder(list_panoramas(folder, "image"), IMAGE, draws=1)
    assert [pairs.caption(i) for i in range(3)] == ["A 360° image of a room with waves", "", "A 360° image of a lake"]


def test_caption_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"The caption .*a\.txt is not UTF-8 text; convert it first"):
        read_caption(tmp_path / "a.png")


def test_subfolders_are_searched_and_hidden_ones_left_out(folder):
    assert [path.relative_to(folder).as_posix() for path in list_panoramas(folder, "image")] == ["a.png", "b.png", "deep/er/c.png"]
    with pytest.raises(FileNotFoundError, match="and its subfolders have no videos; give a folder of equirectangular videos"):
        list_panoramas(folder, "video")
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*gone; give a folder of equirectangular images"):
        list_panoramas(folder / "gone", "image")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: torch.cat([p, p[:, -1:]], 1)[:, :65, :128], "ERP must have W = 2H; got 128x65"),
        (lambda p: torch.cat([p, p[..., :1]], -1), "ERP must have W = 2H; got 129x64. The last column repeats the first: drop it"),
        (lambda p: torch.cat([p[..., :-1], p[..., :1]], -1), "the last column repeats the first, but they are neighbours; drop it"),
        (lambda p: p[:, 16:48, 20:84], "left and right borders do not match: not a full 360 ERP, or already cropped"),
    ],
)
def test_picture_that_is_no_full_panorama_is_named(spoil, message, tmp_path):
    save_image(spoil(world()), tmp_path / "bad.png")
    with pytest.raises(ValueError, match=f"bad.png: {message}"):
        read_panorama(tmp_path / "bad.png")


@pytest.mark.parametrize("turn", [0, 17, 64])
def test_full_panorama_passes_whatever_its_yaw(turn, tmp_path):
    panorama = world().roll(turn, -1)
    assert check_full_panorama(panorama, tmp_path) is panorama


def test_flat_panorama_passes(tmp_path):
    """Equal borders prove nothing where neighbouring columns are equal everywhere."""
    flat = torch.linspace(0, 1, 64)[:, None].expand(3, 64, 128)
    assert check_full_panorama(flat, tmp_path) is flat


def test_damaged_file_is_named_in_one_sentence(tmp_path):
    save_image(world(), tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.png is damaged and cannot be decoded"):
        PanoramaFolder([tmp_path / "a.png"], IMAGE)[0]


def test_panorama_smaller_than_the_training_size_is_told(tmp_path):
    save_image(world(16), tmp_path / "a.png")
    with pytest.warns(UserWarning, match=r"a\.png has 16 rows and is enlarged to 32: the model will learn its blur"):
        assert PanoramaFolder([tmp_path / "a.png"], IMAGE)[0].panorama.shape == (3, 32, 64)


def test_grey_and_16_bit_panoramas_are_read(tmp_path):
    grey = (world()[0].numpy() * 65535).round().astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    panorama = read_panorama(tmp_path / "a.png")
    assert torch.allclose(panorama, world()[:1].expand(3, -1, -1), atol=1e-4)


def test_clip_is_what_the_path_sees_at_16_frames_a_second(tmp_path):
    """Each frame of the video shows its time; one at 32 fps gives every second frame."""
    frames = [world(32, turn=k / 32) for k in range(24)]
    write_video(tmp_path / "a.mkv", frames, fps=32)
    pairs = PanoramaFolder(list_panoramas(tmp_path, "video"), VIDEO, draws=6, seed=3)
    for index in range(6):
        panorama, condition = pairs[index]
        drawn = pairs.draw(index)
        first = round(drawn.start * 32)
        for k in range(5):
            near = range(max(first + 2 * k - 1, 0), first + 2 * k + 2)
            shown = [frames[n].roll(-drawn.view.yaw_pixels, -1) for n in near if n < 24]
            errors = [(panorama[k] - frame).abs().max() for frame in shown]
            assert min(errors) < 0.004
            turned = rotation_from_angles(drawn.path.yaw[k], drawn.path.pitch[k], drawn.path.roll[k])
            assert (crop_at(panorama[k], drawn.path.hfov, turned, 16) - condition[k]).abs().max() < 0.02
    starts = [pairs.draw(index).start for index in range(6)]
    assert len(set(starts)) == 6 and min(starts) >= 0 and max(starts) + 4 / 16 < 24 / 32


def test_video_of_exactly_the_clip_is_used_whole(tmp_path):
    write_video(tmp_path / "a.mkv", [world(32, turn=k / 10) for k in range(5)], fps=16)
    pairs = PanoramaFolder([tmp_path / "a.mkv"], VIDEO)
    assert pairs.draw(0).start == 0
    assert pairs[0].panorama.shape == (5, 3, 32, 64) and pairs[0].condition.shape == (5, 3, 16, 16)


def test_video_shorter_than_the_clip_is_refused(tmp_path):
    write_video(tmp_path / "a.mkv", [world(32)] * 4, fps=16)
    with pytest.raises(ValueError, match=r"a\.mkv is 0\.25 s long; a clip of 5 frames at 16 fps needs 0\.31 s\. Give longer videos"):
        PanoramaFolder([tmp_path / "a.mkv"], VIDEO)[0]


def test_video_that_is_no_full_panorama_is_named(tmp_path):
    write_video(tmp_path / "a.mkv", [world()[:, 16:48, 20:84]] * 6, fps=16)
    with pytest.raises(ValueError, match=r"a\.mkv: left and right borders do not match"):
        PanoramaFolder([tmp_path / "a.mkv"], VIDEO)[0]


def test_real_paths_are_drawn(tmp_path):
    write_video(tmp_path / "a.mkv", [world(32)] * 6, fps=16)
    real = torch.tensor([[0.0, 71.0, 0.0]]).expand(9, 3)
    pairs = PanoramaFolder([tmp_path / "a.mkv"], VIDEO, draws=100, real_paths=[real])
    taken = sum(abs(float(pairs.draw(i).path.pitch[0].rad2deg()) - 71) < 1e-3 for i in range(100))
    assert 8 < taken < 34


def test_draws_tell_themselves_apart(tmp_path):
    write_video(tmp_path / "a.mkv", [world(32)] * 6, fps=16)
    video = PanoramaFolder([tmp_path / "a.mkv"], VIDEO, draws=4)
    image = PanoramaFolder([tmp_path / "a.mkv"], IMAGE, draws=4, ranges=CameraRanges(roll_deg=(0.0, 0.0)))
    for pairs in (video, image):
        described = [pairs.draw(i).describe() for i in range(4)]
        assert all(one != other for i, one in enumerate(described) for other in described[:i])
        assert described == [pairs.draw(i).describe() for i in range(4)]


def test_folder_without_draws_or_items_outside_is_refused(tmp_path):
    with pytest.raises(ValueError, match="draws must be at least 1; got 0"):
        PanoramaFolder([tmp_path / "a.png"], IMAGE, draws=0)
    with pytest.raises(IndexError):
        PanoramaFolder([tmp_path / "a.png"], IMAGE)[8]
