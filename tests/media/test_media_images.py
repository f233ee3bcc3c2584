import struct
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from visiongraft.media.images import center_square, encode_image, list_images, read_image, resize, save_image, to_image_tensor


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def test_png_round_trip_is_exact(tmp_path, pixels):
    image = to_image_tensor(pixels)
    save_image(image, tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png"), image)


def test_exif_orientation_is_applied(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png"), to_image_tensor(np.rot90(pixels, -1)))


def test_every_mode_becomes_rgb_in_the_unit_range(tmp_path, pixels):
    upright = to_image_tensor(pixels)
    grey = np.array(Image.fromarray(pixels).convert("L"))
    deep = grey.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "ink.tif")
    Image.fromarray(pixels).quantize(24).save(tmp_path / "palette.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    grey_tensor = torch.from_numpy(grey).float().expand(3, -1, -1) / 255
    assert torch.allclose(read_image(tmp_path / "deep.png"), grey_tensor, atol=1e-4)
    assert torch.equal(read_image(tmp_path / "grey.png"), grey_tensor)
    assert torch.allclose(read_image(tmp_path / "ink.tif"), upright, atol=0.02)
    assert torch.allclose(read_image(tmp_path / "palette.png"), upright, atol=0.2)


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0, 1] = (255, 0, 0, 128)
    image = to_image_tensor(Image.fromarray(rgba))
    assert image[:, 0, 0].tolist() == [1, 1, 1]
    assert torch.allclose(image[:, 0, 1], torch.tensor([1, 127 / 255, 127 / 255]), atol=1e-6)


def huge_png(path, side):
    """A PNG whose header says side x side pixels, with no data to speak of."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(tmp_path, side):
    huge_png(tmp_path / "bomb.png", side)
    with pytest.raises(ValueError, match=r"pixels(, more)? than the 100,000,000 accepted|more pixels than"):
        read_image(tmp_path / "bomb.png")


def test_files_that_are_no_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image file"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not an image that can be read"):
        read_image(tmp_path / "text.png")
    noise = np.random.default_rng(1).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:4000])
    with pytest.raises(ValueError, match="damaged"):
        read_image(tmp_path / "torn.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_a_file_with_flipped_bytes_gives_an_image_or_an_error_that_names_it(tmp_path, pixels, format):
    path, generator = tmp_path / f"a.{format.lower()}", np.random.default_rng(0)
    Image.fromarray(pixels).save(path, format=format)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(150):
        flipped = np.frombuffer(whole, np.uint8).copy()
        flipped[generator.integers(0, min(len(whole), 120), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(flipped)
        try:
            image = read_image(path, max_pixels=100_000)
            assert image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1
            outcomes.add("image")
        except ValueError as error:
            assert str(path) in str(error)
            outcomes.add("error")
    assert "error" in outcomes


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, pixels, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"a\.png may not be read"):
        read_image(tmp_path / "a.png")


def test_nan_pixels_of_a_file_are_told_with_its_name(tmp_path):
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: The image contains NaN"):
        read_image(tmp_path / "a.tif")


def test_byte_order_does_not_change_an_image(pixels):
    deep = pixels.astype(np.uint16) * 257
    assert torch.equal(to_image_tensor(deep.astype(">u2")), to_image_tensor(deep))
    assert torch.allclose(to_image_tensor(deep), to_image_tensor(pixels), atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((2, 2, 3), np.nan, np.float32), "NaN or infinite"),
        (np.full((2, 2, 3), 200.0, np.float32), "divide by 255"),
        (np.full((2, 2, 3), -1.5, np.float32), "undo the encoder's normalisation"),
        (np.zeros((2, 2, 5), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((2, 2, 3), np.int64), "uint8, or floating point"),
        (torch.zeros(2, 3), "1, 3 or 4 channels"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_a_hint(image, message):
    with pytest.raises(ValueError, match=message):
        to_image_tensor(image)


def test_images_of_a_folder_come_in_natural_order(tmp_path):
    for name in ("b10.png", "b2.PNG", "a.jpg", "notes.txt", ".b2-half-written.png", "b²3.png"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b2.PNG", "b10.png", "b²3.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no images"):
        list_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no image or folder"):
        list_images(tmp_path / "nowhere")


def test_resizing_keeps_constants_and_suppresses_what_the_small_size_cannot_show():
    assert torch.allclose(resize(torch.full((3, 40, 30), 0.3), (7, 9)), torch.full((3, 7, 9), 0.3), atol=1e-6)
    stripes = (torch.arange(64) % 2).float().expand(3, 64, 64)
    assert (resize(stripes, (16, 16)) - 0.5).abs().max() < 0.1


def test_center_square_is_the_middle():
    image = torch.arange(3 * 4 * 8).view(3, 4, 8).float()
    assert torch.equal(center_square(image), image[:, :, 2:6])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_at_8_and_16_bits(tmp_path, orientation):
    deep = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((deep // 257).astype(np.uint8)).save(tmp_path / "a.png", exif=exif)
    write_deep_png(tmp_path / "deep.png", deep, exif.tobytes().removeprefix(b"Exif\0\0"))
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=[(0x0112, "H", 1, orientation, True)])
    turns = {1: deep, 2: deep[:, ::-1], 3: deep[::-1, ::-1], 4: deep[::-1], 5: deep.swapaxes(0, 1)}
    turns |= {6: np.rot90(deep, -1), 7: deep[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(deep)}
    upright = to_image_tensor(turns[orientation])
    for name in ("a.png", "deep.png", "deep.tif"):
        assert torch.allclose(read_image(tmp_path / name), upright, atol=1e-6)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_deep_png(path, pixels, exif=b""):
    """A 16-bit PNG of height x width x (1, 2, 3 or 4 channels), which Pillow does not write."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    metadata = chunk(b"eXIf", exif) if exif else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + metadata + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_16_bits_are_kept(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (6, 4, 4), dtype=np.uint16)
    expected = torch.from_numpy(deep[..., :3] / np.float32(65535)).permute(2, 0, 1)
    write_deep_png(tmp_path / "rgb.png", deep[..., :3])
    tifffile.imwrite(tmp_path / "rgb.tif", deep[..., :3], photometric="rgb", compression="zlib", byteorder=">")
    tifffile.imwrite(tmp_path / "planes.tif", deep[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("rgb.png", "rgb.tif", "planes.tif"):
        assert torch.allclose(read_image(tmp_path / name), expected, atol=1e-7)
    opacity = torch.from_numpy(deep[..., 3:] / np.float32(65535)).permute(2, 0, 1)
    write_deep_png(tmp_path / "rgba.png", deep)
    write_deep_png(tmp_path / "grey.png", deep[..., :1])
    write_deep_png(tmp_path / "grey_alpha.png", deep[..., 2:])
    assert torch.allclose(read_image(tmp_path / "rgba.png", alpha="black"), expected * opacity, atol=1e-6)
    assert torch.allclose(read_image(tmp_path / "grey.png"), expected[:1].expand(3, -1, -1), atol=1e-7)
    assert torch.allclose(read_image(tmp_path / "grey_alpha.png", alpha="black"), (expected[2:] * opacity).expand(3, -1, -1), atol=1e-6)


def test_transparency_goes_where_the_caller_says(tmp_path):
    rgba = np.full((2, 2, 4), 255, np.uint8)
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    assert torch.equal(read_image(tmp_path / "opaque.png", alpha="refuse"), torch.ones(3, 2, 2))
    rgba[0, 0] = (255, 0, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert torch.allclose(read_image(tmp_path / "clear.png", alpha="black")[:, 0, 0], torch.tensor([128 / 255, 0, 0]), atol=1e-6)
    assert torch.allclose(read_image(tmp_path / "clear.png", alpha="white")[:, 0, 0], torch.tensor([1, 127 / 255, 127 / 255]), atol=1e-6)
    with pytest.raises(ValueError, match=r"clear\.png: image has transparency: pass alpha='white' or 'black'"):
        read_image(tmp_path / "clear.png", alpha="refuse")
    with pytest.raises(ValueError, match="image has transparency"):
        to_image_tensor(torch.full((4, 2, 2), 0.5), alpha="refuse")


def test_alpha_is_kept_as_a_fourth_channel_with_the_colours_under_it(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (3, 5, 4), np.uint8)
    for name, mode, channels in (("rgba.png", "RGBA", [0, 1, 2, 3]), ("rgb.png", "RGB", [0, 1, 2]), ("grey.png", "L", [0])):
        Image.fromarray(rgba[..., channels].squeeze(), mode=mode).save(tmp_path / name)
        kept = read_image(tmp_path / name, alpha="keep")
        expected = (
            rgba if mode == "RGBA" else np.concatenate([np.broadcast_to(rgba[..., channels], (3, 5, 3)), rgba[..., :1] * 0 + 255], -1)
        )
        assert torch.equal(kept, torch.from_numpy(expected).permute(2, 0, 1).float() / 255)


def test_jpeg_is_close_and_its_quality_decides_how_large_it_is(tmp_path):
    image = torch.stack(torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij"))
    image = torch.cat([image, 1 - image[:1]])
    save_image(image, tmp_path / "fine.JPG", quality=98)
    save_image(image, tmp_path / "coarse.jpeg", quality=10)
    assert (read_image(tmp_path / "fine.JPG") - image).abs().max() < 0.02
    assert (tmp_path / "coarse.jpeg").stat().st_size < (tmp_path / "fine.JPG").stat().st_size
    assert Image.open(tmp_path / "fine.JPG").format == "JPEG"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: save_image(torch.zeros(3, 2, 2), folder / "a.tif"), r"written as \.png, \.jpg or \.jpeg; got 'a\.tif'"),
        (lambda folder: save_image(torch.zeros(3, 2, 2), folder / "a.jpg", quality=0), "1 to 100; got 0"),
        (lambda folder: encode_image(torch.zeros(3, 1, 70_000), "JPEG"), "at most 65,535 pixels a side; got 1x70000"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_torn_16_bit_image_is_damaged_and_not_half_an_image(tmp_path):
    write_deep_png(tmp_path / "a.png", np.random.default_rng(0).integers(0, 65536, (40, 40, 3), dtype=np.uint16))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"a\.png is damaged"):
        read_image(tmp_path / "a.png")
