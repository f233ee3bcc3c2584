"""Injected generators: what the adapters ask of a pipeline and give back, on recorders and on tiny random pipelines of Diffusers."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from visiongraft.media.images import resize
from visiongraft.methods.action_mesh.frames import prepare_frames
from visiongraft.methods.action_mesh.generators import (
    OBJECT_PROMPT,
    grid_size,
    image_to_video,
    load_text_to_image,
    procedural_image,
    procedural_video,
    text_to_image,
    text_to_video,
)
from visiongraft.methods.action_mesh.matting import matte_frames

sys.path.insert(0, str(Path(__file__).parent))
import tiny_generators


class Recorder:
    """A pipeline that notes what it is called with; frame k of its video has the value k / 100."""

    vae_scale_factor_temporal, vae_scale_factor_spatial = 4, 8
    transformer = SimpleNamespace(config=SimpleNamespace(patch_size=(1, 2, 2)))

    def __init__(self, spoil: Any = lambda pixels: pixels) -> None:
        self.calls: list[dict[str, Any]] = []
        self.spoil = spoil

    def __call__(self, **given: Any) -> Any:
        self.calls.append(given)
        num, height, width = (given.get(name, usual) for name, usual in (("num_frames", 1), ("height", 6), ("width", 4)))
        video = np.broadcast_to(np.arange(num)[:, None, None, None] / 100, (num, height, width, 3)).astype(np.float32)
        return SimpleNamespace(frames=self.spoil(video[None]), images=self.spoil(video[:1]))


@pytest.fixture
def text_cleaner(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.wan import pipeline_wan, pipeline_wan_i2v

    for module in (pipeline_wan, pipeline_wan_i2v):
        monkeypatch.setattr(module, "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)


def picture(height: int = 30, width: int = 50) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_next_number_of_the_form_4k_plus_1_is_asked_for_and_cut() -> None:
    for num_frames, stride, asked in ((16, 1, 17), (17, 1, 17), (16, 5, 77), (2, 1, 5), (6, 2, 13)):
        recorder = Recorder()
        frames = image_to_video(recorder, num_frames=num_frames, stride=stride, area=256)(picture(), "it flies")
        assert recorder.calls[0]["num_frames"] == asked
        assert torch.allclose(frames[:, 0, 0, 0], torch.arange(num_frames) * stride / 100)


def test_the_picture_keeps_its_aspect_ratio_on_the_grid() -> None:
    assert grid_size((480, 832), 480 * 832, 16) == (480, 832)
    for size in ((100, 100), (1080, 1920), (1920, 1080), (333, 517)):
        height, width = grid_size(size, 480 * 832, 16)
        assert height % 16 == width % 16 == 0
        assert abs(math.log(height / width * size[1] / size[0])) < 0.03 and abs(math.log(height * width / (480 * 832))) < 0.03
    assert grid_size((1, 1000), 256, 16) == (16, 512)


def test_the_pipeline_gets_picture_text_size_and_seed() -> None:
    recorder, given = Recorder(), picture()
    image_to_video(recorder, seed=7, area=48 * 80, guidance_scale=4.0)(given, "  it flies ")
    call = recorder.calls[0]
    assert call["prompt"] == "it flies" and call["guidance_scale"] == 4.0 and (call["height"], call["width"]) == (48, 80)
    assert torch.equal(call["image"], resize(given, (48, 80))[None])
    assert call["generator"].initial_seed() == 7


def test_the_text_is_put_into_the_wording() -> None:
    recorder = Recorder()
    image = text_to_image(recorder, height=8, width=10)("a dragon {wild}")
    assert recorder.calls[0]["prompt"] == OBJECT_PROMPT.replace("{text}", "a dragon {wild}") and image.shape == (3, 8, 10)
    frames = text_to_video(recorder, num_frames=3, prompt="{text} before white", height=8, width=10)("a dragon")
    assert recorder.calls[1]["prompt"] == "a dragon before white" and frames.shape == (3, 3, 8, 10)


def test_a_tiny_wan_pipeline_makes_frames_from_a_picture(text_cleaner: None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = tiny_generators.wan(from_image=True)
    generate = image_to_video(pipeline, num_frames=6, area=32 * 48, num_inference_steps=2)
    frames = generate(picture(32, 48), "a dragon flaps its wings")
    assert frames.shape == (6, 3, 32, 48) and 0 <= float(frames.min()) < float(frames.max()) <= 1
    assert torch.equal(frames, generate(picture(32, 48), "a dragon flaps its wings"))
    assert not torch.equal(frames, generate(picture(32, 48).flip(-1), "a dragon flaps its wings"))
    other = image_to_video(pipeline, num_frames=6, area=32 * 48, num_inference_steps=2, seed=1)
    assert not torch.equal(frames, other(picture(32, 48), "a dragon flaps its wings"))


def test_a_tiny_wan_pipeline_makes_frames_from_a_text(text_cleaner: None) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = tiny_generators.wan(from_image=False)
    frames = text_to_video(pipeline, num_frames=3, num_inference_steps=1, height=32, width=32)("a dragon")
    assert frames.shape == (3, 3, 32, 32)


def test_a_pipeline_without_its_text_cleaner_says_what_to_install(text_cleaner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.delattr(pipeline_wan_i2v, "ftfy")
    with pytest.raises(ModuleNotFoundError, match=r"WanImageToVideoPipeline needs ftfy .* pip install 'visiongraft\[generators\]'"):
        image_to_video(tiny_generators.wan(from_image=True))


def test_a_folder_gives_a_text_to_image_pipeline(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_generators.stable_diffusion().save_pretrained(tmp_path)
    pipeline = load_text_to_image(str(tmp_path))
    assert isinstance(pipeline.tokenizer, PreTrainedTokenizerFast)
    pipeline.set_progress_bar_config(disable=True)
    generate = text_to_image(pipeline, num_inference_steps=2, height=16, width=24)
    assert generate("a dragon").shape == (3, 16, 24) and torch.equal(generate("a dragon"), generate("a dragon"))
    assert not torch.equal(generate("a dragon"), generate("its wings"))


def test_bad_generators_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 frames and a stride of 1 or more; got num_frames=1, stride=1"):
        image_to_video(Recorder(), num_frames=1)
    with pytest.raises(ValueError, match="got num_frames=16, stride=0"):
        text_to_video(Recorder(), stride=0)
    with pytest.raises(ValueError, match=r"holds \{text\}, where the text goes; got 'a thing'"):
        text_to_image(Recorder(), prompt="a thing")
    with pytest.raises(ValueError, match=r"holds \{text\}"):
        text_to_video(Recorder(), prompt="a thing")
    with pytest.raises(ValueError, match="The text is empty"):
        text_to_image(Recorder())(" ")
    with pytest.raises(ValueError, match=r"Recorder gave values that are not finite; run it in bfloat16"):
        text_to_image(Recorder(lambda pixels: pixels * np.nan))("a dragon")
    with pytest.raises(ValueError, match=r"gave pictures of shape \(6, 4, 2\), not height x width x 3"):
        text_to_image(Recorder(lambda pixels: pixels[..., :2]))("a dragon")
    with pytest.raises(ValueError, match="gave 4 frames, too few for 16 frames at a stride of 1"):
        image_to_video(Recorder(lambda pixels: pixels[:, :4]))(picture(), "it flies")
    with pytest.raises(ValueError, match="gave SimpleNamespace without frames; pass a Diffusers pipeline that makes frames"):
        image_to_video(lambda **given: SimpleNamespace(images=[]))(picture(), "it flies")
    with pytest.raises(ValueError, match=r"Pixels must lie in \[0, 1\]"):
        image_to_video(Recorder())(picture() * 255, "it flies")


def test_the_procedural_stand_ins_give_a_clip_that_can_be_matted_and_cropped() -> None:
    image = procedural_image(64)("a bird")
    assert torch.equal(image, procedural_image(64)("a bird")) and not torch.equal(image, procedural_image(64)("a fish"))
    frames = procedural_video(8)(image, "it sways")
    assert frames.shape == (8, 3, 64, 64) and torch.equal(frames[0], image)
    assert torch.allclose(frames[4], image, atol=1e-5)  # half a period: back in the middle
    assert float((frames[2] - image).abs().max()) > 0.3
    prepared = prepare_frames(matte_frames(frames))
    assert prepared.shape[0] == 8 and float(prepared[:, :, 0].min()) == 1


def test_the_procedural_swing_is_a_turn_in_pixels() -> None:
    image = torch.ones(3, 40, 80)
    image[:, 18:22, 20:60] = 0  # a bar through the middle, 40 long
    turned = procedural_video(4, swing_deg=90.0)(image, "it turns")[1]
    dark = turned[0] < 0.5
    assert int(dark.any(0).sum()) == 4 and int(dark.any(1).sum()) == 40
    with pytest.raises(ValueError, match="at least 2 frames"):
        procedural_video(1)
