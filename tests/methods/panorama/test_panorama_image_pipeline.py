import copy
import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from visiongraft.flow.guidance import guide, guide_two
from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.circular import decode_latents, encode_latents
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.methods.panorama.sequence_flux import flux_velocity

STEPS = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="module")
def pipeline() -> PanoramaImagePipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
        shift_factor=0.1,
    )
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=small.TEXT_WIDTH,
        pooled_projection_dim=small.TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    made = small.image_pipeline(vae, transformer, ["a street at noon, with trees"])
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    return torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))


def clone(pipeline, **parts) -> PanoramaImagePipeline:
    made = PanoramaImagePipeline(**(pipeline.components | parts), graft=pipeline.graft)
    made.set_progress_bar_config(disable=True)
    return made


def test_panorama_is_twice_as_wide_as_high_and_in_the_unit_range(pipeline, photo):
    panorama = pipeline(photo, "a street", generator=0, **STEPS).images
    assert panorama.shape == (1, 3, 64, 128)
    assert panorama.min() >= 0 and panorama.max() <= 1 and panorama.std() > 0
    assert pipeline(photo, height=32, **STEPS).images.shape == (1, 3, 32, 64)


def test_same_seed_same_panorama(pipeline, photo):
    first = pipeline(photo, generator=7, **STEPS).images
    assert torch.equal(first, pipeline(photo, generator=torch.Generator().manual_seed(7), **STEPS).images)
    assert torch.equal(first, pipeline(photo, generator=[7], **STEPS).images)
    assert not torch.equal(first, pipeline(photo, generator=8, **STEPS).images)


def test_pictures_and_prompts_of_any_kind_give_the_same_panorama(pipeline, photo):
    array = (photo * 255).round().byte().permute(1, 2, 0).numpy()
    expected = pipeline(Image.fromarray(array), "a street", generator=0, **STEPS).images
    for image in (array, torch.from_numpy(array).permute(2, 0, 1), [array], torch.from_numpy(array).permute(2, 0, 1)[None], array[None]):
        assert torch.equal(pipeline(image, ["a street"], generator=0, **STEPS).images, expected)


def test_condition_and_prompt_reach_the_result(pipeline, photo):
    base = pipeline(photo, "a street", generator=0, **STEPS).images
    assert not torch.equal(base, pipeline(1 - photo, "a street", generator=0, **STEPS).images)
    assert not torch.equal(base, pipeline(photo, "", generator=0, **STEPS).images)
    assert torch.equal(base, pipeline(photo, "A 360° image of a street", generator=0, **STEPS).images)
    none, empty = (pipeline(photo, prompt, generator=0, **STEPS).images for prompt in (None, ""))
    assert torch.equal(none, empty)


@torch.no_grad()
def test_output_types_agree(pipeline, photo):
    tensor, array, pil, latents = (
        pipeline(photo, generator=0, num_inference_steps=2, output_type=kind).images for kind in ("pt", "np", "pil", "latent")
    )
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), array)
    assert pil[0].size == (128, 64) and np.abs(np.asarray(pil[0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6
    assert latents.shape == (1, 4, 16, 32)
    assert torch.equal(pipeline.decode(latents, "pt"), tensor)
    decoded = decode_latents(pipeline.vae, latents, circular=True, padding=pipeline.graft.padding)
    assert torch.allclose(tensor, (decoded / 2 + 0.5).clamp(0, 1))
    assert torch.equal(pipeline(photo, generator=0, return_dict=False, **STEPS)[0], tensor)


@torch.no_grad()
def test_decoding_has_no_border_of_its_own(pipeline):
    """Rolling the latents by whole columns rolls the panorama, border or not."""
    latents = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(0))
    straight, rolled = pipeline.decode(latents, "pt"), pipeline.decode(latents.roll(16, -1), "pt")
    plain = [decode_latents(pipeline.vae, part, circular=False) / 2 + 0.5 for part in (latents, latents.roll(16, -1))]
    error, plain_error = (float((a.roll(64, -1) - b)[..., 60:68].abs().max()) for a, b in ((straight, rolled), plain))
    assert error < 0.2 * plain_error


def test_several_panoramas_and_images_in_order(pipeline, photo):
    both = pipeline([photo, 1 - photo], ["a street", "trees"], num_images_per_prompt=2, generator=[1, 2, 3, 4], **STEPS).images
    assert both.shape[0] == 4
    for index, (image, prompt) in enumerate([(photo, "a street")] * 2 + [(1 - photo, "trees")] * 2):
        assert torch.allclose(both[index], pipeline(image, prompt, generator=index + 1, **STEPS).images[0], atol=1e-5)


def test_steps_are_the_base_schedulers_with_the_panoramas_tokens_alone(pipeline, photo):
    pipeline(photo, num_inference_steps=4, output_type="latent")
    expected = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    expected.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4), mu=calculate_shift(8 * 16))
    assert torch.equal(pipeline.scheduler.sigmas, expected.sigmas)
    assert math.isclose(calculate_shift(8192), 1.8433, abs_tol=1e-4)


