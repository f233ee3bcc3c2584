"""Smoothing inside real model classes: the arithmetic is the definition's, and it leaves without a trace."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visiongraft.methods.feature_smoothing.attachment import attach, detach
from visiongraft.methods.feature_smoothing.encoders import Encoder
from visiongraft.methods.feature_smoothing.normalisation import normalise
from visiongraft.methods.feature_smoothing.smoothed_tower import FeatureSpec, SmoothedVisionTower
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig, draw_noise
from visiongraft.methods.feature_smoothing.towers import images_to_rows

IMAGE_TOKEN = 60  # of the tiny language models
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
CONFIG = SmoothingConfig(sigma=0.3, n0=5, chunk_size=4)
TINY = SmoothingConfig(sigma=1e-6, n0=2)
TOWERS = [
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "SiglipVisionModel",
    "Siglip2VisionModel",
    "Dinov2Model",
    "Dinov2WithRegistersModel",
]
TWO_TOWERS = ["CLIPModel", "SiglipModel", "Siglip2Model"]
LANGUAGE_MODELS = ["Llava", "LlavaSiglipTwoLayers", "PaliGemma", "InternVL", "SmolVLM", "Idefics3", "Idefics"]
EVERY = TOWERS + TWO_TOWERS + LANGUAGE_MODELS


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def put(model: nn.Module, config: SmoothingConfig = CONFIG, **options):
    return attach(model, config, mean=MEAN, std=STD, whole_images=True, **options)


def inputs_for(name: str, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model's processor would hand over for images that are already the right size."""
    count = len(pixels)
    pixels = normalise(pixels, MEAN, STD)
    if name.startswith("Siglip2"):
        vision = {
            "pixel_values": images_to_rows(pixels, 4),
            "pixel_attention_mask": torch.ones(count, 16, dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]]).expand(count, 2),
        }
    elif name in ("SmolVLM", "Idefics3", "Idefics"):
        vision = {"pixel_values": pixels.unsqueeze(1)}
    else:
        vision = {"pixel_values": pixels}
    if name in TOWERS:
        return vision
    words = torch.tensor([[5, 6, 7]]).expand(count, 3)
    if name in LANGUAGE_MODELS and name != "Idefics":
        image_tokens = 4 if name in ("InternVL", "SmolVLM", "Idefics3") else 16
        words = torch.cat([words[:, :1], torch.full((count, image_tokens), IMAGE_TOKEN), words[:, 1:]], dim=1)
    vision["input_ids"] = words
    if name == "Idefics":
        vision["image_attention_mask"] = torch.ones(count, words.shape[1], 1, dtype=torch.long)
    if name in LANGUAGE_MODELS:
        vision["attention_mask"] = torch.ones_like(words)
    return vision


def run(model: nn.Module, name: str, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs_for(name, pixels))
    for key in ("logits", "image_embeds", "last_hidden_state"):
        if output.get(key) is not None:
            return output[key]
    raise AssertionError(f"nothing to compare in {output.keys()}")


@pytest.mark.parametrize("name", EVERY)
def test_detached_model_is_bit_identical(tiny_model, name):
    model = tiny_model(name)
    before, modules, state = run(model, name, images()), list(model.named_modules()), model.state_dict()
    names = [set(module.__dict__) for module in model.modules()]
    handle = put(model)
    while_attached = run(model, name, images())
    handle.remove()
    handle.remove()
    assert not torch.equal(while_attached, before)
    assert torch.equal(run(model, name, images()), before)
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(modules, model.named_modules(), strict=True))
    assert names == [set(module.__dict__) for module in model.modules()]
    after = model.state_dict()
    assert list(state) == list(after) and all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("name", EVERY)
