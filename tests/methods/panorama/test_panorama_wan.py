"""The graft on Wan's transformer: stock equality, positions, modulation of the condition, wrappers, and the real sizes."""

import math

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from visiongraft.methods.panorama.sequence_wan import rotary_embedding, wan_velocity

SIZES = {
    "14B": {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
    "1.3B": {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
}


def make_transformer(**changes) -> WanTransformer3DModel:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WanTransformer3DModel(**config | changes).eval()


def make_inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator).to(dtype)
    return {
        "panorama": draw(2, 4, 3, 4, 8),
        "condition": draw(2, 4, 3, 4, 4),
        "timestep": torch.tensor([0.9, 0.3]),
        "prompt_embeds": draw(2, 5, 16),
    }


def velocity(transformer: torch.nn.Module, inputs: dict[str, torch.Tensor], **options) -> torch.Tensor:
    return wan_velocity(transformer, *inputs.values(), **options)


def written_out(transformer: WanTransformer3DModel, inputs: dict[str, torch.Tensor], offset: float, order: str) -> torch.Tensor:
    """Wan's forward written out over the stock submodules, tokens in either order."""
    panorama, condition, timestep, text = inputs.values()
    grids = {"panorama": (panorama, 0.0), "condition": (condition, offset)}
    tokens, cosines, sines, spans, start = [], [], [], {}, 0
    for name in ("panorama", "condition") if order == "panorama first" else ("condition", "panorama"):
        latents, shift = grids[name]
        embedded = transformer.patch_embedding(latents)
        cos, sin = rotary_embedding(*(torch.arange(n).double() + s for n, s in zip(embedded.shape[2:], (shift, 0, 0), strict=True)), 24)
        tokens.append(embedded.flatten(2).transpose(1, 2))
        cosines.append(cos)
        sines.append(sin)
        spans[name] = slice(start, start := start + tokens[-1].shape[1])
    hidden, rotary = torch.cat(tokens, 1).contiguous(), (torch.cat(cosines, 1), torch.cat(sines, 1))
    temb, modulation, text, _ = transformer.condition_embedder(timestep * 1000, text, None)
    for block in transformer.blocks:
        hidden = block(hidden, text, modulation.unflatten(1, (6, -1)), rotary)
    shift, scale = (transformer.scale_shift_table + temb[:, None]).chunk(2, 1)
    out = transformer.proj_out(transformer.norm_out(hidden) * (1 + scale) + shift)[:, spans["panorama"]]
    batch, _, frames, height, width = panorama.shape
    out = out.reshape(batch, frames, height // 2, width // 2, 1, 2, 2, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return out.reshape(panorama.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_condition_the_velocity_is_the_stock_forward_bit_for_bit(dtype):
    transformer, inputs = make_transformer().to(dtype), make_inputs(dtype=dtype)
    stock = transformer(inputs["panorama"], inputs["timestep"] * 1000, inputs["prompt_embeds"], return_dict=False)[0]
    for mode in ("shared", "zero"):
        assert torch.equal(velocity(transformer, inputs | {"condition": None}, cond_timestep=mode), stock)


def test_after_a_call_with_condition_the_stock_forward_is_unchanged():
    transformer, inputs = make_transformer(), make_inputs()
    stock = lambda: transformer(inputs["panorama"], inputs["timestep"] * 1000, inputs["prompt_embeds"], return_dict=False)[0]
    before = stock()
    with_condition = velocity(transformer, inputs)
    assert torch.equal(stock(), before)
    assert not torch.allclose(with_condition, before, atol=1e-3)
    with pytest.raises(RuntimeError):  # text of another width fails inside the transformer
        velocity(transformer, inputs | {"prompt_embeds": torch.randn(2, 5, 17)})
    assert torch.equal(stock(), before)
    assert not any(module._forward_hooks for module in transformer.modules())


@pytest.mark.parametrize("order", ["panorama first", "condition first"])
def test_velocity_equals_the_forward_written_out_in_either_token_order(order):
    transformer, inputs = make_transformer(), make_inputs()
    expected = written_out(transformer, inputs, 0.1, order)
    torch.testing.assert_close(velocity(transformer, inputs), expected, atol=2e-6, rtol=1e-5)


def test_rotary_embedding_at_whole_positions_is_the_base_table():
    rope = make_transformer(attention_head_dim=128).rope
    latents = torch.zeros(1, 4, 21, 8, 12)
    ours = rotary_embedding(torch.arange(21).double(), torch.arange(4).double(), torch.arange(6).double(), 128)
    for mine, theirs in zip(ours, rope(latents), strict=True):
        assert torch.equal(mine, theirs)


def test_rotary_embedding_at_fractional_positions_follows_the_formula():
    times, rows, columns = torch.tensor([0.1, 20.1], dtype=torch.float64), torch.tensor([3.0]).double(), torch.tensor([0.0, 7.5]).double()
    cosines, sines = rotary_embedding(times, rows, columns, 128)
    for token, (time, column) in enumerate((time, column) for time in times.tolist() for column in columns.tolist()):
        angles = [p / 10000 ** (2 * i / dim) for p, dim in ((time, 44), (3.0, 42), (column, 42)) for i in range(dim // 2)]
        expected = torch.tensor(angles, dtype=torch.float64).repeat_interleave(2)
        assert (cosines[0, token, 0] - expected.cos()).abs().max() < 6e-8
        assert (sines[0, token, 0] - expected.sin()).abs().max() < 6e-8


def test_positions_are_not_rounded_in_a_bfloat16_model():
    # a bfloat16 position of frame 200 + 0.1 would be 200 exactly
    transformer, seen = make_transformer().to(torch.bfloat16), []
    handle = transformer.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[3]))
    inputs = make_inputs(dtype=torch.bfloat16)
    velocity(
        transformer,
        inputs
        | {
            "panorama": torch.zeros(1, 4, 21, 2, 4).bfloat16(),
            "condition": torch.zeros(1, 4, 21, 2, 2).bfloat16(),
            "timestep": torch.tensor([0.5]),
            "prompt_embeds": inputs["prompt_embeds"][:1],
        },
    )
    handle.remove()
    cosine = seen[0][0][0, -1, 0, 0].item()
    assert abs(cosine - math.cos(20.1)) < 1e-6 < abs(math.cos(20.125) - math.cos(20.1))


def test_time_offset_is_where_the_condition_stands():
    transformer, inputs = make_transformer(), make_inputs()
    moved = velocity(transformer, inputs, time_offset=0.5)
    assert not torch.allclose(velocity(transformer, inputs), moved, atol=1e-5)
    torch.testing.assert_close(moved, written_out(transformer, inputs, 0.5, "panorama first"), atol=2e-6, rtol=1e-5)


def test_zero_mode_at_time_zero_is_shared_mode_at_time_zero():
    transformer, inputs = make_transformer(), make_inputs()
    clean = inputs | {"timestep": torch.zeros(2)}
    torch.testing.assert_close(velocity(transformer, clean, cond_timestep="zero"), velocity(transformer, clean), atol=2e-6, rtol=1e-5)
    noisy = velocity(transformer, inputs, cond_timestep="zero")
    assert not torch.allclose(noisy, velocity(transformer, inputs), atol=1e-4)


def test_zero_mode_modulates_each_stream_with_its_own_time():
    transformer, inputs, seen = make_transformer(), make_inputs(), []
    handle = transformer.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    velocity(transformer, inputs, cond_timestep="zero")
    velocity(transformer, inputs)
    velocity(transformer, inputs | {"timestep": torch.zeros(2)})
    handle.remove()
    per_token, shared, clean = seen
    torch.testing.assert_close(per_token[:, :24], shared[:, None].expand(-1, 24, -1, -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(per_token[:, 24:], clean[:, None].expand(-1, 12, -1, -1), atol=1e-6, rtol=1e-5)


def test_null_condition_is_zero_tokens_for_its_sample_alone():
    transformer, inputs = make_transformer(), make_inputs()
    kept = velocity(transformer, inputs)
    mixed = velocity(transformer, inputs, keep_condition=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], kept[0], atol=1e-6, rtol=1e-5)
    other = inputs | {"condition": torch.randn(inputs["condition"].shape, generator=torch.Generator().manual_seed(9))}
    torch.testing.assert_close(mixed[1], velocity(transformer, other, keep_condition=torch.tensor([False, False]))[1], atol=1e-6, rtol=1e-5)
    # zero latents are a valid grey clip, and without a condition there are no tokens at all
    assert not torch.allclose(mixed[1], velocity(transformer, inputs | {"condition": torch.zeros(2, 4, 3, 4, 4)})[1], atol=1e-4)
    assert not torch.allclose(mixed[1], velocity(transformer, inputs | {"condition": None})[1], atol=1e-4)


@pytest.mark.parametrize("mode", ["shared", "zero"])
def test_gradient_checkpointing_leaves_gradients_as_they_are(mode):
    transformer, inputs = make_transformer().train(), make_inputs()

    def gradients() -> list[torch.Tensor]:
        transformer.zero_grad()
        velocity(transformer, inputs, cond_timestep=mode).square().mean().backward()
        return [parameter.grad.clone() for parameter in transformer.parameters()]

    plain = gradients()
    transformer.enable_gradient_checkpointing()
    for mine, theirs in zip(gradients(), plain, strict=True):
        assert torch.equal(mine, theirs)


def test_lora_scale_works_and_is_taken_back():
    transformer, inputs = make_transformer(), make_inputs()
    base = velocity(transformer, inputs)
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "proj_out"], init_lora_weights=False))
    full = velocity(transformer, inputs)
    torch.testing.assert_close(velocity(transformer, inputs, attention_kwargs={"scale": 0.0}), base, atol=1e-6, rtol=1e-5)
    half = velocity(transformer, inputs, attention_kwargs={"scale": 0.5})
    assert not torch.allclose(full, base, atol=1e-3) and not torch.allclose(half, full, atol=1e-3)
    assert torch.equal(velocity(transformer, inputs), full)


