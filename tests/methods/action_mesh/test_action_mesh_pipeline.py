import copy

import pytest
import torch
from tiny_action_mesh import QUICK, SMALL, ToyEncoder, box_with_seams, clip, tiny_models, tiny_pipeline

from visiongraft.geometry.meshes import signed_volume
from visiongraft.geometry.surfaces import Mesh
from visiongraft.methods.action_mesh import blocks
from visiongraft.methods.action_mesh.given_mesh import take_mesh
from visiongraft.methods.action_mesh.guidance import PairGuidance
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.pipeline import STAGES, ActionMeshPipeline
from visiongraft.methods.action_mesh.presets import PRESETS, Preset, preset_of
from visiongraft.methods.action_mesh.sampler import Cancelled
from visiongraft.methods.action_mesh.shape_latents import encode_mesh, extract_mesh, sample_shape
from visiongraft.methods.action_mesh.stage_one import generate_latents
from visiongraft.methods.action_mesh.stage_two import deform_mesh
from visiongraft.methods.action_mesh.toy_video import toy_context
from visiongraft.methods.action_mesh.windows import plan_windows

WINDOWS = {"window": 4, "slide": 3}
pytestmark = [
    pytest.mark.filterwarnings("ignore:The clip has"),
    pytest.mark.filterwarnings("ignore:.*coordinates are at the sides"),
    pytest.mark.filterwarnings("ignore:Without an anchor"),
]


@pytest.fixture(scope="module")
def models():
    return tiny_models()


@pytest.fixture(scope="module")
def pipeline(models) -> ActionMeshPipeline:
    return tiny_pipeline(models)


@pytest.fixture(scope="module")
def animation(pipeline):
    return pipeline(clip(7), **WINDOWS, **SMALL)


def test_pipeline_is_the_composition_of_its_stages(models, pipeline, animation):
    context = toy_context(clip(7))
    seed = torch.Generator().manual_seed(44)
    anchor = sample_shape(models["dit"], pipeline.scheduler, context[:1], num_steps=2, guidance_scale=2.0, num_tokens=8, generator=seed)
    options = {"num_steps": 2, "shift": 1.0, "guidance": PairGuidance.image(2.0)}
    latents = generate_latents(models["denoiser"], context[None], TimeBank({0: anchor}), **options, **WINDOWS)
    assert torch.equal(animation.latents, latents.stack()[:, 0])
    vertices, faces = extract_mesh(models["vae"], anchor[0], resolution=12, max_faces=200)
    codes = TimeBank({k: latents[k][0] for k in range(7)})
    moved = deform_mesh(models["autoencoder"], codes, vertices, faces, plan_windows(0, 7, 4, 3))
    assert torch.equal(animation.vertices, moved.stack()) and torch.equal(animation.faces, faces)
    assert torch.equal(animation.vertices[0], vertices) and not torch.equal(animation.vertices[1], vertices)
    assert animation.times == tuple(range(7)) and animation.anchor == 0 and animation.user_mesh is None
    assert signed_volume(vertices, faces) > 0


def test_same_seed_same_animation_and_inputs_stay_as_they_are(pipeline, models, animation):
    frames = clip(7)
    before, weights = frames.clone(), copy.deepcopy(models["denoiser"].state_dict())
    again = pipeline(frames, **WINDOWS, **SMALL)
    assert torch.equal(again.vertices, animation.vertices)
    assert torch.equal(frames, before)
    assert all(torch.equal(value, weights[name]) for name, value in models["denoiser"].state_dict().items())
    assert not torch.equal(pipeline(frames, seed=45, **WINDOWS, **SMALL).latents, animation.latents)