@pytest.mark.parametrize("dynamic", [True, False])
def test_flow_shift_of_the_graft_wins(pipeline, photo, dynamic):
    shifted = clone(pipeline, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=dynamic, shift=2.0))
    shifted.graft = shifted.graft.changed(flow_shift=3.0)
    shifted(photo, num_inference_steps=4, output_type="latent")
    times = torch.linspace(1, 1 / 4, 4)
    assert torch.allclose(shifted.scheduler.sigmas[:-1], 3 * times / (1 + 2 * times))


def test_sampling_is_euler_on_the_grafts_velocity(pipeline, photo):
    noise = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(3))
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((float(timestep), tensors["latents"].clone()))

    result = pipeline(photo, latents=noise, num_inference_steps=2, output_type="latent", callback_on_step_end=watch).images
    embeds, pooled, _ = pipeline.encode_prompt([""], max_sequence_length=small.TEXT_LENGTH)
    condition = pipeline.prepare_images(photo)
    with torch.no_grad():
        clean = encode_latents(pipeline.vae, condition * 2 - 1, circular=False)
        y, sigmas = noise, pipeline.scheduler.sigmas
        for step in range(2):
            v = flux_velocity(pipeline.transformer, y, clean, sigmas[step][None], embeds, pooled)
            y = y + (sigmas[step + 1] - sigmas[step]) * v
            assert torch.allclose(seen[step][1], y, atol=1e-5)
    assert torch.allclose(result, y, atol=1e-5)


@pytest.mark.parametrize(("cfg", "scales"), [("joint", (2.0, 1.0)), ("text", (2.0, 1.0)), ("two", (2.0, 1.5))])
def test_true_guidance_is_the_formula(pipeline, photo, cfg, scales):
    noise = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(3))
    options = {"latents": noise, "num_inference_steps": 1, "output_type": "latent"}
    guided = pipeline(photo, "trees", cfg=cfg, true_cfg_scale=scales[0], condition_scale=scales[1], **options).images
    velocity = noise - guided

    def plain(prompt, keep):
        text = pipeline.encode_prompt([prompt], max_sequence_length=small.TEXT_LENGTH)
        with torch.no_grad():
            clean = encode_latents(pipeline.vae, pipeline.prepare_images(photo) * 2 - 1, circular=False)
            return flux_velocity(pipeline.transformer, noise, clean, torch.ones(1), *text[:2], keep_condition=torch.tensor([keep]))

    both, image_only, neither = plain("A 360° image of trees", True), plain("", True), plain("", False)
    expected = {
        "joint": guide(both, neither, 2.0),
        "text": guide(both, image_only, 2.0),
        "two": guide_two(neither, image_only, both, 1.5, 2.0),
    }[cfg]
    assert torch.allclose(velocity, expected, atol=1e-5)
    assert not torch.allclose(velocity, both, atol=1e-3)


def test_guidance_interval_and_scale_one_leave_single_passes(pipeline, photo):
    calls = []
    hook = pipeline.transformer.register_forward_hook(lambda *_: calls.append(1))
    plain = pipeline(photo, "trees", generator=0, **STEPS).images
    assert len(calls) == 2
    outside = pipeline(photo, "trees", generator=0, true_cfg_scale=4.0, guidance_interval=(0.0, 0.1), **STEPS).images
    assert len(calls) == 4 and torch.equal(plain, outside)
    pipeline(photo, "trees", cfg="two", true_cfg_scale=4.0, condition_scale=2.0, **STEPS)
    hook.remove()
    assert len(calls) == 10


