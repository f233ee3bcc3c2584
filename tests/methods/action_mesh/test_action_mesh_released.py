import json
import warnings

import pytest
import torch
from safetensors.torch import save_file

from visiongraft.methods.action_mesh import released
from visiongraft.methods.action_mesh.config import SIZES, create
from visiongraft.methods.action_mesh.released import ActionMeshModels, build, load

DENOISER = {
    "num_tokens_nominal": 2048,
    "temporal_context_size": 16,
    "in_channels": 64,
    "num_layers": 21,
    "num_attention_heads": 16,
    "width": 2048,
    "mlp_ratio": 4.0,
    "cross_attention_dim": 1024,
    "inflated_layers": list(range(21)),
    "clear_autocast": False,
    "compile_blocks": False,
    "compile_mode": None,
}
AUTOENCODER = {
    "temporal_context_size": 16,
    "in_channels": 3,
    "in_extra_channels": 3,
    "out_dim": 3,
    "latent_channels": 64,
    "width": 1024,
    "num_layers": 16,
    "num_attention_heads": 8,
    "embed_frequency": 8,
    "embed_include_pi": False,
    "prediction_mode": "direct",
    "verbose": False,
}
TRANSFORMER = {"cross_attention_dim": 1024, "in_channels": 64, "num_attention_heads": 16, "num_layers": 21, "width": 2048}
VAE = {
    "_class_name": "Tripo2VAEModel",
    "embed_frequency": 8,
    "embed_include_pi": False,
    "embedding_type": "frequency",
    "in_channels": 3,
    "latent_channels": 64,
    "num_attention_heads": 8,
    "num_layers_decoder": 16,
    "num_layers_encoder": 8,
    "width_decoder": 1024,
    "width_encoder": 512,
}
CONFIGS = {"denoiser": DENOISER, "autoencoder": AUTOENCODER, "triposg_dit": TRANSFORMER, "triposg_vae": VAE}
OURS = {"denoiser": "denoiser", "autoencoder": "autoencoder", "triposg_dit": "dit", "triposg_vae": "vae"}
TRIPOSG_WORDS = {"norm_s_attn": "norm1", "s_attn": "attn1", "norm_x_attn": "norm2", "x_attn": "attn2", "norm_ff": "norm3"}
TRIPOSG_WORDS |= {"norm_skip": "skip_norm", "linear_skip": "skip_linear"}


def layer(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int, context: int, head: int | None) -> dict[str, tuple[int, ...]]:
    shapes = {f"{name}.to_q.weight": (width, width), f"{name}.to_k.weight": (width, context), f"{name}.to_v.weight": (width, context)}
    shapes |= layer(f"{name}.to_out.0", width, width)
    return shapes | ({} if head is None else {f"{name}.norm_q.weight": (head,), f"{name}.norm_k.weight": (head,)})


def feed_forward(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return norm(f"{name}.norm_ff", width) | layer(f"{name}.ff.net.0.proj", 4 * width, width) | layer(f"{name}.ff.net.2", width, 4 * width)


def self_block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return norm(f"{name}.norm_s_attn", width) | attention(f"{name}.s_attn", width, width, None) | feed_forward(name, width)


def cross_block(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = norm(f"{name}.norm_x_attn", width) | norm(f"{name}.x_attn.norm_cross", width)
    return shapes | attention(f"{name}.x_attn", width, width, None) | feed_forward(name, width)


def denoiser_tensors() -> dict[str, tuple[int, ...]]:
    """Section 4 of the brief."""
    shapes = layer("time_proj.linear_1", 8192, 2048) | layer("time_proj.linear_2", 2048, 8192) | layer("proj_in", 2048, 64)
    shapes |= norm("norm_out", 2048) | layer("proj_out", 64, 2048)
    for i in range(21):
        name = f"blocks.{i}"
        shapes |= norm(f"{name}.norm_s_attn", 2048) | attention(f"{name}.s_attn", 2048, 2048, 128)
        shapes |= norm(f"{name}.norm_x_attn", 2048) | attention(f"{name}.x_attn", 2048, 1024, 128) | feed_forward(name, 2048)
        if i >= 11:
            shapes |= norm(f"{name}.norm_skip", 2048) | layer(f"{name}.linear_skip", 2048, 4096)
    return shapes


def autoencoder_tensors() -> dict[str, tuple[int, ...]]:
    shapes = layer("post_quant", 1024, 64) | layer("proj_query", 1024, 54) | norm("norm_out", 1024) | layer("proj_out", 3, 1024)
    for i in range(16):
        shapes |= self_block(f"blocks.{i}", 1024)
    return shapes | cross_block("blocks.16", 1024)


def triposg(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {".".join(TRIPOSG_WORDS.get(word, word) for word in key.split(".")): shape for key, shape in shapes.items()}


def vae_tensors() -> dict[str, tuple[int, ...]]:
    shapes = layer("encoder.proj_in", 512, 54) | cross_block("encoder.blocks.0", 512) | norm("encoder.norm_out", 512)
    for i in range(1, 9):
        shapes |= self_block(f"encoder.blocks.{i}", 512)
    shapes |= layer("quant", 128, 512) | layer("post_quant", 1024, 64)
    for i in range(16):
        shapes |= self_block(f"decoder.blocks.{i}", 1024)
    shapes |= cross_block("decoder.blocks.16", 1024) | layer("decoder.proj_query", 1024, 51)
    return triposg(shapes | norm("decoder.norm_out", 1024) | layer("decoder.proj_out", 1, 1024))


PUBLISHED = {
    "denoiser": (denoiser_tensors, 554, 1_439_556_160),
    "autoencoder": (autoencoder_tensors, 231, 214_213_635),
    "triposg_dit": (lambda: triposg(denoiser_tensors()), 554, 1_439_556_160),
    "triposg_vae": (vae_tensors, 356, 242_662_017),
}


@pytest.mark.parametrize("component", list(PUBLISHED))
def test_published_size_builds_from_the_published_names(component):
    """On the meta device: names, shapes and counts of the brief, from the authors' configuration."""
    shapes, tensors, parameters = PUBLISHED[component]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes().items()}
    assert len(state) == tensors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build(component, CONFIGS[component], state)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert all(parameter.is_meta for parameter in model.parameters())
    assert type(model) is type(create(OURS[component], "tiny"))


@pytest.mark.parametrize("component", list(PUBLISHED))
def test_built_models_compute_what_the_given_ones_do(component):
    torch.manual_seed(0)
    model = create(OURS[component], "tiny").eval()
    state = {key: value.half() for key, value in model.state_dict().items()}
    before = {key: value.clone() for key, value in state.items()}
    built = build(component, SIZES["tiny"][OURS[component]], state)
    assert not built.training
    for key, value in built.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].float())
        value.add_(1.0)  # a copy
    assert all(torch.equal(state[key], value) for key, value in before.items())


