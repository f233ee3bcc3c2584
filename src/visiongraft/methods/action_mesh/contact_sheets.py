"""Pictures that show a result at a glance: what went in above, the meshes below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor

from visiongraft.geometry.meshes import bounding_box
from visiongraft.media.images import resize
from visiongraft.methods.action_mesh.animation import Animation
from visiongraft.methods.action_mesh.frames import composite_on_white
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera
from visiongraft.worlds.mesh_rasteriser import render_mesh

TILE = 176
MOST_COLUMNS = 8
_GAP, _LABEL = 4, 14
_MARGIN = 1.2  # of prepared frames: a tenth of the box on each side
FRONT = orbit_camera(half_width=_MARGIN)
OBLIQUE = orbit_camera(50, 25, half_width=1.45)


def animation_sheet(shown: Float[Tensor, "frames 3 side side"], animation: Animation) -> Float[Tensor, "3 height width"]:
    """Frames of the clip as the models saw them, and below each the mesh from the front and from the side, in the models' box.

    Colours are those of the vertices' places in the anchor, so that one sees where each part goes.

    Args:
        shown: prepared frames, one for each whole time of the animation.
        animation: made from them.
    """
    vertices = animation.vertices if animation.box_vertices is None else animation.box_vertices
    faces = animation.faces if animation.user_mesh is None else animation.user_mesh.faces
    place = {time: index for index, time in enumerate(animation.times)}
    columns = spread([frame for frame in range(len(shown)) if float(frame) in place])
    meshes = vertices[[place[float(frame)] for frame in columns]]
    tint = place_colors(vertices[place[float(animation.anchor)]])
    rows = [list(shown[columns])] + [mesh_row(meshes, faces, camera, tint) for camera in (FRONT, OBLIQUE)]
    return sheet(rows, [f"frame {frame}" for frame in columns])


def motion_sheet(vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "3 height width"]:
    """An animation from the front and from the side."""
    columns = spread(list(range(len(vertices))))
    tint = place_colors(vertices[0])
    rows = [mesh_row(vertices[columns], faces, camera, tint) for camera in (FRONT, OBLIQUE)]
    return sheet(rows, [f"frame {frame}" for frame in columns])


def shape_sheet(
    picture: Float[Tensor, "3 side side"], vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]
) -> Float[Tensor, "3 height width"]:
    """A picture as the model saw it, and the mesh from four sides and from above."""
    views = {"front": (0, 0), "right": (90, 0), "back": (180, 0), "left": (270, 0), "above": (30, 50)}
    tiles = [mesh_row(vertices[None], faces, orbit_camera(*view, half_width=1.3))[0] for view in views.values()]
    return sheet([[picture, *tiles]], ["picture", *views])


def mesh_row(
    vertices: Float[Tensor, "t v 3"], faces: Int[Tensor, "f 3"], camera: MeshCamera, colors: Float[Tensor, "v 3"] | None = None
) -> list[Float[Tensor, "3 side side"]]:
    """Pictures of meshes before white, in one common box."""
    options: dict[str, Any] = {} if colors is None else {"color": colors}
    boxed = in_unit_box(vertices)
    return [composite_on_white(render_mesh(mesh, faces, camera, TILE, **options)).clamp(0, 1) for mesh in boxed]


def in_unit_box(vertices: Float[Tensor, "t v 3"], radius: bool = False) -> Float[Tensor, "t v 3"]:
    """All frames moved and scaled together into [-1, 1]^3, or into the unit ball."""
    low, high = bounding_box(vertices.reshape(-1, 3))
    centred = vertices - (low + high) / 2
    size = centred.norm(dim=-1).max() if radius else (high - low).max() / 2
    return centred / size.clamp(min=1e-12)


def place_colors(vertices: Float[Tensor, "v 3"]) -> Float[Tensor, "v 3"]:
    """A colour for each vertex by its place in the mesh's box."""
    low, high = bounding_box(vertices)
    return 0.2 + 0.75 * (vertices - low) / (high - low).clamp(min=1e-12)


def spread(numbers: Sequence[int], most: int = MOST_COLUMNS) -> list[int]:
    """At most so many of the numbers, evenly spread, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(k * (len(numbers) - 1) / (most - 1))] for k in range(most)]


def sheet(rows: Sequence[Sequence[Float[Tensor, "3 _ _"]]], labels: Sequence[str]) -> Float[Tensor, "3 height width"]:
    """Pictures as a table, scaled to square tiles, with a label above each column."""
    count = max(len(row) for row in rows)
    canvas = torch.ones(3, _LABEL + len(rows) * (TILE + _GAP) + _GAP, count * (TILE + _GAP) + _GAP)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            top, left = _LABEL + _GAP + row * (TILE + _GAP), _GAP + column * (TILE + _GAP)
            canvas[:, top : top + TILE, left : left + TILE] = resize(picture, (TILE, TILE)).clamp(0, 1)
    image = Image.fromarray((canvas * 255).round().byte().permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(image)
    for column, label in enumerate(labels):
        draw.text((_GAP + 2 + column * (TILE + _GAP), 2), label, fill=(80, 80, 80))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