def test_callback_may_change_latents_and_prompts_and_stop(pipeline, photo):
    options = {"num_inference_steps": 3, "output_type": "latent", "generator": 0}
    steps = []

    def replace(pipe, step, timestep, tensors):
        steps.append(step)
        assert set(tensors) == {"latents", "prompt_embeds"} and tensors["latents"].shape == (1, 4, 16, 32)
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    names = ["latents", "prompt_embeds"]
    result = pipeline(photo, callback_on_step_end=replace, callback_on_step_end_tensor_inputs=names, **options).images
    assert steps == [0, 1, 2] and torch.equal(result, torch.zeros(1, 4, 16, 32))

    def stop(pipe, step, timestep, tensors):
        steps.append("stop")
        pipe._interrupt = True

    pipeline(photo, callback_on_step_end=stop, **options)
    assert steps.count("stop") == 1

    def preview(pipe, step, timestep, tensors):
        assert pipe.decode(tensors["latents"])[0].size == (128, 64)

    pipeline(photo, callback_on_step_end=preview, **options)
    with pytest.raises(ValueError, match="has noise; it may name latents and prompt_embeds"):
        pipeline(photo, callback_on_step_end_tensor_inputs=["noise"])


def test_embeddings_in_place_of_prompts(pipeline, photo):
    embeds, pooled, _ = pipeline.encode_prompt(["A 360° image of trees"], max_sequence_length=small.TEXT_LENGTH)
    expected = pipeline(photo, "trees", generator=0, **STEPS).images
    bare = clone(pipeline, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None)
    given = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    assert torch.allclose(bare(photo, generator=0, **given, **STEPS).images, expected, atol=1e-5)
    with pytest.raises(ValueError, match="Without text encoders prompt_embeds must be given"):
        bare(photo, **STEPS)
    with pytest.raises(ValueError, match="Without text encoders prompt_embeds must be given"):
        bare(photo, true_cfg_scale=2.0, **given, **STEPS)
    with pytest.raises(ValueError, match="Give prompt or prompt_embeds, not both"):
        pipeline(photo, "trees", **given, **STEPS)
    with pytest.raises(ValueError, match="prompt_embeds needs pooled_prompt_embeds"):
        pipeline(photo, prompt_embeds=embeds, **STEPS)


def test_long_prompts_are_cut_with_a_warning(pipeline, photo):
    with pytest.warns(UserWarning, match=f"The prompt has .* tokens; what is beyond {small.TEXT_LENGTH} is cut off"):
        pipeline(photo, "street " * 40, **STEPS)


def test_keep_fits_whole_tokens_of_about_the_same_number_and_warns(pipeline):
    wide = torch.rand(3, 60, 120)
    with pytest.warns(UserWarning, match="fit='keep' gives an input of 24x48; the weights were trained on squares of 32"):
        kept = pipeline.prepare_images(wide, "keep")
    assert kept.shape == (1, 3, 24, 48)
    with pytest.warns(UserWarning, match="fit='keep'"):
        assert pipeline(wide, fit="keep", **STEPS).images.shape == (1, 3, 64, 128)


def test_crop_takes_the_middle_square(pipeline):
    picture = torch.zeros(3, 32, 96)
    picture[..., 32:64] = 1
    assert torch.equal(pipeline.prepare_images(picture), torch.ones(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 500}, r"panorama size must be \(H, 2H\) with H a multiple of 8 \(VAE 4 x patch 2\); got 500x1000"),
        ({"condition_size": 30}, "condition_size must be a multiple of 8, the pixels of a token; got 30"),
        ({"num_inference_steps": 0}, "must be at least 1; got 0 and 1"),
        ({"generator": [1, 2]}, "one generator, or one for each of the 1 panoramas; got 2"),
        ({"prompt": ["a", "b"]}, "one prompt, or one for each of the 1 images; got 2"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents must have shape \(1, 4, 16, 32\).*got \(1, 4, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, photo, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(photo, **options)


def test_the_real_strides_are_in_the_message(pipeline):
    real = clone(pipeline)
    real._stride_and_patch = lambda: (8, 2)
    with pytest.raises(ValueError, match=r"with H a multiple of 16 \(VAE 8 x patch 2\); got 500x1000"):
        real(torch.rand(3, 8, 8), height=500)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.rand(3, 8, 8) * 255, "divide by 255"),
        (torch.rand(2, 8, 8), "1, 3 or 4 channels"),
        ([], "There is no image in the list"),
        (Image.new("RGBA", (8, 8), (0, 0, 0, 100)), "image has transparency: pass alpha='white' or 'black'"),
    ],
)
def test_bad_images_are_refused(pipeline, image, message):
    with pytest.raises(ValueError, match=message):
        pipeline(image, **STEPS)


