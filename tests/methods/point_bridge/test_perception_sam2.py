"""SAM 2 as tiny random instances: our preparation of images, bounded memory, and masks that do not depend on it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam2Config, Sam2Model, Sam2VideoConfig, Sam2VideoModel

from visiongraft.methods.point_bridge import sam2
from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.methods.point_bridge.sam2 import Sam2Segmenter, Sam2Tracker
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy

SIZE = (60, 90)
VISION = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 16,
        "image_size": [128, 128],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [16, 32, 64, 128],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
    },
    "backbone_channel_list": [128, 64, 32, 16],
    "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
}


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


def frame(seed: int = 0) -> Frame:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 120, (*SIZE, 3), dtype=np.uint8)
    image[10 + seed % 20 : 30 + seed % 20, 20 + seed % 40 : 45 + seed % 40] = (230, 40, 40)
    return Frame(image, Camera(intrinsics_from_fovy(0.9, SIZE), np.eye(4), SIZE))


def mask(seed: int = 0) -> np.ndarray:
    found = np.zeros(SIZE, bool)
    found[10 + seed % 20 : 30 + seed % 20, 20 + seed % 40 : 45 + seed % 40] = True
    return found


@pytest.fixture(scope="module")
def image_model() -> Sam2Model:
    torch.manual_seed(0)
    return Sam2Model(Sam2Config(vision_config=VISION, prompt_encoder_config={"image_size": 128})).eval()


@pytest.fixture(scope="module")
def video_model() -> Sam2VideoModel:
    torch.manual_seed(0)
    config = Sam2VideoConfig(
        image_size=128,
        num_maskmem=4,
        max_object_pointers_in_encoder=6,
        memory_attention_rope_feat_sizes=[8, 8],
        prompt_encoder_config={"image_size": 128},
        vision_config=VISION,
    )
    return Sam2VideoModel(config).eval()


def test_pixels_are_normalised_squares() -> None:
    white = np.full((*SIZE, 3), 255, np.uint8)
    model = torch.nn.Linear(1, 1)
    model.device, model.dtype = torch.device("cpu"), torch.float32  # type: ignore[assignment]
    pixels = sam2._pixels(white, 128, model)
    assert pixels.shape == (1, 3, 128, 128)
    assert torch.allclose(pixels[0, :, 5, 7], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]), atol=1e-5)


def test_the_best_mask_of_a_scaled_click_is_cleaned(image_model: Sam2Model) -> None:
    given = frame()
    found = Sam2Segmenter(image_model, min_area=0)(given, (30.0, 20.0))
    pixels = sam2._pixels(given.image, 128, image_model)
    with torch.no_grad():
        output = image_model(
            pixel_values=pixels,
            input_points=torch.tensor([[[[30.0 * 128 / 90, 20.0 * 128 / 60]]]]),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int32),
            multimask_output=True,
        )
    best = output.pred_masks[0, 0, int(output.iou_scores[0, 0].argmax())]
    logits = torch.nn.functional.interpolate(best[None, None], SIZE, mode="bilinear", align_corners=False)[0, 0]
    assert np.array_equal(found, sam2.clean_mask((logits > 0).numpy(), 0))
    assert output.pred_masks.shape[2] == 3


def test_an_image_is_encoded_once_for_all_clicks(image_model: Sam2Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = image_model.get_image_embeddings
    monkeypatch.setattr(image_model, "get_image_embeddings", lambda pixels: calls.append(1) or encode(pixels))
    segmenter, given = Sam2Segmenter(image_model), frame()
    segmenter(given, (30.0, 20.0))
    segmenter(given, (60.0, 50.0))
    segmenter(frame(1), (60.0, 50.0))
    assert len(calls) == 2


def test_a_click_outside_the_image_is_refused(image_model: Sam2Model) -> None:
    with pytest.raises(ValueError, match=r"\(u=20\.0, v=70\.0\) lies outside the image of 90x60 pixels"):
        Sam2Segmenter(image_model)(frame(), (20.0, 70.0))


def test_memory_stays_bounded_and_masks_are_those_of_an_unbounded_session(
    video_model: Sam2VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach = max(video_model.config.num_maskmem, video_model.config.max_object_pointers_in_encoder)
    frames, masks = [frame(seed) for seed in range(reach + 5)], {"a": mask(0), "b": ~mask(3)}
    tracker = Sam2Tracker(video_model)
    bounded, sizes = [tracker.start(frames[0], masks)], []
    for given in frames[1:]:
        bounded.append(tracker.track(given))
        sizes.append(session_bytes(tracker.session))
    assert len(tracker.session.processed_frames) == 1
    assert sizes[-1] == sizes[reach] > sizes[2]  # constant once the model's reach is filled
    monkeypatch.setattr(sam2, "forget", lambda *args: None)
    free = Sam2Tracker(video_model)
    unbounded = [free.start(frames[0], masks), *map(free.track, frames[1:])]
    assert session_bytes(free.session) > sizes[-1]
    for ours, theirs in zip(bounded, unbounded, strict=True):
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_mask_prompt_comes_back_in_the_first_frame(video_model: Sam2VideoModel) -> None:
    found = Sam2Tracker(video_model).start(frame(), {"box": mask()})["box"]
    assert (found & mask()).sum() / (found | mask()).sum() > 0.85


def test_point_prompts_are_five_places_of_the_shrunken_mask_in_model_pixels(video_model: Sam2VideoModel) -> None:
    tracker = Sam2Tracker(video_model, prompts="points", seed=3)
    first = tracker.start(frame(), {"box": mask()})
    clicks = tracker.session.point_inputs_per_obj[0][0]
    assert clicks["point_coords"].shape == (1, 1, 5, 2) and clicks["point_labels"].tolist() == [[[1] * 5]]
    u, v = (clicks["point_coords"][0, 0] * torch.tensor([90 / 128, 60 / 128])).T
    assert bool(((u > 20) & (u < 45) & (v > 10) & (v < 30)).all())
    again = Sam2Tracker(video_model, prompts="points", seed=3).start(frame(), {"box": mask()})
    assert np.array_equal(first["box"], again["box"]) and first["box"].shape == SIZE


def test_a_second_episode_is_like_the_first(video_model: Sam2VideoModel) -> None:
    tracker, runs = Sam2Tracker(video_model), []
    for _ in range(2):
        runs.append([tracker.start(frame(), {"box": mask()})["box"], tracker.track(frame(1))["box"]])
    assert all(np.array_equal(one, other) for one, other in zip(*runs, strict=True))


def test_bad_tracking_is_refused(video_model: Sam2VideoModel) -> None:
    tracker = Sam2Tracker(video_model)
    with pytest.raises(ValueError, match="has not been started"):
        tracker.track(frame())
    with pytest.raises(ValueError, match="first frame; mug has none"):
        tracker.start(frame(), {"mug": np.zeros(SIZE, bool)})
    with pytest.raises(ValueError, match="all objects has none"):
        tracker.start(frame(), {})
    tracker.start(frame(), {"mug": mask()})
    small = Frame(np.zeros((20, 30, 3), np.uint8), Camera(intrinsics_from_fovy(0.9, (20, 30)), np.eye(4), (20, 30)))
    with pytest.raises(ValueError, match=r"started on \(60, 90\) pixels"):
        tracker.track(small)
    with pytest.raises(ValueError, match="above 0 and of at most 1; got 2"):
        Sam2Tracker(video_model, scale=2.0)
    with pytest.raises(ValueError, match="'mask' or 'points', got 'box'"):
        Sam2Tracker(video_model, prompts="box")  # type: ignore[arg-type]