@pytest.mark.parametrize("anchor", [0, 3, 6])
def test_a_given_mesh_comes_back_in_its_own_place_order_and_seams(models, anchor):
    pipeline = tiny_pipeline(models, dit=None, scheduler=None)
    vertices, faces = box_with_seams()
    given = vertices.clone(), faces.clone()
    animation = pipeline(clip(7), (vertices, faces), anchor, fit_scale=0.8, mesh_yaw=30, **WINDOWS, **SMALL)
    assert torch.equal(vertices, given[0]) and torch.equal(faces, given[1])
    assert animation.vertices.shape == (7, 24, 3) and torch.equal(animation.faces, faces)
    assert torch.allclose(animation.vertices[anchor], vertices, atol=1e-5)
    same = (vertices[:, None] - vertices[None]).norm(dim=-1) == 0
    for moved in animation.vertices:
        assert float(torch.cdist(moved, moved, compute_mode="donot_use_mm_for_euclid_dist")[same].max()) == 0
    assert animation.box_vertices.shape == (7, 8, 3) and float(animation.box_vertices[anchor].abs().max()) == pytest.approx(0.8, abs=1e-6)
    assert animation.user_mesh.yaw_deg == 30


def test_latents_of_a_given_mesh_are_the_vaes_draw(models, pipeline):
    mesh = Mesh(*box_with_seams())
    animation = pipeline(clip(4), mesh, 2, seed=7, **SMALL)
    taken = take_mesh(mesh)
    expected = encode_mesh(models["vae"], taken.vertices, taken.faces, num_tokens=8, generator=torch.Generator().manual_seed(7))
    assert torch.equal(animation.latents[2], expected[0])
    other = pipeline(clip(4), mesh, 2, seed=7, anchor_latents=torch.ones(8, 4), **SMALL)
    assert torch.equal(other.latents[2], torch.ones(8, 4))


def test_several_known_meshes_keep_their_latents_in_the_box_of_the_first(models, pipeline):
    vertices, faces = box_with_seams()
    pulled = vertices * torch.tensor([1.0, 1.2, 1.0])
    animation = pipeline(clip(4), (vertices, faces), sources={3: (pulled, faces)}, **SMALL)
    taken = take_mesh((vertices, faces))
    boxed = take_mesh((pulled, faces))
    generator = torch.Generator().manual_seed(44)
    points = taken.fit.apply(boxed.fit.undo(boxed.vertices))
    assert torch.allclose(
        animation.latents[3], encode_mesh(models["vae"], points, boxed.faces, num_tokens=8, generator=generator)[0], atol=1e-4
    )


def test_a_longer_clip_goes_on_as_if_it_had_been_made_at_once(pipeline, animation):
    first = pipeline(clip(7)[:4], **WINDOWS, **SMALL)
    longer = pipeline(clip(7), continue_from=first, **WINDOWS, **SMALL)
    assert torch.equal(longer.vertices, animation.vertices) and torch.equal(longer.latents, animation.latents)
    assert torch.equal(longer.vertices[:4], first.vertices)


def test_a_longer_clip_goes_on_with_a_given_mesh(pipeline):
    mesh = box_with_seams()
    whole = pipeline(clip(7), mesh, **WINDOWS, **SMALL)
    first = pipeline(clip(4), mesh, **WINDOWS, **SMALL)
    longer = pipeline(clip(7), continue_from=first, **WINDOWS, **SMALL)
    assert torch.equal(longer.vertices, whole.vertices) and torch.equal(longer.faces, mesh[1])


def test_without_anchor_the_mesh_is_that_of_the_first_frame(models, pipeline):
    animation = pipeline(clip(5), anchor=None, **WINDOWS, **SMALL)
    vertices, faces = extract_mesh(models["vae"], animation.latents[0], resolution=12, max_faces=200)
    assert torch.equal(animation.vertices[0], vertices) and torch.equal(animation.faces, faces)
    assert animation.times == tuple(range(5))


def test_times_between_frames(pipeline):
    fine = pipeline(clip(5), box_with_seams(), subsampling_level=2, targets_at_once=4, **WINDOWS, **SMALL)
    coarse = pipeline(clip(5), box_with_seams(), query_chunk=3, **WINDOWS, **SMALL)
    assert fine.times == tuple(k / 2 for k in range(9))
    assert torch.allclose(fine.vertices[::2], coarse.vertices, atol=1e-5)


