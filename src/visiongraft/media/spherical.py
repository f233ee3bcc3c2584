"""Spherical-video metadata of MP4 files: players show a tagged video as a panorama to look around in.

Source: Google's Spherical Video V2 RFC (boxes ``st3d`` and ``sv3d`` in the sample entry) and V1 RFC (XML in a ``uuid`` box of the
track), which older players read. Both are written; V2 is read.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from visiongraft.media.boxes import (
    SAMPLE_TABLES,
    child_boxes,
    find,
    make_box,
    make_full_box,
    read_moov,
    replace_children,
    replace_moov,
    rewrite,
)
from visiongraft.media.files import atomic_write

_SAMPLE_ENTRY_FIELDS = 78  # bytes of a VisualSampleEntry before its boxes
_V1_UUID = bytes.fromhex("ffcc8263f8554a938814587a02521fdd")
_STEREO_MODES = ("mono", "top-bottom", "left-right")


@dataclass(frozen=True, kw_only=True)
class SphericalVideo:
    """How an equirectangular video is to be shown.

    Args:
        stereo_mode: mono, top-bottom or left-right.
        yaw_deg, pitch_deg, roll_deg: pose of the picture's middle in the world; 0 for upright panoramas.
        source: the program that made it.
    """

    stereo_mode: str = "mono"
    yaw_deg: float | int = 0.0
    pitch_deg: float | int = 0.0
    roll_deg: float | int = 0.0
    source: str = "visiongraft"

    def __post_init__(self) -> None:
        if self.stereo_mode not in _STEREO_MODES:
            raise ValueError(f"stereo_mode must be one of {', '.join(_STEREO_MODES)}; got {self.stereo_mode!r}.")
        for name, value, limit in (("yaw_deg", self.yaw_deg, 180), ("pitch_deg", self.pitch_deg, 90), ("roll_deg", self.roll_deg, 180)):
            if not abs(value) <= limit:
                raise ValueError(f"{name} must be within [-{limit}, {limit}]; got {value}.")


def tag_spherical(path: str | Path, spherical: SphericalVideo | None = None) -> Path:
    """Marks an MP4 or MOV file as an equirectangular panorama, in place and atomically; pictures and sound stay as they are.

    Tags from before are replaced.

    Args:
        path: the file.
        spherical: default: mono, upright.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an MP4 file with a video track, a fragmented or an encrypted one.
    """
    path, spherical = _existing(path), spherical or SphericalVideo()
    try:
        with atomic_write(path) as temporary:
            replace_moov(path, temporary, lambda moov: _tagged(moov, spherical))
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} cannot be tagged as a panorama: {error}.") from error
    return path


def read_spherical(path: str | Path) -> SphericalVideo | None:
    """The spherical metadata of a file's first video track; ``None`` where it has none, or is not equirectangular.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an MP4 file.
    """
    path = _existing(path)
    try:
        moov = read_moov(path)
        for box in child_boxes(moov):
            if box.kind == b"trak" and _is_video(track := moov[box.content : box.end]):
                return _read_track(track)
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is not an MP4 file that can be read: {error}.") from error
    return None


def _tagged(moov: bytes, spherical: SphericalVideo) -> bytes:
    if not any(box.kind == b"trak" and _is_video(moov[box.content : box.end]) for box in child_boxes(moov)):
        raise ValueError("it has no video track")
    return rewrite(moov, (b"trak",), lambda track: _tagged_track(track, spherical) if _is_video(track) else track)


def _tagged_track(track: bytes, spherical: SphericalVideo) -> bytes:
    def tag_entries(description: bytes) -> bytes:
        # version, flags and number of entries; then the entries, whose kinds are those of codecs
        tagged = [description[:8]]
        for box in child_boxes(description, 8):
            entry = description[box.content : box.end]
            tagged.append(make_box(box.kind, replace_children(entry, _SAMPLE_ENTRY_FIELDS, _is_v2_box, _v2_boxes(spherical))))
        return b"".join(tagged)

    tagged = rewrite(track, (*SAMPLE_TABLES[1:], b"stsd"), tag_entries)
    return replace_children(tagged, 0, lambda kind, content: kind == b"uuid" and content[:16] == _V1_UUID, _v1_box(spherical))


def _is_video(track: bytes) -> bool:
    handler = find(track, b"mdia", b"hdlr")
    return handler is not None and handler[8:12] == b"vide"


def _is_v2_box(kind: bytes, content: bytes) -> bool:
    return kind in (b"st3d", b"sv3d")


def _v2_boxes(spherical: SphericalVideo) -> bytes:
    stereo = make_full_box(b"st3d", bytes([_STEREO_MODES.index(spherical.stereo_mode)]))
    source = make_full_box(b"svhd", spherical.source.encode() + b"\0")
    degrees = (spherical.yaw_deg, spherical.pitch_deg, spherical.roll_deg)
    pose = make_full_box(b"prhd", struct.pack(">3i", *(round(angle * 65536) for angle in degrees)))
    # nothing is cropped: bounds at the top, bottom, left and right are 0
    equirectangular = make_full_box(b"equi", bytes(16))
    return stereo + make_box(b"sv3d", source + make_box(b"proj", pose + equirectangular))


def _v1_box(spherical: SphericalVideo) -> bytes:
    xml = (
        '<?xml version="1.0"?><rdf:SphericalVideo xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" '
        'xmlns:GSpherical="http://ns.google.com/videos/1.0/spherical/">'
        "<GSpherical:Spherical>true</GSpherical:Spherical><GSpherical:Stitched>true</GSpherical:Stitched>"
        f"<GSpherical:StitchingSoftware>{escape(spherical.source)}</GSpherical:StitchingSoftware>"
        "<GSpherical:ProjectionType>equirectangular</GSpherical:ProjectionType>"
        f"<GSpherical:StereoMode>{spherical.stereo_mode}</GSpherical:StereoMode></rdf:SphericalVideo>"
    )
    return make_box(b"uuid", _V1_UUID + xml.encode())


def _read_track(track: bytes) -> SphericalVideo | None:
    description = find(track, *SAMPLE_TABLES[1:], b"stsd")
    entry = next(child_boxes(description, 8), None) if description else None
    if description is None or entry is None:
        return None
    boxes = description[entry.content + _SAMPLE_ENTRY_FIELDS : entry.end]
    if find(boxes, b"sv3d", b"proj", b"equi") is None:
        return None
    stereo, source, pose = find(boxes, b"st3d"), find(boxes, b"sv3d", b"svhd"), find(boxes, b"sv3d", b"proj", b"prhd")
    mode = stereo[4] if stereo and len(stereo) > 4 else 0
    if mode >= len(_STEREO_MODES):
        raise ValueError(f"unknown stereo mode {mode}")
    yaw, pitch, roll = (angle / 65536 for angle in struct.unpack(">3i", pose[4:16])) if pose else (0.0, 0.0, 0.0)
    return SphericalVideo(
        stereo_mode=_STEREO_MODES[mode],
        yaw_deg=yaw,
        pitch_deg=pitch,
        roll_deg=roll,
        source=source[4:].split(b"\0")[0].decode(errors="replace") if source else "",
    )


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no video file {path}.")
    return path
