"""Baselines that share trunk, heads, recipe and policy with Point Bridge and differ in what they see.

Each is a configuration of ``PointBridgeModel``, compared at the same ``SIZES``:

    image = create_model("small", **BASELINES["image"], num_cameras=2, image_size=64)
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.point_sets import farthest_points, lift_depth
from visiongraft.robots.cameras import Camera
from visiongraft.robots.policy import Observation

SCENE_POINTS = 512

BASELINES: dict[str, dict[str, Any]] = {
    "image": {"observed": "image"},
    "scene": {"observed": "scene"},
    "merged": {"observed": "points", "tokens": "shared"},
}
"""Arguments of ``PointBridgeModel``: a residual network with FiLM on each camera's image (BAKU); one token of the unfiltered cloud
(BAKU-PCD); all objects in one cloud, without identity (against ``tokens="per_object"``; the released code does this). Source: brief, 7
and 9."""


def scene_cloud(
    depth: Float[np.ndarray, "height width"],
    camera: Camera,
    num: int = SCENE_POINTS,
    *,
    max_depth: float = 2.0,
    min_height: float = 0.0,
    max_side: float | None = None,
) -> Float[np.ndarray, "num 3"]:
    """The unfiltered cloud that a depth image shows, in the robot's base frame, zero-padded where it has fewer points.

    Args:
        depth: metres; what is not finite, not positive or beyond ``max_depth`` is left out.
        camera: that took it.
        num: points, spread by farthest point sampling.
        max_depth: metres.
        min_height: only points above this z.
        max_side: only points with ``|y|`` up to this, for real scenes (0.25); None: all.

    Raises:
        ValueError: a depth image of another size than the camera's.

    Source: brief, 7 (BAKU-PCD).
    """
    if depth.shape != tuple(camera.size):
        raise ValueError(f"The depth image has the size {depth.shape}, its camera {tuple(camera.size)}; give the camera that took it.")
    seen = np.isfinite(depth) & (depth > 0) & (depth < max_depth)
    metres = torch.from_numpy(np.where(seen, depth, 1.0).astype(np.float32))
    matrices = (torch.from_numpy(matrix.astype(np.float32)) for matrix in (camera.intrinsics, camera.camera_to_base))
    points = lift_depth(metres, *matrices).numpy()[seen]
    points = points[points[:, 2] > min_height]
    if max_side is not None:
        points = points[np.abs(points[:, 1]) <= max_side]
    cloud = np.zeros((num, 3), np.float32)
    kept = min(num, len(points))
    if kept:
        cloud[:kept] = points[farthest_points(torch.from_numpy(points)[None], kept)[0].numpy()]
    return cloud


class ScenePoints:
    """Observer that adds ``scene_points`` from the depth of one camera; see :func:`scene_cloud`.

    Args:
        camera: its name.
        num: points.
        options: of :func:`scene_cloud`.
    """

    def __init__(self, camera: str, num: int = SCENE_POINTS, **options: Any) -> None:
        self.camera, self.num, self.options = camera, num, options

    def reset(self, observation: Observation) -> None:
        """An episode begins; nothing is remembered."""

    def __call__(self, observation: Observation) -> Observation:
        """The observation with ``scene_points`` (num, 3).

        Raises:
            ValueError: no depth of the camera in it.
        """
        depth: dict[str, np.ndarray] = observation.get("depth", {})
        if self.camera not in depth:
            raise ValueError(
                f"The observation has no depth of the camera {self.camera!r}, only of {', '.join(depth) or 'none'}; "
                "add it, and the modality depth, to the environment's view."
            )
        camera: Camera = observation["cameras"][self.camera]
        return {**observation, "scene_points": scene_cloud(depth[self.camera], camera, self.num, **self.options)}
