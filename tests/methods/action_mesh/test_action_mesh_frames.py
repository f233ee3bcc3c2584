"""Frames: what is read is what was written, alpha included, and the crop is the box of the whole clip."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from visiongraft.media.images import save_image
from visiongraft.media.video_writing import write_video
from visiongraft.methods.action_mesh.frames import (
    border_frames,
    check_num_frames,
    composite_on_white,
    named_numbers,
    prepare_frames,
    read_frames,
    union_box,
)


def pictures(num: int, height: int = 12, width: int = 16, channels: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, channels), dtype=np.uint8)


def write_folder(folder: Path, frames: np.ndarray) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


def disc(alpha_of: list[tuple[int, int, int]], height: int = 40, width: int = 60) -> Tensor:
    """Black discs (row, column, radius) before transparent green."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    frames = torch.zeros(len(alpha_of), 4, height, width)
    frames[:, 1] = 1
    for frame, (row, column, radius) in zip(frames, alpha_of, strict=True):
        inside = (y - row) ** 2 + (x - column) ** 2 <= radius**2
        frame[3] = inside.float()
        frame[:3, inside] = 0
    return frames


def test_a_folder_of_rgba_pictures_comes_back_in_natural_order(tmp_path: Path) -> None:
    given = pictures(12)
    frames = read_frames(write_folder(tmp_path / "clip", given))
    expected = torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(frames, expected)


def test_composites_do_not_depend_on_how_frames_are_given(tmp_path: Path) -> None:
    given = pictures(3)
    expected = composite_on_white(torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255)
    folder = write_folder(tmp_path / "clip", given)
    tensors = torch.from_numpy(given).permute(0, 3, 1, 2)
    for source in (folder, sorted(folder.iterdir()), [Image.fromarray(frame) for frame in given], given, tensors, list(tensors)):
        assert torch.allclose(composite_on_white(read_frames(source)), expected, atol=1e-6)


def test_pictures_without_alpha_are_opaque_and_exact() -> None:
    given = pictures(2, channels=3)
    frames = read_frames(given)
    assert torch.equal(frames[:, :3], torch.from_numpy(given).permute(0, 3, 1, 2).float() / 255)
    assert bool((frames[:, 3] == 1).all())


def test_first_stride_and_max_frames_choose(tmp_path: Path) -> None:
    given = pictures(11, channels=3)
    all_frames = read_frames(given)
    assert torch.equal(read_frames(given, first=1, stride=3), all_frames[1::3])
    assert torch.equal(read_frames(given, first=2, stride=2, max_frames=3), all_frames[[2, 4, 6]])
    assert torch.equal(read_frames(given, max_frames=100), all_frames)


def test_a_video_is_read_with_stride_and_rate(tmp_path: Path) -> None:
    levels = torch.linspace(0, 1, 9)
    path = write_video(levels[:, None, None, None].expand(-1, 3, 32, 48), tmp_path / "ramp.mp4", fps=8)
    frames = read_frames(path, stride=2)
    assert frames.shape == (5, 4, 32, 48)
    assert torch.allclose(frames[:, :3].mean((1, 2, 3)), levels[::2], atol=0.02)
    assert torch.allclose(read_frames(path, fps=4)[:, 0].mean((1, 2)), levels[[0, 2, 4, 6, 8]], atol=0.02)
    assert torch.equal(read_frames(path, first=1, stride=2, max_frames=2), read_frames(path)[1:5:2])


def test_masks_become_alpha_and_follow_the_same_choice(tmp_path: Path) -> None:
    given, masks = pictures(6, channels=3), (pictures(6, channels=1)[..., 0] > 127).astype(np.uint8) * 255
    folder = write_folder(tmp_path / "masks", masks)
    frames = read_frames(given, folder, stride=2)
    assert torch.equal(frames[:, 3], torch.from_numpy(masks[::2]).float() / 255)
    assert torch.equal(frames[:, :3], read_frames(given, stride=2)[:, :3])


def test_large_frames_shrink_without_a_halo_of_hidden_colours() -> None:
    frames = disc([(60, 90, 40)] * 2, 120, 180)  # green where it is transparent
    small = read_frames(frames, max_side=45)
    assert small.shape == (2, 4, 30, 45)
    visible = small[:, 3] > 0.05
    assert float(small[:, :3].permute(0, 2, 3, 1)[visible].max()) < 0.02
    assert torch.isclose(small[:, 3].mean(), frames[:, 3].mean(), rtol=0.01)
    assert torch.equal(read_frames(frames, max_side=180), read_frames(frames))


def test_the_crop_is_the_union_box_padded_to_a_square() -> None:
    frames = disc([(20, 15, 8), (22, 40, 6)])
    assert union_box(frames[:, 3]) == (12, 7, 29, 47)  # rows 12 to 28, columns 7 to 46
    before = frames.clone()
    prepared = prepare_frames(frames)
    assert torch.equal(frames, before)
    side, margin = 40 + 2 * 4, 4
    assert prepared.shape == (2, 3, side, side)
    above = margin + (40 - 17) // 2
    inner = prepared[:, :, above : above + 17, margin : margin + 40]
    assert torch.equal(inner, composite_on_white(frames)[:, :, 12:29, 7:47])
    outside = prepared.clone()
    outside[:, :, above : above + 17, margin : margin + 40] = 1
    assert bool((outside == 1).all())


