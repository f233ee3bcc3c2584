import pytest
import torch

from visiongraft.methods.point_bridge.baselines import BASELINES
from visiongraft.methods.point_bridge.heads import DiffusionHead, MixtureHead
from visiongraft.methods.point_bridge.model import SIZES, PointBridgeModel, create_model


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def tiny(seed=0, **options):
    torch.manual_seed(seed)
    return create_model("tiny", **options).eval()


def observe(batch=2, history=1, objects=2, points=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "robot_points": torch.rand(batch, history, 8, 3, generator=g),
        "object_points": torch.rand(batch, history, objects, points, 3, generator=g),
        "scene_points": torch.rand(batch, history, 20, 3, generator=g),
        "images": torch.rand(batch, history, 1, 3, 32, 32, generator=g),
        "proprioception": torch.rand(batch, history, 10, generator=g),
        "language": torch.randn(batch, 384, generator=g),
    }


def test_official_model_has_the_papers_parameter_counts():
    with torch.device("meta"):
        model = create_model()
    counts = [parameters(part) for part in (model.encoder, model.proprio_projector, model.language_projector, model.actor)]
    assert counts == [174_080, 268_288, 459_776, 9_721_098]
    assert parameters(model) == 10_623_242


def test_sizes_are_configurations_of_one_class_and_baselines_are_of_similar_size():
    with torch.device("meta"):
        ours = parameters(create_model("small"))
        for name, options in BASELINES.items():
            assert 0.9 < parameters(create_model("small", **options)) / ours < 1.15, name
    assert set(SIZES) == {"official", "small", "tiny"}


def test_linear_layers_start_orthogonal_and_embeddings_narrow():
    model = tiny()
    weight = model.actor.trunk.blocks[0].mlp[0].weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), atol=1e-5, rtol=0)
    assert all((m.bias == 0).all() for m in model.modules() if isinstance(m, torch.nn.Linear) and m.bias is not None)
    big = create_model("small")
    assert abs(float(big.actor.head.queries.weight.std()) - 0.02) < 0.002
    assert abs(float(big.actor.action_token.std()) - 1) < 0.3


@pytest.mark.parametrize("tokens", ["shared", "per_object", "combined"])
def test_order_of_points_does_not_matter(tokens):
    model, observation = tiny(tokens=tokens), observe()
    shuffled = observation | {
        "object_points": observation["object_points"][:, :, :, torch.randperm(6)],
        "robot_points": observation["robot_points"].flip(2),
    }
    torch.testing.assert_close(model(shuffled), model(observation))


def test_objects_are_told_apart_only_with_a_token_each():
    observation = observe()
    swapped = observation | {"object_points": observation["object_points"].flip(2)}
    torch.testing.assert_close(tiny()(swapped), tiny()(observation))
    model = tiny(tokens="per_object")
    assert (model(swapped) - model(observation)).abs().max() > 1e-4


@pytest.mark.parametrize("tokens", ["shared", "per_object", "combined"])
def test_what_is_masked_has_no_influence(tokens):
    model, observation = tiny(tokens=tokens), observe(objects=3)
    observation["object_mask"] = torch.tensor([[True, True, False], [True, True, True]])
    before = model(observation)
    changed = observation["object_points"].clone()
    changed[:, :, 2] = 7
    after = model(observation | {"object_points": changed})
    torch.testing.assert_close(after[0], before[0])
    assert (after[1] - before[1]).abs().max() > 1e-4
    if tokens != "per_object":  # a shorter cloud is the same cloud
        alone = model(
            {name: v[:1, :, :2] if name == "object_points" else v[:1] for name, v in observation.items() if name != "object_mask"}
        )
        torch.testing.assert_close(alone[0], before[0])


def test_a_full_mask_is_no_mask():
    for tokens in ("shared", "per_object", "combined"):
        model, observation = tiny(tokens=tokens), observe()
        masked = model(observation | {"object_mask": torch.ones(2, 2, dtype=torch.bool)})
        torch.testing.assert_close(masked, model(observation), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("observed", ["points", "scene", "image"])
def test_later_steps_do_not_reach_earlier_ones(observed):
    model, observation = tiny(history=3, observed=observed), observe(history=3)
    before = model(observation)
    changed = {name: value.clone() for name, value in observation.items()}
    for name in changed:
        if name != "language":
            changed[name][:, 2] = torch.rand_like(changed[name][:, 2])
    after = model(changed)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-5


def test_later_actions_of_a_chunk_do_not_reach_earlier_ones():
    model, observation = tiny(), observe()
    before = model(observation)
    with torch.no_grad():
        model.actor.head.queries.weight[3] += 1
    after = model(observation)
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3])
    assert (after[:, :, 3] - before[:, :, 3]).abs().max() > 1e-4


def test_loss_is_the_mean_squared_error_and_reaches_every_trained_parameter():
    model, observation = tiny(), observe()
    actions = torch.rand(2, 1, 4, 10)
    loss = model(observation, actions)
    torch.testing.assert_close(loss, (model(observation) - actions).square().mean())
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not model.actor.head.action_encoder.weight.requires_grad  # in the checkpoint, never in use


