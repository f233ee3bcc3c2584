"""Point clouds as files and pictures: PLY with colours and labels, and drawings in which every label has its colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from visiongraft.media.files import atomic_write
from visiongraft.studies.plots import plot_style, save_figure

_TYPES = {
    **{name: "i1" for name in ("char", "int8")},
    **{name: "u1" for name in ("uchar", "uint8")},
    **{name: "<i2" for name in ("short", "int16")},
    **{name: "<u2" for name in ("ushort", "uint16")},
    **{name: "<i4" for name in ("int", "int32")},
    **{name: "<u4" for name in ("uint", "uint32")},
    **{name: "<f4" for name in ("float", "float32")},
    **{name: "<f8" for name in ("double", "float64")},
}
_MAX_HEADER_BYTES = 65_536
_LABELS, _COLORS = "label", ("red", "green", "blue")
_ROBOT = "#20242a"


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points with what is known of each.

    Args:
        points: metres.
        colors: RGB.
        labels: number of the object that a point belongs to.
    """

    points: Float[np.ndarray, "n 3"]
    colors: UInt8[np.ndarray, "n 3"] | None = None
    labels: Int[np.ndarray, "n"] | None = None


def write_ply(
    path: str | Path,
    points: Shaped[np.ndarray, "n 3"],
    colors: Shaped[np.ndarray, "..."] | None = None,
    labels: Shaped[np.ndarray, "..."] | None = None,
    names: Sequence[str] = (),
) -> Path:
    """Writes a binary little-endian PLY file, atomically.

    Args:
        path: file to create or replace.
        points: metres, stored as float32.
        colors: (n, 3) uint8.
        labels: (n,) integers that fit 32 bits; stored as the property ``label``.
        names: of the labels 0, 1, ...; stored as comments.

    Raises:
        ValueError: points that are not finite, or colours or labels of another length or type.
    """
    count = len(points)
    if not np.isfinite(points).all():
        bad = int((~np.isfinite(points).all(-1)).sum())
        raise ValueError(f"{bad} of {count} points are not finite; leave them out before writing {path}.")
    fields: list[tuple[str, str, np.ndarray]] = [(axis, "float", points[:, i]) for i, axis in enumerate("xyz")]
    if colors is not None:
        if colors.shape != (count, 3) or colors.dtype != np.uint8:
            raise ValueError(f"colors must be uint8 of shape ({count}, 3); got {colors.dtype} of shape {colors.shape}.")
        fields += [(name, "uchar", colors[:, i]) for i, name in enumerate(_COLORS)]
    if labels is not None:
        if labels.shape != (count,) or labels.dtype.kind not in "iu" or (count and np.abs(labels.astype(np.int64)).max() >= 2**31):
            raise ValueError(f"labels must be {count} integers of 32 bits; got {labels.dtype} of shape {labels.shape}.")
        fields.append((_LABELS, "int", labels))
    rows = np.empty(count, [(name, _TYPES[kind]) for name, kind, _ in fields])
    for name, _, values in fields:
        rows[name] = values
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment label {number} is {' '.join(name.split())}" for number, name in enumerate(names)] + [f"element vertex {count}"]
    header += [f"property {kind} {name}" for name, kind, _ in fields] + ["end_header", ""]
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_bytes("\n".join(header).encode("ascii", "replace") + rows.tobytes())
    return path


