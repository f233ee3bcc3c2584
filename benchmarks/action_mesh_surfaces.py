"""Surfaces from fields with few evaluations, and animated GLB files, beside dense grids and trimesh. Prints; asserts nothing.

python benchmarks/action_mesh_surfaces.py                    # analytic fields at 64 and 256 cells, GLB of 40,000 faces x 31 frames
python benchmarks/action_mesh_surfaces.py --resolution 504   # upstream's finest grid; the dense count is not evaluated

Ratios of evaluations are what a dense grid needs over what was evaluated: above 1, fewer. "same" says whether the mesh is the one of the
dense grid, vertex by vertex. A decoder of real size takes far longer for its evaluations than everything else here.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import trimesh

from visiongraft.geometry.isosurfaces import extract_isosurface
from visiongraft.media.animated_glb import read_animated_glb, write_animated_glb
from visiongraft.media.mesh_sequences import write_obj_sequence
from visiongraft.media.meshes import clean_mesh

DENSE_LIMIT = 260


def ball(points: torch.Tensor) -> torch.Tensor:
    return 0.9 - points.norm(dim=-1)


def torus(points: torch.Tensor) -> torch.Tensor:
    return 0.25 - torch.hypot(points[:, :2].norm(dim=-1) - 0.6, points[:, 2])


def box(points: torch.Tensor) -> torch.Tensor:
    """Nearly fills the cube: the largest surface there is to find."""
    return 0.95 - points.abs().amax(-1)


def thin_rod(points: torch.Tensor) -> torch.Tensor:
    axis = torch.tensor([0.6, 0.64, 0.48])
    return 0.012 - (points - (points @ axis).clamp(-0.8, 0.8)[:, None] * axis).norm(dim=-1)


def bumpy_logits(points: torch.Tensor) -> torch.Tensor:
    """A saturated field, as a trained decoder's logits are."""
    bumps = 0.05 * torch.sin(12 * points).prod(-1)
    return 6 * torch.tanh(10 * (0.75 - points.norm(dim=-1) + bumps))


FIELDS = (ball, torus, box, thin_rod, bumpy_logits)


def timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.process_time()
    return call(), time.process_time() - start


def surfaces(resolutions: list[int]) -> None:
    print(f"{'field':14} {'cells':>6} {'faces':>9} {'evaluated':>11} {'of dense':>9} {'fewer by':>9} {'s':>8} {'dense s':>8} {'same':>5}")
    for resolution in resolutions:
        for field in FIELDS:
            surface, seconds = timed(lambda: extract_isosurface(field, resolution))
            total = (resolution + 1) ** 3
            dense_seconds, same = "", ""
            if resolution <= DENSE_LIMIT:
                try:
                    dense, spent = timed(lambda: extract_isosurface(field, resolution, levels=0))
                    same = str(torch.equal(dense.vertices, surface.vertices) and torch.equal(dense.faces, surface.faces))
                    dense_seconds = f"{spent:.2f}"
                except ValueError:
                    dense_seconds = "none"
            print(
                f"{field.__name__:14} {resolution:6} {len(surface.faces):9,} {surface.evaluations:11,} "
                f"{100 * surface.evaluations / total:8.1f}% {total / surface.evaluations:8.1f}x {seconds:8.2f} {dense_seconds:>8} {same:>5}"
            )
    print()


def cleaning() -> None:
    surface = extract_isosurface(bumpy_logits, 256)
    mesh, seconds = timed(lambda: clean_mesh(surface.vertices, surface.faces, 40_000))
    print(f"clean-up of {len(surface.faces):,} faces to {len(mesh.faces):,}: {seconds:.2f} s\n")


def files(num_faces: int, num_frames: int, repeats: int) -> None:
    surface = extract_isosurface(ball, 128)
    mesh = clean_mesh(surface.vertices, surface.faces, num_faces)
    turn = torch.linspace(0, 1, num_frames)[:, None] * mesh.vertices[:, 1]
    x, y, z = mesh.vertices.unbind(-1)
    vertices = torch.stack([x * turn.cos() - z * turn.sin(), y.expand_as(turn), x * turn.sin() + z * turn.cos()], -1)
    print(f"animation of {len(mesh.faces):,} faces, {len(mesh.vertices):,} vertices, {num_frames} frames; least CPU seconds of {repeats}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        textured = path / "textured.glb"
        shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
        shape.visual = trimesh.visual.TextureVisuals(uv=np.asarray(shape.vertices)[:, :2])
        shape.export(textured)
        calls: dict[str, Callable[[], object]] = {
            "animated GLB": lambda: write_animated_glb(path / "a.glb", vertices, mesh.faces),
            "animated GLB without normals": lambda: write_animated_glb(path / "b.glb", vertices, mesh.faces, normals=False),
            "animated GLB into a textured file": lambda: write_animated_glb(path / "c.glb", vertices, mesh.faces, template=textured),
            "reading the animated GLB": lambda: read_animated_glb(path / "a.glb"),
            "one GLB a frame by trimesh": lambda: [
                trimesh.Trimesh(frame, mesh.faces.numpy(), process=False).export(path / f"t_{k:02d}.glb")
                for k, frame in enumerate(vertices.numpy())
            ],
            "OBJ sequence": lambda: write_obj_sequence(path / "obj", vertices, mesh.faces),
        }
        best = {name: min(timed(call)[1] for _ in range(repeats)) for name, call in calls.items()}
        for name, seconds in best.items():
            print(f"{name:36} {seconds:7.2f} s {seconds / best['animated GLB']:7.2f}x")
        sizes = {name: (path / f"{name}.glb").stat().st_size for name in "abc"}
        sizes["t"] = sum(file.stat().st_size for file in path.glob("t_*.glb"))
        print("MB: " + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items()) + " (a, b, c: the first three; t: by trimesh)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--faces", type=int, default=40_000)
    parser.add_argument("--frames", type=int, default=31)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU seconds\n")
    surfaces(options.resolution)
    cleaning()
    files(options.faces, options.frames, options.repeats)


if __name__ == "__main__":
    main()