def test_vanishing_noise_gives_the_base_output(tiny_model, name):
    model = tiny_model(name)
    before = run(model, name, images())
    with put(model, TINY):
        after = run(model, name, images())
    torch.testing.assert_close(after, before, atol=2e-3 * float(before.abs().max()), rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_noise_is_fresh_on_each_call_and_different_for_each_image(tiny_model, name):
    model = tiny_model(name)
    same = images(1).expand(2, -1, -1, -1)
    with put(model):
        first, second = run(model, name, same), run(model, name, same)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPModel", "Llava", "SmolVLM"])
def test_a_generator_makes_a_call_reproducible(tiny_model, name):
    model = tiny_model(name)
    results = []
    for seed in (3, 3, 4):
        with put(model, generator=seeded(seed)):
            results.append(run(model, name, images()))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_tokens_follow_the_definition_written_as_a_loop(tiny_model):
    model = tiny_model("CLIPVisionModel")
    pixels = images()
    with torch.no_grad():
        with put(model, generator=seeded()):
            smoothed = model(normalise(pixels, MEAN, STD))
        generator = seeded()
        tokens, pooled = [], []
        for count in (2, 2, 1):  # chunks of four noisy images over two images
            for noisy in draw_noise(pixels, CONFIG.sigma, count, generator):
                output = model(normalise(noisy.unsqueeze(0), MEAN, STD))
                tokens.append((len(tokens), output.last_hidden_state[0]))
                pooled.append(output.pooler_output[0])
    order = [0, 0, 1, 1, 0, 0, 1, 1, 0, 1]  # image-major inside a chunk
    for image in range(2):
        mine = torch.stack([token for i, token in tokens if order[i] == image])
        direction = F.normalize(F.normalize(mine, dim=-1).mean(0), dim=-1)
        expected = direction * mine.norm(dim=-1).mean(0).unsqueeze(-1)
        torch.testing.assert_close(smoothed.last_hidden_state[image], expected, atol=1e-5, rtol=1e-5)
        mine = torch.stack([vector for i, vector in enumerate(pooled) if order[i] == image])
        expected = F.normalize(F.normalize(mine, dim=-1).mean(0), dim=-1) * mine.norm(dim=-1).mean()
        torch.testing.assert_close(smoothed.pooler_output[image], expected, atol=1e-5, rtol=1e-5)


def test_without_restored_norm_tokens_are_the_mean_of_unit_tokens(tiny_model):
    model = tiny_model("CLIPVisionModel")
    plain = SmoothingConfig(sigma=0.3, n0=5, chunk_size=4, restore_norm=False)
    with torch.no_grad():
        with put(model, generator=seeded()):
            restored = model(normalise(images(), MEAN, STD)).last_hidden_state
        with put(model, plain, generator=seeded()):
            raw = model(normalise(images(), MEAN, STD)).last_hidden_state
    assert raw.norm(dim=-1).max() < 1
    torch.testing.assert_close(F.normalize(raw, dim=-1), F.normalize(restored, dim=-1))


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "Siglip2Model", "CLIPVisionModelWithProjection"])
def test_deployed_embedding_is_what_the_pooled_certificate_is_about(tiny_model, name):
    model = tiny_model(name)
    smoothed = SmoothedEncoder(
        Encoder.from_transformers(model, MEAN, STD), SmoothingConfig(sigma=0.3, n0=5, chunk_size=4, token_mode="pooled")
    )
    with torch.no_grad():
        certified = smoothed.mean_feature(images(), 5, seeded())[:, 0]
        with attach(model, smoothed, generator=seeded()):
            deployed = run(model, name, images())
    torch.testing.assert_close(F.normalize(deployed, dim=-1), F.normalize(certified, dim=-1), atol=1e-5, rtol=0)


def test_llava_projector_reads_what_the_smoothed_encoder_gives(tiny_model):
    model = tiny_model("Llava")
    encoder = Encoder.from_transformers(model, MEAN, STD)
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    smoothed = SmoothedEncoder(encoder, CONFIG)
    with torch.no_grad():
        expected = smoothed(images(), seeded())
        with attach(model, smoothed, generator=seeded()):
            model(**inputs_for("Llava", images()))
    torch.testing.assert_close(seen[0], expected)


