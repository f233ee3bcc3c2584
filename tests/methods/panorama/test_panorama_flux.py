import copy
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.hooks import HookRegistry
from peft import LoraConfig

from visiongraft.methods.panorama.lora import add_lora
from visiongraft.methods.panorama.sequence_flux import flux_velocity, pack, position_ids, unpack


def make(guidance: bool = True, seed: int = 0, **changes) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 10,
        "guidance_embeds": guidance,
        "axes_dims_rope": (4, 6, 6),
    }
    return FluxTransformer2DModel(**(settings | changes)).eval()


@pytest.fixture(scope="module")
def model():
    return make()


def inputs(batch: int = 2, condition: tuple[int, int] = (4, 4), dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return {
        "panorama": draw(batch, 4, 4, 8),
        "condition": draw(batch, 4, *condition),
        "timestep": torch.linspace(0.3, 0.9, batch),
        "prompt_embeds": draw(batch, 5, 12),
        "pooled_prompt_embeds": draw(batch, 10),
        "guidance": torch.full((batch,), 3.0),
    }


def stock(model, values: dict, tokens, ids, **changes):
    return model(
        hidden_states=tokens,
        encoder_hidden_states=values["prompt_embeds"],
        pooled_projections=values["pooled_prompt_embeds"],
        timestep=values["timestep"],
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
        guidance=values["guidance"],
        return_dict=False,
        **changes,
    )[0]


def spread(model, values: dict, **changes):
    return flux_velocity(model, **(values | changes))


@torch.no_grad()
def test_packing_is_flux_pipelines_and_unpacking_inverts_it():
    latents = torch.randn(2, 4, 6, 8)
    tokens = pack(latents, 2)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
    assert torch.equal(unpack(tokens, 3, 4, 2), latents)
    assert torch.equal(position_ids(3, 4, 0.0, torch.device("cpu")), FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32))


@torch.no_grad()
def test_without_condition_it_is_the_stock_forward_bit_for_bit(model):
    values = inputs() | {"condition": None}
    expected = stock(model, values, pack(values["panorama"], 2), position_ids(2, 4, 0.0, torch.device("cpu")))
    for options in ({}, {"cond_timestep": "zero"}, {"keep_condition": torch.tensor([True, False])}):
        assert torch.equal(pack(spread(model, values, **options), 2), expected)


@torch.no_grad()
@pytest.mark.parametrize("condition", [(4, 4), (2, 6), (8, 8)])
def test_shared_time_is_the_stock_forward_on_joined_tokens_bit_for_bit(model, condition):
    values = inputs(condition=condition)
    rows, columns = condition[0] // 2, condition[1] // 2
    tokens = torch.cat([pack(values["panorama"], 2), pack(values["condition"], 2)], 1)
    ids = torch.cat([position_ids(2, 4, 0.0, torch.device("cpu")), position_ids(rows, columns, 1.0, torch.device("cpu"))])
    expected = stock(model, values, tokens, ids)[:, :8]
    assert torch.equal(pack(spread(model, values), 2), expected)
    assert torch.equal(pack(spread(model, values, keep_condition=torch.tensor([True, True])), 2), expected)


@torch.no_grad()
def test_order_of_the_two_grids_does_not_matter(model):
    values = inputs()
    tokens = torch.cat([pack(values["condition"], 2), pack(values["panorama"], 2)], 1)
    ids = torch.cat([position_ids(2, 2, 1.0, torch.device("cpu")), position_ids(2, 4, 0.0, torch.device("cpu"))])
    turned = stock(model, values, tokens, ids)[:, 4:]
    assert (pack(spread(model, values), 2) - turned).abs().max() < 1e-5


@torch.no_grad()
def test_the_condition_and_its_time_offset_matter(model):
    values = inputs()
    result = spread(model, values)
    assert (result - spread(model, values, condition=values["condition"] + 1)).abs().max() > 1e-3
    offsets = [spread(model, values, time_offset=offset) for offset in (0.0, 0.1, 1.0)]
    assert torch.equal(offsets[2], result)
    assert all((a - b).abs().max() > 1e-5 for a, b in pairwise(offsets))


