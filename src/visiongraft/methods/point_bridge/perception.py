"""One image to labelled points: what the scene filter does at the start of an episode, for a picture on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from visiongraft.geometry.point_sets import project_points
from visiongraft.media.images import to_image_tensor
from visiongraft.media.point_clouds import write_ply
from visiongraft.methods.point_bridge.depth import CameraDepth
from visiongraft.methods.point_bridge.filtering import find_mask
from visiongraft.methods.point_bridge.frames import DepthSource, Frame, Point, Pointer, Segmenter
from visiongraft.methods.point_bridge.lifting import object_points
from visiongraft.methods.point_bridge.naming import Namer
from visiongraft.methods.point_bridge.plane_removal import PlaneRemoval
from visiongraft.methods.point_bridge.pointing import GivenPoints
from visiongraft.robots.cameras import Camera

_PALETTE = np.array([[230, 60, 50], [50, 110, 230], [250, 180, 30], [60, 180, 80], [170, 70, 200], [30, 190, 190]], np.uint8)


@dataclass(frozen=True, eq=False)
class Perception:
    """Labelled points of one image.

    Args:
        names: of the objects.
        masks: one an object.
        points: float32, metres, base frame.
        camera: of the image.
    """

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "objects height width"]
    points: Float[np.ndarray, "objects points 3"]
    camera: Camera


def perceive(
    image: UInt8[np.ndarray, "..."],
    camera: Camera,
    *,
    depth: Shaped[np.ndarray, "..."] | None = None,
    unit: str = "m",
    right_image: UInt8[np.ndarray, "..."] | None = None,
    right_camera: Camera | None = None,
    names: Sequence[str] | None = None,
    instruction: str = "",
    namer: Namer | None = None,
    clicks: Mapping[str, Point] | None = None,
    pointer: Pointer | None = None,
    segmenter: Segmenter | None = None,
    depth_source: DepthSource | None = None,
    num_points: int = 128,
    seed: int = 0,
) -> Perception:
    """Finds objects in an image and lifts them.

    Args:
        image: RGB, first row on top.
        camera: calibrated camera; points come out in its ``camera_to_base`` frame.
        depth: along the optical axis, in ``unit``.
        unit: of the depth, ``m`` or ``mm``.
        right_image, right_camera: second view, for stereo depth sources.
        names: of the objects; else those of the ``namer`` for the ``instruction``, else those of the ``clicks``.
        instruction: what the robot has to do, in words.
        namer: names the objects of an instruction.
        clicks: (u, v) in pixels by name.
        pointer: finds named objects, where there are no clicks.
        segmenter: by default what stands on the table plane at the click.
        depth_source: by default the given depth.
        num_points: points of an object.
        seed: of everything random.

    Raises:
        ValueError: nothing that says which objects or where they are, an object that is not found or has no depth, or arrays that do
            not fit; the message says what to do.

    Example:
        >>> found = perceive(image, camera, depth=depth, unit="mm", clicks={"mug": (412.0, 230.0)})
        >>> found.points.shape
        (1, 128, 3)

    Source: Point Bridge brief, 2.4.
    """
    frame = Frame(
        image, camera, depth=None if depth is None else depth.astype(np.float32), right_image=right_image, right_camera=right_camera
    )
    metres = (depth_source or CameraDepth(unit))(frame)
    frame = frame.with_depth(metres)
    chosen = _names(frame, names, instruction, namer, clicks)
    if clicks is None and pointer is None:
        raise ValueError("Nothing says where the objects are; give clicks={'name': (u, v)} in pixels, or a pointer.")
    find = pointer if clicks is None else GivenPoints(clicks)
    rng = np.random.default_rng(seed)
    masks, clouds = [], []
    for name in chosen:
        mask = find_mask(frame, name, find, segmenter or PlaneRemoval())  # type: ignore[arg-type]
        points = object_points(mask, metres, camera, rng, num=num_points, candidates=max(1000, num_points))
        if points is None:
            raise ValueError(f"None of the {int(mask.sum())} pixels of {name!r} has depth between 0.1 and 2 m; check depth and unit.")
        masks.append(mask)
        clouds.append(points)
    return Perception(tuple(chosen), np.stack(masks), np.stack(clouds), camera)


def _names(
    frame: Frame, names: Sequence[str] | None, instruction: str, namer: Namer | None, clicks: Mapping[str, Point] | None
) -> list[str]:
    if names is not None:
        chosen = list(names)
    elif namer is not None:
        chosen = namer(frame.image, instruction)
    else:
        chosen = list(clicks or ())
    if not chosen:
        raise ValueError("Nothing says which objects to look for; give names, clicks, or a namer with an instruction.")
    return chosen


def perception_picture(
    image: UInt8[np.ndarray, "height width 3"], found: Perception, scale: int = 1
) -> Float[torch.Tensor, "3 rows columns"]:
    """The image with coloured masks, the points projected back into it, and names.

    Args:
        image: the one that was looked at.
        found: what was found in it.
        scale: factor by which the picture is enlarged, so that points of small images can be told apart.
    """
    height, width = image.shape[:2]
    picture = image.astype(np.float32)
    for index, mask in enumerate(found.masks):
        picture[mask] = 0.55 * picture[mask] + 0.45 * _colour(index)
    canvas = Image.fromarray(picture.astype(np.uint8)).resize((width * scale, height * scale), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=max(9.0, 0.04 * height * scale))
    radius = max(0.5, 0.003 * height * scale)
    for index, (name, cloud) in enumerate(zip(found.names, found.points, strict=True)):
        base_to_camera = torch.from_numpy(found.camera.base_to_camera)
        pixels, _ = project_points(torch.from_numpy(cloud.astype(np.float64)), torch.from_numpy(found.camera.intrinsics), base_to_camera)
        places = pixels[pixels.isfinite().all(1)].numpy() * scale
        for u, v in places:
            draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=(255, 255, 255), outline=tuple(_colour(index).tolist()))
        if len(places):
            where = (float(places[:, 0].mean()), float(places[:, 1].min()) - 2 * radius)
            draw.text(where, name.replace("_", " "), font=font, anchor="mb", fill="white", stroke_width=2, stroke_fill="black")
    return to_image_tensor(np.asarray(canvas))


def write_points(path: str | Path, found: Perception) -> Path:
    """Writes labelled points as PLY: x, y, z in metres, a colour and the number of the object, whose names stand in comments.

    Raises:
        ValueError: a path that does not end in ``.ply``.
    """
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise ValueError(f"Points are written as .ply, got {path.name}.")
    count = found.points.shape[1]
    labels = np.repeat(np.arange(len(found.names)), count)
    colors = np.repeat(np.stack([_colour(index) for index in range(len(found.names))]), count, axis=0)
    return write_ply(path, found.points.reshape(-1, 3), colors, labels, found.names)


def _colour(index: int) -> UInt8[np.ndarray, "3"]:
    return _PALETTE[index % len(_PALETTE)]