def test_mixture_with_one_mode_is_a_gaussian():
    torch.manual_seed(0)
    options = {"hidden_size": 8, "chunk": 3, "num_layers": 1, "num_heads": 2, "feedforward": 16, "dropout": 0.0}
    head, features, actions = MixtureHead(modes=1, action_dim=4, **options), torch.randn(5, 8), torch.rand(5, 3, 4)
    _, means, scales = head.mixture(features)
    expected = -torch.distributions.Normal(means[:, :, 0], scales[:, :, 0]).log_prob(actions).mean()
    torch.testing.assert_close(head.loss(features, actions), expected)
    torch.testing.assert_close(head(features), means[:, :, 0])


def test_mixture_loss_is_torch_distributions_and_acts_by_the_likeliest_mode():
    torch.manual_seed(0)
    options = {"hidden_size": 8, "chunk": 3, "num_layers": 1, "num_heads": 2, "feedforward": 16, "dropout": 0.0}
    head, features, actions = MixtureHead(modes=3, action_dim=4, **options), torch.randn(5, 8), torch.rand(5, 3, 4)
    weights, means, scales = head.mixture(features)
    parts = torch.distributions.Independent(torch.distributions.Normal(means, scales), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=weights), parts)
    torch.testing.assert_close(head.loss(features, actions), -mixture.log_prob(actions).mean() / 4)
    best = weights.argmax(-1)
    for i in range(5):
        for j in range(3):
            torch.testing.assert_close(head(features)[i, j], means[i, j, best[i, j]])


def test_diffusion_recovers_actions_with_a_perfect_denoiser(monkeypatch):
    torch.manual_seed(0)
    options = {"hidden_size": 8, "chunk": 3, "num_layers": 1, "num_heads": 2, "feedforward": 16, "dropout": 0.0, "action_dim": 4}
    head = DiffusionHead(train_steps=100, inference_steps=10, **options)
    actions = torch.rand(5, 3, 4)

    def perfect(features, noisy, level):
        kept = head.noising.alphas_cumprod[level][:, None, None]
        return (noisy - kept.sqrt() * (2 * actions - 1)) / (1 - kept).sqrt()

    monkeypatch.setattr(head, "denoise", perfect)
    torch.testing.assert_close(head(torch.zeros(5, 8), torch.randn(5, 3, 4)), actions, atol=1e-3, rtol=0)
    assert float(head.loss(torch.zeros(5, 8), actions, torch.Generator().manual_seed(0))) < 1e-6


def test_a_diffusion_head_without_noise_is_told():
    with pytest.raises(ValueError, match="acts from noise; pass noise"):
        tiny(head="diffusion")(observe())


@pytest.mark.parametrize("options", [{}, {"observed": "image"}, {"head": "mixture"}, {"tokens": "per_object", "use_language": False}])
def test_saved_and_loaded_models_are_equal(options, tmp_path):
    model = tiny(**options)
    model.save_pretrained(tmp_path)
    again = PointBridgeModel.from_pretrained(tmp_path).eval()
    assert dict(again.config).items() >= {k: v for k, v in options.items()}.items()
    assert torch.equal(again(observe()), model(observe()))


def test_film_is_silent_at_first_and_speaks_after_training():
    model, observation = tiny(observed="image"), observe()
    images, condition = observation["images"][:, 0, 0], torch.randn(2, 16)
    torch.testing.assert_close(model.encoder(images, condition), model.encoder(images, 2 * condition))
    with torch.no_grad():
        model.encoder.blocks[0].film.weight.normal_()
    assert (model.encoder(images, condition) - model.encoder(images, 2 * condition)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "none"}, "tokens must be one of shared, per_object, combined; got 'none'"),
        ({"observed": "sound"}, "observed must be one of"),
        ({"head": "x"}, "head must be one of"),
        ({"chunk": 101}, "chunk must lie between 1 and 100"),
        ({"history": 0}, "history and num_cameras must be at least 1"),
        ({"num_heads": 3}, "must be a multiple of num_heads 3"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("tiny", **options)


def test_bad_observations_are_refused():
    observation = observe()
    with pytest.raises(ValueError, match="needs 'proprioception'; the observation has"):
        tiny()({k: v for k, v in observation.items() if k != "proprioception"})
    with pytest.raises(ValueError, match="sees a history of 2 steps; got 1"):
        tiny(history=2)(observation)
    with pytest.raises(ValueError, match="sees 2 cameras of 32x32 pixels; got 1 of 32x32"):
        tiny(observed="image", num_cameras=2)(observation)
    with pytest.raises(ValueError, match="The sequence has 73 tokens; max_length is 65"):
        tiny(history=18)(observe(history=18))
    with pytest.raises(ValueError, match="size must be one of official, small, tiny"):
        create_model("huge")
