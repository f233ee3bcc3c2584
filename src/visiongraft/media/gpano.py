"""Panorama metadata of image files (XMP, Google's GPano namespace): viewers and web services open a tagged file as a panorama."""

from dataclasses import dataclass
from pathlib import Path
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.panoramas import check_panorama
from visiongraft.media.files import atomic_write
from visiongraft.media.images import encode_image, image_format
from visiongraft.media.xmp import read_xmp, write_xmp

_GPANO = "http://ns.google.com/photos/1.0/panorama/"
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_EMPTY_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta><?xpacket end="w"?>'
).encode()


@dataclass(frozen=True, kw_only=True)
class PanoramaMetadata:
    """Which part of the sphere an equirectangular picture shows.

    Args:
        full_width, full_height: pixels of the whole sphere at the picture's resolution.
        width, height: pixels of the picture; default: the whole sphere.
        left, top: where in the whole sphere the picture begins, in pixels.
        heading_deg: compass direction of the picture's middle, from 0 (north) clockwise; ``None``: unknown.
    """

    full_width: int
    full_height: int
    width: int | None = None
    height: int | None = None
    left: int = 0
    top: int = 0
    heading_deg: float | int | None = None

    def __post_init__(self) -> None:
        width, height = self.width or self.full_width, self.height or self.full_height
        inside = self.left + width <= self.full_width and self.top + height <= self.full_height
        if not inside or min(width, height) < 1 or min(self.left, self.top) < 0:
            raise ValueError(
                f"The picture ({width}x{height} at {self.left}, {self.top}) must lie within the whole sphere of "
                f"{self.full_width}x{self.full_height} pixels."
            )
        if self.heading_deg is not None and not 0 <= self.heading_deg < 360:
            raise ValueError(f"heading_deg must be in [0, 360); got {self.heading_deg}.")

    def properties(self) -> dict[str, str]:
        """Names and values in the GPano namespace."""
        values = {
            "UsePanoramaViewer": "True",
            "ProjectionType": "equirectangular",
            "StitchingSoftware": "visiongraft",
            "FullPanoWidthPixels": self.full_width,
            "FullPanoHeightPixels": self.full_height,
            "CroppedAreaImageWidthPixels": self.width or self.full_width,
            "CroppedAreaImageHeightPixels": self.height or self.full_height,
            "CroppedAreaLeftPixels": self.left,
            "CroppedAreaTopPixels": self.top,
        }
        if self.heading_deg is not None:
            values["PoseHeadingDegrees"] = f"{self.heading_deg:g}"
        return {name: str(value) for name, value in values.items()}


def save_panorama(
    panorama: Float[Tensor, "3 height width"], path: str | Path, quality: int = 95, heading_deg: float | int | None = None
) -> Path:
    """Writes a panorama in [0, 1] as JPEG or PNG that viewers open as a panorama, atomically.

    Args:
        panorama: H x 2H.
        path: ends in .jpg, .jpeg or .png.
        quality: of a JPEG, 1 to 100.
        heading_deg: compass direction of its middle, if known.

    Raises:
        ValueError: not H x 2H, another suffix, or a quality or heading out of range.
    """
    path = Path(path)
    height, width = check_panorama(panorama).shape[-2:]
    metadata = PanoramaMetadata(full_width=width, full_height=height, heading_deg=heading_deg)
    content = write_xmp(encode_image(panorama, image_format(path), quality), _packet(_EMPTY_PACKET, metadata))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def tag_panorama(path: str | Path, metadata: PanoramaMetadata) -> Path:
    """Writes panorama metadata into a JPEG or PNG file, in place and atomically; its pixels and its other metadata stay.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither JPEG nor PNG, damaged, or with XMP that cannot be read; the message names the file.
    """
    path = Path(path)
    content = _content(path)
    try:
        tagged = write_xmp(content, _packet(read_xmp(content) or _EMPTY_PACKET, metadata))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_write(path) as temporary:
        temporary.write_bytes(tagged)
    return path


