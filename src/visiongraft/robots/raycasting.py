"""Pictures of a MuJoCo scene by casting rays: no OpenGL, no display, no system package.

MuJoCo finds what every pixel's ray meets; colours come from the geoms' materials, checkers and lights with diffuse shading. Planes,
boxes, spheres, cylinders, capsules, ellipsoids, meshes and height fields are seen. Something translucent is shown as opaque.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from jaxtyping import Float, Int32

from visiongraft.robots.cameras import intrinsics_from_fovy
from visiongraft.robots.environment import Modality
from visiongraft.robots.mujoco_bodies import camera_pose
from visiongraft.robots.shading import SceneColours, shade

_MUJOCO_INFINITY = 1e10
_NO_NORMALS: dict[str, Any] = {"normal": None} if "normal:" in (mujoco.mj_multiRay.__doc__ or "") else {}
"""Newer versions of MuJoCo give normals; pictures are the same with all versions where they come from one place."""


class RaycastRenderer:
    """Renders by casting rays; the pictures are close to OpenGL's, depth and segmentation agree to the pixel's edge."""

    name = "raycast"

    def __init__(self, groups: tuple[int, ...] = (0, 1, 2)) -> None:
        self._groups = groups
        self._model: mujoco.MjModel | None = None
        self._colours: SceneColours | None = None

    def render(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        camera: int,
        modalities: Sequence[Modality],
        size: tuple[int, int],
        owners: Int32[np.ndarray, "geoms"],
    ) -> dict[str, np.ndarray]:
        """See :class:`visiongraft.robots.rendering.Renderer`."""
        rays = _camera_rays(model, data, camera, size)
        depth, geoms = _cast(model, data, camera, rays, self._groups)
        rendered: dict[str, np.ndarray] = {}
        if "images" in modalities:
            if self._model is not model or self._colours is None:
                self._model, self._colours = model, SceneColours(model)
            rendered["images"] = shade(model, data, camera, np.ascontiguousarray(np.moveaxis(rays, -1, 0)), depth, geoms, self._colours)
        if "depth" in modalities:
            rendered["depth"] = depth.astype(np.float32)
        if "segmentation" in modalities:
            rendered["segmentation"] = np.append(owners, np.int32(-1))[geoms]
        return rendered

    def close(self) -> None:
        """Forgets the model."""
        self._model = self._colours = None


def pixel_rays(fovy_deg: float, size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    """Rays through the pixels' centres, OpenCV axes, of length 1 along the optical axis."""
    return _pixel_rays(float(fovy_deg), size)


@functools.lru_cache(16)
def _pixel_rays(fovy_deg: float, size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    height, width = size
    intrinsics = intrinsics_from_fovy(np.deg2rad(fovy_deg), size)
    rays = np.ones((height, width, 3))
    rays[..., 0] = (np.arange(width) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    rays[..., 1] = ((np.arange(height) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1])[:, None]
    rays.flags.writeable = False
    return rays


def cast_camera(
    model: mujoco.MjModel, data: mujoco.MjData, camera: int, size: tuple[int, int], groups: tuple[int, ...] = (0, 1, 2)
) -> tuple[Float[np.ndarray, "height width"], Int32[np.ndarray, "height width"]]:
    """What a camera sees.

    Returns:
        Depth along the optical axis, metres, infinite where nothing is met; and the geom that is met, -1 for none.
    """
    return _cast(model, data, camera, _camera_rays(model, data, camera, size), groups)


def _camera_rays(model: mujoco.MjModel, data: mujoco.MjData, camera: int, size: tuple[int, int]) -> Float[np.ndarray, "height width 3"]:
    """Rays through the pixels' centres in the world's frame."""
    return pixel_rays(float(model.cam_fovy[camera]), size) @ camera_pose(data, camera)[:3, :3].T


def _cast(
    model: mujoco.MjModel, data: mujoco.MjData, camera: int, rays: Float[np.ndarray, "height width 3"], groups: tuple[int, ...]
) -> tuple[Float[np.ndarray, "height width"], Int32[np.ndarray, "height width"]]:
    """Depth and geoms; rays have length 1 along the optical axis, so that distance in their lengths is depth."""
    far = float(model.vis.map.zfar * model.stat.extent)
    distance, geoms = cast_rays(model, data, data.cam_xpos[camera], rays.reshape(-1, 3), groups)
    depth = np.where((geoms >= 0) & (distance <= far), distance, np.inf).reshape(rays.shape[:2])
    return depth, np.where(np.isfinite(depth), geoms.reshape(rays.shape[:2]), np.int32(-1))


def cast_rays(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    origin: Float[np.ndarray, "3"],
    directions: Float[np.ndarray, "rays 3"],
    groups: tuple[int, ...] = (0, 1, 2),
) -> tuple[Float[np.ndarray, "rays"], Int32[np.ndarray, "rays"]]:
    """Meets rays from one point with the visible geoms, in one call of MuJoCo.

    Args:
        model: the scene.
        data: its present moment.
        origin: metres, world frame.
        directions: of any length but zero.
        groups: MuJoCo's groups of geoms that are met.

    Returns:
        Distance in lengths of each direction, and the geom, -1 for none.
    """
    count = len(directions)
    distance, geoms = np.empty(count), np.empty(count, np.int32)
    with _without_bounds(model):
        mujoco.mj_multiRay(
            model,
            data,
            pnt=np.ascontiguousarray(origin, np.float64),
            vec=np.ascontiguousarray(directions, np.float64).reshape(-1),
            geomgroup=np.array([group in groups for group in range(6)], np.uint8),
            flg_static=1,
            bodyexclude=-1,
            geomid=geoms,
            dist=distance,
            nray=count,
            cutoff=_MUJOCO_INFINITY,
            **_NO_NORMALS,
        )
    return distance, geoms


@contextmanager
def _without_bounds(model: mujoco.MjModel) -> Iterator[None]:
    """Makes MuJoCo test every geom.

    Its bounds by body leave out geoms that collide with nothing and turn wrongly with the body, and its bounds by angle cut the
    edges of boxes (seen in 3.3.0: parts of pictures missing). Without them a frame takes 1.4 times as long.
    """
    kept = model.body_bvhadr.copy()
    model.body_bvhadr[:] = -1
    try:
        yield
    finally:
        model.body_bvhadr[:] = kept
