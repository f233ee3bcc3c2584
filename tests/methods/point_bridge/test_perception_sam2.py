"""SAM 2 as tiny random instances: clicks, masks and tracking by name. The stream beneath is tested in tests/nn."""

import numpy as np
import pytest
import torch
from transformers import Sam2Model, Sam2VideoModel

from tiny_sam2 import tiny_sam2, tiny_sam2_video
from visiongraft.methods.point_bridge import sam2
from visiongraft.methods.point_bridge.frames import Frame
from visiongraft.methods.point_bridge.sam2 import Sam2Segmenter, Sam2Tracker
from visiongraft.robots.cameras import Camera, intrinsics_from_fovy

SIZE = (60, 90)


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
    return tiny_sam2()


@pytest.fixture(scope="module")
def video_model() -> Sam2VideoModel:
    return tiny_sam2_video()


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


def test_a_mask_prompt_comes_back_in_the_first_frame(video_model: Sam2VideoModel) -> None:
    found = Sam2Tracker(video_model).start(frame(), {"box": mask()})["box"]
    assert (found & mask()).sum() / (found | mask()).sum() > 0.85


def test_point_prompts_are_five_places_of_the_shrunken_mask_in_model_pixels(video_model: Sam2VideoModel) -> None:
    tracker = Sam2Tracker(video_model, prompts="points", seed=3)
    first = tracker.start(frame(), {"box": mask()})
    clicks = tracker.stream.session.point_inputs_per_obj[0][0]
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
