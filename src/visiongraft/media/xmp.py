"""XMP packets inside JPEG and PNG files: taking them out and putting them in without touching the pixels."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD = b"XML:com.adobe.xmp"
# the length of a segment counts its own two bytes
MAX_JPEG_PACKET = 65_535 - 2 - len(_JPEG_HEADER)
MAX_PNG_PACKET = 1 << 24
_APP0, _APP1, _START_OF_SCAN = 0xE0, 0xE1, 0xDA


class _Part(NamedTuple):
    """A JPEG segment (kind: its marker's second byte) or a PNG chunk (kind: its four characters), and the bytes of the whole."""

    kind: int | bytes
    content: bytes
    whole: bytes


def read_xmp(file: bytes) -> bytes | None:
    """The XMP packet of a JPEG or PNG file's content; ``None`` where it has none.

    Raises:
        ValueError: neither JPEG nor PNG, or a damaged file.
    """
    if file.startswith(_PNG_SIGNATURE):
        return next((_png_packet(part) for part in _png_chunks(file) if _is_png_xmp(part)), None)
    parts, _ = _jpeg_segments(file)
    return next((part.content[len(_JPEG_HEADER) :] for part in parts if _is_jpeg_xmp(part)), None)


def write_xmp(file: bytes, packet: bytes) -> bytes:
    """A JPEG or PNG file's content with this XMP packet in place of any before; pixels stay as they are.

    In a JPEG it stands after the JFIF and Exif segments, in a PNG before the pixels.

    Raises:
        ValueError: neither JPEG nor PNG, a damaged file, or a packet that is too long for a JPEG segment.
    """
    if file.startswith(_PNG_SIGNATURE):
        chunks = [part for part in _png_chunks(file) if not _is_png_xmp(part)]
        # keyword, then: not compressed, method 0, no language, no translated keyword
        chunk = _png_chunk(b"iTXt", _PNG_KEYWORD + bytes(5) + packet)
        return _PNG_SIGNATURE + chunks[0].whole + chunk + b"".join(part.whole for part in chunks[1:])
    if len(packet) > MAX_JPEG_PACKET:
        raise ValueError(f"An XMP packet in a JPEG has at most {MAX_JPEG_PACKET:,} bytes; got {len(packet):,}.")
    parts, rest = _jpeg_segments(file)
    parts = [part for part in parts if not _is_jpeg_xmp(part)]
    before = 0
    while before < len(parts) and (parts[before].kind == _APP0 or parts[before].content.startswith(b"Exif\0")):
        before += 1
    content = _JPEG_HEADER + packet
    segment = struct.pack(">BBH", 0xFF, _APP1, len(content) + 2) + content
    whole = [part.whole for part in parts]
    return b"\xff\xd8" + b"".join([*whole[:before], segment, *whole[before:]]) + rest


def _jpeg_segments(file: bytes) -> tuple[list[_Part], bytes]:
    """The segments before the first scan, and everything from there on."""
    if not file.startswith(b"\xff\xd8\xff"):
        raise ValueError("Metadata can be read from and written to JPEG and PNG files only.")
    parts, position = [], 2
    while position + 4 <= len(file):
        if file[position] != 0xFF:
            break
        kind = file[position + 1]
        if kind == 0xFF:  # fill bytes
            position += 1
            continue
        if kind == _START_OF_SCAN:
            return parts, file[position:]
        end = position + 2 + struct.unpack(">H", file[position + 2 : position + 4])[0]
        parts.append(_Part(kind, file[position + 4 : end], file[position:end]))
        position = end
    raise ValueError("The JPEG file is damaged: it has no picture after its metadata.")


def _is_jpeg_xmp(part: _Part) -> bool:
    return part.kind == _APP1 and part.content.startswith(_JPEG_HEADER)


def _png_chunks(file: bytes) -> Iterator[_Part]:
    position = len(_PNG_SIGNATURE)
    while position < len(file):
        header = file[position : position + 8]
        end = position + 12 + struct.unpack(">I", header[:4])[0] if len(header) == 8 else len(file) + 1
        if end > len(file):
            raise ValueError("The PNG file is damaged: it ends within a chunk.")
        yield _Part(header[4:], file[position + 8 : end - 4], file[position:end])
        position = end
        if header[4:] == b"IEND":
            return
    raise ValueError("The PNG file is damaged: it has no end.")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _is_png_xmp(part: _Part) -> bool:
    return part.kind == b"iTXt" and part.content.startswith(_PNG_KEYWORD + b"\0")


def _png_packet(part: _Part) -> bytes:
    compressed = part.content[len(_PNG_KEYWORD) + 1 : len(_PNG_KEYWORD) + 2] == b"\1"
    # behind the two bytes about compression: language and translated keyword, each ended by a zero
    text = part.content[len(_PNG_KEYWORD) + 3 :].split(b"\0", 2)
    if len(text) < 3:
        raise ValueError("The PNG file is damaged: its XMP chunk is too short.")
    if not compressed:
        return text[2]
    inflater = zlib.decompressobj()
    try:
        packet = inflater.decompress(text[2], MAX_PNG_PACKET)
    except zlib.error as error:
        raise ValueError(f"The PNG file is damaged: its XMP chunk does not decompress ({error}).") from error
    if not inflater.eof:
        raise ValueError(f"The PNG file's XMP packet is cut off, or has more than {MAX_PNG_PACKET:,} bytes.")
    return packet
