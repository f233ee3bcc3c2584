import json
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from safetensors.torch import load_file
from test_panorama_data import world, write_video
from torch import nn

from visiongraft.flow.times import shift_times
from visiongraft.media.images import save_image
from visiongraft.methods.panorama import small
from visiongraft.methods.panorama.encoded import EncodedSamples
from visiongraft.methods.panorama.lora import add_lora
from visiongraft.methods.panorama.recipe import ConditionDropout, GraftModel, PanoramaRecipe, training_shift
from visiongraft.methods.panorama.released import load
from visiongraft.methods.panorama.sequence_flux import flux_velocity
from visiongraft.methods.panorama.sequence_wan import wan_velocity
from visiongraft.methods.panorama.train_options import TrainOptions
from visiongraft.methods.panorama.training import train_panorama
from visiongraft.training import TrainerConfig, train

MODES = ("image", "video")
GRAFTS = {
    "image": small.image_graft(height=16, condition_size=16),
    "video": small.video_graft(height=16, condition_size=16, num_frames=5),
}
KEEP_ALL = ConditionDropout(both=0.0, text=0.0, condition=0.0)


def untrained(mode):
    """Tiny and of the stock class."""
    if mode == "image":
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=small.TEXT_WIDTH,
            pooled_projection_dim=small.TEXT_WIDTH,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        )
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=small.TEXT_WIDTH,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
    )


def transformer(mode):
    """With every weight drawn: Diffusers starts some at zero, behind which nothing would be seen."""
    model = small.seeded(0, lambda: untrained(mode))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def rows(mode, count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frames = (2,) if mode == "video" else ()
    shapes = {"panorama": (4, *frames, 4, 8), "condition": (4, *frames, 4, 4), "prompt_embeds": (5, small.TEXT_WIDTH)}
    if mode == "image":
        shapes["pooled_prompt_embeds"] = (small.TEXT_WIDTH,)
    return {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}


def null_text(mode):
    names = ("prompt_embeds", "pooled_prompt_embeds") if mode == "image" else ("prompt_embeds",)
    return {name: rows(mode, 1, seed=9)[name][0] for name in names}


def recipe(mode, model=None, **options):
    model = transformer(mode) if model is None else model
    return PanoramaRecipe(model, GRAFTS[mode], EncodedSamples(rows(mode)), null_text=null_text(mode), **{"warmup_steps": 0, **options})


def with_lora(mode, **options):
    model = transformer(mode)
    add_lora(model, mode, 4, **options)
    return model


def velocity(mode, model, panorama, condition, t, text, keep=None):
    if mode == "video":
        return wan_velocity(model, panorama, condition, t, text["prompt_embeds"], keep_condition=keep)
    embeds, pooled = text["prompt_embeds"], text["pooled_prompt_embeds"]
    return flux_velocity(model, panorama, condition, t, embeds, pooled, guidance=1.0, keep_condition=keep)


def loss(made, seed=3, batch=None):
    batch = rows(made.config.mode) if batch is None else batch
    return made.losses(made.modules, batch, torch.Generator().manual_seed(seed), "main")["flow"]


@pytest.mark.parametrize("mode", MODES)
def test_loss_is_that_of_the_formula(mode):
    """Time, noise and dropout drawn in this order from the step's generator; the panorama's tokens alone count."""
    made, batch = recipe(mode, shift=2.0, dropout=ConditionDropout(both=0.3, text=0.2, condition=0.2)), rows(mode)
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(3, generator=generator, dtype=torch.float64)
    t = shift_times(torch.special.ndtri(u).sigmoid().float(), 2.0)
    drop = torch.rand(3, generator=generator)
    noise = torch.randn(batch["panorama"].shape, generator=generator)
    time = t.view(3, *[1] * (noise.dim() - 1))
    keep = ~((drop < 0.3) | (drop >= 0.5) & (drop < 0.7))
    nulls = null_text(mode)
    text = {name: torch.stack([nulls[name] if d < 0.5 else row for d, row in zip(drop, batch[name], strict=True)]) for name in nulls}
    noisy = (1 - time) * batch["panorama"] + time * noise
    predicted = velocity(mode, transformer(mode), noisy, batch["condition"], t, text, keep)

    wanted = ((noise - batch["panorama"]) - predicted).square().mean()
    assert torch.allclose(loss(made), wanted, rtol=1e-5)


def test_conditions_are_dropped_as_often_as_asked():
    keep_condition, keep_text = ConditionDropout().draw(40_000, torch.Generator().manual_seed(0))
    shares = [(~keep_condition & ~keep_text), (keep_condition & ~keep_text), (~keep_condition & keep_text)]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.1, 0.05, 0.05], abs=0.005)