def test_the_object_fills_ten_twelfths_of_the_square() -> None:
    prepared = prepare_frames(disc([(50, 50, 30)], 100, 100))
    dark = (prepared[0].mean(0) < 0.5).any(0).nonzero()[:, 0]
    assert int(dark[-1] - dark[0]) + 1 == 61 and prepared.shape[-1] == 61 + 2 * 6


def test_the_crop_moves_with_the_object() -> None:
    first = prepare_frames(disc([(15, 20, 7), (17, 25, 5)]))
    assert torch.equal(first, prepare_frames(disc([(20, 30, 7), (22, 35, 5)])))


def test_faint_pixels_below_half_a_step_do_not_widen_the_box() -> None:
    frames = disc([(20, 30, 8)])
    frames[0, 3, 0, 0] = 0.4 / 255
    assert union_box(frames[:, 3]) == (12, 22, 29, 39)
    frames[0, 3, 0, 0] = 0.6 / 255
    assert union_box(frames[:, 3]) == (0, 0, 29, 39)


def test_what_touches_the_border_warns_and_is_named() -> None:
    frames = disc([(20, 30, 8), (20, 4, 8), (35, 30, 8)])
    assert border_frames(frames[:, 3]) == [1, 2]
    with pytest.warns(UserWarning, match=r"touches the border in frames 1, 2: .* shows all of it"):
        prepare_frames(frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_frames(frames[:1])


def test_a_short_clip_warns_and_one_frame_is_refused() -> None:
    with pytest.warns(UserWarning, match="has 4 frames and the model was trained on 16"):
        check_num_frames(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_num_frames(16)
        check_num_frames(6, trained=6)
    with pytest.raises(ValueError, match="need at least 2 frames, got 1"):
        check_num_frames(1)


def test_bad_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need at least 2 frames, got 1; give a longer clip"):
        read_frames(pictures(1))
    with pytest.raises(ValueError, match="need at least 2 frames, got 0; "):
        read_frames([])
    with pytest.raises(ValueError, match="got 1 after first=2, stride=8; give a longer clip or a smaller stride"):
        read_frames(pictures(9), first=2, stride=8)
    assert read_frames(pictures(1), min_frames=1).shape == (1, 4, 12, 16)
    mixed = [*pictures(3), pictures(1, 12, 20)[0]]
    with pytest.raises(ValueError, match=r"frame 3 has 20x12 pixels and frame 0 has 16x12 .* one size"):
        read_frames(mixed)
    with pytest.raises(ValueError, match="stride must be 1 or more; got 0"):
        read_frames(pictures(3), stride=0)
    with pytest.raises(ValueError, match="first must be 0 or more; got -1"):
        read_frames(pictures(3), first=-1)
    with pytest.raises(ValueError, match="fps=4 is for video files"):
        read_frames(pictures(3), fps=4)
    with pytest.raises(ValueError, match=r"four axes .* got \(12, 16, 4\)"):
        read_frames(pictures(1)[0])
    with pytest.raises(ValueError, match="frame 1: The image contains NaN"):
        read_frames([torch.zeros(3, 4, 4), torch.full((3, 4, 4), torch.nan)])
    with pytest.raises(ValueError, match=r"2 or more frames of 16x12 .* larger stride"):
        read_frames(pictures(3), max_bytes=5000)
    with pytest.raises(FileNotFoundError, match="no video file"):
        read_frames(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match="no image or folder"):
        read_frames(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no images"):
        read_frames(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    save_image(torch.rand(3, 8, 8), tmp_path / "broken" / "0.png")
    (tmp_path / "broken" / "1.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"frame 1: .*1\.png is not an image"):
        read_frames(tmp_path / "broken")


def test_bad_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 masks for 3 frames"):
        read_frames(pictures(3), pictures(2))
    with pytest.raises(ValueError, match=r"masks have 8x6 pixels and the frames 16x12"):
        read_frames(pictures(3), pictures(3, 6, 8))


def test_frames_without_object_or_background_are_refused() -> None:
    frames = disc([(20, 30, 8), (20, 30, 2), (20, 30, 8)])
    with pytest.raises(ValueError, match=r"frame 1: no foreground \(0\.54 % of pixels\); give masks"):
        prepare_frames(frames)
    assert prepare_frames(frames, min_share=0.005).shape[0] == 3
    frames[1, 3] = 0
    with pytest.raises(ValueError, match=r"frame 1: no foreground \(0 % of pixels\)"):
        prepare_frames(frames, min_share=0.0)
    frames[1, 3] = 1
    with pytest.raises(ValueError, match=r"frame 1: no background \(100 % of pixels are foreground\); give masks"):
        prepare_frames(frames)
    with pytest.raises(ValueError, match=r"padding is a share .* got -1"):
        prepare_frames(disc([(20, 30, 8)]), padding=-1.0)
    with pytest.raises(ValueError, match="wholly transparent"):
        union_box(torch.zeros(2, 4, 4))


def test_many_numbers_are_cut_short() -> None:
    assert named_numbers([1, 2]) == "1, 2"
    assert named_numbers(list(range(9))) == "0, 1, 2, 3, 4 and 4 more"