def test_precomputed_tokens_take_the_place_of_the_image_encoder(models, animation):
    pipeline = tiny_pipeline(models, image_encoder=None)
    again = pipeline(clip(7), image_context=toy_context(clip(7)), **WINDOWS, **SMALL)
    assert torch.equal(again.vertices, animation.vertices)
    with pytest.raises(ValueError, match=r"component image_encoder.*built without"):
        pipeline(clip(7), **SMALL)
    with pytest.raises(ValueError, match="tokens of 3 frames, and the clip has 7"):
        pipeline(clip(7), image_context=toy_context(clip(3)), **SMALL)


def test_low_memory_mode_gives_the_same_and_ends(models, animation):
    pipeline = tiny_pipeline(models)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert pipeline.low_memory
    again = pipeline(clip(7), **WINDOWS, **SMALL)
    assert torch.allclose(again.vertices, animation.vertices, atol=1e-5)
    pipeline.disable_model_cpu_offload()
    assert not pipeline.low_memory


def test_progress_of_all_stages(pipeline):
    told, stages = [], []
    pipeline(clip(7), callback=lambda *p: told.append((stages[-1], *p)), on_stage=stages.append, **WINDOWS, **SMALL)
    assert tuple(stages) == STAGES
    assert told[:2] == [("shape", 1, 2, 0, 1), ("shape", 2, 2, 0, 1)]
    assert told[2:6] == [("latents", 1, 2, 0, 2), ("latents", 2, 2, 0, 2), ("latents", 1, 2, 1, 2), ("latents", 2, 2, 1, 2)]
    assert told[6:] == [("vertices", k, 3, w, 2) for w in (0, 1) for k in (1, 2, 3)]


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_in_every_stage_leaves_a_pipeline_that_works(pipeline, animation, stage):
    stages, told = [], []

    def cancel() -> bool:
        return bool(stages) and stages[-1] == stage and (stage == "pictures" or bool(told) or stage == "shape")

    with pytest.raises(Cancelled):
        pipeline(
            clip(7),
            cancel=cancel,
            on_stage=lambda name: (stages.append(name), told.clear()),
            callback=lambda *p: told.append(p),
            **WINDOWS,
            **SMALL,
        )
    assert torch.equal(pipeline(clip(7), **WINDOWS, **SMALL).vertices, animation.vertices)


def test_rgba_frames_are_cropped_to_the_object(pipeline):
    frames = clip(4, side=32)
    alpha = (frames[:, :1] < 0.9).float()
    cropped = pipeline(torch.cat([frames, alpha], 1), box_with_seams(), **SMALL)
    wide = torch.nn.functional.pad(torch.cat([frames, alpha], 1), (9, 3, 2, 6), value=0.0)
    assert torch.equal(cropped.vertices, pipeline(wide, box_with_seams(), **SMALL).vertices)


def test_saved_pipeline_gives_the_same(pipeline, animation, tmp_path):
    pipeline.register_modules(image_encoder=None)
    pipeline.save_pretrained(tmp_path)
    pipeline.register_modules(image_encoder=ToyEncoder())
    loaded = ActionMeshPipeline.from_pretrained(tmp_path, image_encoder=ToyEncoder())
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(loaded(clip(7), **WINDOWS, **SMALL).vertices, animation.vertices)


def test_presets():
    assert preset_of("default") == Preset(shape_steps=100, shape_guidance=7.5, steps=30, guidance=7.5, shift=3.0)
    assert (PRESETS["fast"].shape_steps, PRESETS["fast"].steps) == (50, 15)
    assert preset_of(QUICK) is QUICK
    with pytest.raises(ValueError, match="default, fast, or a Preset; got 'slow'"):
        preset_of("slow")
    with pytest.raises(ValueError, match="at least one step"):
        Preset(steps=0)


