import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn import functional as F

from visiongraft.methods.point_bridge.episodes import read_episodes
from visiongraft.methods.point_bridge.pickles import Empty, read_checkpoint, read_pickle
from visiongraft.methods.point_bridge.released import build, convert_checkpoint, convert_demonstrations, load

HIDDEN, REPR, LAYERS, QUERIES, FF, LENGTH = 32, 48, 2, 6, 64, 65


def official_shapes(hidden=HIDDEN, repr_dim=REPR, layers=LAYERS, feedforward=FF, widths=(64, 128, 256)):
    """Key layout of the brief, section 4."""

    def linear(name, rows, columns):
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    encoder = linear("final_projection", repr_dim, widths[-1])
    for i, (before, after) in enumerate(zip((3, *widths), widths, strict=False)):
        encoder |= linear(f"mlp.{3 * i}", after, before) | norm(f"mlp.{3 * i + 1}", after)
    actor = {"_action_token": (1, 1, 1, repr_dim), "_action_head.pos_embed.weight": (100, hidden)}
    actor |= linear("_policy.transformer.wte", hidden, repr_dim) | {"_policy.transformer.wpe.weight": (LENGTH, hidden)}
    for i in range(layers):
        name = f"_policy.transformer.h.{i}"
        actor |= norm(f"{name}.ln_1", hidden) | norm(f"{name}.ln_2", hidden) | {f"{name}.attn.bias": (1, 1, LENGTH, LENGTH)}
        actor |= linear(f"{name}.attn.c_attn", 3 * hidden, hidden) | linear(f"{name}.attn.c_proj", hidden, hidden)
        actor |= linear(f"{name}.mlp.c_fc", 4 * hidden, hidden) | linear(f"{name}.mlp.c_proj", hidden, 4 * hidden)
    actor |= norm("_policy.transformer.ln_f", hidden) | {"_policy.lm_head.weight": (hidden, hidden)}
    actor |= linear("_action_head.action_encoder.0", hidden, 10) | linear("_action_head.output_proj.0", 10, hidden)
    for i in range(2):
        name = f"_action_head.transformer_decoder.layers.{i}"
        for attention in ("self_attn", "multihead_attn"):
            actor |= {f"{name}.{attention}.in_proj_weight": (3 * hidden, hidden), f"{name}.{attention}.in_proj_bias": (3 * hidden,)}
            actor |= linear(f"{name}.{attention}.out_proj", hidden, hidden)
        actor |= linear(f"{name}.linear1", feedforward, hidden) | linear(f"{name}.linear2", hidden, feedforward)
        for k in (1, 2, 3):
            actor |= norm(f"{name}.norm{k}", hidden)
    return {
        "encoder": encoder,
        "proprio_projector": linear("0", repr_dim, 10) | linear("3", repr_dim, repr_dim),
        "language_projector": linear("0", repr_dim, 384) | linear("3", repr_dim, repr_dim),
        "actor": actor,
    }


def official_weights(seed=0, **sizes):
    g = torch.Generator().manual_seed(seed)
    parts = {}
    for part, shapes in official_shapes(**sizes).items():
        parts[part] = {name: torch.randn(shape, generator=g) * 0.2 for name, shape in shapes.items()}
        for name, shape in shapes.items():
            if name.endswith(".attn.bias"):
                parts[part][name] = torch.ones(shape).tril()
    return parts


