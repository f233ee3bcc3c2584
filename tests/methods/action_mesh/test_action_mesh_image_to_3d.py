from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from tiny_action_mesh import ToyEncoder, tiny_models
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from visiongraft.geometry.meshes import signed_volume
from visiongraft.methods.action_mesh.image_features import image_features
from visiongraft.methods.action_mesh.image_to_3d import ImageTo3DPipeline
from visiongraft.methods.action_mesh.memory import autocast, on_device
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.sampler import Cancelled
from visiongraft.methods.action_mesh.shape_latents import encode_mesh, extract_mesh, picture_tokens, sample_shape
from visiongraft.methods.action_mesh.toy_video import toy_context

QUICK = {"num_inference_steps": 2, "guidance_scale": 2.0, "num_tokens": 8, "resolution": 12}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline() -> ImageTo3DPipeline:
    models = tiny_models()
    made = ImageTo3DPipeline(models["dit"], models["vae"], RectifiedFlowScheduler(), ToyEncoder())
    return made


@pytest.fixture
def picture() -> torch.Tensor:
    image = torch.ones(3, 24, 24)
    image[:, 3:17, 5:14] = 0.3
    return image


class Velocity(nn.Module):
    """A DiT of a stated velocity."""

    def __init__(self, velocity) -> None:
        super().__init__()
        self.velocity, self.config, self.calls = velocity, SimpleNamespace(in_channels=2), []

    def forward(self, latents, timestep, context):
        self.calls.append((timestep.clone(), context.clone()))
        return self.velocity(latents, timestep / 1000, context)


def test_stage_zero_reaches_the_data_at_time_zero():
    """With the exact velocity of one point every step is exact, and the last one ends at 0, unlike stage I's."""
    target, noise = torch.randn(2, 3, 4, 2, generator=seeded()).unbind()
    dit = Velocity(lambda x, sigma, context: (target - x) / sigma[:, None, None])
    context, before = torch.zeros(3, 1, 1), noise.clone()
    scheduler = RectifiedFlowScheduler()
    got = sample_shape(dit, scheduler, context, num_steps=5, guidance_scale=1.0, noise=noise)
    assert torch.allclose(got, target, atol=1e-5) and torch.equal(noise, before)
    assert [float(t[0]) for t, _ in dit.calls] == pytest.approx([1000, 800, 600, 400, 200], abs=1e-3)
    assert [len(t) for t, _ in dit.calls] == [3] * 5


def test_stage_zero_guides_away_from_the_zero_context():
    dit = Velocity(lambda x, sigma, context: context.mean((1, 2))[:, None, None].expand_as(x) + 1)
    context = torch.tensor([2.0, 5.0])[:, None, None]
    noise = torch.zeros(2, 4, 2)
    got = sample_shape(dit, RectifiedFlowScheduler(), context, num_steps=4, guidance_scale=3, noise=noise)
    assert torch.allclose(got, (1 + 3 * context).expand_as(got), atol=1e-5)  # v0 + g (vc - v0), for a whole unit of time
    assert torch.equal(dit.calls[0][1][:2], torch.zeros(2, 1, 1)) and torch.equal(dit.calls[0][1][2:], context)


def test_noise_of_stage_zero_comes_from_the_generator():
    dit = Velocity(lambda x, sigma, context: torch.zeros_like(x))
    got = sample_shape(dit, RectifiedFlowScheduler(), torch.zeros(2, 1, 1), num_steps=1, num_tokens=4, generator=seeded(3))
    assert torch.equal(got, torch.randn(2, 4, 2, generator=seeded(3)))


def test_stage_zero_progress_cancel_and_bad_input():
    dit, told = Velocity(lambda x, sigma, context: x), []
    call = lambda **options: sample_shape(
        dit, RectifiedFlowScheduler(), torch.zeros(1, 1, 1), num_tokens=2, **{"generator": seeded(), "num_steps": 3} | options
    )
    call(callback=lambda *p: told.append(p))
    assert told == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(Cancelled, match="before step 1 of 3 of stage 0"):
        call(cancel=lambda: True)
    with pytest.raises(ValueError, match="at least 1 step and 1 token; got 0"):
        call(num_steps=0)
    with pytest.raises(ValueError, match=r"give a torch.Generator"):
        call(generator=None)