@torch.no_grad()
@pytest.mark.parametrize("cond_timestep", ["shared", "zero"])
def test_dropped_condition_is_zero_behind_the_embedding_in_that_sample_only(model, cond_timestep):
    values, keep = inputs(), torch.tensor([True, False])
    embedded = []
    hooks = [model.transformer_blocks[0].norm1.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))]
    hooks += [model.transformer_blocks[0].norm1.norm.register_forward_pre_hook(lambda _, args: embedded.append(args[0]))]
    result = spread(model, values, keep_condition=keep, cond_timestep=cond_timestep)
    for hook in hooks:
        hook.remove()
    assert embedded[0].shape[1] == 8 + 4
    assert torch.equal(embedded[0][1, 8:], torch.zeros(4, 32))
    assert torch.equal(embedded[0][0], model.x_embedder(torch.cat([pack(values[name], 2)[0] for name in ("panorama", "condition")])))
    assert torch.allclose(result[0], spread(model, values, cond_timestep=cond_timestep)[0], atol=1e-6)
    zero_latents = spread(model, values, condition=torch.zeros(2, 4, 4, 4), cond_timestep=cond_timestep)
    assert (result[1] - zero_latents[1]).abs().max() > 1e-4  # a grey image is not the null
    other = spread(model, values, condition=values["condition"] * 3, keep_condition=keep, cond_timestep=cond_timestep)
    assert torch.equal(result[1], other[1])
    assert not model.x_embedder._forward_hooks


@torch.no_grad()
@pytest.mark.parametrize("guidance", [True, False])
def test_zero_time_at_time_zero_is_shared_time(guidance):
    model, values = make(guidance), inputs()
    values |= {"timestep": torch.zeros(2)} | ({} if guidance else {"guidance": None})
    assert (spread(model, values, cond_timestep="zero") - spread(model, values)).abs().max() < 1e-5


@torch.no_grad()
def test_zero_time_modulates_the_two_grids_apart():
    """Without attention between them, panorama tokens go by the time and condition tokens by time 0."""
    model, values = make(), inputs()
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        block.attn.to_v.weight.zero_(), block.attn.to_v.bias.zero_()
        if hasattr(block.attn, "add_v_proj"):
            block.attn.add_v_proj.weight.zero_(), block.attn.add_v_proj.bias.zero_()
    last = []
    hook = model.norm_out.register_forward_pre_hook(lambda _, args: last.append(args[0]))
    zero, shared = spread(model, values, cond_timestep="zero"), spread(model, values)
    spread(model, values, timestep=torch.zeros(2))
    hook.remove()
    assert (zero - shared).abs().max() < 1e-5
    assert (last[0][:, 8:] - last[2][:, 8:]).abs().max() < 1e-5
    assert (last[0][:, 8:] - last[1][:, 8:]).abs().max() > 1e-3


@torch.no_grad()
def test_positions_stay_float32_in_bfloat16():
    model, seen = make().bfloat16(), []
    values = inputs(condition=(8, 8), dtype=torch.bfloat16)
    hook = model.pos_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for cond_timestep in ("shared", "zero"):
        result = spread(model, values, time_offset=20.1, cond_timestep=cond_timestep)
        assert result.dtype == torch.bfloat16 and result.isfinite().all()
    hook.remove()
    for ids in seen:
        assert ids.dtype == torch.float32
        assert torch.equal(ids[5 + 8 :, 0], torch.full((16,), 20.1))
    assert torch.equal(position_ids(1, 301, 0.0, torch.device("cpu"))[-1], torch.tensor([0.0, 0.0, 300.0]))


@torch.no_grad()
def test_bfloat16_is_near_float32_and_takes_float32_latents():
    model, values = make(), inputs()
    values |= {"timestep": torch.tensor([0.25, 0.5])}  # numbers that bfloat16 has
    exact = spread(model, values)
    rough = spread(model.bfloat16(), values)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.2 * exact.std()


@pytest.mark.parametrize("cond_timestep", ["shared", "zero"])
def test_checkpointing_gives_the_same_gradients_and_they_reach_the_lora(cond_timestep):
    gradients = []
    for checkpointing in (False, True):
        model = make()
        add_lora(model, "image", rank=2, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(name)))
        if checkpointing:
            model.enable_gradient_checkpointing()
        keep = torch.tensor([True, False])
        spread(model.train(), inputs(), keep_condition=keep, cond_timestep=cond_timestep).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if "lora_" in name})
        assert all(p.grad is None for name, p in model.named_parameters() if "lora_" not in name)
    plain, checkpointed = gradients
    reached = [name for name, grad in plain.items() if grad is not None and grad.abs().max() > 0]
    assert len(reached) == len(plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-7), name


@torch.no_grad()
@pytest.mark.parametrize("cond_timestep", ["shared", "zero"])
def test_lora_scale_acts_and_is_undone(cond_timestep):
    model, values = make(), inputs()
    base = spread(model, values, cond_timestep=cond_timestep)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    full = spread(model, values, cond_timestep=cond_timestep)
    off = spread(model, values, cond_timestep=cond_timestep, attention_kwargs={"scale": 0.0})
    assert (full - base).abs().max() > 1e-4
    assert (off - base).abs().max() < 1e-6
    assert torch.equal(full, spread(model, values, cond_timestep=cond_timestep))