def reference(parts, batch):
    """The authors' forward as the brief describes it, one operation at a time, in float64."""
    w = {f"{part}.{name}": value.double() for part, tensors in parts.items() for name, value in tensors.items()}

    def linear(x, name):
        bias = w.get(f"{name}.bias")
        return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def attend(q, k, v, causal):
        heads = [t.reshape(*t.shape[:2], 4, -1).transpose(1, 2) for t in (q, k, v)]
        scores = heads[0] @ heads[1].mT / heads[0].shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).tril() == 0, -torch.inf)
        return (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)

    def pointnet(points):
        x = points
        for i in (0, 3, 6):
            x = norm(linear(x, f"encoder.mlp.{i}"), f"encoder.mlp.{i + 1}").relu()
        return linear(x.amax(-2), "encoder.final_projection")

    def mlp(x, name):
        return linear(linear(x, f"{name}.0").relu(), f"{name}.3")

    batch = {name: value.double() for name, value in batch.items()}
    size, history = batch["robot_points"].shape[:2]
    action = w["actor._action_token"].expand(size, history, 1, -1)[:, :, 0]
    parts_of_step = [pointnet(batch["robot_points"]), pointnet(batch["object_points"].flatten(2, 3))]
    steps = torch.stack([*parts_of_step, mlp(batch["proprioception"], "proprio_projector"), action], 2).flatten(1, 2)
    x = torch.cat([mlp(batch["language"], "language_projector")[:, None], steps], 1)
    gpt = "actor._policy.transformer"
    x = linear(x, f"{gpt}.wte") + w[f"{gpt}.wpe.weight"][: x.shape[1]]
    for i in range(LAYERS):
        q, k, v = linear(norm(x, f"{gpt}.h.{i}.ln_1"), f"{gpt}.h.{i}.attn.c_attn").chunk(3, -1)
        x = x + linear(attend(q, k, v, True), f"{gpt}.h.{i}.attn.c_proj")
        hidden = F.gelu(linear(norm(x, f"{gpt}.h.{i}.ln_2"), f"{gpt}.h.{i}.mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, f"{gpt}.h.{i}.mlp.c_proj")
    features = linear(norm(x, f"{gpt}.ln_f"), "actor._policy.lm_head")[:, 4::4]
    memory = features.flatten(0, 1)[:, None]
    x = w["actor._action_head.pos_embed.weight"][:QUERIES].expand(len(memory), -1, -1)
    for i in range(2):
        name = f"actor._action_head.transformer_decoder.layers.{i}"
        for number, (attention, source) in enumerate((("self_attn", None), ("multihead_attn", memory)), 1):
            rows = zip(w[f"{name}.{attention}.in_proj_weight"].chunk(3), w[f"{name}.{attention}.in_proj_bias"].chunk(3), strict=True)
            inputs = (x, x, x) if source is None else (x, source, source)
            q, k, v = (y @ weight.T + bias for y, (weight, bias) in zip(inputs, rows, strict=True))
            x = norm(x + linear(attend(q, k, v, source is None), f"{name}.{attention}.out_proj"), f"{name}.norm{number}")
        x = norm(x + linear(linear(x, f"{name}.linear1").relu(), f"{name}.linear2"), f"{name}.norm3")
    return linear(x, "actor._action_head.output_proj.0").unflatten(0, (size, history))


def observe(history=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "robot_points": torch.rand(2, history, 8, 3, generator=g),
        "object_points": torch.rand(2, history, 3, 16, 3, generator=g),
        "proprioception": torch.rand(2, history, 10, generator=g),
        "language": torch.randn(2, 384, generator=g),
    }


@pytest.mark.parametrize("history", [1, 3])
def test_the_authors_forward_is_ours(history):
    parts, batch = official_weights(), observe(history)
    model = build("policy", {"num_queries": QUERIES, "history_len": history}, parts).eval()
    with torch.no_grad():
        expected = reference(parts, batch)
        assert (model(batch).double() - expected).abs().max() < 1e-5
        exact = model.double()({name: value.double() for name, value in batch.items()})
    assert (exact - expected).abs().max() < 1e-12 * expected.abs().max() + 1e-11


def test_official_sizes_build_strictly_on_the_meta_device():
    shapes = official_shapes(hidden=256, repr_dim=512, layers=8, feedforward=2048)
    parts = {part: {k: torch.empty(s, device="meta") for k, s in tensors.items()} for part, tensors in shapes.items()}
    counts = {part: sum(p.numel() for p in build(part, {}, tensors).parameters()) for part, tensors in parts.items()}
    assert counts == {"encoder": 174_080, "proprio_projector": 268_288, "language_projector": 459_776, "actor": 9_721_098}
    model = build("policy", {}, parts)
    assert all(p.is_meta for p in model.parameters()) and sum(p.numel() for p in model.parameters()) == 10_623_242
    assert model.config.chunk == 40 and model.config.num_layers == 8 and model.config.max_length == 65


def test_components_alone_and_flat_names():
    parts = official_weights()
    points = torch.rand(2, 5, 3)
    whole = build("policy", {}, {f"{part}.{key}": v for part, tensors in parts.items() for key, v in tensors.items()})
    torch.testing.assert_close(build("encoder", {}, parts["encoder"])(points), whole.encoder(points))
    torch.testing.assert_close(
        build("proprio_projector", {}, parts["proprio_projector"])(torch.ones(1, 10)), whole.proprio_projector(torch.ones(1, 10))
    )
    torch.testing.assert_close(build("actor", {}, parts["actor"]).action_token, whole.actor.action_token)


def test_a_policy_without_projectors_has_none():
    parts = official_weights()
    model = build("policy", {"use_language": False}, {part: parts[part] for part in ("encoder", "proprio_projector", "actor")})
    assert not model.config.use_language and model.config.use_proprio
    with pytest.raises(ValueError, match="configuration says use_language False, but the tensors say True"):
        build("policy", {"use_language": False}, parts)


def without(tensors, key):
    return {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize(
    ("component", "config", "change", "message"),
    [
        ("head", {}, dict, "component must be one of encoder, proprio_projector, language_projector, actor, policy; got 'head'"),
        ("actor", {"queries": 1}, dict, "Unknown configuration keys queries; accepted: num_queries"),
        ("actor", {"hidden_dim": 256}, dict, "configuration says hidden_dim 256, but the tensors say 32"),
        ("actor", {}, lambda t: without(t, "_policy.lm_head.weight"), "missing trunk.output_projection.weight"),
        ("actor", {}, lambda t: t | {"extra": torch.ones(1)}, "unexpected extra"),
        ("actor", {}, lambda t: t | {"_action_token": torch.ones(1)}, r"action_token has shape \(1,\) instead of \(1, 1, 1, 48\)"),
        ("actor", {}, lambda t: without(t, "_policy.transformer.wpe.weight"), "it lacks _policy.transformer.wpe.weight"),
        ("actor", {}, lambda t: t | {"_action_head.output_proj.0.weight": torch.ones(7, HIDDEN)}, "10 numbers .pose. or 27"),
        ("encoder", {}, lambda t: {}, "no mlp.0.weight"),
        ("policy", {}, lambda t: {"actor": t}, "lacks its encoder"),
        ("policy", {}, lambda t: {"decoder": t}, "A policy consists of"),
        ("actor", {"num_queries": 200}, dict, "chunk must lie between 1 and 100"),
    ],
)
def test_what_does_not_fit_is_named(component, config, change, message):
    with pytest.raises(ValueError, match=message):
        build(component, config, change(official_weights()["actor"]))


@pytest.fixture
def authors_module():
    """``point_bridge.utils.Timer``, only there while the checkpoint is written."""
    package, module = types.ModuleType("point_bridge"), types.ModuleType("point_bridge.utils")

    class Timer:
        def __init__(self):
            self._start = 1.5

    Timer.__module__, Timer.__qualname__, module.Timer = "point_bridge.utils", "Timer", Timer
    sys.modules |= {"point_bridge": package, "point_bridge.utils": module}
    yield Timer
    sys.modules.pop("point_bridge.utils", None), sys.modules.pop("point_bridge", None)


def limits(rng, *shape):
    low = rng.normal(size=shape)
    return {"min": low, "max": low + 1 + rng.random(shape)}


def save_authors_checkpoint(path, timer, **changes):
    rng = np.random.default_rng(0)
    parts = official_weights()
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scalar = {"min": np.float64(-1.0), "max": np.float32(1.0)}
    stats = {"past_tracks": limits(rng, 3), "future_tracks": limits(rng, 3), "gripper_states": scalar}
    stats |= {"proprioceptive": limits(rng, 10), "actions": limits(rng, 10)}
    contents = {**parts, "actor_opt": optimizer, "timer": timer(), "_global_step": 7, "stats": stats, "max_episode_len": 300}
    torch.save(contents | changes, path)
    sys.modules.pop("point_bridge.utils", None), sys.modules.pop("point_bridge", None)
    return parts, stats


def test_a_checkpoint_of_the_official_code_converts_and_acts(tmp_path, authors_module):
    parts, stats = save_authors_checkpoint(tmp_path / "weights.pt", authors_module)
    contents = read_checkpoint(tmp_path / "weights.pt")
    assert isinstance(contents["timer"], Empty) and isinstance(contents["actor_opt"], Empty)
    folder = convert_checkpoint(
        tmp_path / "weights.pt", tmp_path / "policy", config={"num_queries": QUERIES}, tasks=["a/b"], text_encoder="hashed"
    )
    policy = load(folder)
    assert policy.card.tasks == ("a/b",) and policy.convention == "absolute"
    np.testing.assert_array_equal(policy.statistics["actions"].minimum, stats["actions"]["min"])
    rng = np.random.default_rng(1)
    seen = {
        "robot_points": rng.random((8, 3), np.float32),
        "object_points": rng.random((3, 16, 3), np.float32),
        "proprioception": rng.random(10, np.float32),
        "instruction": "put it there",
    }

    def scaled(values, key):
        low, high = stats[key]["min"], stats[key]["max"]
        return torch.from_numpy((values - low) / (high - low + 1e-5))[None, None]

    batch = {name: scaled(seen[name], "past_tracks") for name in ("robot_points", "object_points")}
    batch |= {
        "proprioception": scaled(seen["proprioception"], "proprioceptive"),
        "language": torch.from_numpy(policy.text_encoder(["put it there"])),
    }
    expected = reference(parts, batch)[0, 0].numpy() * (stats["actions"]["max"] - stats["actions"]["min"]) + stats["actions"]["min"]
    np.testing.assert_allclose(policy.act(seen), expected, atol=2e-5)


def test_loading_a_pickle_names_the_converter(tmp_path, authors_module):
    save_authors_checkpoint(tmp_path / "weights.pt", authors_module)
    with pytest.raises(ValueError, match=r"is a pickle, which can run any code .* refused.*released.convert_checkpoint\("):
        load(tmp_path / "weights.pt")


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["os.system", "eval", "subprocess.Popen", "getattr"])
def test_a_malicious_checkpoint_is_refused_without_running_it(name, tmp_path):
    import subprocess

    mark = tmp_path / "ran"
    calls = {
        "os.system": (os.system, f"touch {mark}"),
        "eval": (eval, f"open({str(mark)!r}, 'w')"),
        "subprocess.Popen": (subprocess.Popen, ["touch", str(mark)]),
        "getattr": (getattr, "text", "upper"),
    }
    torch.save({"timer": Malicious(*calls[name])}, tmp_path / "bad.pt")
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"observations": [Malicious(*calls[name])]}))
    for read in (
        lambda: convert_checkpoint(tmp_path / "bad.pt", tmp_path / "out"),
        lambda: convert_demonstrations(tmp_path / "bad.pkl", tmp_path / "o"),
    ):
        with pytest.raises(ValueError, match=r"asks for .*it is refused, and nothing of it was run"):
            read()
    assert not mark.exists() and not (tmp_path / "out").exists()


