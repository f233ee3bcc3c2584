"""Matting: a valid alpha is kept, a plain background is keyed whatever its light, and what cannot be keyed is said."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visiongraft.media.video_writing import write_video
from visiongraft.methods.action_mesh.frames import composite_on_white, prepare_frames, read_frames, union_box
from visiongraft.methods.action_mesh.matting import Keying, border_colours, drop_small, has_valid_alpha, key_background, matte_frames

SIDE = 96


def plane() -> tuple[Tensor, Tensor]:
    line = torch.linspace(-1, 1, SIDE)
    return torch.meshgrid(line, line, indexing="ij")


def disc(radius: float = 0.5, x: float = 0.0, y: float = 0.0) -> Tensor:
    rows, columns = plane()
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).float()


def uneven_light() -> Tensor:
    """A background whose three colours fall off in different ways."""
    y, x = plane()
    return torch.stack([0.8 - 0.1 * (x * x + y * y), 0.6 + 0.08 * x - 0.05 * x * y, 0.5 + 0.1 * y])


def scene(mask: Tensor, background: Tensor, colour: tuple[float, float, float] = (0.1, 0.2, 0.7), noise: float = 0.0) -> Tensor:
    pixels = background * (1 - mask) + torch.tensor(colour)[:, None, None] * mask
    return (pixels + noise * torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def overlap(alpha: Tensor, mask: Tensor) -> float:
    found, true = alpha > 0.5, mask > 0.5
    return float((found & true).sum() / (found | true).sum())


def test_an_alpha_is_valid_with_one_per_cent_on_both_sides() -> None:
    alpha = torch.zeros(6, 100)
    for row, opaque in zip(alpha, (0, 0, 1, 50, 99, 100), strict=True):
        row[:opaque] = 1
    alpha[1, :20] = 127 / 255  # not above 127
    assert has_valid_alpha(alpha.reshape(6, 10, 10)).tolist() == [False, False, True, True, True, False]


def test_a_plain_background_is_keyed_exactly() -> None:
    mask = disc()
    alpha = key_background(scene(mask, torch.ones(3, SIDE, SIDE))[None])
    assert torch.equal(alpha[0], mask)


def test_uneven_light_and_noise_do_no_harm() -> None:
    masks = [disc(0.5, x) for x in (-0.3, 0.0, 0.3)]
    alpha = key_background(torch.stack([scene(mask, uneven_light(), noise=0.02) for mask in masks]))
    assert min(overlap(one, mask) for one, mask in zip(alpha, masks, strict=True)) > 0.99
    assert float(alpha[:, 0, 0].abs().max()) == 0


def test_an_object_that_leaves_the_picture_does_not_become_background() -> None:
    mask = disc(0.8, 0.5, 0.6)  # covers a third of the border
    alpha = key_background(scene(mask, uneven_light())[None])
    assert overlap(alpha[0], mask) > 0.99


def test_the_background_is_a_polynomial_of_degree_two() -> None:
    given = uneven_light().permute(1, 2, 0).double().numpy()
    covered = np.where(disc(0.9, 0.3)[..., None].numpy() > 0, 0.0, given)
    background, noise, share = border_colours(covered, 0.06)
    assert np.abs(background - given).max() < 1e-6 and noise < 1e-6
    ring = np.ones((SIDE, SIDE), bool)
    ring[2:-2, 2:-2] = False
    assert math.isclose(share, float((covered[ring] > 0).all(1).mean()))


def test_noise_is_measured_and_raises_the_tolerance() -> None:
    noisy = scene(torch.zeros(SIDE, SIDE), torch.full((3, SIDE, SIDE), 0.5), noise=0.03).permute(1, 2, 0).double().numpy()
    _, noise, share = border_colours(noisy, 0.01)
    assert abs(noise - 0.03) < 0.005 and share > 0.98


def test_holes_stay_holes_and_specks_vanish() -> None:
    ring = disc(0.6) - disc(0.3)
    speckled = ring.clone()
    speckled[5, 5], speckled[SIDE // 2, 24] = 1, 0  # a speck outside, a pinhole inside
    assert ring[SIDE // 2, 24] == 1
    assert torch.equal(key_background(scene(speckled, torch.ones(3, SIDE, SIDE))[None])[0], ring)
    assert torch.equal(key_background(scene(speckled, torch.ones(3, SIDE, SIDE))[None], Keying(min_piece=0, min_hole=0))[0], speckled)


def test_the_outline_is_the_share_of_the_object_in_each_pixel() -> None:
    fine = torch.linspace(-1 - 1 / SIDE, 1 + 1 / SIDE, 8 * SIDE)
    y, x = torch.meshgrid(fine, fine, indexing="ij")
    coverage = torch.nn.functional.avg_pool2d((x * x + y * y < 0.25).float()[None, None], 8)[0, 0]
    alpha = key_background(scene(coverage, torch.full((3, SIDE, SIDE), 0.9))[None])[0]
    seen = coverage * 0.8 > 0.061  # what differs by less than the tolerance is background
    assert torch.allclose(alpha[seen], coverage[seen], atol=1e-4) and float(alpha[~seen].max()) == 0


def test_an_inside_that_resembles_the_background_stays_opaque() -> None:
    mask, belly = disc(0.6), disc(0.2)
    background = torch.full((3, SIDE, SIDE), 0.9)
    frame = scene(mask, background) * (1 - belly) + (background - 0.065) * belly
    assert torch.equal(key_background(frame[None])[0], mask)


def test_thin_parts_are_opaque() -> None:
    mask = disc(0.3)
    mask[20, 10:80] = 1  # a rod of one pixel, far from any inside
    assert torch.equal(key_background(scene(mask, torch.ones(3, SIDE, SIDE))[None])[0], mask)


def test_pieces_are_eight_connected() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0, 0] = mask[1, 1] = mask[5, 5] = True
    assert drop_small(mask, 2).sum() == 2 and drop_small(mask, 0).sum() == 3


def test_frames_with_a_valid_alpha_stay_as_they_are() -> None:
    frames = torch.rand(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for matting in ("auto", "alpha"):
        matted = matte_frames(frames, matting)
        assert torch.equal(matted, frames) and matted.data_ptr() != frames.data_ptr()


def test_opaque_frames_are_keyed_and_others_kept() -> None:
    mask = disc()
    keyed = torch.cat([scene(mask, uneven_light()), torch.ones(1, SIDE, SIDE)])
    given = torch.cat([torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), disc(0.4)[None]])
    frames = torch.stack([given, keyed])
    before = frames.clone()
    matted = matte_frames(frames)
    assert torch.equal(frames, before)
    assert torch.equal(matted[0], given)
    assert overlap(matted[1, 3], mask) > 0.99 and torch.equal(matted[1, :3], keyed[:3])
    assert torch.allclose(matte_frames(keyed[None, :3])[0], matted[1])


def test_key_ignores_the_alpha_that_is_given() -> None:
    frame = torch.cat([torch.zeros(3, SIDE, SIDE), disc()[None]])[None]
    matted = matte_frames(frame, "key")
    assert torch.equal(matted[:, :3], composite_on_white(frame)) and torch.equal(matted[0, 3], disc())


def test_a_function_gets_frames_before_white_and_gives_alpha() -> None:
    frames, seen = torch.cat([torch.zeros(2, 3, SIDE, SIDE), disc().expand(2, 1, -1, -1)], 1), []

    def matting(colours: Tensor) -> Tensor:
        seen.append(colours)
        return colours[:, 0] * 0.5

    matted = matte_frames(frames, matting)
    assert torch.equal(seen[0], composite_on_white(frames))
    assert torch.equal(matted[:, 3], 0.5 * (1 - disc()).expand(2, -1, -1))


def test_keyed_frames_are_cropped_as_if_their_alpha_had_been_given() -> None:
    masks = torch.stack([disc(0.5, -0.2), disc(0.5, 0.2)])
    clean = torch.stack([scene(mask, torch.ones(3, SIDE, SIDE)) for mask in masks])
    assert torch.allclose(prepare_frames(matte_frames(clean)), prepare_frames(torch.cat([clean, masks[:, None]], 1)))


def test_a_video_file_before_a_plain_background_is_keyed_in_spite_of_its_compression(tmp_path: Path) -> None:
    masks = torch.stack([disc(0.5, x) for x in (-0.3, -0.1, 0.1, 0.3)])
    clip = torch.stack([scene(mask, uneven_light()) for mask in masks])
    frames = read_frames(write_video(clip, tmp_path / "clip.mp4", fps=8, crf=28))
    assert bool((frames[:, 3] == 1).all())
    matted = matte_frames(frames)
    assert min(overlap(alpha, mask) for alpha, mask in zip(matted[:, 3], masks, strict=True)) > 0.97
    assert max(abs(a - b) for a, b in zip(union_box(matted[:, 3]), union_box(masks), strict=True)) <= 3


def test_an_empty_frame_is_named_when_it_is_cropped() -> None:
    frames = torch.stack([scene(disc(), uneven_light()), scene(torch.zeros(SIDE, SIDE), uneven_light())])
    with pytest.raises(ValueError, match=r"frame 1: no foreground \(0 % of pixels\); give masks"):
        prepare_frames(matte_frames(frames))


def test_what_cannot_be_matted_is_refused() -> None:
    textured = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    plain = scene(disc(), uneven_light())[None]
    with pytest.raises(ValueError, match=r"frame 0: the background is not plain .* give masks, or use SAM 2"):
        key_background(textured)
    with pytest.raises(ValueError, match="frame 7: the background is not plain"):
        key_background(torch.cat([plain, textured]), numbers=[3, 7])
    halves = torch.cat([torch.zeros(1, 3, SIDE // 2, SIDE), torch.ones(1, 3, SIDE - SIDE // 2, SIDE)], 2)
    with pytest.raises(ValueError, match="not plain"):
        key_background(halves)
    with pytest.raises(ValueError, match=r"Frames 0 have no valid alpha: at least 1 % .* matting='key'"):
        matte_frames(plain, "alpha")
    with pytest.raises(ValueError, match=r"trust_remote_code\), which visiongraft does not run\. .*RmbgMatting\(model\)"):
        matte_frames(plain, "rmbg")
    with pytest.raises(ValueError, match="SAM 2 needs a model and a click"):
        matte_frames(plain, "sam2")
    with pytest.raises(ValueError, match="no matting 'magic'; there are 'auto', 'alpha', 'key'"):
        matte_frames(plain, "magic")
    with pytest.raises(ValueError, match="3 channels, or 4 with alpha; got 2"):
        matte_frames(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"gives frames x height x width, here \(1, 96, 96\); got \(1, 3\)"):
        matte_frames(plain, lambda colours: colours[:, :, 0, 0])
