"""What ``perceive`` does with files: an image and its depth or second view in, labelled points and a picture out."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from visiongraft.media.images import read_image, save_image
from visiongraft.methods.point_bridge.commands import PerceiveOptions
from visiongraft.methods.point_bridge.perception import perceive, perception_picture, write_points
from visiongraft.robots.cameras import Camera
from visiongraft.robots.poses import make_pose

_MAX_PIXELS = 64_000_000


def perceive_files(options: PerceiveOptions) -> int:
    """Runs ``perceive``; prints the objects and the files."""
    output = options.output or options.image.with_suffix(".ply")
    if output.suffix.lower() != ".ply":
        raise ValueError(f"Points are written as .ply, got {output.name}.")
    if (options.depth is None) == (options.right is None):
        raise ValueError("Give either --depth or, for a stereo pair, --right with --baseline.")
    image = _pixels(options.image)
    camera = _camera(options, image.shape[:2])
    right_image, right_camera, source = None, None, None
    if options.right is not None:
        from visiongraft.methods.point_bridge.stereo import SemiGlobalMatcher, StereoDepth, stereo_baseline

        right_image, right_camera = _pixels(options.right), _right_camera(options, camera)
        source = StereoDepth(SemiGlobalMatcher.reaching(camera, stereo_baseline(camera, right_camera)))
    found = perceive(
        image,
        camera,
        depth=None if options.depth is None else read_depth_file(options.depth),
        unit=options.depth_unit,
        right_image=right_image,
        right_camera=right_camera,
        names=options.names,
        instruction=options.instruction,
        namer=_namer(options),
        clicks=options.clicks,
        pointer=_pointer(options.pointer),
        segmenter=_segmenter(options.segmenter),
        depth_source=source,
        num_points=options.points,
        seed=options.seed,
    )
    picture = output.with_suffix(".png")
    if picture.resolve() == options.image.resolve():
        picture = output.with_name(f"{output.stem}-points.png")
    for name, mask, points in zip(found.names, found.masks, found.points, strict=True):
        x, y, z = points.mean(0)
        print(f"{name}: {int(mask.sum())} pixels, {len(points)} points around ({x:.3f}, {y:.3f}, {z:.3f}) m")
    print(write_points(output, found))
    print(save_image(perception_picture(image, found), picture))
    return 0


def read_depth_file(path: Path) -> Shaped[np.ndarray, "height width"]:
    """Numbers of a depth file, in its own unit: ``.npy``, 16-bit PNG or TIFF.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one that is no map of one number a pixel.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no depth file {path}.")
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as file:
                if file.width * file.height > _MAX_PIXELS:
                    raise ValueError(f"{file.width} x {file.height} pixels are too many")
                values = np.asarray(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"The depth file {path} cannot be read: {error}.") from error
    if values.ndim != 2 or values.dtype == np.uint8 or values.dtype.kind not in "uif":
        raise ValueError(
            f"The depth file {path} holds {values.dtype} of shape {values.shape}; a 16-bit or float map of height x width is needed."
        )
    return values.astype(np.float32)


def _pixels(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    return (read_image(path) * 255).round().byte().permute(1, 2, 0).numpy()


def _camera(options: PerceiveOptions, size: tuple[int, ...]) -> Camera:
    fx, fy, cx, cy = options.intrinsics
    return Camera(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]), _pose(options.camera_to_base), (size[0], size[1]))


def _pose(given: list[float] | Path | None) -> np.ndarray:
    if given is None:
        return np.eye(4)
    if isinstance(given, Path):
        try:
            numbers = np.load(given, allow_pickle=False) if given.suffix == ".npy" else np.loadtxt(given)
        except (OSError, ValueError) as error:
            raise ValueError(f"The camera pose {given} cannot be read: {error}.") from error
    else:
        numbers = np.array(given, np.float64)
    if numbers.size != 16:
        raise ValueError(f"camera_to_base has 16 numbers, row by row; got {numbers.size}.")
    return numbers.reshape(4, 4)


def _right_camera(options: PerceiveOptions, camera: Camera) -> Camera:
    """The second camera: the first one moved along its x axis."""
    if options.baseline is None or not options.baseline > 0:
        raise ValueError("A stereo pair needs --baseline, the metres between its two cameras.")
    aside = camera.camera_to_base @ make_pose(np.eye(3), np.array([options.baseline, 0.0, 0.0]))
    return Camera(camera.intrinsics, aside, camera.size)


def _namer(options: PerceiveOptions) -> Any:
    if options.namer is None:
        return None
    from visiongraft.methods.point_bridge.chat import GeminiChat, OpenAiChat, TransformersChat
    from visiongraft.methods.point_bridge.naming import chat_namer

    if not options.instruction:
        raise ValueError("The namer needs --instruction, what the robot has to do.")
    if options.namer == "gemini":
        return chat_namer(GeminiChat(model=options.namer_model) if options.namer_model else GeminiChat())
    if options.namer.startswith(("http://", "https://")):
        if not options.namer_model:
            raise ValueError("An endpoint serves several models; name one with --namer_model.")
        return chat_namer(OpenAiChat(url=options.namer, model=options.namer_model, key_variable=options.namer_key))
    return chat_namer(TransformersChat.from_pretrained(options.namer))


def _pointer(name: str | None) -> Any:
    if name is None:
        return None
    from visiongraft.methods.point_bridge.pointing import ChatPointer, DetectorPointer

    return ChatPointer.molmo2(name) if "molmo2" in Path(name).name.lower() else DetectorPointer.from_pretrained(name)


def _segmenter(name: str) -> Any:
    from visiongraft.methods.point_bridge.plane_removal import PlaneRemoval
    from visiongraft.methods.point_bridge.region_growing import RegionGrowing
    from visiongraft.methods.point_bridge.sam2 import Sam2Segmenter, load_sam2

    if name == "plane":
        return PlaneRemoval()
    return RegionGrowing() if name == "color" else Sam2Segmenter(load_sam2(name))