@pytest.mark.parametrize("values", [(0.6, 0.3, 0.2), (-0.1, 0.0, 0.0)])
def test_dropout_that_is_no_probability_is_refused(values):
    with pytest.raises(ValueError, match="at least 0 and at most 1 together; got"):
        ConditionDropout(both=values[0], text=values[1], condition=values[2])


@pytest.mark.parametrize("mode", MODES)
def test_dropped_condition_keeps_its_tokens_and_is_not_a_zero_latent(mode):
    model, batch = transformer(mode), rows(mode)
    counts = []
    blocks = model.transformer_blocks if mode == "image" else model.blocks
    blocks[0].register_forward_hook(
        lambda module, args, named, output: counts.append((named.get("hidden_states", args[0] if args else None)).shape), with_kwargs=True
    )
    text = {name: batch[name] for name in null_text(mode)}
    t = torch.full((3,), 0.5)
    graft = GraftModel(model, GRAFTS[mode])
    results = [graft(batch["panorama"], batch["condition"], t, text, torch.full((3,), keep)) for keep in (True, False)]
    grey = graft(batch["panorama"], torch.zeros_like(batch["condition"]), t, text)
    alone = graft(batch["panorama"], None, t, text)

    assert counts[0] == counts[1] == counts[2] != counts[3]
    assert results[0].shape == batch["panorama"].shape
    for other in (results[0], grey, alone):
        assert (results[1] - other).abs().max() > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_one_sample_is_learned(mode, tmp_path):
    batch = rows(mode, 1)
    samples = EncodedSamples(batch)
    made = PanoramaRecipe(
        transformer(mode), GRAFTS[mode], samples, null_text=null_text(mode), learning_rate=1e-2, warmup_steps=0, dropout=KEEP_ALL
    )
    before = torch.stack([loss(made, seed, batch).detach() for seed in range(8)]).mean()
    train(made, TrainerConfig(output=tmp_path, steps=80, batch_size=8, logger="none", progress=False))
    after = torch.stack([loss(made, seed, batch).detach() for seed in range(8)]).mean()
    assert after < 0.6 * before


@pytest.mark.parametrize("mode", MODES)
def test_lora_goes_where_it_should_and_starts_as_the_base(mode):
    model, plain = with_lora(mode), transformer(mode)
    places = {name.split(".lora_A")[0] for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name}
    if mode == "image":
        both = ["to_q", "to_k", "to_v"]
        text = ["to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        attention = [f"transformer_blocks.0.attn.{n}" for n in both + text] + [f"single_transformer_blocks.0.attn.{n}" for n in both]
        assert places == {*attention, "x_embedder"}
    else:
        inner = [f"{a}.{n}" for a in ("attn1", "attn2") for n in ("to_q", "to_k", "to_v", "to_out.0")] + ["ffn.net.0.proj", "ffn.net.2"]
        assert places == {f"blocks.{i}.{n}" for i in range(2) for n in inner} | {"patch_embedding"}
    assert not [name for name, p in model.named_parameters() if p.requires_grad != (".lora_" in name)]
    batch, t = rows(mode), torch.full((3,), 0.4)
    text = {name: batch[name] for name in null_text(mode)}
    answers = [velocity(mode, m.eval(), batch["panorama"], batch["condition"], t, text) for m in (model, plain)]
    assert torch.equal(*answers)


def test_lora_of_chosen_parts_and_of_a_seed():
    models = [with_lora("image", parts=("mlp",), seed=seed) for seed in (0, 0, 1)]
    names = {name.split(".lora_")[0] for name, p in models[0].named_parameters() if p.requires_grad}
    assert names == {f"single_transformer_blocks.0.{n}" for n in ("proj_mlp", "proj_out")}
    drawn = [torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]) for model in models]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(ValueError, match="A LoRA has a rank of at least 1 and parts of attention, mlp, embedding; got rank 0"):
        add_lora(transformer("image"), "image", 0)