def test_float32_tensors_are_copied_too():
    state = create("dit", "tiny").state_dict()
    built = build("triposg_dit", SIZES["tiny"]["dit"], state)
    built.proj_in.weight.data.zero_()
    assert bool(state["proj_in.weight"].any())


def test_unknown_keys_are_left_out_with_a_note():
    state = create("denoiser", "tiny").state_dict()
    old = SIZES["tiny"]["denoiser"] | {"framestep_encoding_strategy": "rope", "num_freqs_ts": 8}
    with pytest.warns(UserWarning, match="keys that are not used: framestep_encoding_strategy, num_freqs_ts"):
        build("denoiser", old, state)


@pytest.mark.parametrize("asked", list(PUBLISHED))
@pytest.mark.parametrize("given", list(PUBLISHED))
def test_tensors_of_another_component_are_recognised(asked, given):
    if asked == given:
        return
    with pytest.raises(ValueError, match=f"These tensors are of .* load them as component='{given}'"):
        build(asked, SIZES["tiny"][OURS[asked]], create(OURS[given], "tiny").state_dict())


def test_tensors_that_do_not_fit_are_named():
    state = create("autoencoder", "tiny").state_dict()
    config = SIZES["tiny"]["autoencoder"]
    with pytest.raises(ValueError, match=r"missing norm_out.bias"):
        build("autoencoder", config, {key: value for key, value in state.items() if key != "norm_out.bias"})
    with pytest.raises(ValueError, match=r"unexpected head.weight"):
        build("autoencoder", config, state | {"head.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"proj_out.weight has shape \(1, 32\) instead of \(3, 32\)"):
        build("autoencoder", config, state | {"proj_out.weight": torch.zeros(1, 32)})
    with pytest.raises(ValueError, match=r"and [0-9]+ more"):
        build("autoencoder", config | {"width": 64}, state)
    with pytest.raises(ValueError, match="component must be one of denoiser, autoencoder, triposg_dit, triposg_vae; got 'vae'"):
        build("vae", config, state)


def write_component(folder, component: str, model, *, name: str = "model.safetensors", pieces: int = 1) -> None:
    folder.mkdir(parents=True)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config |= {"_class_name": "Tripo2VAEModel"} if component == "triposg_vae" else {}
    (folder / "config.json").write_text(json.dumps(config))
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    if pieces == 1:
        save_file(state, folder / name)
        return
    places = {}
    for piece in range(pieces):
        part = dict(list(state.items())[piece::pieces])
        file = name.replace(".safetensors", f"-{piece + 1:05d}-of-{pieces:05d}.safetensors")
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.fixture
def action_mesh(tmp_path):
    torch.manual_seed(0)
    models = {part: create(part, "tiny") for part in ("denoiser", "autoencoder")}
    for part, model in models.items():
        write_component(tmp_path / "ActionMesh" / part, part, model)
    return tmp_path / "ActionMesh", models


def test_action_mesh_repository(action_mesh):
    folder, models = action_mesh
    loaded = load(folder)
    assert isinstance(loaded, ActionMeshModels) and dict(**loaded) == {"denoiser": loaded.denoiser, "autoencoder": loaded.autoencoder}
    for part, model in models.items():
        for key, value in loaded[part].state_dict().items():
            assert torch.equal(value, model.state_dict()[key])
    assert load(folder, torch_dtype=torch.bfloat16, device="cpu").denoiser.dtype == torch.bfloat16
    with pytest.raises(KeyError):
        loaded["vae"]


def test_sharded_weights(tmp_path):
    torch.manual_seed(0)
    models = {part: create(part, "tiny") for part in ("denoiser", "autoencoder")}
    for part, model in models.items():
        write_component(tmp_path / part, part, model, pieces=3)
    loaded = load(tmp_path)
    assert all(torch.equal(value, loaded["denoiser"].state_dict()[key]) for key, value in models["denoiser"].state_dict().items())
    (tmp_path / "denoiser" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks denoiser/model-00002-of-00003.safetensors"):
        load(tmp_path)


def test_incomplete_folders_list_what_is_missing(action_mesh, tmp_path):
    folder, _ = action_mesh
    (folder / "denoiser" / "config.json").unlink()
    (folder / "autoencoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks denoiser/config.json, autoencoder/model.safetensors or diffusion"):
        load(folder)
    (folder / "autoencoder" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"only pytorch_model.bin: pickles can run any code"):
        load(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither ActionMesh's repository .* nor TripoSG's"):
        load(empty)
    with pytest.raises(FileNotFoundError, match="There is no /no/such; give a folder, or a hub id"):
        load("/no/such")
    with pytest.raises(FileNotFoundError, match="There is no some/where here or on the hub"):
        load("some/where", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"weights.pt is a file; .* pickle can run any code"):
        (tmp_path / "weights.pt").write_bytes(b"")
        load(tmp_path / "weights.pt")


def test_stages_that_were_swapped(tmp_path):
    write_component(tmp_path / "denoiser", "denoiser", create("autoencoder", "tiny"))
    write_component(tmp_path / "autoencoder", "autoencoder", create("denoiser", "tiny"))
    with (
        pytest.warns(UserWarning, match="keys that are not used"),
        pytest.raises(ValueError, match=r"denoiser: These tensors are of ActionMesh's autoencoder \(stage II\)"),
    ):
        load(tmp_path)


def test_damaged_files(action_mesh):
    folder, _ = action_mesh
    weights = folder / "denoiser" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load(folder)
    (folder / "denoiser" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        load(folder)
    (folder / "denoiser" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold one JSON object; got a list"):
        load(folder)


@pytest.fixture
def triposg_folder(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path / "TripoSG"
    models = {"transformer": create("dit", "tiny"), "vae": create("vae", "tiny")}
    for part, component in (("transformer", "triposg_dit"), ("vae", "triposg_vae")):
        write_component(folder / part, component, models[part], name="diffusion_pytorch_model.safetensors")
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder / "image_encoder_dinov2")
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(
        folder / "feature_extractor_dinov2"
    )
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "RectifiedFlowScheduler", "num_train_timesteps": 1000, "shift": 1, "use_dynamic_shifting": False}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "TripoSGPipeline"}))
    return folder, models


def test_triposg_repository(triposg_folder):
    folder, models = triposg_folder
    pipeline = load(folder)
    assert type(pipeline).__name__ == "ImageTo3DPipeline"
    for part, model in models.items():
        assert all(torch.equal(value, getattr(pipeline, part).state_dict()[key]) for key, value in model.state_dict().items())
    assert pipeline.scheduler.config.shift == 1
    assert pipeline.image_encoder_dinov2.config.hidden_size == 24
    picture = torch.ones(3, 40, 40)
    picture[:, 10:30, 15:25] = 0.3
    shape = pipeline(picture, num_inference_steps=1, num_tokens=8, output_type="latent")
    assert bool(shape.latents.isfinite().all())


def test_incomplete_triposg(triposg_folder):
    folder, _ = triposg_folder
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler").rmdir()
    with pytest.raises(FileNotFoundError, match="incomplete copy of TripoSG: it lacks scheduler/"):
        load(folder)


def test_every_size_has_every_component():
    for size in ("tiny", "small"):
        parts = {name: create(name, size) for name in SIZES[size]}
        assert parts["dit"].config.in_channels == parts["vae"].config.latent_channels == parts["autoencoder"].config.latent_channels
        assert parts["dit"].config.width == parts["denoiser"].config.width
    assert create("dit", "tiny", num_layers=1).config.num_layers == 1
    with pytest.raises(ValueError, match="size must be one of tiny, small, released; got 'huge'"):
        create("dit", "huge")
    with pytest.raises(ValueError, match="component must be one of vae, dit, denoiser, autoencoder; got 'encoder'"):
        create("encoder", "tiny")
    assert released.COMPONENTS["denoiser"] is type(create("denoiser", "tiny"))