class Ball(nn.Module):
    """A VAE whose logits are those of a ball about a centre; latents are (center, radius)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def decode_context(self, latents):
        return latents[:, 0]

    def query(self, context, points, chunk=50_000):
        return 10 * (context[:, None, 3] - (points - context[:, None, :3]).norm(dim=-1))


def test_mesh_of_latents_is_the_zero_of_the_logits():
    latents = torch.tensor([[0.1, -0.2, 0.15, 0.6]])
    vertices, faces = extract_mesh(Ball(), latents, resolution=32, max_faces=None)
    radii = (vertices - latents[0, :3]).norm(dim=-1)
    assert float((radii - 0.6).abs().max()) < 0.5 * 2.01 / 32
    assert float(signed_volume(vertices, faces)) == pytest.approx(4 / 3 * torch.pi * 0.6**3, rel=0.02)
    fewer = extract_mesh(Ball(), latents, resolution=32, max_faces=300)[1]
    assert 200 < len(fewer) <= 300 < len(faces)
    with pytest.raises(ValueError, match="no zero crossing: max logit"):
        extract_mesh(Ball(), torch.tensor([[0.0, 0, 0, -0.1]]), resolution=16)


def test_encoding_is_a_draw_from_the_posterior_of_surface_points(pipeline):
    vertices = torch.tensor([[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [-0.5, 0.5, -0.5], [-0.5, -0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    seen = []

    class Spy:
        parameters = staticmethod(lambda: iter([torch.zeros(1)]))

        @staticmethod
        def encode(surface, num_tokens, generator):
            seen.append(surface)
            return pipeline.vae.encode(surface, num_tokens, generator=generator)

    draws = [encode_mesh(Spy(), vertices, faces, num_tokens=8, num_points=500, generator=seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    points, normals = seen[0][0].split(3, -1)
    assert points.shape == (500, 3)
    # the tetrahedron's faces lie on planes n . x = 1 / (2 sqrt 3), and its normals are unit and point outward
    assert torch.allclose((points * normals).sum(-1), torch.full((500,), 0.5 / 3**0.5), atol=1e-5)
    assert torch.allclose(normals.norm(dim=-1), torch.ones(500), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_meshes_are_encoded_in_float32_by_weights_in_half_precision(pipeline, dtype):
    vertices = torch.tensor([[0.5, 0.5, 0.5], [0.5, -0.5, -0.5], [-0.5, 0.5, -0.5], [-0.5, -0.5, 0.5]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    half = deepcopy(pipeline.vae).to(dtype)
    rounded = deepcopy(half).float()  # the same weights
    expected, direct = (encode_mesh(vae, vertices, faces, num_tokens=8, generator=seeded()) for vae in (rounded, pipeline.vae))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = encode_mesh(half, vertices, faces, num_tokens=8, generator=seeded())
    assert got.dtype == torch.float32 and torch.allclose(got, expected, atol=1e-6)
    assert torch.allclose(got, direct, atol=0.05)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


def test_pipeline_is_the_composition_of_its_parts(pipeline, picture):
    shape = pipeline(picture, generator=5, **QUICK)
    context = toy_context(picture[None])
    latents = sample_shape(
        pipeline.transformer, pipeline.scheduler, context, num_steps=2, guidance_scale=2.0, num_tokens=8, generator=seeded(5)
    )
    assert torch.equal(shape.latents, latents[0])
    vertices, faces = extract_mesh(pipeline.vae, latents[0], resolution=12)
    assert torch.equal(shape.vertices, vertices) and torch.equal(shape.faces, faces)
    only = pipeline(picture, generator=seeded(5), output_type="latent", **QUICK)
    assert torch.equal(only.latents, shape.latents) and only.vertices is None


def test_alpha_crops_and_low_memory_gives_the_same(pipeline, picture):
    rgba = torch.cat([picture, (picture[:1] < 1).float()])
    shape = pipeline(rgba, **QUICK)
    shifted = pipeline(torch.roll(rgba, (2, -3), (1, 2)), **QUICK)
    assert torch.equal(shape.latents, shifted.latents)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipeline(rgba, **QUICK).vertices, shape.vertices)
    pipeline.disable_model_cpu_offload()


def test_bad_input_of_the_image_pipeline(pipeline, picture):
    with pytest.raises(ValueError, match="output_type must be mesh or latent; got 'glb'"):
        pipeline(picture, output_type="glb")
    with pytest.raises(ValueError, match="3 channels, or 4 with alpha; got 1"):
        pipeline(picture[:1])
    with pytest.raises(ValueError, match="frame 0: no foreground"):
        pipeline(torch.cat([picture, torch.zeros(1, 24, 24)]))


def test_transformers_encoders_get_dinov2s_preparation():
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=112, image_size=224)
    encoder, images = Dinov2Model(config).eval(), torch.rand(2, 3, 40, 40, generator=seeded())
    assert torch.equal(picture_tokens(encoder, None, images), image_features(encoder, images))
    assert torch.equal(picture_tokens(toy_context, None, images), toy_context(images))
    with pytest.raises(ValueError, match="no image encoder"):
        picture_tokens(None, None, images)


class Travelling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.places = nn.ModuleList([nn.Linear(2, 2)]), []

    def to(self, device):
        self.places.append(torch.device(device).type)
        return self


def test_models_are_on_the_device_for_their_stage_only():
    module = Travelling()
    with pytest.raises(RuntimeError, match="stop"), on_device(module, torch.device("meta"), low_memory=True):
        assert module.places == ["meta"] and len(module.blocks[0]._forward_hooks) == 1
        raise RuntimeError("stop")
    assert module.places == ["meta", "cpu"] and not module.blocks[0]._forward_hooks
    with on_device(module, torch.device("meta"), low_memory=False):
        assert not module.blocks[0]._forward_hooks
    assert module.places == ["meta", "cpu", "meta"]


def test_precision_of_stages():
    cpu = torch.device("cpu")
    a = torch.ones(2, 2)
    with autocast(cpu, "latents"):
        assert (a @ a).dtype == torch.float32
    with autocast(cpu, "latents", "bfloat16"):
        assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="auto, float32, bfloat16, float16; got 'int8'"):
        autocast(cpu, "shape", "int8")
