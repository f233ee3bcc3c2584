"""Perspective views of panoramas with their cameras, as COLMAP, 3D Gaussian splatting and nerfstudio read them.

Folder layout::

    images/<view>/frame_00000.png   one folder a view; the views of one frame have the same file name
    sparse/0/cameras.txt, images.txt, points3D.txt
    rig_config.json                 for ``colmap rig_configurator``: the views of one frame share their centre
    transforms.json                 nerfstudio
    crops.json                      settings and digest of the panorama, by which an interrupted export goes on

World axes of the COLMAP model are those of the panorama: x right, y down, z forward. It has no points, and its camera centres
are those given, so that without positions COLMAP has to find them (``feature_extractor``, ``rig_configurator``, ``mapper``).
``transforms.json`` holds camera-to-world matrices in OpenGL axes (x right, y up, z backward) in a world with z up.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.cameras import check_hfov_deg, intrinsics, quaternion_from_rotation, rotation_from_angles
from visiongraft.geometry.panoramas import CUBE_FACES, check_panorama, perspective_from_panorama
from visiongraft.media.files import atomic_write, ensure_writable_folder
from visiongraft.media.images import save_image

# world of the panorama (x right, y down, z forward) to one with x right, y forward, z up
_TO_Z_UP = ((1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, -1.0, 0.0, 0.0))


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Which views are cut from each panorama.

    Args:
        layout: ring (views evenly around, at one pitch) or cube (front, right, back, left, up, down).
        views: of a ring; 8 views of 90 degrees overlap by half.
        hfov_deg: horizontal field of view; a cube has 90.
        pitch_deg: of a ring, positive looks up.
        size: side of the square views in pixels.
        every: frames of a video from one used to the next.
    """

    layout: Literal["ring", "cube"] = "ring"
    views: int = 8
    hfov_deg: float = 90.0
    pitch_deg: float = 0.0
    size: int = 512
    every: int = 1

    def __post_init__(self) -> None:
        check_hfov_deg(self.hfov_deg)
        if self.layout not in ("ring", "cube"):
            raise ValueError(f"layout must be ring or cube; got {self.layout!r}.")
        if self.layout == "cube" and self.hfov_deg != 90:
            raise ValueError(f"The views of a cube have hfov_deg=90; got {self.hfov_deg:g}. Use layout=ring for others.")
        if not -90 <= self.pitch_deg <= 90:
            raise ValueError(f"pitch_deg must be in [-90, 90]; got {self.pitch_deg:g}.")
        for name in ("views", "size", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")


def view_rotations(config: CropConfig) -> dict[str, Float[Tensor, "3 3"]]:
    """Names of the views and their rotations camera to panorama, in float64."""
    if config.layout == "cube":
        angles = {name: (yaw * 90.0, pitch * 90.0) for name, (yaw, pitch) in CUBE_FACES.items()}
    else:
        angles = {f"view_{i}": (360.0 * i / config.views, config.pitch_deg) for i in range(config.views)}
    turns = {name: torch.tensor([*pair, 0.0], dtype=torch.float64).deg2rad() for name, pair in angles.items()}
    return {name: rotation_from_angles(*turn) for name, turn in turns.items()}


def export_crops(
    frames: Iterable[Float[Tensor, "3 height width"]],
    folder: str | Path,
    config: CropConfig = CropConfig(),
    positions: Float[Tensor, "frames 3"] | None = None,
    rotations: Float[Tensor, "frames 3 3"] | None = None,
) -> list[Path]:
    """Writes views of the panoramas and their cameras; goes on where an interrupted export of the same panorama stopped.

    Args:
        frames: panoramas in [0, 1], H x 2H; one for an image. Read one at a time.
        folder: created; see the layout above.
        config: which views.
        positions: camera centre of every frame in world axes, in metres or any other unit; None puts all at the origin.
        rotations: every frame's panorama to world; None for frames at rest.

    Returns:
        The image files.

    Raises:
        ValueError: a frame that is not H x 2H, fewer positions or rotations than frames, no frames, or a folder with crops of
            other settings or of another panorama, told by its first frame, positions and rotations.
        PermissionError: a folder that cannot be written.

    Source: arXiv 2601.16192, 3D reconstruction.
    """
    folder = ensure_writable_folder(folder)
    views = view_rotations(config)
    names, poses = [], []
    for index, frame in islice(enumerate(frames), 0, None, config.every):
        check_panorama(frame)
        if index == 0:
            _claim_folder(folder, config, _digest(frame, positions, rotations))
        position, rotation = _pose(index, positions, rotations)
        files = {view: f"{view}/frame_{index:05d}.png" for view in views}
        missing = {view: folder / "images" / name for view, name in files.items() if not (folder / "images" / name).exists()}
        for view, picture in zip(missing, _cut(frame, [views[v] for v in missing], config), strict=True):
            save_image(picture, missing[view])
        for view, name in files.items():
            names.append(name)
            poses.append(torch.cat([rotation @ views[view], position[:, None]], -1))
    if not names:
        raise ValueError("There are no frames to cut views from; give at least one panorama.")
    write_colmap_model(folder / "sparse" / "0", names, torch.stack(poses), config)
    _write_json(folder / "rig_config.json", _rig(views))
    _write_json(folder / "transforms.json", _transforms(names, torch.stack(poses), config))
    return [folder / "images" / name for name in names]


def _cut(frame: Tensor, rotations: Sequence[Tensor], config: CropConfig) -> Iterator[Float[Tensor, "3 size size"]]:
    if rotations:
        hfov = torch.full((len(rotations),), math.radians(config.hfov_deg), device=frame.device)
        views = torch.stack(list(rotations)).to(hfov)
        yield from perspective_from_panorama(frame[None].float(), hfov, views, (config.size, config.size))


def _pose(index: int, positions: Tensor | None, rotations: Tensor | None) -> tuple[Float[Tensor, "3"], Float[Tensor, "3 3"]]:
    for name, given in (("positions", positions), ("rotations", rotations)):
        if given is not None and index >= given.shape[0]:
            raise ValueError(f"Every frame needs one of the {name}; got {given.shape[0]} and at least {index + 1} frames.")
    position = torch.zeros(3, dtype=torch.float64) if positions is None else positions[index].detach().cpu().double()
    rotation = torch.eye(3, dtype=torch.float64) if rotations is None else rotations[index].detach().cpu().double()
    return position, rotation


def write_colmap_model(folder: str | Path, names: Sequence[str], camera_to_world: Float[Tensor, "images 3 4"], config: CropConfig) -> None:
    """Writes cameras.txt, images.txt and points3D.txt. Poses are world to camera: quaternion w x y z, then translation.

    Args:
        folder: of the three files.
        names: image files below the folder of images.
        camera_to_world: of each image, OpenCV axes.
        config: of the views, which share one pinhole camera (pixel centres at +0.5, as COLMAP has them).
    """
    folder = Path(folder)
    matrix = _intrinsics(config)
    values = " ".join(f"{float(v):.12g}" for v in (matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]))
    _write_text(folder / "cameras.txt", f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n1 PINHOLE {config.size} {config.size} {values}\n")
    world_to_camera = camera_to_world[:, :, :3].mT
    translations = -(world_to_camera @ camera_to_world[:, :, 3:])[..., 0]
    lines = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID): none"]
    poses = torch.cat([quaternion_from_rotation(world_to_camera), translations], -1).tolist()
    for number, (name, pose) in enumerate(zip(names, poses, strict=True), 1):
        lines += [f"{number} {' '.join(f'{v:.12g}' for v in pose)} 1 {name}", ""]
    _write_text(folder / "images.txt", "\n".join(lines) + "\n")
    _write_text(folder / "points3D.txt", "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX): none\n")


