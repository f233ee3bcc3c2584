"""The few points that stand for a scene, from the simulator: points on its objects, and the gripper's key points beside them."""

import hashlib
from collections.abc import Collection

import mujoco
import numpy as np
import torch
from jaxtyping import Float

from visiongraft.geometry.lifting import lift_pixels, pixel_centers, project_points
from visiongraft.geometry.point_sets import farthest_points
from visiongraft.robots.body_surfaces import VISUAL_GROUPS, has_surface, sample_body
from visiongraft.robots.cameras import Camera
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.key_points import GripperKeyPoints, robot_key_points
from visiongraft.robots.mujoco_bodies import camera_moved
from visiongraft.robots.observers import camera_depth
from visiongraft.robots.policy import Observation
from visiongraft.robots.poses import invert_pose, make_pose
from visiongraft.robots.random_cameras import random_cameras


def align_to_depth(
    points: Float[np.ndarray, "*batch 3"], depth: Float[np.ndarray, "height width"], camera: Camera
) -> Float[np.ndarray, "*batch 3"]:
    """Points moved to the surface that a camera sees at their pixels ("camdepth").

    Every point is projected, and the centre of its pixel is lifted with the depth there: points on the far side, or behind the
    gripper, snap to what is visible, as points from real images are. Points outside the image, and at pixels without finite positive
    depth, stay.

    Args:
        points: base frame, metres.
        depth: metres along the optical axis.
        camera: of the depth image.

    Source: Point Bridge brief, 2.3 (camera alignment).
    """
    flat = torch.from_numpy(points.reshape(-1, 3).astype(np.float64))
    intrinsics = torch.from_numpy(camera.intrinsics)
    pixels = project_points(flat, intrinsics, torch.from_numpy(camera.base_to_camera))[0].nan_to_num(nan=-1.0)
    height, width = depth.shape
    inside = ((pixels >= 0) & (pixels < torch.tensor([width, height]))).all(-1)
    columns, rows = torch.where(inside[:, None], pixels, 0.0).long().unbind(-1)
    seen = torch.from_numpy(np.asarray(depth, np.float64))[rows, columns]
    moved = inside & seen.isfinite() & (seen > 0)
    lifted = lift_pixels(pixel_centers(columns, rows, torch.float64), seen, intrinsics, torch.from_numpy(camera.camera_to_base))
    return torch.where(moved[:, None], lifted, flat).numpy().reshape(points.shape).astype(points.dtype)


