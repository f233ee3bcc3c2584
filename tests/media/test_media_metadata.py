import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.media.gpano import PanoramaMetadata, read_panorama_metadata, save_panorama, tag_panorama
from visiongraft.media.images import read_image
from visiongraft.media.xmp import MAX_JPEG_PACKET, read_xmp, write_xmp

FOREIGN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg" '
    b'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" GPano:ProjectionType="cylindrical">'
    b"<GPano:FullPanoWidthPixels>77</GPano:FullPanoWidthPixels></rdf:Description></rdf:RDF></x:xmpmeta>"
)


@pytest.fixture
def panorama():
    return torch.rand(3, 16, 32, generator=torch.Generator().manual_seed(0))


def jpeg_segments(data):
    """Markers and contents before the scan, read by their own rules."""
    position, found = 2, []
    while data[position + 1] != 0xDA:
        assert data[position] == 0xFF
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        found.append((data[position + 1], data[position + 4 : position + 2 + length]))
        position += 2 + length
    return found


def png_chunks(data):
    position, found = 8, []
    while position < len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        content = data[position + 8 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0] == zlib.crc32(kind + content)
        found.append((kind, content))
        position += 12 + length
    return found


@pytest.mark.parametrize("name", ["panorama.jpg", "panorama.png"])
def test_a_saved_panorama_says_so_to_pillow_and_to_us(panorama, tmp_path, name):
    path = save_panorama(panorama, tmp_path / name, heading_deg=12.5)
    assert read_panorama_metadata(path) == PanoramaMetadata(full_width=32, full_height=16, heading_deg=12.5)
    with Image.open(path) as image:
        image.load()
        packet = image.info["xmp"].decode()
    for text in (
        'GPano:UsePanoramaViewer="True"',
        'GPano:ProjectionType="equirectangular"',
        'GPano:FullPanoWidthPixels="32"',
        'GPano:FullPanoHeightPixels="16"',
        'GPano:CroppedAreaImageWidthPixels="32"',
        'GPano:CroppedAreaLeftPixels="0"',
        'GPano:PoseHeadingDegrees="12.5"',
    ):
        assert text in packet
    assert (read_image(path) - panorama).abs().max() < (0.003 if name.endswith("png") else 0.2)


def test_jpeg_segments_stand_in_the_order_that_readers_expect(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (32, 16)).save(tmp_path / "a.jpg", exif=exif, dpi=(72, 72))
    before = jpeg_segments((tmp_path / "a.jpg").read_bytes())
    tag_panorama(tmp_path / "a.jpg", PanoramaMetadata(full_width=32, full_height=16))
    after = jpeg_segments((tmp_path / "a.jpg").read_bytes())
    kinds = [(kind, content[:4]) for kind, content in after]
    assert kinds[:3] == [(0xE0, b"JFIF"), (0xE1, b"Exif"), (0xE1, b"http")]
    assert [part for part in after if not part[1].startswith(b"http")] == before
    assert Image.open(tmp_path / "a.jpg").getexif()[0x010E] == "a description"


def test_png_metadata_stand_before_the_pixels_and_pixels_stay(panorama, tmp_path):
    path = save_panorama(panorama, tmp_path / "a.png")
    kinds = [kind for kind, _ in png_chunks(path.read_bytes())]
    assert kinds[:3] == [b"IHDR", b"iTXt", b"IDAT"] and kinds.count(b"iTXt") == 1
    before = read_image(path)
    tag_panorama(path, PanoramaMetadata(full_width=64, full_height=32, width=32, height=16, left=5, top=7))
    assert [kind for kind, _ in png_chunks(path.read_bytes())] == kinds and torch.equal(read_image(path), before)
    assert read_panorama_metadata(path) == PanoramaMetadata(full_width=64, full_height=32, width=32, height=16, left=5, top=7)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_other_metadata_stay_and_panorama_metadata_from_before_go(tmp_path, format):
    path = tmp_path / "a"
    Image.new("RGB", (32, 16)).save(path, format=format)
    path.write_bytes(write_xmp(path.read_bytes(), FOREIGN))
    assert read_panorama_metadata(path) is None  # cylindrical
    tag_panorama(path, PanoramaMetadata(full_width=32, full_height=16))
    packet = read_xmp(path.read_bytes())
    assert b'dc:format="image/jpeg"' in packet and b"cylindrical" not in packet and b"77" not in packet
    tag_panorama(path, PanoramaMetadata(full_width=32, full_height=16))
    assert packet == read_xmp(path.read_bytes())