def _rig(views: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One rig, whose reference is the first view; the others turn about the same centre."""
    reference = next(iter(views.values()))
    cameras: list[dict[str, Any]] = []
    for name, rotation in views.items():
        camera: dict[str, Any] = {"image_prefix": f"{name}/"}
        if not cameras:
            camera["ref_sensor"] = True
        else:
            camera["cam_from_rig_rotation"] = quaternion_from_rotation(rotation.mT @ reference).tolist()
            camera["cam_from_rig_translation"] = [0.0, 0.0, 0.0]
        cameras.append(camera)
    return [{"cameras": cameras}]


def _transforms(names: Sequence[str], camera_to_world: Float[Tensor, "images 3 4"], config: CropConfig) -> dict[str, Any]:
    matrix = _intrinsics(config)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    square = torch.cat([camera_to_world.double(), bottom.expand(len(names), 1, 4)], 1)
    to_z_up = torch.cat([torch.tensor(_TO_Z_UP, dtype=torch.float64), bottom[None]])
    from_opengl = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
    transforms = (to_z_up @ square @ from_opengl).tolist()
    return {
        "camera_model": "OPENCV",
        "fl_x": float(matrix[0, 0]),
        "fl_y": float(matrix[1, 1]),
        "cx": float(matrix[0, 2]),
        "cy": float(matrix[1, 2]),
        "w": config.size,
        "h": config.size,
        "applied_transform": [list(row) for row in _TO_Z_UP],
        "frames": [{"file_path": f"images/{n}", "transform_matrix": t} for n, t in zip(names, transforms, strict=True)],
    }


def _intrinsics(config: CropConfig) -> Float[Tensor, "3 3"]:
    return intrinsics(torch.tensor(math.radians(config.hfov_deg), dtype=torch.float64), config.size, config.size)


def _claim_folder(folder: Path, config: CropConfig, digest: str) -> None:
    """Views of an interrupted export are kept, so that they must be of the same settings and the same panorama."""
    path, settings = folder / "crops.json", asdict(config)
    if not path.exists():
        _write_json(path, settings | {"panorama": digest})
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    found_digest = found.pop("panorama", None)
    if found != settings:
        raise ValueError(f"The folder {folder} holds crops of other settings ({found}); delete it or choose another folder.")
    if found_digest != digest:
        raise ValueError(f"The folder {folder} holds crops of another panorama; delete it or choose another folder.")


def _digest(frame: Tensor, positions: Tensor | None, rotations: Tensor | None) -> str:
    digest = hashlib.sha256()
    for name, tensor in (("frame", frame), ("positions", positions), ("rotations", rotations)):
        if tensor is not None:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().double().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_json(path: Path, content: Any) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, content: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