def test_padding_and_mixed_shapes_are_refused_with_the_reason(pipeline):
    prepare = inspect.unwrap(PanoramaImagePipeline.prepare_images)  # without the type checker of the tests
    with pytest.raises(ValueError, match="'crop' or 'keep', since padding would change the apparent field of view; got 'pad'"):
        prepare(pipeline, torch.rand(3, 8, 8), "pad")
    with pytest.raises(ValueError, match="different proportions cannot share a batch"):
        pipeline([torch.rand(3, 8, 8), torch.rand(3, 8, 32)], fit="keep", **STEPS)


def test_transparency_is_laid_on_the_given_colour(pipeline):
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert torch.equal(pipeline.prepare_images(clear, alpha="white"), torch.ones(1, 3, 32, 32))


def test_nan_after_decoding_is_an_error(pipeline):
    with pytest.raises(ValueError, match=r"has NaN or infinite pixels with a torch\.float32 VAE; use bfloat16 or float32"):
        pipeline.decode(torch.full((1, 4, 16, 32), float("inf")))


def test_saving_and_loading_keep_graft_and_result(pipeline, photo, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = PanoramaImagePipeline.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.graft == pipeline.graft
    assert torch.allclose(loaded(photo, generator=0, **STEPS).images, pipeline(photo, generator=0, **STEPS).images, atol=1e-5)
    half = PanoramaImagePipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.transformer.dtype == half.vae.dtype == torch.bfloat16
    difference = half(photo, generator=0, **STEPS).images.float() - pipeline(photo, generator=0, **STEPS).images
    assert difference.abs().max() < 0.1


def test_components_of_flux_and_kontext_are_accepted(pipeline, photo, tmp_path):
    expected = pipeline(photo, generator=0, **STEPS).images
    for kind in (FluxPipeline, FluxKontextPipeline):
        base = kind(**pipeline.components)
        grafted = PanoramaImagePipeline(**base.components, graft=pipeline.graft)
        grafted.set_progress_bar_config(disable=True)
        assert torch.equal(grafted(photo, generator=0, **STEPS).images, expected)
        assert PanoramaImagePipeline.from_pipe(base).graft == GraftConfig.image()
    FluxPipeline(**pipeline.components).save_pretrained(tmp_path)
    assert PanoramaImagePipeline.from_pretrained(tmp_path).graft == GraftConfig.image()


def test_lora_round_trip_changes_the_result_by_its_scale(pipeline, photo, tmp_path):
    trained = clone(pipeline, transformer=copy.deepcopy(pipeline.transformer))
    trained.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(trained.transformer))
    expected = trained(photo, generator=0, **STEPS).images
    loaded = clone(pipeline, transformer=copy.deepcopy(pipeline.transformer))
    base = loaded(photo, generator=0, **STEPS).images
    loaded.load_lora_weights(tmp_path)
    assert torch.allclose(loaded(photo, generator=0, **STEPS).images, expected, atol=1e-5)
    assert (expected - base).abs().max() > 1e-4
    off = loaded(photo, generator=0, attention_kwargs={"scale": 0.0}, **STEPS).images
    assert torch.allclose(off, base, atol=1e-5)
    loaded.unload_lora_weights()
    assert torch.equal(loaded(photo, generator=0, **STEPS).images, base)


def test_grafts_of_the_other_mode_are_refused(pipeline):
    with pytest.raises(ValueError, match="needs a graft of mode 'image'; got 'video'"):
        PanoramaImagePipeline(**pipeline.components, graft=GraftConfig.video())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="offloading needs an accelerator")
@pytest.mark.parametrize("kind", ["model", "sequential"])
@pytest.mark.parametrize("cond_timestep", ["shared", "zero"])
def test_offloading_gives_the_same_panorama(pipeline, photo, kind, cond_timestep):
    expected = pipeline(photo, "trees", generator=0, true_cfg_scale=2.0, **STEPS).images
    parts = {name: copy.deepcopy(part) for name, part in pipeline.components.items()}
    offloaded = PanoramaImagePipeline(**parts, graft=pipeline.graft.changed(cond_timestep=cond_timestep))
    offloaded.set_progress_bar_config(disable=True)
    getattr(offloaded, f"enable_{kind}_cpu_offload")()
    result = offloaded(photo, "trees", generator=0, true_cfg_scale=2.0, **STEPS).images.cpu()
    if cond_timestep == "shared":
        assert (result - expected).abs().max() < 1e-2
    assert result.isfinite().all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_offloading_without_an_accelerator_says_so(pipeline):
    with pytest.raises(RuntimeError, match="requires accelerator, but not found"):
        clone(pipeline).enable_model_cpu_offload()
