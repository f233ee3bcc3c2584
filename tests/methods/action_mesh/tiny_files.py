"""Inputs of the command line for tests: tiny weights, a video, folders of pictures, a textured mesh, and what cannot be used."""

from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image
from tiny_action_mesh import clip, tiny_models

from visiongraft.media.images import save_image
from visiongraft.media.mesh_sequences import write_obj_sequence
from visiongraft.media.meshes import read_mesh
from visiongraft.media.video_writing import write_video


def write_inputs(place: Path) -> Path:
    """``weights``, ``clip.mp4`` (6 frames), ``cutouts`` (with alpha), ``picture.png`` and ``ball.glb`` (textured, away from the origin)."""
    for name, model in tiny_models().items():
        model.save_pretrained(place / "weights" / name)
    frames = clip(6, side=32)
    write_video(frames, place / "clip.mp4", 8)
    (place / "cutouts").mkdir()
    for number, frame in enumerate(frames):
        pixels = (torch.cat([frame, (frame[:1] < 0.5).float()]) * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place / "cutouts" / f"{number}.png")
    save_image(frames[0], place / "picture.png")
    squares = Image.fromarray((np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    ball = trimesh.creation.icosphere(subdivisions=1).apply_scale([4, 2, 1]).apply_translation([3, -1, 5])
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=squares)
    ball.visual = trimesh.visual.TextureVisuals(uv=ball.vertices[:, :2] * 0.1 + 0.5, material=material)
    ball.export(place / "ball.glb")
    return place


def write_bad_inputs(folder: Path, place: Path) -> Path:
    """What cannot be used, one way each."""
    bad = {name: folder / name for name in ("one.mp4", "sizes", "empty", "plain.obj", "points.ply", "nan.obj", "flat.obj", "broken.glb")}
    write_video(clip(1, side=32), bad["one.mp4"], 8)
    for name in ("sizes", "empty"):
        for number in range(3):
            save_image(clip(3, side=32)[number], bad[name] / f"{number}.png")
    save_image(clip(1, side=48)[0], bad["sizes"] / "1.png")
    save_image(torch.ones(3, 32, 32), bad["empty"] / "2.png")
    bad["plain.obj"].write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    trimesh.PointCloud(np.eye(3)).export(bad["points.ply"])
    bad["flat.obj"].write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    bad["nan.obj"].write_text("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    bad["broken.glb"].write_bytes((place / "ball.glb").read_bytes()[:200])
    for name, kind in (("swapped", "autoencoder"), ("partial", None)):
        bad[name] = folder / name
        bad[name].mkdir()
        for part in ("vae", "dit", "denoiser"):
            (bad[name] / part).symlink_to(place / "weights" / part)
        if kind:
            (bad[name] / kind).symlink_to(place / "weights" / "denoiser")
    ball = read_mesh(place / "ball.glb")
    write_obj_sequence(folder / "changing", ball.vertices[None].repeat(2, 1, 1), ball.faces)
    trimesh.creation.box().export(folder / "changing" / "frame_0001.obj")
    write_obj_sequence(folder / "long", ball.vertices[None].repeat(6, 1, 1), ball.faces)
    write_obj_sequence(folder / "growing", ball.vertices[None] * torch.tensor([1.0, 2])[:, None, None], ball.faces)
    (folder / "taken-obj").mkdir()
    (folder / "taken-obj" / "notes.txt").write_text("mine")
    return folder
