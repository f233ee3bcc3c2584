"""SAM 2 as a stream, on a tiny random instance: what the model is given, and memory that stays bounded without a change in masks."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Sam2VideoModel

from tiny_sam2 import tiny_sam2_video
from visiongraft.nn import sam2_video
from visiongraft.nn.sam2_video import Sam2Stream, load_sam2_video, mask_of, sam2_pixels

SIZE = (60, 90)


@pytest.fixture(scope="module")
def model() -> Sam2VideoModel:
    return tiny_sam2_video()


def frame(k: int = 0) -> Tensor:
    """A red box that moves over noise."""
    image = 0.4 * torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    image[:, 10 + k : 30 + k, 20 + k : 45 + k] = torch.tensor([0.9, 0.2, 0.2])[:, None, None]
    return image


def box() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[10:30, 20:45] = True
    return mask


def session_bytes(session: Any) -> int:
    """Memory of all tensors that a SAM 2 session holds."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            seen[value.data_ptr()] = value.nbytes
        elif isinstance(value, Mapping):
            for entry in value.values():
                visit(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                visit(entry)

    visit([vars(session), session.cache._vision_features])
    return sum(seen.values())


def test_frames_are_normalised_squares() -> None:
    expected = torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])[:, None, None]
    pixels = sam2_pixels(torch.ones(3, *SIZE), 128)
    assert pixels.shape == (3, 128, 128) and torch.allclose(pixels, expected.expand_as(pixels), atol=1e-5)
    clip = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sam2_pixels(clip, 64)[1], sam2_pixels(clip[1], 64))


def test_a_mask_is_where_upsampled_logits_are_positive() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(4, -1)
    mask = mask_of(ramp, (40, 80))
    assert mask.shape == (40, 80) and mask.dtype == torch.bool
    assert torch.equal(mask, (torch.arange(80) >= 40).expand(40, -1))


def test_a_mask_comes_back_in_the_first_frame_under_its_number(model: Sam2VideoModel) -> None:
    stream = Sam2Stream(model, SIZE)
    stream.add_mask(7, box())
    stream.add_mask(3, ~box())
    found = {number: mask_of(logits, SIZE) for number, logits in stream.track(frame()).items()}
    assert found.keys() == {7, 3}
    for number, shown in ((7, box()), (3, ~box())):
        assert (found[number] & shown).sum() / (found[number] | shown).sum() > 0.85


def test_clicks_reach_the_model_in_its_pixels_with_their_signs(model: Sam2VideoModel) -> None:
    stream = Sam2Stream(model, SIZE)
    stream.add_clicks(0, torch.tensor([[0.5, 0.5], [0.25, 0.75]]), [1, 0])
    prompt = stream.session.point_inputs_per_obj[0][0]
    assert torch.equal(prompt["point_coords"], torch.tensor([[[[64.0, 64.0], [32.0, 96.0]]]]))
    assert prompt["point_labels"].tolist() == [[[1, 0]]]
    assert 0.0 < float(mask_of(stream.track(frame())[0], SIZE).float().mean()) < 1.0


def test_memory_stays_bounded_and_masks_are_those_of_an_unbounded_session(model: Sam2VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def follow() -> tuple[Sam2Stream, list[dict[int, Tensor]], list[int]]:
        stream, logits, sizes = Sam2Stream(model, SIZE), [], []
        stream.add_mask(0, box())
        stream.add_mask(1, ~box())
        for k in range(stream.reach + 5):
            logits.append(stream.track(frame(k)))
            sizes.append(session_bytes(stream.session))
        return stream, logits, sizes

    stream, bounded, sizes = follow()
    assert stream.reach == 6 and len(stream.session.processed_frames) == 1
    assert sizes[-1] == sizes[stream.reach + 1] > sizes[2]  # constant once the model's reach is filled
    monkeypatch.setattr(sam2_video, "forget", lambda *given: None)
    _, unbounded, more = follow()
    assert more[-1] > sizes[-1]
    for ours, theirs in zip(bounded, unbounded, strict=True):
        assert all(torch.equal(ours[number], theirs[number]) for number in (0, 1))


def test_nothing_to_follow_is_refused(model: Sam2VideoModel) -> None:
    with pytest.raises(ValueError, match="objects that it was shown; call add_mask or add_clicks first"):
        Sam2Stream(model, SIZE).track(frame())


def test_a_folder_gives_the_model_back(model: Sam2VideoModel, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    logits = []
    for one in (model, load_sam2_video(str(tmp_path))):
        stream = Sam2Stream(one, SIZE)
        stream.add_clicks(0, torch.tensor([[0.4, 0.3]]), [1])
        logits.append(stream.track(frame())[0])
    assert torch.allclose(*logits, atol=1e-6)