def test_functions_of_unknown_packages_are_refused_too(tmp_path, authors_module):
    sys.modules["point_bridge.utils"].run = run = lambda *a: None
    run.__module__, run.__qualname__, run.__name__ = "point_bridge.utils", "run", "run"
    torch.save({"timer": Malicious(run)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"asks for point_bridge\.utils\.run"):
        read_checkpoint(tmp_path / "bad.pt")


def test_damaged_and_foreign_files_are_refused(tmp_path, authors_module):
    save_authors_checkpoint(tmp_path / "weights.pt", authors_module)
    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"no checkpoint of torch.save .* or is cut off"):
        read_checkpoint(tmp_path / "cut.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list; the authors' files hold a dictionary"):
        read_checkpoint(tmp_path / "list.pt")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"a": np.ones(9)})[:-20])
    with pytest.raises(ValueError, match="is no pickle, or is damaged"):
        read_pickle(tmp_path / "cut.pkl")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        convert_checkpoint(tmp_path / "none.pt", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no policy"):
        load(tmp_path)


def test_a_checkpoint_without_statistics_or_with_constant_ones_is_refused(tmp_path, authors_module):
    _, stats = save_authors_checkpoint(tmp_path / "weights.pt", authors_module)
    parts = official_weights()
    torch.save({**parts, "stats": without(stats, "actions")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no statistics of actions; without them its actions cannot be read"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out")
    stats["actions"]["max"][6] = stats["actions"]["min"][6]
    torch.save({**parts, "stats": stats}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match="dimension 6 have zero range"):
        convert_checkpoint(tmp_path / "b.pt", tmp_path / "out")
    assert convert_checkpoint(tmp_path / "b.pt", tmp_path / "out", range_floor=1e-3).is_dir()


def authors_data(protocol_bytes=False):
    rng = np.random.default_rng(0)
    rotations = Rotation.random(5, rng)
    episode = {
        "eef_states": np.concatenate([rng.random((5, 3)), rotations.as_quat()], axis=1),  # xyzw
        "gripper_states": np.array([-1.0, -1, 1, 1, 1]),
        "robot_tracks_3d": rng.random((5, 8, 3)),
        "object_tracks_128_3d": rng.random((5, 2, 128, 3)),
        "pixels_left": rng.integers(255, size=(5, 4, 6, 3), dtype=np.uint8),
    }
    return {"observations": [episode], "actions": [rng.random((5, 7))], "task_desc": "stack", "task_emb": rng.random(384)}, rotations


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_data_pickle_converts(protocol, tmp_path):
    data, rotations = authors_data()
    data["observations"][0]["object_tracks_64_3d"] = np.zeros((5, 2, 64, 3))  # the most points are taken
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    episode = read_episodes(convert_demonstrations(tmp_path / "task.pkl", tmp_path / "task.safetensors"))[0]
    source = data["observations"][0]
    assert episode.instruction == "stack"
    np.testing.assert_allclose(episode.proprioception[:, 3:9], rotations.as_matrix()[:, :2].reshape(5, 6), atol=1e-6)
    np.testing.assert_allclose(episode.proprioception[:, 9], source["gripper_states"])
    np.testing.assert_allclose(episode.object_points, source["object_tracks_128_3d"], atol=1e-7)
    np.testing.assert_array_equal(episode.images["left"], source["pixels_left"])


def test_a_data_pickle_without_states_is_refused(tmp_path):
    data, _ = authors_data()
    del data["observations"][0]["eef_states"]
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match="Episode 0 needs eef_states, gripper_states, robot_tracks_3d"):
        convert_demonstrations(tmp_path / "task.pkl", tmp_path / "task.safetensors")
    (tmp_path / "task.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="a list of observations and a text task_desc; it has a"):
        convert_demonstrations(tmp_path / "task.pkl", tmp_path / "task.safetensors")
