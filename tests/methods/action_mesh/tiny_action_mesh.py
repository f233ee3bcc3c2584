"""Tiny models, a clip and meshes for tests of the pipelines."""

import torch
from torch import nn

from visiongraft.methods.action_mesh.config import create
from visiongraft.methods.action_mesh.pipeline import ActionMeshPipeline
from visiongraft.methods.action_mesh.presets import Preset
from visiongraft.methods.action_mesh.rectified_flow import RectifiedFlowScheduler
from visiongraft.methods.action_mesh.temporal_autoencoder import temporalize
from visiongraft.methods.action_mesh.temporal_denoiser import inflate
from visiongraft.methods.action_mesh.toy_video import toy_context

QUICK = Preset(shape_steps=2, shape_guidance=2.0, steps=2, guidance=2.0, shift=1.0)
SMALL = {"preset": QUICK, "resolution": 12, "max_faces": 200}


class ToyEncoder(nn.Module):
    """The silhouettes of the small models as a module."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return toy_context(frames)


def tiny_models() -> dict[str, nn.Module]:
    """Random weights; the VAE's logits have both signs."""
    torch.manual_seed(0)
    vae, dit = create("vae", "tiny"), create("dit", "tiny")
    models = {"vae": vae, "dit": dit, "denoiser": inflate(dit, num_tokens_nominal=8, temporal_context_size=4)}
    models["autoencoder"] = temporalize(vae, generator=torch.Generator().manual_seed(1), temporal_context_size=4)
    with torch.no_grad():
        points = torch.linspace(-1, 1, 6)
        grid = torch.stack(torch.meshgrid(points, points, points, indexing="ij"), -1).reshape(1, -1, 3)
        latents = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(2))
        middle = vae.query(vae.decode_context(latents), grid).median()
        vae.decoder.proj_out.bias += middle  # logits are minus the projection
    return {name: model.eval() for name, model in models.items()}


def tiny_pipeline(models: dict[str, nn.Module], **parts) -> ActionMeshPipeline:
    components = {**models, "scheduler": RectifiedFlowScheduler(), "image_encoder": ToyEncoder()} | parts
    pipeline = ActionMeshPipeline(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(num_frames: int, side: int = 16) -> torch.Tensor:
    """A dark square that moves to the right before white, RGB; the same picture at every side, a multiple of 16."""
    frames = torch.ones(num_frames, 3, 16, 16)
    for k in range(num_frames):
        frames[k, :, 4:11, 2 + k % 7 : 9 + k % 7] = 0.2
    return frames.repeat_interleave(side // 16, -1).repeat_interleave(side // 16, -2)


CORNERS = torch.tensor([[x, y, z] for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
SIDES = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]


def box_with_seams(size: tuple[float, float, float] = (4.0, 2.0, 2.0)) -> tuple[torch.Tensor, torch.Tensor]:
    """A box away from the origin whose sides have vertices of their own, as a textured one has."""
    vertices = torch.cat([CORNERS[side] for side in SIDES]) * torch.tensor(size) + torch.tensor([3.0, -1.0, 5.0])
    faces = torch.cat([torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * k for k in range(6)])
    return vertices, faces
