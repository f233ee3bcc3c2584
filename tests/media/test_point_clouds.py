import numpy as np
import pytest
from PIL import Image

from visiongraft.media.point_clouds import draw_points, read_ply, write_ply


def cloud(n=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)).astype(np.float32), rng.integers(0, 256, (n, 3), np.uint8), rng.integers(-2, 5, n)


@pytest.mark.parametrize(("with_colors", "with_labels"), [(False, False), (True, False), (False, True), (True, True)])
def test_clouds_come_back_as_they_were_written(tmp_path, with_colors, with_labels):
    points, colors, labels = cloud()
    path = write_ply(tmp_path / "new" / "a.ply", points, colors if with_colors else None, labels if with_labels else None)
    found = read_ply(path)
    assert np.array_equal(found.points, points) and found.points.dtype == np.float32
    assert np.array_equal(found.colors, colors) if with_colors else found.colors is None
    assert np.array_equal(found.labels, labels) if with_labels else found.labels is None
    assert [p.name for p in path.parent.iterdir()] == ["a.ply"]


def test_file_is_what_the_format_says(tmp_path):
    path = write_ply(tmp_path / "a.ply", np.array([[1.0, 2.0, -0.5]]), np.array([[1, 2, 3]], np.uint8), np.array([7]))
    header = (
        "ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nproperty float y\nproperty float z\n"
        "property uchar red\nproperty uchar green\nproperty uchar blue\nproperty int label\nend_header\n"
    )
    expected = np.array([1, 2, -0.5], "<f4").tobytes() + bytes([1, 2, 3]) + np.array([7], "<i4").tobytes()
    assert path.read_bytes() == header.encode() + expected


def test_files_of_others_are_read_with_their_own_types_and_more_properties(tmp_path):
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment by hand\nelement vertex 2\nproperty double x\nproperty double y\n"
        "property double z\nproperty float32 confidence\nproperty ushort label\nend_header\n"
    )
    row = np.dtype([("p", "<f8", 3), ("c", "<f4"), ("l", "<u2")])
    rows = np.array([([1, 2, 3], 0.5, 9), ([4, 5, 6], 0.1, 65535)], row)
    path = tmp_path / "other.ply"
    path.write_bytes(header.encode() + rows.tobytes())
    found = read_ply(path)
    assert found.points.tolist() == [[1, 2, 3], [4, 5, 6]] and found.labels.tolist() == [9, 65535] and found.colors is None


def test_an_empty_cloud_is_a_cloud(tmp_path):
    assert read_ply(write_ply(tmp_path / "a.ply", np.zeros((0, 3), np.float32), labels=np.zeros(0, np.int64))).points.shape == (0, 3)


def damaged(tmp_path, change):
    points, colors, labels = cloud(4)
    path = write_ply(tmp_path / "a.ply", points, colors, labels)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "75 bytes of points, but 4 points take 76; the file is damaged"),
        (lambda data: data + b"!", "77 bytes of points"),
        (lambda data: data[:40], "not a PLY file"),
        (lambda data: b"\x89PNG" + data, "not a PLY file"),
        (lambda data: b"", "not a PLY file"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "only binary_little_endian 1.0 is read"),
        (lambda data: data.replace(b"element vertex 4", b"element vertex x"), "one element, 'vertex', and its count"),
        (lambda data: data.replace(b"element vertex 4", b"element face 4"), "meshes and other elements are not read"),
        (lambda data: data.replace(b"property float y", b"property list y"), "not understood: 'property list y'"),
        (lambda data: data.replace(b"property float y", b"property float x"), "must have the properties x, y and z"),
        (lambda data: data.replace(b"property float y", b"property int y"), "must have the properties x, y and z, float or double"),
        (lambda data: data.replace(b"uchar red", b"char red"), "colours that are not uchar"),
        (lambda data: data.replace(b"int label", b"float label"), "labels that are not integers"),
        (lambda data: data[:-76] + np.array(np.inf, "<f4").tobytes() + data[-72:], "not finite"),
    ],
)
def test_damaged_and_foreign_files_are_refused_by_name(tmp_path, change, message):
    path = damaged(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        read_ply(path)
    assert "a.ply" in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no point cloud .*b\.ply"):
        read_ply(tmp_path / "b.ply")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(points=np.full((3, 3), np.nan)), "3 of 3 points are not finite"),
        (dict(points=np.zeros((3, 3)), colors=np.zeros((3, 3))), r"colors must be uint8 of shape \(3, 3\); got float64"),
        (dict(points=np.zeros((3, 3)), colors=np.zeros((2, 3), np.uint8)), r"of shape \(2, 3\)"),
        (dict(points=np.zeros((3, 3)), labels=np.zeros(3)), "labels must be 3 integers"),
        (dict(points=np.zeros((1, 3)), labels=np.array([2**31])), "of 32 bits"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_ply(tmp_path / "a.ply", **options)
    assert not list(tmp_path.iterdir())


def test_labels_are_drawn_in_different_colors(tmp_path):
    points = np.random.default_rng(0).normal(size=(200, 3))
    labels = np.arange(200) % 2
    points[0] = np.nan
    path = draw_points(tmp_path / "a.png", points, labels, ("cup", "plate"), robot_points=np.zeros((8, 3)))
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for color in ((0x3B, 0x6F, 0xB6), (0xC8, 0x55, 0x3D), (0x20, 0x24, 0x2A)):
        assert (np.abs(pixels.astype(int) - color).max(-1) < 8).sum() > 100
    with pytest.raises(ValueError, match="no finite point to draw"):
        draw_points(tmp_path / "b.png", points[:1], labels[:1])
