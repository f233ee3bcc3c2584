"""From images to the points that the policy sees: names, pointing, masks, tracking, depth, lifting. Images never reach the policy."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from visiongraft.methods.point_bridge.depth import CameraDepth
from visiongraft.methods.point_bridge.frames import DepthSource, Frame, Mask, Pointer, Segmenter, crop_frame, frame_of
from visiongraft.methods.point_bridge.lifting import DEPTH_RANGE, object_points
from visiongraft.methods.point_bridge.naming import Namer, given_names
from visiongraft.methods.point_bridge.perception_noise import PerceptionNoise
from visiongraft.methods.point_bridge.plane_removal import PlaneRemoval
from visiongraft.methods.point_bridge.simulated import InstancePointer, InstanceSegmenter, InstanceTracker
from visiongraft.methods.point_bridge.tracking import PieceTracker, Tracker
from visiongraft.robots.key_points import GripperKeyPoints, robot_key_points
from visiongraft.robots.observers import UnseenError
from visiongraft.robots.policy import Observation
from visiongraft.robots.poses import invert_pose, transform_points


class LostObjectError(UnseenError):
    """An object has not been seen for too long; the robot would act on where it was."""


class SceneFilter:
    """Adds ``robot_points``, ``object_points`` and ``stale`` to observations, from one camera's images: an observer.

    ``reset`` names the objects, points at them and segments them; every call then tracks, reads depth and lifts. An object that is not
    seen keeps its last points and is named in ``stale``; those of an object in the closed gripper move along with it. Everything random
    is drawn from ``seed`` and the episode's first image, so that an episode gives the same points whatever ran before it.

    Args:
        namer: (image, instruction) to names; their order is that of ``object_points``.
        pointer: (frame, name) to a pixel.
        segmenter: (frame, pixel) to a mask.
        tracker: follows the masks.
        depth: metric depth of a frame.
        camera: name of the camera.
        right_camera: second camera of a stereo pair, where the depth source needs one.
        crop: rows and columns to look at, as fractions (from, to) of height and width; all by default.
        noise: errors that are drawn onto the depth, for simulated twins only.
        num_points: points of an object.
        candidates: pixels that are lifted for them.
        shrink: fraction of the way to its centroid by which a mask's outline moves.
        depth_range: metres outside which depth is not believed.
        min_pixels: pixels below which a mask counts as empty.
        max_stale: frames in a row that an object may not be seen, before :class:`LostObjectError`; ``None`` for ever.
        carry: metres from the gripper's origin to an object's median point within which a closed gripper carries it along while it is not
            seen (our choice; the hand hides what it holds). 0 leaves it where it was, as the released code does.
        key_points: of the gripper.
        seed: of everything random.

    Source: Point Bridge brief, 2.4.
    """

    def __init__(
        self,
        *,
        namer: Namer,
        pointer: Pointer,
        segmenter: Segmenter,
        tracker: Tracker,
        depth: DepthSource,
        camera: str,
        right_camera: str | None = None,
        crop: tuple[tuple[float, float], tuple[float, float]] | None = None,
        noise: PerceptionNoise | None = None,
        num_points: int = 128,
        candidates: int = 1000,
        shrink: float = 0.2,
        depth_range: tuple[float, float] = DEPTH_RANGE,
        min_pixels: int = 5,
        max_stale: int | None = 20,
        carry: float = 0.05,
        key_points: GripperKeyPoints = GripperKeyPoints(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        if num_points < 1 or candidates < num_points:
            raise ValueError(f"There must be at least one point, and as many candidates as points; got {num_points} and {candidates}.")
        if max_stale is not None and max_stale < 0:
            raise ValueError(f"max_stale is a number of frames of at least 0, or None; got {max_stale}.")
        self.namer, self.pointer, self.segmenter, self.tracker, self.depth = namer, pointer, segmenter, tracker, depth
        self.camera, self.right_camera, self.crop, self.noise = camera, right_camera, crop, noise
        self.num_points, self.candidates, self.shrink, self.depth_range = num_points, candidates, shrink, depth_range
        self.min_pixels, self.max_stale, self.carry, self.seed = min_pixels, max_stale, carry, seed
        self.key_points = key_points
        self.names: tuple[str, ...] = ()
        self._first: tuple[Observation, Frame, dict[str, Mask]] | None = None
        self._last: dict[str, Float[np.ndarray, "points 3"]] = {}
        self._gripper = np.eye(4)
        self._unseen: dict[str, int] = {}
        self._rng, self._offset = np.random.default_rng(seed), 0.0

    def reset(self, observation: Observation) -> None:
        """Finds the objects in the first observation of an episode.

        Raises:
            ValueError: no image, depth or calibration of the camera.
            UnseenError: a name or a place that is not found; an empty mask.
        """
        view = frame_of(observation, self.camera, self.right_camera)
        self._rng = np.random.default_rng([self.seed, zlib.crc32(view.image.tobytes()), zlib.crc32(view.camera.camera_to_base.tobytes())])
        self._offset = 0.0 if self.noise is None else self.noise.draw_offset(self._rng)
        frame = self._frame(observation)
        names = self.namer(frame.image, observation.get("instruction", ""))
        masks = {name: self._segment(frame, name) for name in names}
        masks = self.tracker.start(frame, masks)
        self.names, self._last, self._unseen = tuple(names), {}, dict.fromkeys(names, 0)
        self._gripper = observation["gripper_pose"]
        self._first = (observation, frame, masks)

    def __call__(self, observation: Observation) -> Observation:
        """The observation with points.

        Raises:
            ValueError: called before :meth:`reset`.
            UnseenError: an object without any depth in the first frame.
            LostObjectError: an object has not been seen for more than ``max_stale`` frames.
        """
        if not self.names:
            raise ValueError("The scene filter does not know the scene yet; call reset with the first observation of the episode.")
        if self._first is not None and self._first[0] is observation:
            _, frame, masks = self._first
        else:
            frame = self._frame(observation)
            masks = self.tracker.track(frame)
        self._first = None
        gripper, pose = float(observation["proprioception"][9]), observation["gripper_pose"]
        if gripper > 0:
            self._carry_along(pose)
        self._gripper = pose
        clouds = [self._points(name, masks[name], frame) for name in self.names]
        return {
            **observation,
            "robot_points": robot_key_points(pose, gripper, self.key_points),
            "object_points": np.stack(clouds).astype(np.float32),
            "stale": tuple(name for name, count in self._unseen.items() if count),
        }

    def _frame(self, observation: Observation) -> Frame:
        frame = frame_of(observation, self.camera, self.right_camera)
        if self.crop is not None:
            frame = crop_frame(frame, *self.crop)
        depth = self.depth(frame)
        if depth.shape != frame.image.shape[:2]:
            raise ValueError(f"The depth source gave {depth.shape} for an image of {frame.image.shape[:2]} (height, width).")
        if self.noise is not None:
            depth = self.noise.apply(depth, self._offset, self._rng)
        return frame.with_depth(depth)

    def _carry_along(self, pose: Float[np.ndarray, "4 4"]) -> None:
        """Moves the last points of what the gripper holds with it; those of objects that are seen are replaced afterwards."""
        motion = pose @ invert_pose(self._gripper)
        for name, points in self._last.items():
            if np.linalg.norm(np.median(points, axis=0) - self._gripper[:3, 3]) < self.carry:
                self._last[name] = transform_points(motion, points).astype(np.float32)

    def _segment(self, frame: Frame, name: str) -> Mask:
        return find_mask(frame, name, self.pointer, self.segmenter)

    def _points(self, name: str, mask: Mask, frame: Frame) -> Float[np.ndarray, "points 3"]:
        options = {"num": self.num_points, "candidates": self.candidates, "shrink": self.shrink, "depth_range": self.depth_range}
        seen = mask.sum() >= self.min_pixels
        points = object_points(mask, frame.depth, frame.camera, self._rng, **options) if seen and frame.depth is not None else None
        if points is not None:
            self._last[name], self._unseen[name] = points, 0
            return points
        reason = f"its mask has {int(mask.sum())} pixels" if not seen else "none of its pixels has depth"
        if name not in self._last:
            raise UnseenError(f"{name!r} has no points in the first frame ({reason}); check the mask, the depth map and depth_range.")
        self._unseen[name] += 1
        if self.max_stale is not None and self._unseen[name] > self.max_stale:
            raise LostObjectError(f"{name!r} has not been seen for {self._unseen[name]} frames ({reason}); the episode stops here.")
        return self._last[name]


def find_mask(frame: Frame, name: str, pointer: Pointer, segmenter: Segmenter) -> Mask:
    """Mask of a named object.

    Raises:
        UnseenError: the pointer points at nothing, or the segmenter finds nothing there.
    """
    point = pointer(frame, name)
    if point is None:
        raise UnseenError(f"{name!r} is not found in the first image; make sure that it is in view, or click on it yourself.")
    mask = segmenter(frame, point)
    if not mask.any():
        raise UnseenError(
            f"The mask of {name!r} at (u={point[0]:.0f}, v={point[1]:.0f}) is empty: there is no object at that pixel. Click on it."
        )
    return mask


def simulator_filter(
    object_names: Sequence[str],
    camera: str,
    *,
    noise: PerceptionNoise | None = None,
    depth: DepthSource | None = None,
    right_camera: str | None = None,
    num_points: int = 128,
    max_stale: int | None = None,
    seed: int = 0,
) -> SceneFilter:
    """The filter of a simulated "real twin": instance masks eroded, rendered depth with noise. It sees the objects because the simulator
    says where they are; lifting, outliers and sampling are those of real images.

    Args:
        object_names: as in ``RobotEnvironment.object_names``; their order is kept.
        camera: needs images, depth and segmentation.
        noise: the brief's by default.
        depth: another depth source, such as ``StereoDepth``; noise is then drawn only where it is asked for.
        right_camera, num_points, max_stale, seed: as in :class:`SceneFilter`.

    Source: Point Bridge brief, section 9.
    """
    if noise is None:
        noise = PerceptionNoise() if depth is None else replace(PerceptionNoise(), depth=0.0, offset=0.0, holes=0.0)
    return SceneFilter(
        namer=given_names(object_names),
        pointer=InstancePointer(object_names),
        segmenter=InstanceSegmenter(noise.eroded),
        tracker=InstanceTracker(object_names, noise.eroded),
        depth=depth or CameraDepth(),
        camera=camera,
        right_camera=right_camera,
        noise=noise,
        num_points=num_points,
        max_stale=max_stale,
        seed=seed,
    )


def plane_filter(
    namer: Namer,
    pointer: Pointer,
    camera: str,
    *,
    removal: PlaneRemoval | None = None,
    gate: float = 0.08,
    depth: DepthSource | None = None,
    right_camera: str | None = None,
    noise: PerceptionNoise | None = None,
    num_points: int = 128,
    max_stale: int | None = 20,
    seed: int = 0,
) -> SceneFilter:
    """The filter without networks and without a simulator: a table plane in the depth, the pieces above it, and where they were before.

    Args:
        namer, pointer: which objects, and a click on each in the first frame.
        camera: needs images and depth, or a second camera and a stereo depth source.
        removal: finds the pieces.
        gate: metres that an object may move between frames.
        depth, right_camera, noise, num_points, max_stale, seed: as in :class:`SceneFilter`; no noise by default.

    Source: Point Bridge brief, section 3 (offline fallbacks).
    """
    removal = removal or PlaneRemoval()
    return SceneFilter(
        namer=namer,
        pointer=pointer,
        segmenter=removal,
        tracker=PieceTracker(removal, gate=gate),
        depth=depth or CameraDepth(),
        camera=camera,
        right_camera=right_camera,
        noise=noise,
        num_points=num_points,
        max_stale=max_stale,
        seed=seed,
    )
