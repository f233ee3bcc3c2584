"""A picture of the study: what is seen of a clip, and what each way makes of it, from a side that the video does not show."""

from pathlib import Path

import numpy as np
from torch import Tensor

from visiongraft.geometry.surfaces import Mesh
from visiongraft.methods.action_mesh.frames import composite_on_white
from visiongraft.methods.action_mesh.study_cells import CELLS, Bench
from visiongraft.methods.action_mesh.study_measures import CLEAR_ANGLE
from visiongraft.studies.plots import plot_style, save_figure
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera
from visiongraft.worlds.mesh_rasteriser import render_mesh

SHEET = "animations.png"
SHOWN = ("truth", "base", "same-noise", "one", "two")
_MOTION = "const"
_WIDTH, _HEIGHT = 144, 112
_COLORS = {"truth": (0.62, 0.64, 0.68), "base": (0.83, 0.42, 0.30), "same-noise": (0.86, 0.62, 0.28)}
_GRAFT = (0.30, 0.50, 0.78)


def animation_sheet(bench: Bench, path: Path) -> dict[str, int]:
    """Writes the sheet of the first clip whose tail is clearly on one side in every frame; returns which one that is."""
    clips = bench.clips(_MOTION, "all")
    clear = clips.creatures.angles.abs().amin(1)
    index = int((clear > CLEAR_ANGLE).nonzero()[0]) if bool((clear > CLEAR_ANGLE).any()) else int(clear.argmax())
    camera = orbit_camera(25, 55, half_width=1.05)
    rows = [[_grey(picture) for picture in clips.pictures[index]]]
    for key in SHOWN:
        meshes, _ = bench.meshes(CELLS[key], _MOTION, index)
        rows.append([_drawn(mesh, camera, _COLORS.get(key, _GRAFT)) for mesh in meshes])
    _sheet(rows, ["video"] + [CELLS[key].label for key in SHOWN], path)
    return {"clip": index}


def _grey(picture: Tensor) -> np.ndarray:
    """A silhouette, enlarged; above and below it there is nothing."""
    scale, cut = _WIDTH // picture.shape[-1], (_WIDTH - _HEIGHT) // 2
    large = np.kron(picture.numpy(), np.ones((scale, scale)))[cut : _WIDTH - cut]
    return 1 - 0.5 * large[..., None].repeat(3, -1)


def _drawn(mesh: Mesh, camera: MeshCamera, color: tuple[float, float, float]) -> np.ndarray:
    drawn = render_mesh(mesh.vertices, mesh.faces, camera, (_HEIGHT, _WIDTH), color=color)
    return composite_on_white(drawn[None])[0].permute(1, 2, 0).clamp(0, 1).numpy()


def _sheet(rows: list[list[np.ndarray]], titles: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    columns = max(map(len, rows))
    with plot_style():
        figure, axes = plt.subplots(len(rows), columns, figsize=(1.25 * columns + 1.4, 0.97 * len(rows) + 0.3), squeeze=False)
        for line, row, title in zip(axes, rows, titles, strict=True):
            for place, (axis, image) in enumerate(zip(line, row, strict=True)):
                axis.imshow(image, vmin=0, vmax=1, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.grid(False)
                for spine in axis.spines.values():
                    spine.set_visible(False)
                if place == 0:
                    axis.set_ylabel(title.replace(", ", ",\n").replace(" (", "\n("), rotation=0, ha="right", va="center", fontsize=8)
        for place, axis in enumerate(axes[0]):
            axis.set_title(f"frame {place}", fontsize=8)
        figure.subplots_adjust(left=0.16, right=0.995, bottom=0.005, top=0.95, wspace=0.02, hspace=0.02)
        save_figure(figure, path)
        plt.close(figure)