def test_fewer_frames_than_trained_are_a_warning(models):
    with pytest.warns(UserWarning, match="has 3 frames and the model was trained on 4"):
        tiny_pipeline(models)(clip(3), box_with_seams(), **SMALL)


def test_bad_input(models, pipeline):
    mesh = box_with_seams()
    with pytest.raises(ValueError, match="need at least 2 frames, got 1"):
        pipeline(clip(1))
    with pytest.raises(IndexError, match="0 to 3; got 4"):
        pipeline(clip(4), anchor=4)
    with pytest.raises(ValueError, match=r"got 16x12 .*RGBA"):
        pipeline(clip(4)[:, :, :12], **SMALL)
    with pytest.raises(ValueError, match="3 channels, or 4 with alpha; got 2"):
        pipeline(clip(4)[:, :2], **SMALL)
    with pytest.raises(ValueError, match=r"in \[0, 1\]; some are outside"):
        pipeline(clip(4) * 255, **SMALL)
    with pytest.raises(ValueError, match="frame 1: no foreground"):
        pipeline(torch.cat([clip(4), torch.tensor([1.0, 0, 1, 1])[:, None, None, None] * (clip(4)[:, :1] < 0.9)], 1), **SMALL)
    with pytest.raises(ValueError, match="needs stage 0"):
        tiny_pipeline(models, dit=None)(clip(4), **SMALL)
    with pytest.raises(ValueError, match="anchor=None generates everything"):
        pipeline(clip(4), mesh, None, **SMALL)
    with pytest.raises(ValueError, match="give mesh, that of the anchor"):
        pipeline(clip(4), sources={1: mesh}, **SMALL)
    with pytest.raises(IndexError, match=r"0 to 3, other than the anchor; got \[0, 9\]"):
        pipeline(clip(4), mesh, sources={0: mesh, 9: mesh}, **SMALL)
    with pytest.raises(ValueError, match="All frames are sources"):
        pipeline(clip(2), mesh, sources={1: mesh}, **SMALL)
    with pytest.raises(ValueError, match="have 5 channels, and the denoiser takes 4"):
        pipeline(clip(4), mesh, anchor_latents=torch.zeros(8, 5), **SMALL)
    with pytest.raises(ValueError, match=r"are for a given mesh, and there is none; got 0.8 and 0.0"):
        pipeline(clip(4), fit_scale=0.8, **SMALL)
    with pytest.raises(ValueError, match=r"are for a given mesh.*'search'"):
        pipeline(clip(4), mesh_yaw="search", **SMALL)
    with pytest.raises(ValueError, match="must be one of default, fast"):
        pipeline(clip(4), preset="slow")
    with pytest.raises(ValueError, match="'search' where there is a frame"):
        pipeline(clip(4), mesh, mesh_yaw="left", **SMALL)


def test_a_window_too_large_for_the_cpu_is_refused_before_stage_0(pipeline, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_TOKENS", 31)
    stages = []
    with pytest.raises(ValueError, match="4 frames of 8 tokens are 32 tokens"):
        pipeline(clip(7), on_stage=stages.append, **WINDOWS, **SMALL)
    assert not stages
    few = {"anchor_latents": torch.zeros(7, 4)}  # their number of tokens is everybody's
    assert pipeline(clip(4), box_with_seams(), **few, **SMALL).latents.shape == (4, 7, 4)
    assert len(pipeline(clip(4), box_with_seams(), force=True, **SMALL).vertices) == 4


def test_bad_continuation(pipeline):
    first = pipeline(clip(4), box_with_seams(), **SMALL)
    with pytest.raises(ValueError, match="leave mesh and anchor_latents out"):
        pipeline(clip(6), box_with_seams(), continue_from=first, **SMALL)
    with pytest.raises(ValueError, match="animation of 4 frames with anchor 0, give a longer clip"):
        pipeline(clip(4), continue_from=first, **SMALL)
    with pytest.raises(ValueError, match="anchor 3"):
        pipeline(clip(6), anchor=3, continue_from=first, **SMALL)
