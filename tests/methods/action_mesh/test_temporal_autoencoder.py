import math

import action_mesh_reference as reference
import pytest
import torch

from visiongraft.methods.action_mesh.config import SIZES, create
from visiongraft.methods.action_mesh.embeddings import pair_features, timestep_features
from visiongraft.methods.action_mesh.temporal_autoencoder import TemporalAutoencoder, temporalize

HEADS, OCTAVES = SIZES["tiny"]["autoencoder"]["num_attention_heads"], SIZES["tiny"]["autoencoder"]["embed_frequency"]


def random_model(**options) -> TemporalAutoencoder:
    torch.manual_seed(0)
    model = create("autoencoder", "tiny", **options).double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


@pytest.fixture(scope="module")
def model() -> TemporalAutoencoder:
    return random_model()


def random(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def doubles(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(frames: int = 3) -> dict[str, torch.Tensor]:
    normals = torch.nn.functional.normalize(random(2, 11, 3, seed=6), dim=-1)
    steps = doubles([4, 5, 7], [9, 0, 2.5])[:, :frames]
    return {
        "latents": random(2, frames, 5, 4),
        "framestep": steps,
        "source": steps[:, 0].clone(),
        "target": doubles(5.5, 0.0),
        "points": random(2, 11, 3, seed=5),
        "normals": normals,
    }


def test_times_by_hand():
    features = timestep_features(doubles(500.0), 4)
    torch.testing.assert_close(features, doubles([math.sin(500), math.sin(5), math.cos(500), math.cos(5)]))  # sines first
    pair = pair_features(doubles(0.25), doubles(1.0), 8)
    slow = 10_000**-0.5
    wave = lambda x: [math.cos(x), math.cos(x * slow), math.sin(x), math.sin(x * slow)]  # cosines first
    torch.testing.assert_close(pair, doubles(wave(0.25) + wave(1.0)))


@pytest.mark.parametrize("mode", ["direct", "residual"])
def test_it_is_the_reference(mode):
    model, given = random_model(prediction_mode=mode), inputs()
    expected = reference.motion(model.state_dict(), *given.values(), heads=HEADS, octaves=OCTAVES, mode=mode)
    torch.testing.assert_close(model(**given), expected)


def test_modes_differ_by_the_point_itself(model):
    residual, given = random_model(prediction_mode="residual"), inputs()
    expected = (model(**given) + given["points"]).clamp(-1, 1)
    torch.testing.assert_close(residual(**given), expected)
    assert float((residual(**given).abs() == 1).double().mean()) > 0  # the clamp was at work
    assert float(model(**given).abs().max()) <= 1


def test_memory_and_answers_do_not_depend_on_chunks(model):
    given = inputs()
    context = model.decode_context(*(given[name] for name in ("latents", "framestep", "source", "target")))
    whole = model.query(context, given["points"], given["normals"])
    for chunk in (1, 4, 11, 100):
        torch.testing.assert_close(model.query(context, given["points"], given["normals"], chunk), whole)


def test_order_of_frames_and_start_of_counting_do_not_matter(model):
    given, order = inputs(), [2, 0, 1]
    plain = model(**given)
    shuffled = given | {"latents": given["latents"][:, order], "framestep": given["framestep"][:, order]}
    torch.testing.assert_close(model(**shuffled), plain)
    later = given | {name: given[name] + 30 for name in ("framestep", "source", "target")}
    torch.testing.assert_close(model(**later), plain)


def test_queries_do_not_see_each_other(model):
    given, order = inputs(), torch.randperm(11, generator=torch.Generator().manual_seed(0))
    shuffled = given | {name: given[name][:, order] for name in ("points", "normals")}
    torch.testing.assert_close(model(**shuffled), model(**given)[:, order])


def test_answers_depend_on_both_times_latents_and_normals(model):
    given = inputs()
    plain = model(**given)
    for name, other in {
        "source": doubles(7.0, 0.0),
        "target": doubles(4.0, 9.0),
        "latents": random(2, 3, 5, 4, seed=9),
        "normals": -given["normals"],
    }.items():
        assert float((model(**given | {name: other}) - plain).abs().max()) > 1e-5, name


def test_rope_is_in_effect(model):
    given, without = inputs(), random_model(rope=False)
    for made, differs in ((model, True), (without, False)):
        stretched = given | {"framestep": given["framestep"] * 3, "source": given["source"] * 3, "target": given["target"] * 3}
        assert (float((made(**stretched) - made(**given)).abs().max()) > 1e-6) is differs  # relative times are the same


def test_pair_in_queries_leaves_the_window_alone():
    model, given = random_model(pair_in_queries=True), inputs()
    arguments = given["latents"], given["framestep"], given["source"]
    a, b = (model.decode_context(*arguments, target) for target in (doubles(5.5, 0.0), doubles(4.0, 9.0)))
    assert torch.equal(a.tokens.keys, b.tokens.keys)
    assert a.tokens.keys.shape[1] == 3 * 5  # no pair tokens
    answers = [model.query(context, given["points"], given["normals"]) for context in (a, b)]
    assert float((answers[0] - answers[1]).abs().max()) > 1e-5


def test_pair_tokens_are_one_a_frame(model):
    given = inputs()
    context = model.decode_context(*(given[name] for name in ("latents", "framestep", "source", "target")))
    assert context.tokens.keys.shape[1] == 3 * 5 + 3 and context.pair is None


def test_grafting_copies_the_decoder():
    torch.manual_seed(0)
    vae = create("vae", "tiny").double()
    made = temporalize(vae, torch.Generator().manual_seed(1), prediction_mode="residual")
    columns = made.proj_query.weight.detach()
    assert torch.equal(columns[:, :-3], vae.decoder.proj_query.weight) and not columns[:, -3:].any()
    assert torch.equal(made.blocks[0].s_attn.to_v.weight, vae.decoder.blocks[0].attn1.to_v.weight)
    assert torch.equal(made.blocks[-1].x_attn.norm_cross.weight, vae.decoder.blocks[-1].attn2.norm_cross.weight)
    assert torch.equal(made.post_quant.weight, vae.post_quant.weight)
    assert made.config.prediction_mode == "residual" and made.proj_out.weight.shape == (3, 32)
    again, other = (temporalize(vae, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(again.proj_out.weight, made.proj_out.weight) and not torch.equal(other.proj_out.weight, made.proj_out.weight)
    bound = 32**-0.5
    assert 0.8 * bound < float(made.proj_out.weight.detach().abs().max()) <= bound
    given = inputs()
    torch.testing.assert_close(made(**given), made(**given | {"normals": -given["normals"]}))  # normals start without effect
    bare = temporalize(vae, in_extra_channels=0)
    assert torch.equal(bare.proj_query.weight, vae.decoder.proj_query.weight)
    bare.post_quant.weight.data.zero_()
    assert bool(vae.post_quant.weight.any())


def test_models_without_normals_take_none():
    model, given = random_model(in_extra_channels=0), inputs()
    torch.testing.assert_close(model(**given | {"normals": None}), model(**given))


def test_checkpointed_gradients_are_the_gradients():
    model, given = random_model().train().requires_grad_(True), inputs()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(**given).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.enable_gradient_checkpointing()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(float(gradient.abs().max()) > 0 for gradient in plain)


def test_gradients_in_the_points_are_those_of_finite_differences(model):
    given = inputs()
    context = model.decode_context(*(given[name] for name in ("latents", "framestep", "source", "target")))
    points = given["points"][:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: model.query(context, p, given["normals"][:, :2]), points)


def test_positions_are_float32_under_autocast_and_in_half_precision(model):
    given = {name: value.float() for name, value in inputs().items()}
    exact = random_model().float()(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = random_model().float()(**given)
    half = random_model().bfloat16()(**given)
    for answer in (mixed, half):
        assert answer.dtype == torch.float32
        assert float((answer - exact).abs().mean()) < 0.05
        assert len(answer.unique()) > 0.9 * answer.numel()  # bfloat16 answers would fall on a coarse grid
        assert not torch.equal(answer, answer.bfloat16().float())


def test_wrong_inputs_are_named(model):
    given = inputs()
    window = {name: given[name] for name in ("latents", "framestep", "source", "target")}
    with pytest.raises(ValueError, match=r"Stage II needs at least two distinct timesteps"):
        model.decode_context(**window | {"framestep": torch.full((2, 3), 4.0), "source": torch.full((2,), 4.0)})
    with pytest.raises(ValueError, match=r"must lie within the window, which runs from \[4.0, 0.0\] to \[7.0, 9.0\]"):
        model.decode_context(**window | {"target": doubles(8.0, 0.0)})
    with pytest.raises(ValueError, match="latents have 3 channels; this model has latent_channels=4"):
        model.decode_context(**window | {"latents": given["latents"][..., :3]})
    with pytest.raises(ValueError, match="needs the normals of the query points"):
        model(**given | {"normals": None})
    with pytest.raises(ValueError, match="prediction_mode must be one of direct, residual; got 'absolute'"):
        create("autoencoder", "tiny", prediction_mode="absolute")
    with pytest.raises(ValueError, match="in_extra_channels=2"):
        create("autoencoder", "tiny", in_extra_channels=2)
    with pytest.raises(ValueError, match="multiple of 4; got 6"):
        create("autoencoder", "tiny", width=6, num_attention_heads=1)
    with pytest.raises(ValueError, match="2 frames of 10001 tokens"):
        model.decode_context(torch.zeros(1, 2, 10_001, 4), torch.tensor([[0.0, 1.0]]), torch.zeros(1), torch.ones(1))