def test_sequential_offloading_gives_the_same_velocity():
    transformer, inputs = make_transformer(), make_inputs()
    plain = velocity(transformer, inputs)
    cpu_offload(transformer, execution_device=torch.device("cpu"), offload_buffers=True)
    assert transformer.scale_shift_table.device.type == "meta"
    with torch.no_grad():
        assert torch.equal(velocity(transformer, inputs), plain)


def test_the_transformer_is_called_as_a_whole_so_that_hooks_of_offloading_see_it():
    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    transformer, inputs, hook = make_transformer(), make_inputs(), Counts()
    add_hook_to_module(transformer, hook)
    velocity(transformer, inputs)
    assert hook.calls == 1


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_averages_the_gradients_of_a_wrapped_transformer(one_process):
    transformer, inputs, reduced = make_transformer(), make_inputs(), []
    wrapped = torch.nn.parallel.DistributedDataParallel(transformer)

    def reduce(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.buffer().numel())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrapped.register_comm_hook(None, reduce)
    assert torch.equal(velocity(wrapped, inputs), velocity(transformer, inputs))
    velocity(wrapped, inputs).mean().backward()
    assert sum(reduced) == sum(parameter.numel() for parameter in transformer.parameters())


def test_sharded_transformers_give_the_same_velocity_and_gradients(one_process):
    transformer, sharded, inputs = make_transformer(), make_transformer(), make_inputs()
    mesh = init_device_mesh("cpu", (1,))
    for part in (*sharded.blocks, sharded):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    expected, out = velocity(transformer, inputs), velocity(sharded, inputs)
    assert torch.equal(out, expected)
    expected.square().mean().backward()
    out.square().mean().backward()
    for mine, theirs in zip(sharded.parameters(), transformer.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), theirs.grad, atol=1e-7, rtol=1e-5)


