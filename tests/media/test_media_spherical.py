import struct

import av
import numpy as np
import pytest
import torch
from av.sidedata.sidedata import Type

from visiongraft.media.spherical import SphericalVideo, read_spherical, tag_spherical
from visiongraft.media.video import read_video
from visiongraft.media.video_writing import write_video

CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"sv3d", b"proj"}


def tree(data, start=0, end=None):
    """Boxes as (kind, start, end, children), read by their own rules."""
    end, boxes = len(data) if end is None else end, []
    while start < end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", data[start + 8 : start + 16])[0], 16
        assert size >= header and start + size <= end, (kind, size)
        inner = {b"stsd": 8, b"avc1": 78, b"mp4v": 78}.get(kind, 0 if kind in CONTAINERS else None)
        boxes.append((kind, start, start + size, [] if inner is None else tree(data, start + header + inner, start + size)))
        start += size
    return boxes


def flat(boxes):
    return [entry for box in boxes for entry in (box[:3], *flat(box[3]))]


def only(data, kind):
    (found,) = [data[start + 8 : end] for name, start, end in flat(tree(data)) if name == kind]
    return found


def samples(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.fixture(params=["index first", "index last", "64-bit offsets"])
def video(request, tmp_path):
    """A plain video by PyAV, with sound, so that there are two tables of chunks."""
    path = tmp_path / "a.mp4"
    options = {"movflags": "faststart"} if request.param != "index last" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for index in range(20):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(sound.encode(frame))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    if request.param == "64-bit offsets":
        path.write_bytes(with_64_bit_offsets(path.read_bytes()))
    return path


def with_64_bit_offsets(data):
    """stco tables become co64, and the chunks that they point to move along."""
    boxes = flat(tree(data))
    tables = [(start, end) for kind, start, end in boxes if kind == b"stco"]
    grown = sum((end - start - 16) for start, end in tables)
    out = bytearray(data)
    for start, end in reversed(tables):
        offsets = [offset + grown for (offset,) in struct.iter_unpack(">I", data[start + 16 : end])]
        content = data[start + 8 : start + 16] + b"".join(struct.pack(">Q", offset) for offset in offsets)
        out[start:end] = struct.pack(">I4s", len(content) + 8, b"co64") + content
        for kind, parent, parent_end in boxes:
            if parent < start and end <= parent_end and kind in CONTAINERS:
                size = struct.unpack(">I", out[parent : parent + 4])[0]
                out[parent : parent + 4] = struct.pack(">I", size + end - start - 16)
    return bytes(out)


def test_tagging_keeps_every_sample_and_every_box_consistent(video):
    before, frames, packets = video.read_bytes(), read_video(video), samples(video)
    tag_spherical(video)
    after = video.read_bytes()
    kinds = [kind for kind, _, _ in flat(tree(after))]
    for kind in (b"st3d", b"sv3d", b"svhd", b"proj", b"prhd", b"equi", b"uuid"):
        assert kinds.count(kind) == 1
    assert [kind for kind in kinds if kind not in (b"st3d", b"sv3d", b"svhd", b"proj", b"prhd", b"equi", b"uuid")] == [
        kind for kind, _, _ in flat(tree(before))
    ]
    assert samples(video) == packets and torch.equal(read_video(video), frames)
    with av.open(str(video)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 20_000
    # every chunk still begins with the bytes that it began with
    for table, width in ((b"stco", "I"), (b"co64", "Q")):
        old, new = (offsets(data, table, width) for data in (before, after))
        assert len(old) == len(new) and [before[o : o + 16] for o in old] == [after[n : n + 16] for n in new]


def offsets(data, table, width):
    found = [data[start + 16 : end] for kind, start, end in flat(tree(data)) if kind == table]
    return [offset for content in found for (offset,) in struct.iter_unpack(f">{width}", content)]


def test_boxes_say_what_the_standard_wants(tmp_path):
    path = write_video(torch.zeros(2, 3, 32, 64), tmp_path / "a.mp4", 16, spherical=SphericalVideo(yaw_deg=90, pitch_deg=-1.5))
    data = path.read_bytes()
    assert only(data, b"st3d") == bytes(5)  # mono
    assert only(data, b"svhd") == bytes(4) + b"visiongraft\0"
    assert only(data, b"prhd") == bytes(4) + struct.pack(">3i", 90 << 16, -3 << 15, 0)
    assert only(data, b"equi") == bytes(20)
    assert b"<GSpherical:ProjectionType>equirectangular<" in only(data, b"uuid")


def test_ffmpeg_sees_a_spherical_video(tmp_path):
    path = write_video(torch.zeros(2, 3, 32, 64), tmp_path / "a.mov", 16, spherical=SphericalVideo())
    with av.open(str(path)) as container:
        side_data = next(container.decode(video=0)).side_data
    assert Type.SPHERICAL in side_data
    assert struct.unpack("=i", bytes(side_data[Type.SPHERICAL])[:4]) == (0,)  # equirectangular


def test_tags_are_read_back_and_replaced(tmp_path):
    path = write_video(torch.zeros(2, 3, 32, 64), tmp_path / "a.mp4", 16)
    assert read_spherical(path) is None
    for tag in (SphericalVideo(stereo_mode="top-bottom", yaw_deg=12.5, source="é"), SphericalVideo()):
        tag_spherical(path, tag)
        assert read_spherical(path) == tag
    size = path.stat().st_size
    tag_spherical(path)
    assert path.stat().st_size == size


def fragmented(folder):
    with av.open(str(folder / "a.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 32, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))


def sound_only(folder):
    with av.open(str(folder / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "a.mp4").write_bytes(b"not a video at all, but long enough"), "wrong size"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"\0\0\0\x08free"), r"no index \(moov box\)"),
        (lambda folder: (folder / "a.mp4").write_bytes(b"\0\0"), "cut off"),
        (fragmented, "is fragmented"),
        (sound_only, "no video track"),
    ],
)
def test_what_cannot_be_tagged_is_refused_and_stays(tmp_path, make, message):
    make(tmp_path)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match=rf"a\.mp4 cannot be tagged as a panorama: .*{message}"):
        tag_spherical(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"stereo_mode": "left"}, "must be one of mono, top-bottom, left-right"), ({"pitch_deg": 91}, r"within \[-90, 90\]")],
)
def test_tags_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SphericalVideo(**arguments)


def test_a_missing_file_is_named(tmp_path):
    for function in (tag_spherical, read_spherical):
        with pytest.raises(FileNotFoundError, match="no video file"):
            function(tmp_path / "a.mp4")


def test_flipped_bytes_give_a_tag_an_error_or_none(tmp_path):
    path = write_video(torch.zeros(2, 3, 32, 64), tmp_path / "a.mp4", 16, spherical=SphericalVideo())
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        flipped = bytearray(whole)
        for position in generator.integers(0, len(whole), 4):
            flipped[position] = generator.integers(0, 256)
        path.write_bytes(flipped)
        try:
            assert read_spherical(path) is None or isinstance(read_spherical(path), SphericalVideo)
        except ValueError as error:
            assert str(path) in str(error)