class Shrink(nn.Module):
    """A purifier that pulls towards grey, and records what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.seen, self.sigma = noisy, sigma
        return 0.5 + self.weight * (noisy - 0.5)


class Shift(nn.Module):
    """A mapper whose residual is easy to predict."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16))

    def forward(self, tokens: torch.Tensor, sigma: torch.Tensor, grid_size: tuple[int, int] | None = None) -> torch.Tensor:
        self.shape, self.grid = tuple(tokens.shape), grid_size
        return self.weight * sigma[:, None, None] + 0.1 * tokens.roll(1, -1)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel", "Siglip2Model", "Dinov2Model", "CLIPVisionModelWithProjection"])
def test_purifier_and_mapper_act_as_in_the_smoothed_encoder(tiny_model, name):
    model = tiny_model(name)
    encoder = Encoder.from_transformers(model, MEAN, STD)
    purifier, mapper = Shrink(), Shift()
    pooled = SmoothingConfig(sigma=0.3, n0=5, chunk_size=4, token_mode="pooled")
    smoothed = SmoothedEncoder(encoder, pooled, purifier, mapper)
    with torch.no_grad():
        certified = smoothed.mean_feature(images(), 5, seeded())[:, 0]
        tokens = smoothed(images(), seeded())
        handle = attach(model, smoothed, generator=seeded())
        kept = []
        handle.tower.register_forward_hook(lambda module, args, output: kept.append(output))
        deployed = model(**inputs_for(name, images()))
        handle.remove()
    assert mapper.grid == (4, 4)
    if kept:
        torch.testing.assert_close(kept[0].last_hidden_state, tokens)
        embedding = deployed.image_embeds
    else:
        torch.testing.assert_close(deployed.last_hidden_state, tokens)
        embedding = deployed.get("image_embeds", deployed.get("pooler_output"))
    torch.testing.assert_close(F.normalize(embedding, dim=-1), F.normalize(certified, dim=-1), atol=1e-5, rtol=0)


def test_llava_mapper_skips_the_class_token(tiny_model):
    model = tiny_model("Llava")
    mapper = Shift()
    encoder = Encoder.from_transformers(model, MEAN, STD)
    smoothed = SmoothedEncoder(encoder, CONFIG, None, mapper)
    seen = []
    model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        expected = smoothed(images(), seeded())
        with put(model, mapper=mapper, generator=seeded()):
            model(**inputs_for("Llava", images()))
    assert mapper.shape[1:] == (16, 16)
    torch.testing.assert_close(seen[0], expected)


def test_mapper_on_a_layer_that_is_not_asked_for_is_refused(tiny_model):
    model = tiny_model("CLIPVisionModel")
    with put(model, mapper=Shift(), feature=FeatureSpec(layer=-2)):
        with pytest.raises(ValueError, match=r"acts on hidden_states\[-2\], but the tower was not asked for it"):
            model(normalise(images(), MEAN, STD))
        model(normalise(images(), MEAN, STD), output_hidden_states=[-2])
    with pytest.raises(ValueError, match="say which one the mapper acts on with feature="):
        put(tiny_model("LlavaSiglipTwoLayers"), mapper=Shift())


def test_purifier_sees_unclipped_pixel_noise_of_the_stated_sigma(tiny_model):
    model, purifier = tiny_model("CLIPVisionModel"), Shrink()
    config = SmoothingConfig(sigma=0.4, n0=200, chunk_size=400)
    with torch.no_grad(), put(model, config, purifier=purifier):
        model(normalise(images(), MEAN, STD))
    noise = purifier.seen - images().repeat_interleave(200, dim=0)
    assert abs(float(noise.std()) - 0.4) < 0.004
    assert purifier.seen.min() < -0.5 and purifier.seen.max() > 1.5
    samples = noise.flatten(1)
    correlation = (F.normalize(samples, dim=1) @ F.normalize(samples, dim=1).T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.25  # independent: 5 standard deviations of 1/sqrt(768) is 0.18
    assert torch.equal(purifier.sigma, torch.full((400,), 0.4))


def test_clamping_follows_the_purifier(tiny_model):
    model = tiny_model("CLIPVisionModel")
    with torch.no_grad():
        results = []
        for clamp in (True, False):
            config = SmoothingConfig(sigma=0.5, n0=4, clamp_after_purifier=clamp)
            with put(model, config, purifier=Shrink(), generator=seeded()):
                results.append(model(normalise(images(), MEAN, STD)).last_hidden_state)
    assert not torch.equal(*results)


@pytest.mark.parametrize("which", [True, -2, [-2, 1], False])
def test_hidden_states_keep_their_places(tiny_model, which):
    model = tiny_model("CLIPVisionModel")
    pixel_values = normalise(images(), MEAN, STD)
    with torch.no_grad():
        base = model(pixel_values, output_hidden_states=which)
        with put(model, TINY):
            smoothed = model(pixel_values, output_hidden_states=which)
    assert type(smoothed) is type(base)
    assert list(smoothed.keys()) == list(base.keys())
    if which is not False:
        assert [state is None for state in smoothed.hidden_states] == [state is None for state in base.hidden_states]
        for mine, theirs in zip(smoothed.hidden_states, base.hidden_states, strict=True):
            if theirs is not None:
                torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)


