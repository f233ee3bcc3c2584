"""The smoothness mapper: zero start, gate, grid, conditioning, names, round trip."""

import pytest
import torch
from torch import nn

from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper


def _trained(dim: int = 16, **options) -> SmoothnessMapper:
    """As after training: no weight is left at its zero start."""
    mapper = SmoothnessMapper(dim, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in mapper.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return mapper


def _tokens(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gate", [False, True])
def test_new_mapper_changes_nothing(gate: bool):
    residual = SmoothnessMapper(16, num_prefix_tokens=1, num_blocks=2, gate=gate)(_tokens(2, 10, 16), torch.tensor([0.0, 0.5]))
    assert torch.equal(residual, torch.zeros(2, 10, 16))


def test_new_mapper_receives_a_gradient_where_it_starts_at_zero():
    mapper = SmoothnessMapper(16)
    (mapper(_tokens(1, 4, 16), torch.tensor([0.3])) - 1).square().sum().backward()
    assert mapper.proj_out.weight.grad is not None and mapper.proj_out.weight.grad.abs().max() > 1e-3


def test_gate_vanishes_exactly_without_noise_and_scales_the_residual():
    gated = _trained(gate=True)
    open_mapper = _trained(gate=False)
    tokens, sigma = _tokens(2, 9, 16), torch.tensor([0.05, 0.45])
    torch.testing.assert_close(gated(tokens, sigma), open_mapper(tokens, sigma) * (sigma / (sigma + 0.05)).view(-1, 1, 1))
    assert torch.equal(gated(tokens, torch.zeros(2)), torch.zeros_like(tokens))


def test_noise_level_conditions_the_residual():
    mapper, tokens = _trained(), _tokens(1, 9, 16)
    assert (mapper(tokens, torch.tensor([0.1])) - mapper(tokens, torch.tensor([0.5]))).abs().max() > 1e-2


def test_new_film_is_the_identity():
    mapper, tokens = SmoothnessMapper(16), _tokens(1, 9, 16)
    nn.init.eye_(mapper.proj_out.weight)  # open the end, leave FiLM at its start
    assert torch.equal(mapper(tokens, torch.tensor([0.1])), mapper(tokens, torch.tensor([0.5])))


def test_each_image_is_mapped_alone():
    mapper, tokens, sigma = _trained(num_prefix_tokens=1), _tokens(3, 5, 16), torch.tensor([0.0, 0.2, 0.5])
    alone = torch.cat([mapper(tokens[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(mapper(tokens, sigma), alone, atol=1e-5, rtol=1e-5)


def test_convolution_skips_the_prefix_tokens_and_reaches_one_patch_around():
    block, tokens = _trained(num_prefix_tokens=2).blocks[0], _tokens(1, 2 + 25, 16)
    changed = tokens.clone()
    changed[:, 2] += 1  # the patch at row 0, column 0
    difference = (block._convolve(changed, (5, 5)) - block._convolve(tokens, (5, 5))).abs().sum(-1)[0]
    assert torch.equal(block._convolve(tokens, (5, 5))[:, :2], torch.zeros(1, 2, 16))
    near = {2 + 5 * row + column for row in (0, 1) for column in (0, 1)}
    assert set(difference.nonzero().flatten().tolist()) == near


def test_convolution_reads_the_grid_row_by_row():
    block, tokens = _trained().blocks[0], _tokens(1, 6, 16)
    image = tokens.transpose(1, 2).reshape(1, 16, 2, 3)
    expected = block.pwconv(nn.functional.gelu(block.dwconv(image)).flatten(2).transpose(1, 2))
    torch.testing.assert_close(block._convolve(tokens, (2, 3)), expected)


def test_attention_follows_its_definition():
    attention, x = _trained(128).blocks[0].attn, _tokens(1, 5, 128) / 4
    assert attention.heads == 2
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for part in (slice(0, 64), slice(64, 128)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8).softmax(-1)
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (128, 2), (200, 2), (1152, 18)])
def test_any_width_has_heads_that_divide_it(dim: int, heads: int):
    mapper = SmoothnessMapper(dim)
    assert mapper.blocks[0].attn.heads == heads
    assert mapper(_tokens(1, 4, dim), torch.tensor([0.1])).isfinite().all()


def test_square_grid_is_found_and_others_are_asked_for():
    mapper, tokens, sigma = _trained(num_prefix_tokens=1), _tokens(1, 7, 16), torch.tensor([0.2])
    with pytest.raises(ValueError, match=r"6 patch tokens \(1 prefix tokens left out\) do not fill a 2x2 grid; pass grid_size"):
        mapper(tokens, sigma)
    with pytest.raises(ValueError, match="do not fill a 2x4 grid"):
        mapper(tokens, sigma, (2, 4))
    assert (mapper(tokens, sigma, (2, 3)) - mapper(tokens, sigma, (3, 2))).abs().max() > 1e-3
    square = _tokens(1, 10, 16)
    assert torch.equal(mapper(square, sigma), mapper(square, sigma, (3, 3)))


@pytest.mark.parametrize("level", [-0.05, float("nan"), float("inf")])
def test_levels_below_zero_are_refused_and_zero_is_not(level: float):
    tokens = _tokens(2, 4, 16)
    with pytest.raises(ValueError, match=r"sigma must be finite and not negative, in pixel units of \[0, 1\]; got (-0.05|nan|inf)\."):
        _trained(gate=True)(tokens, torch.tensor([0.2, level]))
    assert _trained()(tokens, torch.tensor([0.2, 0.0])).isfinite().all()


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 8, "num_blocks": 0}, {"dim": 8, "num_prefix_tokens": -1}])
def test_sizes_that_make_no_mapper_are_refused(options: dict):
    with pytest.raises(ValueError, match=r"dim and num_blocks >= 1 and num_prefix_tokens >= 0; got"):
        SmoothnessMapper(**options)


def test_another_token_width_is_refused():
    with pytest.raises(ValueError, match="tokens of width 16; got 8"):
        SmoothnessMapper(16)(_tokens(1, 4, 8), torch.tensor([0.1]))


def test_parameters_have_the_documented_names_and_count():
    with torch.device("meta"):
        mapper = SmoothnessMapper(1024)
    shapes = {key: tuple(value.shape) for key, value in mapper.state_dict().items()}
    assert shapes["noise_mlp.0.weight"] == (128, 64) and shapes["noise_mlp.2.weight"] == (128, 128)
    assert shapes["blocks.0.film.weight"] == (6 * 1024, 128)
    assert shapes["blocks.0.dwconv.weight"] == (1024, 1, 3, 3) and shapes["blocks.0.pwconv.weight"] == (1024, 1024)
    assert shapes["blocks.0.mlp.0.weight"] == (2048, 1024) and shapes["blocks.0.mlp.2.weight"] == (1024, 2048)
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.out.weight", "norm_out.weight", "proj_out.weight"} < set(shapes)
    assert sum(p.numel() for p in mapper.parameters()) == 11_330_816


def test_saving_and_loading_returns_the_same_function(tmp_path):
    mapper, tokens, sigma = _trained(num_prefix_tokens=1, num_blocks=2, gate=True), _tokens(2, 5, 16), torch.tensor([0.1, 0.4])
    mapper.save_pretrained(tmp_path)
    loaded = SmoothnessMapper.from_pretrained(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), mapper.parameters(), strict=True))
    torch.testing.assert_close(loaded(tokens, sigma), mapper(tokens, sigma), atol=1e-5, rtol=1e-5)


def test_half_precision_weights_return_the_tokens_dtype():
    mapper, tokens, sigma = _trained(), _tokens(1, 4, 16), torch.tensor([0.2])
    exact = mapper(tokens, sigma)
    rough = mapper.to(torch.bfloat16)(tokens, sigma)
    assert rough.dtype == torch.float32
    assert nn.functional.cosine_similarity(rough.flatten(), exact.flatten(), dim=0) > 0.99
