"""What perception sees at one time: the image of a calibrated camera, and whatever came with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from visiongraft.robots.cameras import Camera
from visiongraft.robots.policy import Observation

Point = tuple[float, float]
"""A place in an image: (u, v), to the right and down, in pixels."""
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera at one time.

    Args:
        image: (height, width, 3) uint8.
        camera: calibrated camera of the image.
        depth: (height, width), metres along the optical axis; infinity, NaN or 0 where it is not known.
        segmentation: (height, width), instance ids of a simulator; -1 elsewhere.
        right_image, right_camera: the second view of a stereo pair.
        gripper_pose: (4, 4), the gripper in the base frame.

    Raises:
        ValueError: arrays that do not fit the camera.
    """

    image: Shaped[np.ndarray, "..."]
    camera: Camera
    depth: Float[np.ndarray, "..."] | None = None
    segmentation: Shaped[np.ndarray, "..."] | None = None
    right_image: Shaped[np.ndarray, "..."] | None = None
    right_camera: Camera | None = None
    gripper_pose: Float[np.ndarray, "4 4"] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"An image for perception is height x width x 3 of uint8, first row on top; got shape {self.image.shape} of "
                f"{self.image.dtype}."
            )
        size = self.image.shape[:2]
        if tuple(self.camera.size) != size:
            raise ValueError(
                f"The camera is calibrated for {_times(self.camera.size)} pixels (height x width) and the image has {_times(size)}; "
                "resize the image, or scale the intrinsics with resize_camera."
            )
        for name in ("depth", "segmentation", "right_image"):
            array = getattr(self, name)
            if array is not None and array.shape[:2] != size:
                raise ValueError(f"{name} has {_times(array.shape[:2])} pixels (height x width) and the image {_times(size)}.")

    def with_depth(self, depth: Float[np.ndarray, "height width"]) -> "Frame":
        """The same frame with another depth map."""
        return replace(self, depth=depth)


DepthSource = Callable[[Frame], Float[np.ndarray, "height width"]]
"""Metric depth of a frame, infinity where it is not known."""
Pointer = Callable[[Frame, str], Point | None]
"""Where in a frame the named object is, ``None`` where it is not."""
Segmenter = Callable[[Frame, Point], Mask]
"""Mask of the object at a pixel; all False where there is none."""


def frame_of(observation: Observation, camera: str, right_camera: str | None = None) -> Frame:
    """Frame of a camera of an observation, see :data:`visiongraft.robots.policy.Observation`.

    Args:
        observation: with ``images`` and ``cameras``; depth and segmentation are taken where they are there.
        camera: name of the camera.
        right_camera: name of the second camera of a stereo pair.

    Raises:
        ValueError: the observation lacks the camera's image or calibration.
    """
    right: dict[str, Any] = {}
    if right_camera is not None:
        right = {
            name: _of_camera(observation, part, right_camera) for name, part in (("right_image", "images"), ("right_camera", "cameras"))
        }
    return Frame(
        _of_camera(observation, "images", camera),
        _of_camera(observation, "cameras", camera),
        depth=observation.get("depth", {}).get(camera),
        segmentation=observation.get("segmentation", {}).get(camera),
        gripper_pose=observation.get("gripper_pose"),
        **right,
    )


def _of_camera(observation: Mapping[str, Any], modality: str, camera: str) -> Any:
    views = observation.get(modality, {})
    if camera not in views:
        there = ", ".join(map(repr, views)) or "none"
        raise ValueError(f"The observation has no {modality} of camera {camera!r}; there are {there}. Ask for it with View(cameras=…).")
    return views[camera]


def resize_camera(camera: Camera, size: tuple[int, int]) -> Camera:
    """Camera of the image resized to ``size`` (height, width): intrinsics scale with width and height, the pose stays."""
    scale = np.diag([size[1] / camera.size[1], size[0] / camera.size[0], 1.0])
    return Camera(scale @ camera.intrinsics, camera.camera_to_base, size)


def crop_frame(frame: Frame, rows: tuple[float, float] = (0.0, 1.0), columns: tuple[float, float] = (0.0, 1.0)) -> Frame:
    """Part of a frame, with the cameras' principal points moved along; both views of a pair are cropped alike and stay rectified.

    Args:
        frame: to crop.
        rows, columns: from and to, as fractions of height and width.

    Raises:
        ValueError: limits out of order or outside [0, 1].

    Source: Point Bridge brief, 2.4 step 1.
    """
    for name, (start, end) in (("rows", rows), ("columns", columns)):
        if not 0 <= start < end <= 1:
            raise ValueError(f"{name} of a crop go from a fraction to a larger one within [0, 1]; got {(start, end)}.")
    (top, bottom), (left, right) = (
        (round(start * length), max(round(end * length), round(start * length) + 1))
        for (start, end), length in zip((rows, columns), frame.image.shape[:2], strict=True)
    )
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1.0]])

    def camera(whole: Camera) -> Camera:
        return Camera(shift @ whole.intrinsics, whole.camera_to_base, (bottom - top, right - left))

    def part(array: Any) -> Any:
        return None if array is None else np.ascontiguousarray(array[top:bottom, left:right])

    return Frame(
        part(frame.image),
        camera(frame.camera),
        part(frame.depth),
        part(frame.segmentation),
        part(frame.right_image),
        None if frame.right_camera is None else camera(frame.right_camera),
        frame.gripper_pose,
    )


def pixel_of(point: Point, size: tuple[int, int]) -> tuple[int, int]:
    """Row and column of a place in an image.

    Raises:
        ValueError: outside the image.
    """
    u, v = point
    if not (0 <= u < size[1] and 0 <= v < size[0]):
        raise ValueError(
            f"The point (u={u:.1f}, v={v:.1f}) lies outside the image of {size[1]}x{size[0]} pixels (width x height); u counts to the "
            "right and v down."
        )
    return int(v), int(u)


def image_tensor_array(image: UInt8[np.ndarray, "height width 3"]) -> Float[np.ndarray, "3 height width"]:
    """Channels first, float32 in [0, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / 255


def _times(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