def test_tuple_output_stays_a_tuple(tiny_model):
    model = tiny_model("CLIPVisionModel")
    pixel_values = normalise(images(), MEAN, STD)
    with torch.no_grad():
        base = model(pixel_values, return_dict=False)
        with put(model, TINY):
            smoothed = model(pixel_values, return_dict=False)
    assert isinstance(smoothed, tuple) and len(smoothed) == len(base)
    torch.testing.assert_close(smoothed[1], base[1], atol=1e-3, rtol=1e-3)


def test_attention_maps_stay_distributions(tiny_model):
    model = tiny_model("CLIPVisionModel")
    model.set_attn_implementation("eager")
    with torch.no_grad(), put(model):
        attentions = model(normalise(images(), MEAN, STD), output_attentions=True).attentions
    assert attentions[0].shape[0] == 2
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones_like(attentions[0].sum(-1)))


def test_llava_generates_under_smoothing_and_pays_at_prefill_only(tiny_model):
    model = tiny_model("Llava")
    inputs = inputs_for("Llava", images(1))
    before = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    calls = []
    with put(model, TINY) as handle:
        handle.tower.register_forward_hook(lambda *_: calls.append(1))
        during = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(during, before)
    assert len(calls) == 1
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "Llava"])
def test_an_exception_inside_the_block_still_restores(tiny_model, name):
    model = tiny_model(name)
    before = run(model, name, images())
    with pytest.raises(KeyError), put(model):
        raise KeyError("user code")
    assert torch.equal(run(model, name, images()), before)


def test_detach_finds_the_smoothing_and_is_idempotent(tiny_model):
    for name in ("CLIPVisionModel", "Llava"):
        model = tiny_model(name)
        before = run(model, name, images())
        put(model)
        detach(model)
        detach(model)
        assert torch.equal(run(model, name, images()), before)
        put(model).remove()


def test_padding_mask_travels_with_the_noisy_batch(tiny_model):
    model = tiny_model("SmolVLM")
    inputs = inputs_for("SmolVLM", images())
    mask = torch.ones(2, 1, 16, 16, dtype=torch.long)
    mask[1, :, 8:] = 0
    inputs["pixel_attention_mask"] = mask
    with torch.no_grad():
        before = model(**inputs).logits
        with put(model, TINY):
            after = model(**inputs).logits
    torch.testing.assert_close(after, before, atol=2e-3 * float(before.abs().max()), rtol=0)


def test_patch_rows_of_different_sizes_keep_their_own_grid(tiny_model):
    model, mapper, purifier = tiny_model("Siglip2VisionModel"), Shift(), Shrink()
    rows = torch.zeros(2, 20, 48)
    rows[0, :16] = images_to_rows(normalise(images(1), MEAN, STD), 4)[0]
    wide = normalise(torch.rand(1, 3, 8, 24, generator=seeded()), MEAN, STD)
    rows[1, :12] = images_to_rows(wide, 4)[0]
    mask = (torch.arange(20) < torch.tensor([[16], [12]])).long()
    inputs = {"pixel_values": rows, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[4, 4], [2, 6]])}
    with torch.no_grad():
        before = model(**inputs)
        with put(model, TINY):
            after = model(rows, mask, inputs["spatial_shapes"])
        with put(model, mapper=mapper, purifier=purifier):
            model(**inputs)
    torch.testing.assert_close(after.pooler_output, before.pooler_output, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.last_hidden_state[1, :12], before.last_hidden_state[1, :12], atol=1e-3, rtol=1e-3)
    assert mapper.grid == (2, 6) and mapper.shape[1] == 12 and purifier.seen.shape[2:] == (8, 24)


