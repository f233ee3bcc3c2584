import copy
import json
import warnings

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, FluxPipeline, FluxTransformer2DModel, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from visiongraft.methods.panorama import released, small
from visiongraft.methods.panorama.config import FILE_NAME, GraftConfig, read_config, write_config
from visiongraft.methods.panorama.image_pipeline import PanoramaImagePipeline
from visiongraft.methods.panorama.released import LORA_FILE, build, load, save_graft

FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": small.TEXT_WIDTH,
    "pooled_projection_dim": small.TEXT_WIDTH,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 6, 6),
}
VAE = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "force_upcast": False,
}
WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 8, "freq_dim": 8}
WAN |= {"ffn_dim": 16, "num_layers": 1, "rope_max_seq_len": 32}
WAN_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
WAN_VAE |= {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


@pytest.fixture(scope="module")
def pipeline() -> PanoramaImagePipeline:
    torch.manual_seed(0)
    made = small.image_pipeline(AutoencoderKL(**VAE, shift_factor=0.1), FluxTransformer2DModel(**FLUX), ["a street"])
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def base(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    FluxPipeline(**pipeline.components).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graft(base) -> GraftConfig:
    return small.image_graft(base=str(base))


def lift(pipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    photo = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipeline(photo, "a street", generator=0, num_inference_steps=2, output_type="latent").images


def with_lora(pipeline, seed: int = 1, alpha: int = 2) -> PanoramaImagePipeline:
    parts = pipeline.components | {"transformer": copy.deepcopy(pipeline.transformer)}
    made = PanoramaImagePipeline(**parts, graft=pipeline.graft)
    torch.manual_seed(seed)
    targets = ["x_embedder", "to_q", "to_v", "add_q_proj"]
    made.transformer.add_adapter(LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, init_lora_weights=False))
    return made


def test_lora_graft_round_trip(pipeline, base, graft, tmp_path):
    trained = with_lora(pipeline, alpha=6)
    folder = save_graft(tmp_path / "graft", trained, graft)
    assert sorted(file.name for file in folder.iterdir()) == [FILE_NAME, LORA_FILE]
    assert read_config(folder) == graft.changed(lora_rank=2)
    key = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
    assert load_file(folder / LORA_FILE)[key].shape == (2, 32)
    loaded = load(folder)
    assert isinstance(loaded, PanoramaImagePipeline) and loaded.graft == graft.changed(lora_rank=2)
    assert torch.allclose(lift(loaded), lift(trained), atol=1e-5)
    assert not torch.allclose(lift(loaded), lift(pipeline), atol=1e-3)


def test_full_graft_round_trip(pipeline, base, graft, tmp_path):
    trained = PanoramaImagePipeline(**pipeline.components | {"transformer": FluxTransformer2DModel(**FLUX)}, graft=graft)
    folder = save_graft(tmp_path / "graft", trained.transformer, graft.changed(lora_rank=4))
    assert sorted(file.name for file in folder.iterdir()) == [FILE_NAME, "transformer"]
    assert torch.allclose(lift(load(folder)), lift(trained), atol=1e-5)
    assert load(folder).graft.lora_rank is None
    assert torch.equal(lift(load(base, transformer=folder / "transformer", mode="image").to("cpu")), lift(load(base, transformer=folder)))


def test_complete_graft_needs_no_base(pipeline, tmp_path):
    folder = save_graft(tmp_path / "graft", pipeline, complete=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = load(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert loaded.transformer.dtype == loaded.vae.dtype == torch.bfloat16
    assert torch.allclose(lift(load(folder)), lift(pipeline), atol=1e-5)
    (folder / FILE_NAME).unlink()
    assert load(folder).graft == pipeline.graft  # model_index.json has it too


def test_base_without_graft_warns_and_takes_the_papers_configuration(base):
    with pytest.warns(UserWarning, match="is a base without a graft: its panoramas do not follow the input until it is trained"):
        assert load(base).graft == GraftConfig.image(base=str(base))


def test_public_lora_is_added_or_fused(pipeline, base, graft, tmp_path):
    public, folder = with_lora(pipeline, seed=2), save_graft(tmp_path / "graft", with_lora(pipeline, seed=3), graft)
    FluxPipeline.save_lora_weights(tmp_path / "public", transformer_lora_layers=get_peft_model_state_dict(public.transformer))
    added = load(base, lora=tmp_path / "public" / LORA_FILE)
    fused = load(base, lora=tmp_path / "public", fuse_lora=True)
    for loaded in (added, fused):
        loaded.graft = graft
        assert torch.allclose(lift(loaded), lift(public), atol=1e-4)
    assert list(added.transformer.peft_config) == ["init"] and not getattr(fused.transformer, "peft_config", {})
    both, above = load(folder, lora=tmp_path / "public"), load(folder, lora=tmp_path / "public", fuse_lora=True)
    assert torch.allclose(lift(both), lift(above), atol=1e-4)
    assert not torch.allclose(lift(both), lift(load(folder)), atol=1e-3)
    with pytest.raises(ValueError, match="The transformer has 2 LoRAs"):
        save_graft(tmp_path / "new", both)


def test_saving_replaces_a_graft_and_nothing_else(pipeline, graft, tmp_path):
    save_graft(tmp_path / "graft", pipeline.transformer, graft)
    save_graft(tmp_path / "graft", with_lora(pipeline), graft)
    assert sorted(file.name for file in (tmp_path / "graft").iterdir()) == [FILE_NAME, LORA_FILE]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a graft's folder; choose another"):
        save_graft(tmp_path / "other", pipeline.transformer, graft)
    with pytest.raises(ValueError, match="A transformer alone does not know its graft"):
        save_graft(tmp_path / "new", pipeline.transformer)
    with pytest.raises(ValueError, match="complete=True writes a whole pipeline; got a transformer"):
        save_graft(tmp_path / "new", pipeline.transformer, graft, complete=True)
    with pytest.raises(ValueError, match="A whole pipeline is saved without a LoRA"):
        save_graft(tmp_path / "new", with_lora(pipeline), complete=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graft", "other"]


def test_a_failed_save_leaves_what_was_there(pipeline, graft, tmp_path, monkeypatch):
    save_graft(tmp_path / "graft", pipeline.transformer, graft)
    before = read_config(tmp_path / "graft")
    monkeypatch.setattr(released, "write_config", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_graft(tmp_path / "graft", pipeline.transformer, graft.changed(height=32))
    assert read_config(tmp_path / "graft") == before
    assert [file.name for file in tmp_path.iterdir()] == ["graft"]


@pytest.mark.parametrize("name", ["nothing/here", "/no/such/folder", "no-such-thing", "a/b/c"])
def test_nothing_there_says_what_is_accepted(name):
    with pytest.raises(FileNotFoundError, match=r"There is no .*give 'small', 'small-video', a folder with graft_config\.json"):
        load(name)


def test_incomplete_folders_say_what_is_missing(pipeline, base, graft, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has neither graft_config\.json nor model_index\.json"):
        load(tmp_path)
    pipeline.transformer.save_pretrained(tmp_path / "alone")
    with pytest.raises(FileNotFoundError, match=r"load\('black-forest-labs/FLUX.1-dev', transformer="):
        load(tmp_path / "alone")
    write_config(graft, tmp_path / "bare")
    (tmp_path / "bare" / "pytorch_lora_weights.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"nor transformer/ \(pytorch_lora_weights\.bin: pickles are refused"):
        load(tmp_path / "bare")
    with pytest.raises(ValueError, match="is a graft for images; got mode='video'"):
        load(save_graft(tmp_path / "graft", pipeline.transformer, graft), mode="video")


def test_pickles_are_refused(pipeline, base, graft, tmp_path):
    pickle = tmp_path / "lora.bin"
    pickle.write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle, which can run any code when it is loaded, and is refused"):
        load(pickle)
    with pytest.warns(UserWarning, match="without a graft"), pytest.raises(ValueError, match="is a pickle, which can run any code"):
        load(base, lora=pickle)
    folder = save_graft(tmp_path / "graft", pipeline.transformer, graft)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"has only diffusion_pytorch_model\.bin, pickles: they can run any code and are refused"):
        load(folder)


def test_weights_that_do_not_fit_are_refused(pipeline, base, graft, tmp_path):
    folder = save_graft(tmp_path / "graft", pipeline.transformer, graft)
    (weights,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "proj_out.bias"}, weights)
    with pytest.raises(ValueError, match=r"do not fit the configuration of FluxTransformer2DModel: missing proj_out\.bias"):
        load(folder)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"The weights in .* are damaged"):
        load(folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="holds a UNet2DModel; expected a FluxTransformer2DModel"):
        load(folder)
    lora = save_graft(tmp_path / "lora", with_lora(pipeline), graft)
    tensors = load_file(lora / LORA_FILE)
    nowhere = {"transformer.nowhere.lora_A.weight": torch.zeros(2, 3), "transformer.nowhere.lora_B.weight": torch.zeros(3, 2)}
    save_file(tensors | nowhere, lora / LORA_FILE)
    with pytest.raises(ValueError, match="nowhere"):
        load(lora)


def test_bundled_names_are_the_bundled_folders():
    assert released.BUNDLED["small"] == released.WEIGHTS / "image"
    assert released.BUNDLED["small-video"] == released.WEIGHTS / "video"


@pytest.mark.parametrize(
    ("component", "kind", "config"),
    [
        ("flux_transformer", FluxTransformer2DModel, FLUX),
        ("wan_transformer", WanTransformer3DModel, WAN),
        ("vae", AutoencoderKL, {**VAE, "use_quant_conv": False, "use_post_quant_conv": False}),
        ("video_vae", AutoencoderKLWan, WAN_VAE),
    ],
)
def test_components_are_built_from_their_own_names_strictly(component, kind, config):
    reference = kind(**config).bfloat16()
    state = reference.state_dict()
    module = build(component, {**config, "_class_name": kind.__name__, "_diffusers_version": "0.42.1"}, dict(state))
    assert isinstance(module, kind) and not module.training
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert next(module.parameters()).dtype == torch.bfloat16 and all(p.requires_grad for p in module.parameters())
    first, *_, last = state
    with pytest.raises(ValueError, match=f"do not fit the configuration of {component}: missing {last}.$"):
        build(component, config, {name: value for name, value in state.items() if name != last})
    with pytest.raises(ValueError, match=r"unexpected extra\.$"):
        build(component, config, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"{first} of shape \(7,\) instead of \({state[first].shape[0]},"):
        build(component, config, {**state, first: torch.zeros(7)})
    with pytest.raises(ValueError, match=f"{kind.__name__} has no layers in its configuration; it has "):
        build(component, {**config, "layers": 3}, state)


@pytest.mark.parametrize(
    ("component", "kind", "config", "parameters"),
    [
        ("flux_transformer", FluxTransformer2DModel, {"guidance_embeds": True}, 11_901_408_320),
        ("wan_transformer", WanTransformer3DModel, {}, 14_288_491_584),
        ("vae", AutoencoderKL, None, 83_819_683),
        ("video_vae", AutoencoderKLWan, {}, 126_892_531),
    ],
)
def test_real_configurations_are_the_defaults_and_build_without_memory(component, kind, config, parameters):
    from visiongraft.methods.panorama.components import FLUX_VAE

    with torch.device("meta"):
        state = kind(**(FLUX_VAE if config is None else config)).state_dict()
    module = build(component, {}, state)
    assert all(parameter.is_meta for parameter in module.parameters())
    assert set(module.state_dict()) == set(state)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_lora_is_built_onto_a_module_or_a_configuration(pipeline):
    trained = with_lora(pipeline).transformer
    tensors = {f"transformer.{name}": value for name, value in get_peft_model_state_dict(trained).items()}
    given = {
        "hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states": torch.randn(1, 3, 32),
        "pooled_projections": torch.randn(1, 32),
    }
    given |= {"timestep": torch.ones(1), "img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(3, 3), "return_dict": False}
    built = build("lora", {"transformer": copy.deepcopy(pipeline.transformer)}, tensors)
    with torch.no_grad():
        assert torch.allclose(built(**given)[0], trained(**given)[0], atol=1e-6)
        doubled = build("lora", {"transformer": copy.deepcopy(pipeline.transformer), "lora_alpha": 4}, tensors)
        assert not torch.allclose(built(**given)[0], doubled(**given)[0], atol=1e-4)
    own = build("lora", FLUX, tensors)
    stored = get_peft_model_state_dict(own, adapter_name="graft")
    assert {f"transformer.{name}" for name in stored} == set(tensors)
    assert all(torch.equal(value, tensors[f"transformer.{name}"]) for name, value in stored.items())


def test_lora_that_does_not_fit_is_refused(pipeline):
    tensors = dict(get_peft_model_state_dict(with_lora(pipeline).transformer))
    name = "transformer_blocks.0.attn.to_q.lora_B.weight"
    with pytest.raises(ValueError, match=f"of lora: missing {name}"):
        build("lora", FLUX, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match=r"unexpected nowhere\.lora_A\.weight"):
        build("lora", FLUX, {**tensors, "nowhere.lora_A.weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=rf"{name} of shape \(5, 2\) instead of \(32, 2\)"):
        build("lora", FLUX, {**tensors, name: torch.zeros(5, 2)})
    with pytest.raises(ValueError, match=r"missing .*to_k\.lora_A\.weight"):
        build("lora", {**FLUX, "target_modules": ["to_q", "to_k"]}, tensors)
    with pytest.raises(ValueError, match="got none of them"):
        build("lora", FLUX, {"proj.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="ranks are 2; expected 8 everywhere"):
        build("lora", {**FLUX, "r": 8}, tensors)


def test_real_lora_builds_on_the_meta_device():
    with torch.device("meta"):
        tensors = {}
        for block in range(19):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                place = f"transformer.transformer_blocks.{block}.attn.{part}"
                tensors |= {f"{place}.lora_A.weight": torch.empty(64, 3072), f"{place}.lora_B.weight": torch.empty(3072, 64)}
    module = build("lora", {"r": 64, "lora_alpha": 64}, tensors)
    assert isinstance(module, FluxTransformer2DModel)
    assert len(get_peft_model_state_dict(module, adapter_name="graft")) == 2 * 4 * 19


def test_unknown_components_are_named():
    with pytest.raises(ValueError, match="no component 'unet'; there are flux_transformer, wan_transformer, vae, video_vae, lora"):
        build("unet", {}, {})
