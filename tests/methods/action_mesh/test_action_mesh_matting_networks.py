"""Mattings by networks: their inputs and outputs in closed form, and SAM 2 as a tiny random instance."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Sam2VideoModel

from tiny_sam2 import tiny_sam2_video
from visiongraft.methods.action_mesh.matting import matte_frames
from visiongraft.methods.action_mesh.matting_networks import RmbgMatting, Sam2Matting, first_tensor

SIZE = (48, 72)


class DarkIsObject(nn.Module):
    """Gives logits that are larger where the picture is darker, nested as RMBG-1.4 nests its outputs."""

    def __init__(self, scale: float = 37.0, shift: float = -5.0) -> None:
        super().__init__()
        self.scale, self.shift, self.seen = nn.Parameter(torch.tensor(scale)), shift, []

    def forward(self, pixels: Tensor) -> Any:
        self.seen.append(pixels)
        return [[self.shift - self.scale * pixels.mean(1, keepdim=True), None], [None]]


def clip(num: int = 3) -> tuple[Tensor, Tensor]:
    """Grey discs of growing brightness on white, and their masks."""
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    masks = torch.stack([((y - 24) ** 2 + (x - 24 - 8 * number) ** 2 < 14**2).float() for number in range(num)])
    frames = 1 - masks[:, None] * (0.9 - 0.1 * torch.arange(num)[:, None, None, None])
    return frames.expand(-1, 3, -1, -1).contiguous(), masks


@pytest.fixture(scope="module")
def sam2() -> Sam2VideoModel:
    return tiny_sam2_video(num_maskmem=2, max_object_pointers_in_encoder=3)


def test_rmbg_finds_the_dark_object_whatever_its_outputs_scale() -> None:
    frames, masks = clip()
    for network in (DarkIsObject(), DarkIsObject(0.01, 900.0)):
        alpha = RmbgMatting(network, side=96)(frames)
        assert set(alpha.unique().tolist()) == {0.0, 1.0}
        for found, true in zip(alpha > 0, masks > 0, strict=True):
            assert float((found & true).sum() / (found | true).sum()) > 0.95
    assert torch.equal(matte_frames(frames, RmbgMatting(DarkIsObject(), side=96))[:, 3], alpha)


def test_rmbg_gets_squares_between_minus_and_plus_one_half() -> None:
    network = DarkIsObject()
    RmbgMatting(network, side=64)(torch.full((1, 3, *SIZE), 0.75))
    assert network.seen[0].shape == (1, 3, 64, 64)
    assert torch.allclose(network.seen[0], torch.tensor(0.25))


def test_rmbg_drops_small_pieces() -> None:
    frames, _ = clip(1)
    frames[:, :, 2:6, 60:64] = 0
    kept = RmbgMatting(DarkIsObject(), side=96, min_area=0)(frames)
    assert float(kept[0, 2:6, 60:64].mean()) > 0.5
    assert float(RmbgMatting(DarkIsObject(), side=96, min_area=200)(frames)[0, :10, 55:].max()) == 0


def test_a_constant_map_shows_no_object() -> None:
    assert float(RmbgMatting(lambda pixels: pixels[:, :1] * 0)(torch.rand(1, 3, 8, 8)).max()) == 0


def test_a_network_with_another_output_is_refused() -> None:
    with pytest.raises(ValueError, match=r"map of shape \(1, 1, rows, columns\); got \(1, 3, 32, 32\)"):
        RmbgMatting(lambda pixels: pixels, side=32)(torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="tensor or nested lists of tensors; got dict"):
        first_tensor([({},)])
    with pytest.raises(ValueError, match="got list"):
        first_tensor([[]])


def test_a_click_is_followed_both_ways(sam2: Sam2VideoModel) -> None:
    frames, _ = clip(5)
    whole = Sam2Matting(sam2, (40.0, 24.0), frame=2)(frames)
    assert whole.shape == (5, *SIZE) and set(whole.unique().tolist()) == {0.0, 1.0}
    assert 0.01 < float(whole.mean()) < 0.99 and not torch.equal(whole[0], whole[4])
    assert torch.equal(whole[2:], Sam2Matting(sam2, (40.0, 24.0))(frames[2:]))
    assert torch.equal(whole[:3], Sam2Matting(sam2, (40.0, 24.0))(frames[:3].flip(0)).flip(0))


def test_clicks_reach_the_model_in_its_pixels_with_their_signs(sam2: Sam2VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    prompts = []
    add = Sam2VideoInferenceSession.add_point_inputs
    monkeypatch.setattr(
        Sam2VideoInferenceSession,
        "add_point_inputs",
        lambda session, index, frame, prompt: prompts.append(prompt) or add(session, index, frame, prompt),
    )
    Sam2Matting(sam2, [(36.0, 24.0), (18.0, 12.0)], background=[(72 - 9.0, 6.0)])(clip(1)[0])
    assert torch.equal(prompts[0]["point_coords"], torch.tensor([[[[64.0, 64.0], [32.0, 32.0], [112.0, 16.0]]]]))
    assert prompts[0]["point_labels"].tolist() == [[[1, 1, 0]]]


def test_bad_clicks_are_refused(sam2: Sam2VideoModel) -> None:
    frames, _ = clip(2)
    with pytest.raises(ValueError, match=r"click \(u=24, v=60\) lies outside the frames of 72x48 pixels"):
        Sam2Matting(sam2, (24.0, 60.0))(frames)
    with pytest.raises(IndexError, match="on frame 2; the clip has frames 0 to 1"):
        Sam2Matting(sam2, (24.0, 24.0), frame=2)(frames)
    with pytest.raises(ValueError, match="A click is"):
        Sam2Matting(sam2, [])