def test_bfloat16_model_draws_its_noise_in_float32(tiny_model):
    model, purifier = tiny_model("Llava").to(torch.bfloat16), Shrink()
    inputs = inputs_for("Llava", images())
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with torch.no_grad(), put(model, purifier=purifier):
        logits = model(**inputs).logits
    assert logits.dtype == torch.bfloat16 and torch.isfinite(logits).all()
    rounded = purifier.seen.to(torch.bfloat16).float() == purifier.seen
    assert purifier.seen.dtype == torch.float32 and rounded.float().mean() < 0.05


def test_wrapper_looks_like_the_tower(tiny_model):
    model = tiny_model("SmolVLM")
    base = model.model.vision_model
    with put(model):
        wrapper = model.model.vision_model
        assert isinstance(wrapper, SmoothedVisionTower)
        for name in ("config", "dtype", "device", "main_input_name", "patch_size", "embeddings", "post_layernorm"):
            assert getattr(wrapper, name) == getattr(base, name)
        with pytest.raises(AttributeError, match="no_such_attribute"):
            wrapper.no_such_attribute  # noqa: B018
        assert isinstance(copy.deepcopy(wrapper), SmoothedVisionTower)
    assert model.model.vision_model is base


def test_gradient_of_the_smoothed_output_reaches_the_pixels(tiny_model):
    model = tiny_model("CLIPModel")
    pixels = images().requires_grad_()
    with put(model, purifier=Shrink(), mapper=Shift(), generator=seeded()):
        output = model.get_image_features(normalise(pixels, MEAN, STD)).pooler_output
        output.square().sum().backward()
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all() and torch.isfinite(pixels.grad).all()


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPModel", "Llava"])
def test_saving_while_attached_is_refused_and_leaves_no_folder(tiny_model, tmp_path, name):
    model = tiny_model(name)
    before = model.state_dict()
    with put(model):
        with pytest.raises(RuntimeError, match=r"call detach\(model\) or handle.remove\(\) before saving"):
            model.save_pretrained(tmp_path / "saved")
        with pytest.raises(RuntimeError, match="before saving"):
            torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert list(tmp_path.iterdir()) == []
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[key], before[key]) for key in before)


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPModel", "Llava"])
def test_attaching_twice_is_refused_by_every_way_in(tiny_model, name):
    model = tiny_model(name)
    base = {"CLIPVisionModel": "", "CLIPModel": "vision_model", "Llava": "model.vision_tower"}[name]
    tower = model.get_submodule(base)
    with put(model):
        for again in (model, tower):
            with pytest.raises(ValueError, match=r"already smoothed; detach\(model\) first"):
                put(again)
    with put(tower), pytest.raises(ValueError, match="already smoothed"):
        put(model)