@torch.no_grad()
def test_zero_time_brings_an_offloaded_model_to_its_device(model):
    class Hook:
        calls = 0

        def pre_forward(self, module):
            self.calls += 1

    hooked = copy.deepcopy(model)
    hooked._hf_hook = Hook()
    spread(hooked, inputs(), cond_timestep="zero")
    assert hooked._hf_hook.calls == 1


@torch.no_grad()
def test_stock_forward_is_called_once_and_within_its_wrapper(model):
    class Wrapper(torch.nn.parallel.DataParallel):
        calls = 0

        def __init__(self, module):
            torch.nn.Module.__init__(self)
            self.module = module

        def forward(self, **kwargs):
            self.calls += 1
            return self.module(**kwargs)

    wrapper, values = Wrapper(model), inputs()
    keep = torch.tensor([False, True])
    assert torch.equal(spread(wrapper, values, keep_condition=keep), spread(model, values, keep_condition=keep))
    assert wrapper.calls == 1
    with pytest.raises(NotImplementedError, match="does not go through Wrapper; wrap a module that calls flux_velocity"):
        spread(wrapper, values, cond_timestep="zero")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panorama": torch.zeros(2, 4, 5, 10)}, "Latent height and width must be multiples of the patch 2; got 5x10"),
        ({"panorama": torch.zeros(2, 3, 4, 8), "condition": None}, "takes 4 latent channels in 2x2 patches; got 3 channels"),
        ({"guidance": None}, "has a guidance embedding; pass guidance, 1.0 in training"),
    ],
)
def test_what_does_not_fit_is_refused(model, changes, message):
    with pytest.raises(ValueError, match=message):
        spread(model, inputs(), **changes)


def test_guidance_for_a_model_without_is_refused_and_a_number_is_spread():
    with pytest.raises(ValueError, match="has no guidance embedding; leave guidance out"):
        spread(make(guidance=False), inputs())
    model = make()
    assert torch.equal(spread(model, inputs(), guidance=3.0), spread(model, inputs()))


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="needs a FluxTransformer2DModel; got a Linear"):
        spread(torch.nn.Linear(2, 2), inputs())


def test_whole_compilation_caches_and_adapters_are_refused_where_they_would_be_passed_by(model):
    values = inputs()
    with (
        patch.object(FluxTransformer2DModel, "_compiled_call_impl", object()),
        pytest.raises(NotImplementedError, match="compile_repeated_blocks"),
    ):
        spread(model, values, keep_condition=torch.tensor([True, False]))
    with pytest.raises(NotImplementedError, match="does not work with IP-Adapters"):
        spread(model, values, cond_timestep="zero", attention_kwargs={"ip_hidden_states": []})
    offloaded = copy.deepcopy(model)
    HookRegistry.check_if_exists_or_initialize(offloaded.transformer_blocks[1])
    with pytest.raises(NotImplementedError, match="sharded by FSDP, offloaded in groups or cached"):
        spread(offloaded, values, cond_timestep="zero")


@pytest.fixture(scope="module")
def real():
    with torch.device("meta"):
        return FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)


def test_real_configuration_has_flux_1_devs_parameters(real):
    assert sum(p.numel() for p in real.parameters()) == 11_901_408_320
    names = {name for name, _ in real.named_parameters()}
    assert "time_text_embed.guidance_embedder.linear_1.weight" in names
    assert len({name.split(".")[1] for name in names if name.startswith("transformer_blocks.")}) == 19
    assert len({name.split(".")[1] for name in names if name.startswith("single_transformer_blocks.")}) == 38


@pytest.mark.parametrize("cond_timestep", ["shared", pytest.param("zero", marks=pytest.mark.slow)])
def test_real_configuration_runs_at_9728_tokens_on_the_meta_device(real, cond_timestep):
    lengths = []
    hook = real.transformer_blocks[0].attn.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["hidden_states"].shape[1] + kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    with torch.device("meta"):
        result = flux_velocity(
            real,
            torch.empty(1, 16, 128, 256, dtype=torch.bfloat16),
            torch.empty(1, 16, 64, 64, dtype=torch.bfloat16),
            torch.empty(1),
            torch.empty(1, 512, 4096, dtype=torch.bfloat16),
            torch.empty(1, 768, dtype=torch.bfloat16),
            guidance=torch.empty(1),
            cond_timestep=cond_timestep,
            keep_condition=torch.empty(1, dtype=torch.bool),
        )
    hook.remove()
    assert result.shape == (1, 16, 128, 256)
    assert lengths == [8192 + 1024 + 512]


def test_real_configuration_has_the_lora_targets(real):
    names = {name for name, module in real.named_modules() if isinstance(module, torch.nn.Linear)}
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for block in range(19):
        assert {f"transformer_blocks.{block}.attn.{part}" for part in attention} <= names
    single = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
    for block in range(38):
        assert {f"single_transformer_blocks.{block}.{part}" for part in single} <= names
    assert "x_embedder" in names