class SimulatorPoints:
    """Observer that adds ``robot_points`` and ``object_points`` from the simulator's state, the true ones.

    Points are drawn on the objects' surfaces when an episode begins, and move with their bodies from then on. The same seed and
    the same start of an episode give the same points, whatever the observer did before.

    Args:
        environment: whose state is read, so observations must be of its present moment.
        per_object: points of every object.
        seed: draws the points.
        align_camera: the camera to whose depth image points are aligned, see :func:`align_to_depth`; as training data of Point
            Bridge are. Depth in the observation is used where it is there, and rendered otherwise.
        random_camera: that camera stands elsewhere in every episode, see :mod:`visiongraft.robots.random_cameras`, so that a policy
            does not come to depend on one place. (The authors copy a trajectory for each of five cameras.)
        candidates: points that are drawn by area on an object, of which ``per_object`` are chosen far from each other. An object's
            bodies that have a surface share both numbers evenly; the last one takes the remainder.
        skip_groups: geoms that are not sampled, see :func:`visiongraft.robots.body_surfaces.body_surfaces`.
        key_points: of the gripper.

    Raises:
        ValueError: no such camera, a random camera that is none, or fewer candidates than points.

    Source: Point Bridge brief, 2.3.
    """

    def __init__(
        self,
        environment: RobotEnvironment,
        per_object: int = 128,
        seed: int = 0,
        align_camera: str | None = None,
        *,
        random_camera: bool = False,
        candidates: int = 1000,
        skip_groups: Collection[int] = VISUAL_GROUPS,
        key_points: GripperKeyPoints = GripperKeyPoints(),  # noqa: B008
    ) -> None:
        if not 1 <= per_object <= candidates:
            raise ValueError(f"per_object must be from 1 to the number of candidates ({candidates}); got {per_object}.")
        if align_camera is not None and align_camera not in environment.camera_names():
            raise ValueError(f"The environment has no camera {align_camera!r}; it has {', '.join(environment.camera_names()) or 'none'}.")
        if random_camera and align_camera is None:
            raise ValueError("A random camera takes its lens from a camera of the environment; name one with align_camera.")
        self.random_camera = random_camera
        self.environment, self.per_object, self.seed, self.align_camera = environment, per_object, seed, align_camera
        self.candidates, self.skip_groups, self.key_points = candidates, tuple(skip_groups), key_points
        self._model: mujoco.MjModel | None = None

    def reset(self, observation: Observation) -> None:
        """Draws the points of an episode.

        Raises:
            ValueError: a body that is missing, an object without a surface, or one of more bodies than points.
        """
        self._model = model = self.environment.model
        generator = torch.Generator().manual_seed(_episode_seed(self.seed, observation))
        points, owners = [], []
        for name in self.environment.object_names:
            bodies = [body for body in self.environment.object_bodies[name] if has_surface(model, body)]
            if not 1 <= len(bodies) <= self.per_object:
                raise ValueError(
                    f"Object {name!r} has {len(bodies)} bodies with a surface for {self.per_object} points; it needs at least one "
                    "such body, and a point for each."
                )
            for body, count, drawn in zip(
                bodies, _shares(self.per_object, len(bodies)), _shares(self.candidates, len(bodies)), strict=True
            ):
                on_body = torch.from_numpy(sample_body(model, body, drawn, generator, self.skip_groups))
                points.append(on_body[farthest_points(on_body[None], count)[0]].numpy())
                owners += count * [model.body(body).id]
        if self.random_camera:
            rng = np.random.default_rng(_episode_seed(self.seed, observation))
            self._camera_to_base = random_cameras(1, rng)[0]
        self._bodies, self._owners = np.unique(np.array(owners), return_inverse=True)
        self._points = np.concatenate(points)

    def __call__(self, observation: Observation) -> Observation:
        """The observation with ``robot_points`` and ``object_points``.

        Raises:
            ValueError: ``reset`` was not called for the environment's present model.
        """
        if self._model is not self.environment.model:
            raise ValueError("The environment was reset to another model; call the observer's reset with the first observation too.")
        data = self.environment.data
        body_to_world = make_pose(data.xmat[self._bodies].reshape(-1, 3, 3), data.xpos[self._bodies])
        body_to_base = invert_pose(self.environment.base_to_world()) @ body_to_world
        points = np.einsum("nij,nj->ni", body_to_base[self._owners, :3, :3], self._points) + body_to_base[self._owners, :3, 3]
        points = points.reshape(-1, self.per_object, 3)
        if self.align_camera is not None:
            points = align_to_depth(points, *self._depth(observation, self.align_camera))
        return {
            **observation,
            "robot_points": robot_key_points(observation["gripper_pose"], self.environment.gripper_command, self.key_points),
            "object_points": points.astype(np.float32),
        }

    def _depth(self, observation: Observation, camera: str) -> tuple[Float[np.ndarray, "height width"], Camera]:
        if camera in observation.get("depth", {}) and not self.random_camera:
            return camera_depth(observation, camera)
        size = self.environment.view.size
        lens = self.environment.camera(camera, size)
        if not self.random_camera:
            return self.environment.render_view(camera, ("depth",), size)["depth"], lens
        index, to_world = self.environment.model.camera(camera).id, self.environment.base_to_world()
        with camera_moved(self.environment.data, index, to_world @ self._camera_to_base):
            depth = self.environment.render_view(camera, ("depth",), size)["depth"]
        return depth, Camera(lens.intrinsics, self._camera_to_base, size)


def _shares(num: int, parts: int) -> list[int]:
    """Even shares, of which the last takes the remainder."""
    return [num // parts] * (parts - 1) + [num - num // parts * (parts - 1)]


def _episode_seed(seed: int, observation: Observation) -> int:
    """A seed from the observer's own and where the objects start: no matter which episodes came before, or in which process."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=7)
    for name, pose in observation["object_poses"].items():
        digest.update(name.encode() + np.round(pose, 6).tobytes())
    return int.from_bytes(digest.digest(), "little")