def test_what_is_not_kept_is_refused_with_a_sentence():
    inputs = make_inputs()
    with pytest.raises(NotImplementedError, match="text-to-video"):
        velocity(make_transformer(added_kv_proj_dim=48, image_dim=8), inputs)
    cached = make_transformer()
    cached.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(NotImplementedError, match="disable_cache"):
        velocity(cached, inputs)
    compiled = make_transformer()
    compiled.compile()
    for whole in (compiled, torch.compile(make_transformer())):
        with pytest.raises(NotImplementedError, match="compile_repeated_blocks"):
            velocity(whole, inputs)


def test_latents_that_do_not_fit_are_refused_with_a_sentence():
    transformer, inputs = make_transformer(), make_inputs()
    with pytest.raises(ValueError, match="same number of frames; got 2 and 3 latent frames"):
        velocity(transformer, inputs | {"condition": inputs["condition"][:, :, :2]})
    with pytest.raises(ValueError, match=r"condition's latents must .* multiples of \(1, 2, 2\); got shape \(2, 4, 3, 3, 4\)"):
        velocity(transformer, inputs | {"condition": inputs["condition"][..., :3, :]})
    with pytest.raises(ValueError, match=r"panorama's latents must have 4 channels"):
        velocity(transformer, inputs | {"panorama": torch.zeros(2, 3, 3, 4, 8), "condition": None})


@pytest.mark.parametrize(("name", "billions"), [("14B", 14.29), ("1.3B", 1.42)])
def test_real_transformers_build_on_meta_with_the_published_parameter_count(name, billions):
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**SIZES[name])
    assert sum(parameter.numel() for parameter in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("mode", ["shared", "zero"])
def test_real_sizes_run_on_meta_with_48384_tokens(name, mode):
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**SIZES[name]).to(torch.bfloat16)
        panorama = torch.empty(1, 16, 21, 64, 128, dtype=torch.bfloat16)
        condition = torch.empty(1, 16, 21, 32, 32, dtype=torch.bfloat16)
        text, timestep = torch.empty(1, 512, 4096, dtype=torch.bfloat16), torch.empty(1)
    lengths = []
    transformer.blocks[-1].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    with torch.no_grad():
        out = wan_velocity(
            transformer, panorama, condition, timestep, text, cond_timestep=mode, keep_condition=torch.ones(1, dtype=torch.bool)
        )
    assert lengths == [48384]
    assert out.shape == panorama.shape and out.device.type == "meta"
