import action_mesh_reference as reference
import pytest
import torch

from visiongraft.methods.action_mesh import blocks
from visiongraft.methods.action_mesh.config import SIZES, create
from visiongraft.methods.action_mesh.temporal_denoiser import TemporalDenoiser, frame_times, inflate
from visiongraft.methods.action_mesh.triposg_dit import TripoSGDiT

HEADS = SIZES["tiny"]["dit"]["num_attention_heads"]


@pytest.fixture
def dit() -> TripoSGDiT:
    torch.manual_seed(0)
    model = create("dit", "tiny", num_layers=5).double().eval()
    for parameter in model.parameters():  # norms and biases, too, are not what they are initialised to
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def window(batch: int = 2, frames: int = 3, tokens: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    return draw(batch, frames, tokens, 4), draw(batch, frames, 5, 24)


def doubles(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_transformer_is_the_reference(dit):
    latents, context = window(frames=1)
    times = doubles(900.0, 12.5)
    tensors = reference.triposg_names(dit.state_dict())
    expected = reference.denoiser(tensors, latents, context, doubles([0.0], [0.0]), times, HEADS)
    torch.testing.assert_close(dit(latents[:, 0], times, context[:, 0]), expected[:, 0], rtol=1e-6, atol=1e-6)


def test_denoiser_is_the_reference_with_masks_and_any_inflated_layers(dit):
    latents, context = window()
    steps, times, mask = doubles([5, 0, 2.5], [1, 2, 3]), doubles(700.0, 31.0), torch.tensor([[1, 0, 0], [0, 0, 1]])
    for layers in ("all", [0, 3], []):
        model = inflate(dit, layers)
        inflated = None if layers == "all" else layers
        expected = reference.denoiser(model.state_dict(), latents, context, steps, times, HEADS, mask, inflated)
        torch.testing.assert_close(model(latents, context, steps, times, mask), expected, rtol=1e-6, atol=1e-6)
    without = inflate(dit, rope=False)
    expected = reference.denoiser(without.state_dict(), latents, context, steps, times, HEADS, mask, rope=False)
    torch.testing.assert_close(without(latents, context, steps, times, mask), expected, rtol=1e-6, atol=1e-6)


def test_one_frame_without_mask_is_the_base(dit):
    latents, context = window(frames=1)
    times = doubles(640.0, 3.0)
    ours = inflate(dit)(latents, context, doubles([7.0], [2.0]), times)[:, 0]
    torch.testing.assert_close(ours, dit(latents[:, 0], times, context[:, 0]), rtol=0, atol=1e-12)


def test_without_inflated_layers_every_frame_is_the_base(dit):
    latents, context = window()
    times = doubles(640.0, 3.0)
    ours = inflate(dit, [])(latents, context, doubles([0, 1, 2], [0, 1, 2]), times)
    for k in range(3):
        torch.testing.assert_close(ours[:, k], dit(latents[:, k], times, context[:, k]))


def test_order_of_frames_and_start_of_counting_do_not_matter(dit):
    model, (latents, context) = inflate(dit), window(frames=4)
    steps, times, mask = doubles([0, 1, 2, 5], [3, 0, 1.5, 2]), doubles(700.0, 100.0), torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1]])
    plain, order = model(latents, context, steps, times, mask), [2, 0, 3, 1]
    shuffled = model(latents[:, order], context[:, order], steps[:, order], times, mask[:, order])
    torch.testing.assert_close(shuffled, plain[:, order])
    torch.testing.assert_close(model(latents, context, steps + 40, times, mask), plain)


def test_distances_between_frames_matter_with_rope_alone(dit):
    latents, context = window()
    near, far, times = doubles([0, 1, 2], [0, 1, 2]), doubles([0, 4, 8], [0, 4, 8]), doubles(700.0, 700.0)
    with_rope, without = inflate(dit), inflate(dit, rope=False)
    change = with_rope(latents, context, near, times) - with_rope(latents, context, far, times)
    assert float(change.detach().abs().max()) > 1e-3
    assert torch.equal(without(latents, context, near, times), without(latents, context, far, times))


def test_tokens_are_a_set(dit):
    model, (latents, context) = inflate(dit), window()
    steps, times, order = doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0), torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(model(latents[:, :, order], context, steps, times), model(latents, context, steps, times)[:, :, order])


def test_frames_see_each_other_but_each_sees_its_own_picture(dit):
    latents, context = window(batch=1)
    steps, times = doubles([0, 1, 2]), doubles(700.0)
    other = context.clone()
    other[:, 2] += 1.0
    for layers, sees in (("all", True), ([], False)):
        model = inflate(dit, layers)
        change = (model(latents, other, steps, times) - model(latents, context, steps, times)).abs().amax((0, 2, 3))
        assert float(change[2]) > 1e-4
        assert (float(change[0]) > 1e-6) is sees


def test_known_frames_have_time_zero():
    """Per-frame times are laid out by sample, then frame: repeat_interleave, not repeat."""
    times = frame_times(torch.tensor([900.0, 100.0]), torch.tensor([[1, 0, 0], [0, 0, 1]]), 3)
    assert times.tolist() == [[0, 900, 900], [100, 100, 0]]
    assert frame_times(torch.tensor([900.0, 100.0]), None, 2).tolist() == [[900, 900], [100, 100]]