def read_ply(path: str | Path) -> PointCloud:
    """Reads the points of a binary little-endian PLY file, which may have more properties than those that are taken.

    Taken are ``x y z`` (float or double), ``red green blue`` (uchar) and ``label`` (any integer).

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a header that cannot be read, elements other than points, or data that is cut off, too long, or
            not finite; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no point cloud {path}.")
    data = path.read_bytes()
    end = data.find(b"end_header\n", 0, _MAX_HEADER_BYTES)
    if not data.startswith(b"ply\n") or end < 0:
        raise ValueError(f"{path} is not a PLY file with Unix line ends; it must start with 'ply' and have an 'end_header' line.")
    count, row = _header(path, data[:end])
    body = data[end + len(b"end_header\n") :]
    if len(body) != count * row.itemsize:
        raise ValueError(f"{path} has {len(body)} bytes of points, but {count} points take {count * row.itemsize}; the file is damaged.")
    rows = np.frombuffer(body, row)
    points = np.stack([rows[axis] for axis in "xyz"], -1)
    if not np.isfinite(points).all():
        raise ValueError(f"{path} has points that are not finite; it was not written by a careful program.")
    names = row.names or ()
    colors = np.stack([rows[name] for name in _COLORS], -1) if set(_COLORS) <= set(names) else None
    labels = rows[_LABELS] if _LABELS in names else None
    if (colors is not None and colors.dtype != np.uint8) or (labels is not None and labels.dtype.kind not in "iu"):
        raise ValueError(f"{path} has colours that are not uchar, or labels that are not integers.")
    return PointCloud(points, colors, None if labels is None else labels.astype(np.int64))


def _header(path: Path, header: bytes) -> tuple[int, np.dtype]:
    """Number of points and what one looks like."""
    lines = [line.split() for line in header.decode("ascii", "replace").split("\n")[1:] if line.strip()]
    lines = [words for words in lines if words[0] not in ("comment", "obj_info")]
    if not lines or lines[0] != ["format", "binary_little_endian", "1.0"]:
        raise ValueError(f"{path} is a PLY file of another format; only binary_little_endian 1.0 is read.")
    elements = [words for words in lines if words[0] == "element"]
    vertices = [words for words in elements if words[1:2] == ["vertex"]]
    if len(elements) != 1 or len(vertices) != 1 or len(vertices[0]) != 3 or not vertices[0][2].isdigit():
        raise ValueError(f"{path} must have one element, 'vertex', and its count; meshes and other elements are not read.")
    fields: list[tuple[str, str]] = []
    for words in lines[1:]:
        if words[0] == "element":
            continue
        if words[0] != "property" or len(words) != 3 or words[1] not in _TYPES:
            raise ValueError(f"{path} has a header line that is not understood: {' '.join(words)!r}.")
        fields.append((words[2], _TYPES[words[1]]))
    names = [name for name, _ in fields]
    if not set("xyz") <= set(names) or len(set(names)) < len(names) or any(kind[-2] != "f" for name, kind in fields if name in "xyz"):
        raise ValueError(f"{path} must have the properties x, y and z, float or double, and no property twice; it has {', '.join(names)}.")
    return int(vertices[0][2]), np.dtype(fields)


def draw_points(
    path: str | Path,
    points: Float[np.ndarray, "n 3"],
    labels: Shaped[np.ndarray, "n"],
    names: Sequence[str] = (),
    robot_points: Float[np.ndarray, "m 3"] | None = None,
    view_deg: tuple[float, float] = (30.0, -60.0),
) -> Path:
    """Draws labelled points as PNG, atomically, on axes of equal scale in metres.

    Args:
        path: picture to create or replace.
        points: base frame, metres; those that are not finite are not drawn.
        labels: number of each point's object.
        names: of the objects, for the legend; label ``i`` is called ``names[i]``, or by its number.
        robot_points: key points of the gripper, drawn as dark crosses.
        view_deg: elevation and azimuth of the viewer in degrees.

    Raises:
        ValueError: no finite point to draw.
    """
    import matplotlib.pyplot as plt

    shown = np.isfinite(points).all(-1)
    robot = np.zeros((0, 3)) if robot_points is None else robot_points
    everything = np.concatenate([points[shown], robot])
    if not len(everything):
        raise ValueError("There is no finite point to draw.")
    with plot_style():
        figure = plt.figure(figsize=(6.4, 5.2))
        axes: Any = figure.add_subplot(projection="3d")
        for label in np.unique(labels[shown]):
            chosen = points[shown & (labels == label)]
            name = names[label] if 0 <= label < len(names) else f"object {label}"
            axes.scatter(*chosen.T, s=7, depthshade=False, label=name)
        if len(robot):
            axes.scatter(*robot.T, s=32, marker="x", color=_ROBOT, depthshade=False, label="gripper")
        low, high = everything.min(0), everything.max(0)
        center, half = (low + high) / 2, max(float((high - low).max()) / 2, 0.01)
        axes.set(xlabel="x (m)", ylabel="y (m)", zlabel="z (m)")
        axes.set(**{f"{axis}lim": (center[i] - half, center[i] + half) for i, axis in enumerate("xyz")})
        axes.set_box_aspect((1, 1, 1))
        axes.view_init(*view_deg)
        axes.legend(loc="upper left")
        try:
            return save_figure(figure, path)
        finally:
            plt.close(figure)
