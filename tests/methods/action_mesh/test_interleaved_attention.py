import action_mesh_reference as reference
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from visiongraft.methods.action_mesh.attention import CrossAttention, KeysValues, LayerNorm, Linear, SelfAttention
from visiongraft.methods.action_mesh.blocks import ACTION_MESH, TRIPOSG, Block, in_chunks, renamed
from visiongraft.nn.rotary import rotations


def seeded(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Float64, every tensor random, norms too."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
    return module


def noise(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_heads_read_the_joined_channels_not_the_stored_projections():
    """With 2 heads of 2 channels, the joined channels are q0..q3 k0..k3 v0..v3: head 0 has q = q0 q1, k = q2 q3, v = k0 k1."""
    attention = seeded(SelfAttention(4, 2))
    stored = {name: getattr(attention, name).weight for name in ("to_q", "to_k", "to_v")}
    x = noise(1, 5, 4)
    rows = torch.cat([x @ weight.T for weight in stored.values()], dim=-1)[0]  # (5, 12)
    outputs = []
    for head in range(2):
        q, k, v = rows[:, 6 * head : 6 * head + 2], rows[:, 6 * head + 2 : 6 * head + 4], rows[:, 6 * head + 4 : 6 * head + 6]
        outputs.append(((q @ k.T) / 2**0.5).softmax(dim=-1) @ v)
    expected = torch.cat(outputs, dim=-1) @ attention.to_out[0].weight.T + attention.to_out[0].bias
    torch.testing.assert_close(attention(x)[0], expected)
    ordinary = [[(x @ w.T)[0, :, 2 * h : 2 * h + 2] for w in stored.values()] for h in range(2)]
    wrong = torch.cat([((q @ k.T) / 2**0.5).softmax(dim=-1) @ v for q, k, v in ordinary], dim=-1)
    assert not torch.allclose(attention(x)[0], wrong @ attention.to_out[0].weight.T + attention.to_out[0].bias, atol=1e-2)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_self_attention_is_the_reference(qk_norm, turned):
    attention, x = seeded(SelfAttention(24, 3, qk_norm=qk_norm)), noise(2, 7, 24)
    positions = torch.tensor([[0.0, 0, 1, 2.5, 3, 3, 9], [4.0, 3, 2, 1, 0, 0, 0]], dtype=torch.float64)
    ours = attention(x, rotations(positions, 8) if turned else None)
    table = reference.tables(positions, 8) if turned else None
    torch.testing.assert_close(ours, reference.self_attention(attention.state_dict(), x, 3, table))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm_context", [False, True])
def test_cross_attention_is_the_reference(qk_norm, norm_context):
    attention = seeded(CrossAttention(24, 3, 10, qk_norm=qk_norm, norm_context=norm_context))
    x, context = noise(2, 7, 24), noise(2, 5, 10, seed=8)
    torch.testing.assert_close(attention(x, context), reference.cross_attention(attention.state_dict(), x, context, 3))
    kept = attention.keys_values(context)
    assert isinstance(kept, KeysValues)
    torch.testing.assert_close(attention(x, kept), attention(x, context), rtol=0, atol=0)


def test_layers_that_something_took_hold_of_are_called():
    """A hook or an adapter on to_k must have its effect, though the products are joined otherwise."""
    attention, x = seeded(SelfAttention(8, 2, qk_norm=True)), noise(1, 4, 8)
    before = attention(x)
    calls = []
    handle = attention.to_k.register_forward_hook(lambda module, args, output: calls.append(1))
    torch.testing.assert_close(attention(x), before)
    assert calls
    handle.remove()

    class Doubled(Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    adapted = Doubled(8, 8, bias=False).double()
    adapted.weight = attention.to_k.weight
    attention.to_k = adapted
    by_hand = dict(attention.state_dict())
    by_hand["to_k.weight"] = 2 * by_hand["to_k.weight"]
    torch.testing.assert_close(attention(x), reference.self_attention(by_hand, x, 2))
    heard = []
    attention.norm_q.register_forward_hook(lambda module, args, output: heard.append(1))
    torch.testing.assert_close(attention(x), reference.self_attention(by_hand, x, 2))
    assert heard


def test_lora_of_peft_takes_effect():
    from peft import LoraConfig, inject_adapter_in_model

    model = torch.nn.ModuleDict({"attention": seeded(SelfAttention(8, 2)).float()})
    x = noise(1, 4, 8).float()
    before = model["attention"](x)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_v"], init_lora_weights=False), model)
    assert not torch.allclose(model["attention"](x), before, atol=1e-3)


def test_fused_kernels_take_our_layout_so_that_scores_are_never_stored():
    attention, cross = SelfAttention(32, 4, qk_norm=True), CrossAttention(32, 4, 16)
    x, turns = torch.randn(1, 50, 32, requires_grad=True), rotations(torch.arange(50.0)[None], 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # it raises where the kernel refuses
        (attention(x, turns).sum() + cross(x, torch.randn(1, 9, 16)).sum()).backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


def test_float32_inputs_are_computed_in_float32_by_half_precision_weights():
    layer, norm = Linear(6, 4).bfloat16(), LayerNorm(6).bfloat16()
    x = noise(3, 6).float()
    assert layer(x).dtype == torch.float32
    torch.testing.assert_close(layer(x), x @ layer.weight.float().T + layer.bias.float())
    torch.testing.assert_close(norm(x), torch.nn.functional.layer_norm(x, (6,)))
    assert norm(x.bfloat16()).dtype == torch.bfloat16


def test_norms_of_half_precision_inputs_are_taken_in_float32():
    x = (1000 + noise(4, 32)).half()  # the variance of such values is lost in half precision
    expected = torch.nn.functional.layer_norm(x.double(), (32,))
    torch.testing.assert_close(LayerNorm(32)(x).double(), expected, rtol=2e-2, atol=2e-2)
    attention = SelfAttention(32, 1, qk_norm=True)
    large = torch.full((1, 1, 32), 600.0).half()  # the square overflows in half precision
    torch.testing.assert_close(attention.norm_q(large), torch.ones_like(large))


@pytest.mark.parametrize("names", [ACTION_MESH, TRIPOSG])
def test_block_is_the_reference(names):
    block = seeded(Block(16, 2, names, context_dim=10, qk_norm=True, skip=True, mlp_ratio=3.0))
    tensors = {renamed([key], names, ACTION_MESH)[key]: value for key, value in block.state_dict().items()}
    x, skip, context, positions = noise(4, 5, 16), noise(4, 5, 16, seed=8), noise(4, 3, 10, seed=9), noise(2, 10, seed=10)
    ours = block(x, context, skip, rotations(positions, 8), 2)
    plain = reference.block(tensors, x, 2, context, skip, reference.tables(positions, 8), frames=2)
    torch.testing.assert_close(ours, plain)


def test_renaming_is_a_bijection():
    keys = list(Block(8, 2, TRIPOSG, context_dim=4, qk_norm=True, skip=True).state_dict())
    there = renamed(keys, TRIPOSG, ACTION_MESH)
    back = renamed(there.values(), ACTION_MESH, TRIPOSG)
    assert [back[there[key]] for key in keys] == keys
    assert set(there.values()) == set(Block(8, 2, ACTION_MESH, context_dim=4, qk_norm=True, skip=True).state_dict())


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width 10 must be a multiple of the 4 attention heads"):
        SelfAttention(10, 4)


def test_chunks_must_hold_a_point():
    with pytest.raises(ValueError, match="chunk must be at least 1 point; got 0"):
        in_chunks(lambda piece: piece, 0, torch.zeros(1, 4, 3))
