"""A z-buffer for triangle meshes, vectorised over triangles and pixels: pictures, silhouettes and depth on a CPU.

Meshes have y up (x right, z towards the viewer of :func:`visiongraft.worlds.mesh_cameras.orbit_camera` at azimuth 0). Pixel centres
lie at +0.5; a pixel belongs to a triangle that covers its centre. Nothing here is differentiable.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from visiongraft.geometry.meshes import face_vectors, vertex_normals
from visiongraft.worlds.mesh_cameras import MeshCamera, orbit_camera

SHADINGS = ("smooth", "flat", "normals", "none")
GREY = (0.72, 0.72, 0.75)
PAIRS_AT_ONCE = 1_500_000
_LIGHT = (-0.4, -0.6, -1.0)  # from above, a little from the left and from behind the camera
_AMBIENT = 0.35
_ON_EDGE = 1e-9


@dataclass(frozen=True, eq=False)
class Raster:
    """What is seen at each pixel's centre.

    Args:
        depth: along the camera's axis; infinite where there is nothing.
        face: the nearest triangle; -1 where there is nothing.
        barycentric: of the point on it, the weights of the triangle's corners in space; 0 where there is nothing.
    """

    depth: Float[Tensor, "height width"]
    face: Int[Tensor, "height width"]
    barycentric: Float[Tensor, "height width 3"]


def rasterise(
    vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], camera: MeshCamera, size: int | tuple[int, int], near: float = 1e-3
) -> Raster:
    """The nearest triangle at every pixel; triangles count from both sides.

    Args:
        vertices: in world units.
        faces: indices of vertices.
        camera: see :class:`visiongraft.worlds.mesh_cameras.MeshCamera`.
        size: side, or (height, width), in pixels.
        near: triangles with a corner nearer than this are left out (they are not cut).

    Raises:
        ValueError: a size below 1, faces that name vertices the mesh does not have, or vertices that are not finite.
    """
    height, width = (size, size) if isinstance(size, int) else size
    _check_mesh(vertices, faces, height, width)
    pixels, depth = camera.project(vertices.detach().double(), height, width)
    corners, depths = pixels[faces], depth[faces]
    visible = _Visible.of(corners, depths, camera.is_perspective, near, height, width)
    planes = _weight_planes(corners)
    nearest = torch.full((height * width,), torch.inf, dtype=torch.float64)
    face = torch.full((height * width,), len(faces), dtype=torch.long)
    for chunk in visible.chunks():
        triangle, x, y = visible.candidates(chunk)
        weights = _weights(planes, triangle, x, y)
        covered = (torch.minimum(torch.minimum(weights[0], weights[1]), weights[2]) >= -_ON_EDGE).nonzero()[:, 0]
        triangle, pixel = triangle[covered], (y * width + x)[covered]
        reached = _depth(weights[:, covered], depths[triangle], camera.is_perspective)
        before = nearest.clone()
        nearest.scatter_reduce_(0, pixel, reached, "amin")
        face[nearest < before] = len(faces)
        # of equally near ones the first, so that the result does not depend on the chunks
        winner = reached == nearest[pixel]
        face.scatter_reduce_(0, pixel[winner], triangle[winner], "amin")
    seen = face < len(faces)
    place = seen.nonzero()[:, 0]
    weights = _weights(planes, face[seen], place % width, place // width).T
    if camera.is_perspective:
        weights = weights / depths[face[seen]]
        weights = weights / weights.sum(-1, keepdim=True)
    barycentric = torch.zeros(height * width, 3, dtype=torch.float64)
    barycentric[seen] = weights
    return Raster(
        nearest.view(height, width).float(),
        face.masked_fill(~seen, -1).view(height, width),
        barycentric.view(height, width, 3).float(),
    )


@dataclass(frozen=True, eq=False)
class _Visible:
    """Triangles that may cover a pixel, and the boxes of pixels around them."""

    triangle: Int[Tensor, "kept"]
    left: Int[Tensor, "kept"]
    top: Int[Tensor, "kept"]
    columns: Int[Tensor, "kept"]
    count: Int[Tensor, "kept"]

    @classmethod
    def of(cls, corners: Tensor, depths: Tensor, is_perspective: bool, near: float, height: int, width: int) -> "_Visible":
        limit = torch.tensor([width - 1, height - 1])
        finite = corners.nan_to_num(0.0).clamp(-1e8, 1e8)  # corners behind a camera project to anything; they are left out below
        low = (finite.amin(1) - 0.5).ceil().long().clamp(min=0)
        high = torch.minimum((finite.amax(1) - 0.5).floor().long(), limit)
        extent = (high - low + 1).clamp(min=0)
        count = extent.prod(-1)
        ab, ac = finite[:, 1] - finite[:, 0], finite[:, 2] - finite[:, 0]
        kept = (count > 0) & ((ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]).abs() > 1e-12)
        if is_perspective:
            kept &= (depths > near).all(-1)
        kept = kept.nonzero()[:, 0]
        return cls(kept, low[kept, 0], low[kept, 1], extent[kept, 0], count[kept])

    def chunks(self) -> list[slice]:
        """Runs of triangles with a bounded number of pixels together."""
        total, runs, start = self.count.cumsum(0), [], 0
        while start < len(total):
            done = int(total[start - 1]) if start else 0
            end = int(torch.searchsorted(total, done + PAIRS_AT_ONCE, right=True))
            runs.append(slice(start, max(end, start + 1)))
            start = runs[-1].stop
        return runs

    def candidates(self, chunk: slice) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
        """Triangles, and columns and rows of the pixels of the boxes around them."""
        count = self.count[chunk]
        row = torch.repeat_interleave(torch.arange(len(count)), count)
        place = torch.arange(len(row)) - (count.cumsum(0) - count)[row]
        columns = self.columns[chunk][row]
        down = torch.div(place, columns, rounding_mode="floor")
        return self.triangle[chunk][row], self.left[chunk][row] + place - down * columns, self.top[chunk][row] + down


def _weight_planes(corners: Float[Tensor, "f 3 2"]) -> Float[Tensor, "6 f"]:
    """The first two barycentric coordinates on the picture as linear functions of column and row: two slopes and a constant each."""
    (ax, ay), (bx, by), (cx, cy) = (corner.unbind(-1) for corner in corners.unbind(1))
    twice_area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    first = torch.stack([by - cy, cx - bx, bx * cy - by * cx])
    second = torch.stack([cy - ay, ax - cx, cx * ay - cy * ax])
    planes = torch.stack([first, second]) / twice_area
    planes[:, 2] += 0.5 * (planes[:, 0] + planes[:, 1])  # pixel centres
    return planes.flatten(0, 1)


def _weights(planes: Float[Tensor, "6 f"], triangle: Int[Tensor, "n"], x: Int[Tensor, "n"], y: Int[Tensor, "n"]) -> Float[Tensor, "3 n"]:
    """Barycentric coordinates of pixel centres in triangles on the picture."""
    x, y = x.double(), y.double()
    first, second = (torch.addcmul(torch.addcmul(c[triangle], a[triangle], x), b[triangle], y) for a, b, c in planes.view(2, 3, -1))
    return torch.stack([first, second, 1 - first - second])


def _depth(weights: Float[Tensor, "3 n"], depths: Float[Tensor, "n 3"], is_perspective: bool) -> Float[Tensor, "n"]:
    """Along the axis: on a picture in perspective 1/depth is linear."""
    return 1 / (weights.T / depths).sum(-1) if is_perspective else (weights.T * depths).sum(-1)


def render_mesh(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    camera: MeshCamera | None = None,
    size: int | tuple[int, int] = 256,
    *,
    shading: str = "smooth",
    color: tuple[float, float, float] | Float[Tensor, "_ 3"] = GREY,
    supersample: int = 2,
) -> Float[Tensor, "4 height width"]:
    """A picture of a mesh: straight RGBA in [0, 1], transparent where there is nothing.

    Args:
        vertices, faces: the mesh.
        camera: from the front, orthographic, by default.
        size: side, or (height, width), in pixels.
        shading: ``smooth`` (normals of the vertices), ``flat`` (of the triangles), ``normals`` (as colours, in camera axes), ``none``.
        color: of the whole, or of each vertex; in [0, 1].
        supersample: rays along each side of a pixel.

    Raises:
        ValueError: another shading, supersample below 1, a wrong number of colours, or as :func:`rasterise`.
    """
    if shading not in SHADINGS or supersample < 1:
        raise ValueError(f"shading is one of {', '.join(SHADINGS)} and supersample at least 1; got {shading!r} and {supersample}.")
    camera = orbit_camera() if camera is None else camera
    height, width = (size, size) if isinstance(size, int) else size
    raster = rasterise(vertices, faces, camera, (height * supersample, width * supersample))
    seen = raster.face >= 0
    face, weights = raster.face[seen], raster.barycentric[seen]
    shown = _colors(color, faces, face, weights, len(vertices))
    if shading != "none":
        normal = _seen_normals(vertices.float(), faces, face, weights, camera, shading != "flat")
        if shading == "normals":
            shown = 0.5 + 0.5 * normal * torch.tensor([1.0, -1.0, -1.0])
        else:
            light = F.normalize(torch.tensor(_LIGHT), dim=0)
            shown = shown * (_AMBIENT + (1 - _AMBIENT) * (normal @ light).clamp(min=0))[:, None]
    picture = torch.zeros(4, *seen.shape)
    picture[:3, seen], picture[3, seen] = shown.T, 1.0
    # colours were multiplied by their coverage, 0 or 1; the mean is divided by it again
    mean = F.avg_pool2d(picture, supersample)
    return torch.cat([(mean[:3] / mean[3:].clamp(min=1e-6)).clamp(0, 1), mean[3:]])


def _colors(color: tuple | Tensor, faces: Tensor, face: Tensor, weights: Tensor, num: int) -> Float[Tensor, "seen 3"]:
    if isinstance(color, tuple):
        return torch.tensor(color).expand(len(face), 3)
    if color.shape != (num, 3):
        raise ValueError(f"Colours of vertices are ({num}, 3), one RGB a vertex; got {tuple(color.shape)}.")
    return (color[faces[face]].float() * weights[..., None]).sum(1)


def _seen_normals(
    vertices: Tensor, faces: Tensor, face: Tensor, weights: Tensor, camera: MeshCamera, smooth: bool
) -> Float[Tensor, "seen 3"]:
    """Unit normals in camera axes at the seen points, turned towards the camera."""
    of_face = face_vectors(vertices, faces)
    normal = (vertex_normals(vertices, faces)[faces[face]] * weights[..., None]).sum(1) if smooth else of_face[face]
    rotation = camera.world_to_camera[:3, :3].float()
    normal = F.normalize(normal @ rotation.T, dim=-1)
    points = (vertices[faces[face]] * weights[..., None]).sum(1) @ rotation.T + camera.world_to_camera[:3, 3].float()
    towards = -points if camera.is_perspective else torch.tensor([0.0, 0.0, -1.0]).expand_as(points)
    geometric = of_face[face] @ rotation.T
    # the triangle decides which side is seen: an interpolated normal may point away at an outline
    return torch.where(((geometric * towards).sum(-1) < 0)[:, None], -normal, normal)


def silhouette(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    camera: MeshCamera | None = None,
    size: int | tuple[int, int] = 256,
    supersample: int = 4,
) -> Float[Tensor, "height width"]:
    """How much of each pixel a mesh covers, in [0, 1]; arguments as :func:`render_mesh`."""
    return render_mesh(vertices, faces, camera, size, shading="none", supersample=supersample)[3]


def render_animation(
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    camera: MeshCamera | None = None,
    size: int | tuple[int, int] = 256,
    *,
    shading: str = "smooth",
    color: tuple[float, float, float] | Float[Tensor, "_ 3"] = GREY,
    supersample: int = 2,
) -> Float[Tensor, "t 4 height width"]:
    """Pictures of every frame by a camera that stands still; arguments as :func:`render_mesh`."""
    options: dict[str, Any] = {"shading": shading, "color": color, "supersample": supersample}
    return torch.stack([render_mesh(frame, faces, camera, size, **options) for frame in vertices])


def turntable(
    vertices: Float[Tensor, "t v 3"],
    faces: Int[Tensor, "f 3"],
    num_frames: int | None = None,
    size: int | tuple[int, int] = 256,
    *,
    turns: float | int = 1.0,
    loops: int = 1,
    start_deg: float | int = 0.0,
    elevation_deg: float | int = 15.0,
    shading: str = "smooth",
    color: tuple[float, float, float] | Float[Tensor, "_ 3"] = GREY,
    supersample: int = 2,
) -> Float[Tensor, "frames 4 height width"]:
    """A camera that circles the animation while it plays; straight RGBA frames.

    Args:
        vertices: of every frame; a single one for a mesh that stands still.
        faces: of all of them.
        num_frames: of the video; those of the animation by default.
        size: side, or (height, width), in pixels.
        turns: of the camera in the whole video, anti-clockwise from above.
        loops: how often the animation plays.
        start_deg: azimuth at the beginning; 0 is the front.
        elevation_deg: of the camera above the horizon.
        shading, color, supersample: as :func:`render_mesh`.

    Raises:
        ValueError: fewer than one frame or loop, or as :func:`render_mesh`.
    """
    count = len(vertices) if num_frames is None else num_frames
    if count < 1 or loops < 1 or not len(vertices):
        raise ValueError(f"A turntable needs at least one frame and loop; got {count} frames of {len(vertices)} and {loops} loops.")
    options: dict[str, Any] = {"shading": shading, "color": color, "supersample": supersample}
    pictures = []
    for k in range(count):
        camera = orbit_camera(start_deg + 360.0 * turns * k / count, elevation_deg, hfov_deg=40.0)
        pictures.append(render_mesh(vertices[k * loops * len(vertices) // count % len(vertices)], faces, camera, size, **options))
    return torch.stack(pictures)


def _check_mesh(vertices: Tensor, faces: Tensor, height: int, width: int) -> None:
    if min(height, width) < 1:
        raise ValueError(f"A picture has at least 1x1 pixels; got {width}x{height}.")
    if not bool(vertices.isfinite().all()):
        raise ValueError("The mesh has vertices that are not finite (NaN or infinite).")
    if faces.numel() and not (int(faces.min()) >= 0 and int(faces.max()) < len(vertices)):
        raise ValueError(f"The faces name vertices {int(faces.min())} to {int(faces.max())}, but the mesh has {len(vertices)}.")