def test_any_module_can_be_named_by_its_path(tiny_model):
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eyes = nn.ModuleDict({"left": nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(2))})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.eyes["left"](x).transpose(1, 2)

    model = Parent().eval()
    pixel_values = normalise(images(), MEAN, STD)
    before = model(pixel_values)
    with put(model, TINY, path="eyes.left"):
        torch.testing.assert_close(model(pixel_values), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(pixel_values), before)
    with pytest.raises(ValueError, match=r"has no module at path 'eyes.right'"):
        put(model, path="eyes.right")
    with pytest.raises(ValueError, match="No vision tower is known for Parent; known are CLIPVisionModel"):
        put(model)


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("Qwen2VL", "model.visual", "every pixel of a still image occurs twice"),
        ("Qwen2_5_VL", "model.visual", "every pixel of a still image occurs twice"),
        ("Qwen3VL", "model.visual", "every pixel of a still image occurs twice"),
        ("LlavaNext", "model.vision_tower", "one pixel occurs in the overview and in a tile"),
        ("LlavaOnevision", "model.vision_tower", "one pixel occurs in the overview and in a tile"),
        ("LlavaPixtral", "model.vision_tower", "packs all images of a batch into one sequence"),
    ],
)
def test_models_whose_input_is_not_one_image_are_refused_with_the_reason(tiny_model, name, path, reason):
    model = tiny_model(name)
    for way in (None, path):
        with pytest.raises(NotImplementedError, match=f"{reason}.*Smooth at image level instead"):
            put(model, path=way)
    if not name.startswith(("LlavaNext", "LlavaOne")):  # these two have an ordinary tower; the model around it cuts crops
        with pytest.raises(NotImplementedError, match=reason):
            put(model.get_submodule(path))


@pytest.mark.parametrize("name", ["SmolVLM", "Idefics3", "InternVL"])
def test_possible_crops_are_refused_until_declared_whole(tiny_model, name):
    model = tiny_model(name)
    with attach(model, CONFIG, mean=MEAN, std=STD):
        run(model, name, images(1))
        with pytest.raises(NotImplementedError, match=r"crops of one image .* whole_images=True"):
            run(model, name, images(2))


def test_pixels_that_are_no_image_are_refused(tiny_model):
    model = tiny_model("CLIPVisionModel")
    with put(model):
        with pytest.raises(ValueError, match=r"must be an image in \[0, 1\]; it spans .* to .* with mean="):
            model(255 * images())
        with pytest.raises(ValueError, match=r"it spans nan"):
            model(torch.full((1, 3, 16, 16), float("nan")))
        with pytest.raises(ValueError, match="batch x channels x height x width"):
            model(images()[0])


def test_training_mode_is_refused_on_attaching_and_later(tiny_model):
    model = tiny_model("CLIPModel")
    with put(model):
        model.train()
        with pytest.raises(ValueError, match=r"training mode.*call model.eval\(\) first"):
            run(model, "CLIPModel", images())
    with pytest.raises(ValueError, match="training mode"):
        put(model.train())
    assert not any("_visiongraft_smoothing" in module.__dict__ for module in model.modules())


def test_missing_normalisation_asks_for_it(tiny_model):
    with pytest.raises(ValueError, match="give mean=… and std=…"):
        attach(tiny_model("CLIPModel"), CONFIG)


def test_compiled_and_offloaded_models_say_attach_first(tiny_model):
    model = tiny_model("CLIPModel")
    model.compile()
    with pytest.raises(ValueError, match=r"attach first, then torch.compile"):
        put(model)
    with pytest.raises(ValueError, match=r"offloaded .* keep the vision tower on a device"):
        put(tiny_model("CLIPModel").to("meta"))


def test_dispatched_tower_with_real_weights_is_smoothed_through_its_hook(tiny_model):
    from accelerate.hooks import ModelHook, add_hook_to_module

    for name, path in (("CLIPVisionModel", ""), ("Llava", "model.vision_tower")):
        model = tiny_model(name)
        before = run(model, name, images())
        calls = []

        class Count(ModelHook):
            def pre_forward(self, module, *args, calls=calls, **kwargs):
                calls.append(1)
                return args, kwargs

        add_hook_to_module(model.get_submodule(path), Count())
        with put(model, SmoothingConfig(sigma=0.3, n0=3, chunk_size=2)):
            run(model, name, images())
        assert len(calls) == 3
        assert torch.equal(run(model, name, images()), before)


def test_sigma_must_be_positive():
    with pytest.raises(ValueError, match="sigma must be a positive number"):
        SmoothingConfig(sigma=0.0)


def test_infinite_features_are_reported(tiny_model):
    model = tiny_model("CLIPVisionModel")
    with torch.no_grad():
        model.post_layernorm.weight.fill_(float("inf"))
    with put(model), pytest.raises(ValueError, match="pooler_output is NaN or infinite"):
        model(normalise(images(), MEAN, STD))