def test_masks_of_any_dtype_are_the_same(dit):
    model, (latents, context) = inflate(dit), window()
    steps, times, mask = doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0), torch.tensor([[1, 0, 0], [0, 1, 0]])
    results = [model(latents, context, steps, times, mask.to(kind)) for kind in (torch.int64, torch.bool, torch.float32)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(3, 2), r"mask must be \(batch, frames\) = \(2, 3\) of 0 and 1; got \(3, 2\)"),
        (torch.full((2, 3), 0.5), "mask must hold only 0"),
        (torch.tensor([[1, 0, 0], [1, 1, 1]]), "All frames are sources, nothing to generate"),
    ],
)
def test_masks_that_make_no_sense(dit, mask, message):
    latents, context = window()
    with pytest.raises(ValueError, match=message):
        inflate(dit)(latents, context, doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0), mask)


def test_wrong_channels_are_named_with_both_numbers(dit):
    latents, context = window()
    steps, times = doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0)
    with pytest.raises(ValueError, match="latents have 3 channels; this TemporalDenoiser has in_channels=4"):
        inflate(dit)(latents[..., :3], context, steps, times)
    with pytest.raises(ValueError, match="context have 23 channels; this TripoSGDiT has cross_attention_dim=24"):
        dit(latents[:, 0], times, context[:, 0, :, :23])


def test_layers_that_are_none(dit):
    with pytest.raises(ValueError, match=r"inflated_layers has \[5\]; this model has layers 0 to 4"):
        inflate(dit, [0, 5])
    with pytest.raises(ValueError, match="layers must be 'all' or numbers of blocks; got 'most'"):
        inflate(dit, "most")


def test_long_windows_are_refused_on_the_cpu_unless_forced(monkeypatch):
    model = TemporalDenoiser(in_channels=1, num_layers=1, num_attention_heads=1, width=2, cross_attention_dim=1)
    latents, steps = torch.zeros(1, 2, 10_001, 1), torch.arange(2.0)[None]
    with pytest.raises(ValueError, match="2 frames of 10001 tokens are 20,002 tokens"):
        model(latents, torch.zeros(1, 2, 1, 1), steps, torch.ones(1))
    monkeypatch.setattr(blocks, "CPU_TOKENS", 99)
    few = latents[:, :, :50], torch.zeros(1, 2, 1, 1), steps, torch.ones(1)
    with pytest.raises(ValueError, match=r"pass force=True"):
        model(*few)
    assert bool(model(*few, force=True).isfinite().all())


def test_inflation_copies(dit):
    model = inflate(dit, temporal_context_size=6)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in dit.parameters())
    assert model.config.temporal_context_size == 6 and model.config.inflated_layers == [0, 1, 2, 3, 4]
    before = dit.blocks[0].attn1.to_q.weight.clone()
    model.blocks[0].s_attn.to_q.weight.data.zero_()
    assert torch.equal(dit.blocks[0].attn1.to_q.weight, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_checkpointed_gradients_are_the_gradients(dit):
    model, (latents, context) = inflate(dit).train(), window()
    steps, times = doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(latents, context, steps, times).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(float(gradient.abs().max()) > 0 for gradient in plain)  # no part is idle


def test_gradients_are_those_of_finite_differences(dit):
    model, (latents, context) = inflate(dit), window(batch=1, frames=2, tokens=2)
    steps, times = doubles([0, 1]), doubles(300.0)
    direction = torch.randn(latents.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    loss = lambda x: model(x, context, steps, times).square().sum()
    latents.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(latents), latents)
    with torch.no_grad():
        numeric = (loss(latents + 1e-5 * direction) - loss(latents - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-7)


def test_saved_models_keep_their_layout_and_come_back(dit, tmp_path):
    from safetensors.torch import load_file

    model = inflate(dit, [0, 2], rope=False).float()
    model.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    stored = load_file(file)
    assert torch.equal(stored["blocks.2.s_attn.to_q.weight"], dit.blocks[2].attn1.to_q.weight.float())
    back = TemporalDenoiser.from_pretrained(tmp_path)
    assert back.config.inflated_layers == [0, 2] and back.config.rope is False and back.inflated == {0, 2}
    assert all(torch.equal(value, stored[key]) for key, value in back.state_dict().items())


def test_layerwise_offloading_gives_the_same(dit):
    """Weights that live elsewhere between calls: every layer must be called, not read."""
    from accelerate import cpu_offload

    model, (latents, context) = inflate(dit), window()
    arguments = latents, context, doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0)
    with torch.no_grad():
        before = model(*arguments)
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert model.blocks[0].s_attn.to_q.weight.is_meta
        torch.testing.assert_close(model(*arguments), before)


def test_half_precision_stays_near(dit):
    latents, context = window()
    arguments = [value.float() for value in (latents, context, doubles([0, 1, 2], [0, 1, 2]), doubles(700.0, 20.0))]
    model = inflate(dit)
    exact = model.float()(*arguments)
    half = model.bfloat16()(*arguments)
    assert half.dtype == torch.float32  # of the latents
    assert float((half - exact).norm() / exact.norm()) < 0.05