def test_elements_and_compressed_chunks_are_read_too(tmp_path):
    packet = FOREIGN.replace(b"cylindrical", b"equirectangular").replace(
        b"</rdf:Description>", b"<GPano:FullPanoHeightPixels> 40 </GPano:FullPanoHeightPixels></rdf:Description>"
    )
    path = tmp_path / "a.png"
    Image.new("RGB", (77, 40)).save(path)
    data = path.read_bytes()
    content = b"XML:com.adobe.xmp\0\1\0en\0name\0" + zlib.compress(packet)
    chunk = struct.pack(">I", len(content)) + b"iTXt" + content + struct.pack(">I", zlib.crc32(b"iTXt" + content))
    path.write_bytes(data[:33] + chunk + data[33:])
    assert read_panorama_metadata(path) == PanoramaMetadata(full_width=77, full_height=40)


def test_files_without_metadata_have_none(tmp_path):
    for name in ("a.jpg", "a.png"):
        Image.new("RGB", (8, 4)).save(tmp_path / name)
        assert read_panorama_metadata(tmp_path / name) is None


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "declare entities"),
        (b"<a><b></a>", "are damaged"),
        (b"<a/>", "no RDF element"),
    ],
)
def test_hostile_or_broken_metadata_are_refused_and_the_file_stays(tmp_path, packet, message):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (32, 16)).save(path)
    path.write_bytes(write_xmp(path.read_bytes(), packet))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"a\.jpg: Its XMP metadata.*{message}|a\.jpg: .*{message}"):
        tag_panorama(path, PanoramaMetadata(full_width=32, full_height=16))
    assert path.read_bytes() == before


def test_a_compressed_packet_that_grows_without_end_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 4)).save(path)
    content = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(1 << 25))
    chunk = struct.pack(">I", len(content)) + b"iTXt" + content + struct.pack(">I", zlib.crc32(b"iTXt" + content))
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        read_panorama_metadata(path)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_torn_files_give_an_error_or_metadata_but_nothing_else(tmp_path, format, panorama):
    path = save_panorama(panorama, tmp_path / f"a.{format.lower()}")
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for length in generator.integers(0, min(len(whole), 1500), 60):
        path.write_bytes(whole[:length])
        try:
            read_panorama_metadata(path)
        except ValueError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder, p: save_panorama(p[..., :-1], folder / "a.jpg"), "W = 2H; got 16x31"),
        (lambda folder, p: save_panorama(p, folder / "a.webp"), r"written as \.png, \.jpg or \.jpeg"),
        (lambda folder, p: save_panorama(p, folder / "a.jpg", heading_deg=400), r"heading_deg must be in \[0, 360\); got 400"),
        (lambda folder, p: PanoramaMetadata(full_width=8, full_height=4, left=1), r"8x4 at 1, 0\) must lie within"),
        (lambda folder, p: write_xmp(b"GIF89a", b"<a/>"), "JPEG and PNG files only"),
        (lambda folder, p: write_xmp(b"\xff\xd8\xff\xe0\0\2", bytes(MAX_JPEG_PACKET + 1)), "at most 65,504 bytes; got 65,505"),
        (lambda folder, p: write_xmp(b"\xff\xd8\xff\xe0\0\2", b"<a/>"), "no picture after its metadata"),
    ],
)
def test_what_cannot_be_written_is_refused(panorama, tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path, panorama)
    assert not list(tmp_path.iterdir())


def test_the_longest_packet_fits_a_jpeg_and_a_missing_file_is_named(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 4)).save(path)
    path.write_bytes(write_xmp(path.read_bytes(), b"x" * MAX_JPEG_PACKET))
    assert read_xmp(path.read_bytes()) == b"x" * MAX_JPEG_PACKET
    Image.open(path).load()
    with pytest.raises(FileNotFoundError, match="no image file"):
        read_panorama_metadata(tmp_path / "missing.jpg")