@pytest.mark.parametrize("mode", MODES)
def test_lora_run_cut_in_two_is_the_run_in_one(mode, tmp_path):
    """Dropout, noise and conditions included; the base stays bit for bit, and no checkpoint holds it."""

    def config(name, steps):
        quick = {"batch_size": 2, "checkpoint_every": 2, "log_every": 1, "logger": "none", "progress": False}
        return TrainerConfig(output=tmp_path / name, steps=steps, **quick)

    whole = train(recipe(mode, with_lora(mode)), config("whole", 4))["graft"].transformer.state_dict()
    train(recipe(mode, with_lora(mode)), config("cut", 2))
    resumed = train(recipe(mode, with_lora(mode)), config("cut", 4))["graft"].transformer.state_dict()
    start = with_lora(mode).state_dict()

    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "losses.jsonl").read_text() == (tmp_path / "cut" / "losses.jsonl").read_text()
    changed = {name for name in whole if not torch.equal(whole[name], start[name])}
    assert changed == {name for name in whole if ".lora_" in name}
    saved = load_file(tmp_path / "cut" / "checkpoints" / "step-00000004" / "module-graft.safetensors")
    assert saved and all(".lora_" in name for name in saved)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_base_trains_a_float32_lora(mode, tmp_path):
    model = transformer(mode).to(torch.bfloat16)
    add_lora(model, mode, 4)
    made = recipe(mode, model, vae=small.small_vae(0) if mode == "image" else small.small_video_vae(0), preview_steps=2)
    config = TrainerConfig(output=tmp_path, steps=2, batch_size=2, mixed_precision="bf16", logger="none", progress=False)
    trained = train(made, config)["graft"].transformer
    assert {p.dtype for p in trained.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in trained.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert (tmp_path / "previews").is_dir()
    exact = recipe(mode, transformer(mode), dropout=KEEP_ALL)
    rounded = recipe(mode, model.eval(), dropout=KEEP_ALL)
    assert abs(loss(exact) / loss(rounded) - 1) < 0.05


@pytest.mark.parametrize("mode", MODES)
def test_gradient_checkpointing_gives_the_same_gradient(mode):
    gradients = []
    for checkpointing in (False, True):
        model = transformer(mode).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        loss(recipe(mode, model)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_preview_and_validation_are_functions_of_the_weights(mode):
    vae = small.small_vae(0) if mode == "image" else small.small_video_vae(0)
    made = recipe(mode, vae=vae, held_out=EncodedSamples(rows(mode, 2, seed=5)), preview_steps=2)
    first, second = ([made.preview(made.modules)["generated-true"], made.validate(made.modules)["flow"]] for _ in range(2))
    assert torch.equal(first[0], second[0]) and first[1] == second[1]
    assert first[0].shape == (3, 2 * 16 * (2 if mode == "video" else 1), 32)
    assert first[0].min() >= 0 and first[0].max() <= 1
    plain = recipe(mode)
    assert plain.preview(plain.modules) == plain.validate(plain.modules) == {}


def test_learning_rates_are_those_of_the_paper():
    rates = [recipe(mode, model).optimizers["main"].learning_rate for mode in MODES for model in (None, with_lora(mode))]
    assert rates == [5e-5, 1e-4, 1e-5, 1e-4]
    assert recipe("image", learning_rate=3e-3, warmup_steps=7).optimizers["main"].schedule == "constant_with_warmup"


def test_training_times_are_shifted_as_the_base_samples():
    image, video = (
        small.image_pipeline(small.small_vae(0), transformer("image"), []),
        small.video_pipeline(small.small_video_vae(0), transformer("video"), []),
    )
    assert training_shift(image.graft, image.scheduler, 8192) == pytest.approx(6.32, abs=0.01)  # e^1.843
    assert training_shift(image.graft, image.scheduler, 256) == pytest.approx(2.718281828**0.5)
    assert training_shift(video.graft, video.scheduler, 8192) == 1.0
    assert training_shift(video.graft.changed(flow_shift=3.0), video.scheduler, 8192) == 3.0
    assert training_shift(video.graft.changed(flow_shift=None), video.scheduler, 8192) == 1.0


@pytest.fixture
def data(tmp_path):
    for name, turn in (("a", 0.0), ("b", 1.0), ("c", 2.0)):
        save_image(world(turn=turn), tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A whole pipeline in a folder, as a user has one."""
    folder = tmp_path_factory.mktemp("base") / "pipeline"
    graft = small.image_graft(height=32, condition_size=16)
    small.image_pipeline(small.small_vae(0), transformer("image"), ["a room"], graft).save_pretrained(folder)
    return folder


def options(panoramas, base, tmp_path, **changed):
    quick = {"steps": 2, "batch_size": 2, "accumulate": 1, "draws": 2, "rank": 4, "learning_rate": 1e-3, "warmup_steps": 0}
    quick |= {"preview_steps": 1, "logger": "none", "device": "cpu", "mixed_precision": "no"}
    return TrainOptions(**{"data": panoramas, "base": str(base), "output": tmp_path / "run", **quick, **changed})


def lifted(pipeline):
    picture = world(16)[:, :, :16]
    return pipeline(picture, "a room", num_inference_steps=2, generator=0, output_type="pt").images


@pytest.mark.parametrize("rank", [4, 0])
def test_trained_folder_is_a_graft_that_lifts(rank, data, base, tmp_path, capsys):
    chosen = options(data, base, tmp_path, rank=rank)
    assert train_panorama(chosen) == 0
    folder = tmp_path / "run" / "graft"
    assert capsys.readouterr().out.strip().endswith(str(folder))

    files = {path.name for path in folder.iterdir()}
    assert files == {"graft_config.json", "pytorch_lora_weights.safetensors" if rank else "transformer"}
    written = json.loads((folder / "graft_config.json").read_text())
    assert (written["lora_rank"], written["base"], written["height"]) == (rank or None, str(base.resolve()), 32)
    trained, untrained = load(folder), load(base)
    assert lifted(trained).shape == (1, 3, 32, 64)
    assert not torch.equal(lifted(trained), lifted(untrained))
    assert not any(isinstance(module, nn.Dropout) and module.training and module.p for module in trained.transformer.modules())
    train_panorama(chosen)  # finished already: gives the same weights
    assert torch.equal(lifted(load(folder)), lifted(trained))


def test_training_continues_from_a_lora(data, base, tmp_path):
    train_panorama(options(data, base, tmp_path))
    first = tmp_path / "run" / "graft"
    train_panorama(options(data, base, tmp_path, output=tmp_path / "more", lora=str(first), rank=16, steps=1))
    train_panorama(options(data, first, tmp_path, output=tmp_path / "again", steps=1))

    start = load_file(first / "pytorch_lora_weights.safetensors")
    for name in ("more", "again"):
        assert json.loads((tmp_path / name / "graft" / "graft_config.json").read_text())["lora_rank"] == 4
        after = load_file(tmp_path / name / "graft" / "pytorch_lora_weights.safetensors")
        assert after.keys() == start.keys()
        moved = max(float((after[key] - start[key]).abs().max()) for key in start)
        assert 0 < moved < 2e-3


def test_cache_is_shared_and_rolled_latents_train(data, base, tmp_path):
    shared = tmp_path / "cache"
    train_panorama(options(data, base, tmp_path, cache=shared, roll_latents=True))
    count = len(list(shared.rglob("*.safetensors")))
    train_panorama(options(data, base, tmp_path, cache=shared, roll_latents=True, output=tmp_path / "other", seed=0, rank=2))
    assert len(list(shared.rglob("*.safetensors"))) == count == 3 + (2 * 2 + 1) + 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"height": 30}, r"panorama size must be \(H, 2H\) with H a multiple of 8"),
        ({"condition_size": 20}, "condition_size must be a multiple of 8, the pixels of a token; got 20"),
        ({"hfov_deg": (1.0, 2.0)}, "did you pass radians"),
        ({"data": "gone"}, "There is no folder .*gone"),
    ],
)
def test_options_that_do_not_fit_are_told(changed, message, data, base, tmp_path):
    if "data" in changed:
        changed = {"data": tmp_path / "gone"}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train_panorama(options(data, base, tmp_path, **changed))


def test_lora_above_a_whole_transformer_without_its_pipeline_is_refused(data, base, tmp_path):
    train_panorama(options(data, base, tmp_path, rank=0, steps=1))
    with pytest.raises(ValueError, match=r"is a whole transformer without the rest of its pipeline.*complete=True.*or train"):
        train_panorama(options(data, tmp_path / "run" / "graft", tmp_path, output=tmp_path / "other"))
    lora = options(data, base, tmp_path, output=tmp_path / "lora", steps=1)
    train_panorama(lora)
    with pytest.raises(ValueError, match="rank 0 trains the whole transformer, but it has a LoRA already; fuse that first"):
        train_panorama(replace(lora, base=str(tmp_path / "lora" / "graft"), rank=0, output=tmp_path / "none"))


def test_options_are_there_without_torch():
    import subprocess
    import sys

    code = "import sys; from visiongraft.methods.panorama.train_options import TrainOptions; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_video_folder_is_trained_on_with_real_paths(tmp_path):
    graft = small.video_graft(height=32, condition_size=16, num_frames=5)
    pipeline = small.video_pipeline(small.small_video_vae(0), transformer("video"), ["a room"], graft)
    pipeline.save_pretrained(tmp_path / "base")
    (tmp_path / "data").mkdir()
    write_video(tmp_path / "data" / "a.mkv", [world(32, turn=k / 10) for k in range(8)], fps=16)
    path = {"fps": 16, "yaw_deg": [0.0] * 9, "pitch_deg": [5.0] * 9, "roll_deg": [0.0] * 9}
    (tmp_path / "paths.jsonl").write_text(json.dumps(path))
    chosen = options(tmp_path / "data", tmp_path / "base", tmp_path, steps=1, paths=tmp_path / "paths.jsonl", cond_timestep="zero")
    train_panorama(chosen)

    trained = load(tmp_path / "run" / "graft")
    assert (trained.graft.mode, trained.graft.cond_timestep, trained.graft.lora_rank) == ("video", "zero", 4)
    frames = trained(torch.rand(5, 3, 16, 16), num_inference_steps=1, output_type="pt").frames
    assert frames.shape == (1, 5, 3, 32, 64)
    assert (tmp_path / "run" / "previews").is_dir()