def read_panorama_metadata(path: str | Path) -> PanoramaMetadata | None:
    """The panorama metadata of a JPEG or PNG file; ``None`` where it has none, or is not equirectangular.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither JPEG nor PNG, damaged, or with metadata that contradicts itself; the message names the file.
    """
    path = Path(path)
    try:
        packet = read_xmp(_content(path))
        return None if packet is None else _metadata(_properties(_parsed(packet)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _metadata(properties: dict[str, str]) -> PanoramaMetadata | None:
    if properties.get("ProjectionType", "").lower() != "equirectangular":
        return None

    def pixels(name: str, default: int | None = None) -> int:
        value = properties.get(name, default)
        if value is None:
            raise ValueError(f"The panorama metadata lack {name}.")
        return int(value)

    full_width, full_height = pixels("FullPanoWidthPixels"), pixels("FullPanoHeightPixels")
    width, height = pixels("CroppedAreaImageWidthPixels", full_width), pixels("CroppedAreaImageHeightPixels", full_height)
    heading = properties.get("PoseHeadingDegrees")
    return PanoramaMetadata(
        full_width=full_width,
        full_height=full_height,
        width=None if width == full_width else width,
        height=None if height == full_height else height,
        left=pixels("CroppedAreaLeftPixels", 0),
        top=pixels("CroppedAreaTopPixels", 0),
        heading_deg=None if heading is None else float(heading) % 360,
    )


def _properties(document: minidom.Document) -> dict[str, str]:
    """GPano names and values: XMP allows both attributes and elements."""
    found = {}
    for description in document.getElementsByTagNameNS(_RDF, "Description"):
        found |= {name: value for (space, name), value in description.attributes.itemsNS() if space == _GPANO}
    for element in document.getElementsByTagNameNS(_GPANO, "*"):
        found[element.localName] = "".join(child.data for child in element.childNodes if child.nodeType == child.TEXT_NODE).strip()
    return found


def _packet(before: bytes, metadata: PanoramaMetadata) -> bytes:
    """An XMP packet whose GPano properties are these, and whose others are those of ``before``."""
    document = _parsed(before)
    graphs = document.getElementsByTagNameNS(_RDF, "RDF")
    if not graphs:
        raise ValueError("Its XMP metadata have no RDF element; remove them first.")
    for description in document.getElementsByTagNameNS(_RDF, "Description"):
        for space, name in [key for key in description.attributes.keysNS() if key[0] == _GPANO]:
            description.removeAttributeNS(space, name)
    for element in document.getElementsByTagNameNS(_GPANO, "*"):
        _remove(element)
    for description in document.getElementsByTagNameNS(_RDF, "Description"):
        if not description.childNodes and all(space in (_RDF, _XMLNS) for space, _ in description.attributes.keysNS()):
            _remove(description)
    description = graphs[0].appendChild(document.createElementNS(_RDF, "rdf:Description"))
    description.setAttributeNS(_XMLNS, "xmlns:rdf", _RDF)
    description.setAttributeNS(_XMLNS, "xmlns:GPano", _GPANO)
    description.setAttributeNS(_RDF, "rdf:about", "")
    for name, value in metadata.properties().items():
        description.setAttributeNS(_GPANO, f"GPano:{name}", value)
    return "".join(node.toxml() for node in document.childNodes).encode()


def _remove(node: minidom.Element) -> None:
    if node.parentNode is not None:
        node.parentNode.removeChild(node)


def _parsed(packet: bytes) -> minidom.Document:
    packet = packet.rstrip(b"\0 \n")
    # a zero: UTF-16, which XMP in files may not be, and which would hide a declaration
    if b"<!DOCTYPE" in packet or b"\0" in packet:
        raise ValueError("Its XMP metadata declare entities, which are not expanded, or are not UTF-8; remove them first.")
    try:
        return minidom.parseString(packet)
    except (ExpatError, UnicodeError) as error:
        raise ValueError(f"Its XMP metadata are damaged ({error}).") from error


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"There is no image file {path}.")
    return path.read_bytes()
