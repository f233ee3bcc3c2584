"""The video pipeline on tiny random models of the very classes: loading, inputs, guidance, known latents, and what it refuses."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from tiny_video import tiny_video_parts

from visiongraft.methods.panorama.circular import decode_latents, encode_latents
from visiongraft.methods.panorama.clips import fit_clips, to_clips
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.sequence_wan import wan_velocity
from visiongraft.methods.panorama.video_pipeline import PanoramaVideoPipeline

HEIGHT, SIZE, FRAMES = 32, 16, 5
GRAFT = GraftConfig.video(base="tiny", height=HEIGHT, condition_size=SIZE, num_frames=FRAMES, min_pad=8, pad_multiple=8)


def make_components() -> dict:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return tiny_video_parts(2, latents_mean=(0.1, -0.1, 0.0, 0.2), latents_std=(0.5, 1.0, 2.0, 1.5)) | {"scheduler": scheduler}


def make_pipeline(**changes) -> PanoramaVideoPipeline:
    pipeline = PanoramaVideoPipeline(**make_components() | {"graft": GRAFT} | changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> PanoramaVideoPipeline:
    return make_pipeline()


def make_clip(frames: int = FRAMES, height: int = 20, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def run(pipeline: PanoramaVideoPipeline, video=None, prompt="a street", seed: int = 0, **options):
    options = {"num_inference_steps": 2, "max_sequence_length": 8, "output_type": "latent"} | options
    video = make_clip() if video is None else video
    return pipeline(video, prompt, generator=torch.Generator().manual_seed(seed), **options).frames


def test_every_output_type_is_the_same_panorama(pipeline):
    latents = run(pipeline)
    tensor, array, pictures = (run(pipeline, output_type=kind) for kind in ("pt", "np", "pil"))
    assert latents.shape == (1, 4, 2, 8, 16)
    assert tensor.shape == (1, FRAMES, 3, HEIGHT, 2 * HEIGHT) and tensor.min() >= 0 and tensor.max() <= 1
    expected = decode_latents(pipeline.vae, latents, padding=GRAFT.padding) / 2 + 0.5
    torch.testing.assert_close(tensor, expected.transpose(1, 2).clamp(0, 1), atol=1e-6, rtol=0)
    np.testing.assert_allclose(array[0].transpose(0, 3, 1, 2), tensor[0].numpy(), atol=1e-6)
    assert len(pictures) == 1 and len(pictures[0]) == FRAMES and pictures[0][0].size == (2 * HEIGHT, HEIGHT)
    (only,) = pipeline(make_clip(), num_inference_steps=1, max_sequence_length=8, output_type="latent", return_dict=False)
    assert only.shape == latents.shape


def test_same_seed_gives_the_same_panorama_and_another_seed_another(pipeline):
    assert torch.equal(run(pipeline, seed=3), run(pipeline, seed=3))
    assert not torch.allclose(run(pipeline, seed=3), run(pipeline, seed=4), atol=1e-2)


def test_tensors_arrays_and_pictures_are_read_alike():
    bytes_ = (make_clip() * 255).byte()
    tensor = bytes_.float() / 255
    array = bytes_.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(frame) for frame in array]
    expected = tensor[None]
    for video in (tensor, tensor[None], bytes_, array, array[None], pictures, [pictures], list(tensor), array.astype(np.float32) / 255):
        torch.testing.assert_close(to_clips(video), expected, atol=1e-6, rtol=0)
    grey = [picture.convert("L") for picture in pictures]
    assert to_clips(grey).shape == expected.shape


def test_clips_that_do_not_fit_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"list of frames; got shape \(3, 4, 4\)"):
        to_clips(torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="got str"):
        to_clips("clip.mp4")
    with pytest.raises(ValueError, match="All frames of a clip must have one size; got 4x4, 4x8"):
        to_clips([torch.rand(3, 4, 4), torch.rand(3, 4, 8)])
    with pytest.raises(ValueError, match="All clips of a batch must have one length and size; got 1 frames of 4x4, 2 frames of 4x4"):
        to_clips([[torch.rand(3, 4, 4)], [torch.rand(3, 4, 4)] * 2])
    with pytest.raises(ValueError, match="image has transparency: pass alpha='white' or 'black'"):
        to_clips([Image.new("RGBA", (4, 4), (255, 0, 0, 128))])
    assert to_clips([Image.new("RGBA", (4, 4), (0, 0, 0, 0))], alpha="white").min() == 1


def test_crop_takes_the_middle_square_and_keep_the_proportions():
    clip = make_clip(1, 16, 32)[None]
    assert torch.equal(fit_clips(clip, 16, multiple=8), clip[..., 8:24])
    with pytest.warns(UserWarning, match="fit='keep' gives an input of 64x128; the weights were trained on squares of 96"):
        assert fit_clips(clip, 96, "keep").shape[-2:] == (64, 128)
    with pytest.raises(ValueError, match="padding would change the field of view"):
        unwrap(fit_clips)(clip, 16, "pad")  # without beartype, as in use
    with pytest.raises(ValueError, match="multiple of 16"):
        fit_clips(clip, 20)


def test_loads_from_a_folder_of_the_base_and_saves_its_graft(tmp_path):
    base = WanPipeline(**make_components())
    base.save_pretrained(tmp_path / "base")
    loaded = PanoramaVideoPipeline.from_pretrained(tmp_path / "base")
    assert loaded.graft == GraftConfig.video()
    loaded.graft = GRAFT
    loaded.save_pretrained(tmp_path / "graft")
    again = PanoramaVideoPipeline.from_pretrained(tmp_path / "graft", torch_dtype=torch.bfloat16)
    assert again.graft == GRAFT and again.transformer.dtype == torch.bfloat16
    assert type(again.scheduler) is UniPCMultistepScheduler and again.scheduler.config.flow_shift == 3.0
    for pipe in (loaded, again):
        pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(again), run(loaded), atol=0.1, rtol=0.1)
    given = PanoramaVideoPipeline.from_pretrained(tmp_path / "base", graft=GRAFT)
    assert given.graft == GRAFT
    assert PanoramaVideoPipeline(**base.components, graft=GRAFT).graft == GRAFT


@pytest.mark.parametrize("make", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_matching_schedulers_follow_the_velocity(make):
    pipeline = make_pipeline(scheduler=make(), graft=GRAFT.changed(flow_shift=None))
    noise = torch.randn(1, 4, 2, 8, 16, generator=torch.Generator().manual_seed(1))
    out = run(pipeline, latents=noise, guidance_scale=1.0, num_inference_steps=1)
    clip = fit_clips(to_clips(make_clip()), SIZE, multiple=8)
    condition = encode_latents(pipeline.vae, clip.transpose(1, 2) * 2 - 1, circular=False)
    text, _ = pipeline.encode_prompt("A 360° video of a street", do_classifier_free_guidance=False, max_sequence_length=8)
    with torch.no_grad():
        expected = noise - wan_velocity(pipeline.transformer, noise, condition, torch.ones(1), text)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def sampled_times(scheduler, shift, steps: int = 4, runs: int = 1) -> torch.Tensor:
    pipeline = make_pipeline(scheduler=scheduler, graft=GRAFT.changed(flow_shift=shift))
    for _ in range(runs):
        run(pipeline, num_inference_steps=steps, guidance_scale=1.0)
    return pipeline.scheduler.sigmas[:-1].clone()


def unipc(**options) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **options)


@pytest.mark.parametrize(
    ("make", "times"),
    [
        (lambda own: FlowMatchEulerDiscreteScheduler(shift=own), torch.linspace(1, 1e-3, 4)),
        (lambda own: FlowMatchEulerDiscreteScheduler(shift=own, use_dynamic_shifting=True), torch.linspace(1, 1e-3, 4)),
        (lambda own: unipc(flow_shift=own), torch.linspace(1, 1e-3, 5)[:-1]),
    ],
    ids=["euler", "dynamic", "unipc"],
)
@pytest.mark.parametrize("own", [1.0, 2.0, 5.0])
def test_the_shift_of_the_graft_is_applied_once_whatever_that_of_the_scheduler(make, times, own):
    expected = 5 * times / (1 + 4 * times)
    scheduler = make(own)
    before = dict(scheduler.config)
    torch.testing.assert_close(sampled_times(scheduler, 5.0, runs=2), expected, atol=2e-6, rtol=1e-5)
    assert dict(scheduler.config) == before and getattr(scheduler, "shift", own) == own  # its own again, for other grafts


@pytest.mark.parametrize("make", [lambda: unipc(flow_shift=5.0), lambda: FlowMatchEulerDiscreteScheduler()], ids=["unipc", "euler"])
def test_a_shift_equal_to_that_of_the_scheduler_changes_nothing(make):
    own = 5.0 if isinstance(make(), UniPCMultistepScheduler) else 1.0
    torch.testing.assert_close(sampled_times(make(), own), sampled_times(make(), None), atol=1e-9, rtol=1e-6)


def test_a_scheduler_that_takes_no_shift_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"flow_shift of 3 cannot be given to a FlowMatchHeunDiscreteScheduler; use FlowMatchEuler"):
        run(make_pipeline(scheduler=FlowMatchHeunDiscreteScheduler()))


def test_text_is_padded_with_zeros_as_the_base_does(pipeline, monkeypatch):
    seen = []
    forward = pipeline.transformer.forward
    monkeypatch.setattr(pipeline.transformer, "forward", lambda **inputs: seen.append(inputs["encoder_hidden_states"]) or forward(**inputs))
    run(pipeline, max_sequence_length=None, num_inference_steps=1)
    (text, null) = seen
    assert text.shape == (1, 512, 16) and text[0, :6].abs().min() > 0 and not text[0, 6:].any()
    assert not null.any()  # this tokenizer makes no token of the empty text


def test_a_batch_is_its_clips_one_by_one(pipeline):
    clips = torch.stack([make_clip(seed=1), make_clip(seed=2)])
    noise = torch.randn(2, 4, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    both = run(pipeline, clips, ["a street", "of"], latents=noise)
    for index, prompt in enumerate(["a street", "of"]):
        torch.testing.assert_close(run(pipeline, clips[index], prompt, latents=noise[index, None])[0], both[index], atol=1e-4, rtol=1e-4)


def test_several_prompts_and_several_videos_share_one_clip(pipeline):
    noise = torch.randn(4, 4, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    out = run(pipeline, prompt=["a street", "of"], latents=noise, num_videos_per_prompt=2)
    for index, prompt in enumerate(["a street", "a street", "of", "of"]):
        torch.testing.assert_close(run(pipeline, prompt=prompt, latents=noise[index, None])[0], out[index], atol=1e-4, rtol=1e-4)


def test_prompt_may_be_left_out_and_embeddings_stand_for_prompts(pipeline):
    assert torch.equal(run(pipeline, prompt=None), run(pipeline, prompt=""))
    text, null = pipeline.encode_prompt("A 360° video of a street", "of", max_sequence_length=8)
    given = run(pipeline, prompt=None, prompt_embeds=text, negative_prompt_embeds=null)
    torch.testing.assert_close(given, run(pipeline, negative_prompt="of"), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(given, run(pipeline), atol=1e-4)


@pytest.mark.parametrize(("cfg", "passes"), [("joint", 2), ("text", 2), ("two", 3)])
def test_guidance_combines_the_passes_of_its_formula(pipeline, monkeypatch, cfg, passes):
    calls = []

    def velocity(transformer, y, condition, t, text, *, keep_condition, **options):
        keeps = keep_condition is None
        calls.append(keeps)
        return torch.full_like(y, (1.0 if keeps else 0.0) + (10.0 if text.any() else 0.0))

    monkeypatch.setattr("visiongraft.methods.panorama.video_pipeline.wan_velocity", velocity)
    noise = torch.zeros(1, 4, 2, 8, 16)
    out = run(pipeline, latents=noise, num_inference_steps=1, cfg=cfg, guidance_scale=3.0, condition_scale=2.0)
    expected = {"joint": 3 * 11.0, "text": 1 + 3 * 10.0, "two": 2 * 1.0 + 3 * 10.0}[cfg]
    torch.testing.assert_close(out, torch.full_like(noise, -expected), atol=1e-3, rtol=1e-4)
    assert len(calls) == passes


def test_no_null_pass_is_made_at_scale_one(pipeline, monkeypatch):
    calls = []
    forward = pipeline.transformer.forward
    monkeypatch.setattr(pipeline.transformer, "forward", lambda **inputs: calls.append(1) or forward(**inputs))
    run(pipeline, guidance_scale=1.0)
    assert len(calls) == 2 and not pipeline.do_classifier_free_guidance


def test_known_latents_hold_at_every_step_and_in_the_result(pipeline):
    known = torch.randn(1, 4, 2, 8, 16, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 2, 1, 1, dtype=torch.bool)
    mask[:, :, 0] = True
    noise = torch.randn(1, 4, 2, 8, 16, generator=torch.Generator().manual_seed(6))
    seen = []
    hook = lambda module, args, kwargs: seen.append(kwargs["hidden_states"])
    handle = pipeline.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    out = run(pipeline, latents=noise, known_latents=known, known_mask=mask, num_inference_steps=4, guidance_scale=1.0)
    handle.remove()
    assert len(seen) == 4
    for state, sigma in zip(seen, pipeline.scheduler.sigmas.tolist()[:-1], strict=True):
        torch.testing.assert_close(state[:, :, 0], ((1 - sigma) * known + sigma * noise)[:, :, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(out[:, :, 0], known[:, :, 0])
    free = run(pipeline, latents=noise, num_inference_steps=4, guidance_scale=1.0)
    assert not torch.allclose(out[:, :, 1], free[:, :, 1], atol=1e-4)
    nothing = run(pipeline, latents=noise, known_latents=known, known_mask=mask & False, num_inference_steps=4, guidance_scale=1.0)
    assert torch.equal(nothing, free)


def test_panoramas_are_encoded_around_the_circle_and_clips_are_not(pipeline):
    panorama = torch.rand(1, FRAMES, 3, HEIGHT, 2 * HEIGHT, generator=torch.Generator().manual_seed(0))
    expected = encode_latents(pipeline.vae, panorama.transpose(1, 2) * 2 - 1, padding=GRAFT.padding)
    assert torch.equal(pipeline.encode_panorama(panorama), expected)
    seen = []
    handle = pipeline.transformer.patch_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(pipeline, num_inference_steps=1, guidance_scale=1.0)
    handle.remove()
    clip = fit_clips(to_clips(make_clip()), SIZE, multiple=8)
    assert torch.equal(seen[1], encode_latents(pipeline.vae, clip.transpose(1, 2) * 2 - 1, circular=False))


def test_callbacks_see_and_change_every_step(pipeline):
    steps, names = [], ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def callback(pipe, step, timestep, tensors):
        steps.append((step, int(timestep), [*tensors]))
        return {"latents": torch.zeros_like(tensors["latents"])}

    out = run(pipeline, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    assert not out.any()
    assert [step for step, _, _ in steps] == [0, 1] and steps[0][1:] == (999, names)
    run(pipeline, callback_on_step_end=lambda *args: None, guidance_scale=1.0, callback_on_step_end_tensor_inputs=names[2:])


def test_a_callback_can_stop_the_sampling(pipeline, capfd):
    calls = []
    forward = pipeline.transformer.register_forward_hook(lambda *args: calls.append(1))

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    run(pipeline, callback_on_step_end=stop, num_inference_steps=5, guidance_scale=1.0)
    forward.remove()
    assert len(calls) == 1


def test_progress_is_shown_once_a_step(capfd):
    pipeline = make_pipeline(scheduler=FlowMatchHeunDiscreteScheduler(), graft=GRAFT.changed(flow_shift=None))
    pipeline.set_progress_bar_config(disable=False)
    run(pipeline, num_inference_steps=3, guidance_scale=1.0)
    assert "3/3" in capfd.readouterr().err


def test_lora_loads_scales_and_unloads(tmp_path):
    pipeline = make_pipeline()
    base = run(pipeline)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "ffn.net.2"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.transformer.add_adapter(config)
    tuned = run(pipeline)
    PanoramaVideoPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer))
    fresh = make_pipeline()
    fresh.load_lora_weights(tmp_path)
    assert not torch.allclose(tuned, base, atol=1e-4)
    torch.testing.assert_close(run(fresh), tuned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(run(fresh, attention_kwargs={"scale": 0.0}), base, atol=1e-5, rtol=1e-5)
    fresh.unload_lora_weights()
    torch.testing.assert_close(run(fresh), base, atol=1e-5, rtol=1e-5)


def test_sequentially_offloaded_parts_give_the_same_panorama(pipeline):
    expected, offloaded = run(pipeline, output_type="pt"), make_pipeline()
    for part in (offloaded.text_encoder, offloaded.transformer, offloaded.vae):
        cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=True)
    torch.testing.assert_close(run(offloaded, output_type="pt"), expected, atol=1e-6, rtol=0)


def test_zero_timestep_and_time_offset_come_from_the_graft(pipeline):
    base = run(pipeline)
    assert not torch.allclose(run(make_pipeline(graft=GRAFT.changed(cond_timestep="zero"))), base, atol=1e-5)
    assert not torch.allclose(run(make_pipeline(graft=GRAFT.changed(time_offset=1.0))), base, atol=1e-5)


def test_long_prompts_are_cut_with_a_warning(pipeline):
    with pytest.warns(UserWarning, match="A prompt of 13 tokens is cut to the 8"):
        run(pipeline, prompt="a " * 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": make_clip(80, 4, 4)}, r"num_frames must be 4k\+1 \(e\.g\. 81\); got 80"),
        ({"height": 36}, r"panorama size must be \(H, 2H\) with H a multiple of 8 \(VAE 4 x patch 2\); got 36x72"),
        ({"video": torch.rand(2, 5, 3, 8, 8), "prompt": ["a", "b", "c"]}, "2 clips and 3 prompts do not fit"),
        ({"negative_prompt": ["a", "b"]}, r"2 \(negative\) prompts do not fit 1 panoramas"),
        ({"output_type": "mp4"}, "output_type must be np, pt, pil or latent; got 'mp4'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1; got 0"),
        ({"known_latents": torch.zeros(1, 4, 2, 8, 16)}, "must be given together"),
        (
            {"known_latents": torch.zeros(1, 4, 2, 8, 16), "known_mask": torch.ones(1, 1, 3, 1, 1, dtype=torch.bool)},
            r"known_mask must broadcast to the latents \(1, 4, 2, 8, 16\); got shape \(1, 1, 3, 1, 1\)",
        ),
        ({"prompt_embeds": torch.zeros(1, 8, 16)}, "Cannot forward both"),
    ],
)
def test_wrong_arguments_are_refused_with_a_sentence(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, **options)


def test_wrong_parts_are_refused_with_a_sentence(pipeline):
    components = make_components()
    for change in ({"expand_timesteps": True}, {"boundary_ratio": 0.9}, {"transformer_2": components["transformer"]}):
        with pytest.raises(NotImplementedError, match=r"Wan 2\.2"):
            PanoramaVideoPipeline(**components, **change)
    with pytest.raises(ValueError, match="graft of mode 'video'; got 'image'"):
        make_pipeline(graft=GraftConfig.image())
    with pytest.raises(ValueError, match="must follow a flow with times in"):
        run(make_pipeline(scheduler=UniPCMultistepScheduler()))
    with pytest.raises(ValueError, match="Without a text encoder"):
        run(make_pipeline(text_encoder=None))
