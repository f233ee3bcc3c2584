import math
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from visiongraft.media import video_writing
from visiongraft.media.orientation import orientation_from_matrix, turn_upright
from visiongraft.media.video import chosen_frames, iter_video, probe_video, read_video
from visiongraft.media.video_frames import TimedFrame
from visiongraft.media.video_writing import video_writer, write_video


def smooth_frames(count=12, height=64, width=96):
    """Slowly varying colours that move, so that 4:2:0 loses little."""
    y, x = torch.meshgrid(torch.linspace(0, 2 * math.pi, height), torch.linspace(0, 2 * math.pi, width), indexing="ij")
    phases = torch.arange(count)[:, None, None] * 0.2
    return torch.stack([0.5 + 0.4 * (x + phases).sin(), 0.5 + 0.4 * (y - phases).cos(), 0.5 + 0.4 * (x + y + phases).sin()], 1)


def numbered_frames(count):
    """Frame k shows k in binary, in eight black or white squares."""
    bits = (torch.arange(count)[:, None] >> torch.arange(8)) & 1
    return bits.float().repeat_interleave(16, 1)[:, None, None, :].expand(count, 3, 16, 128)


def numbers(frames):
    return [int(((frame[0, 8, 8::16] > 0.5).int() << torch.arange(8)).sum()) for frame in frames]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """90 numbered frames at 30 a second."""
    return write_video(numbered_frames(90), tmp_path_factory.mktemp("clip") / "clip.mp4", 30, crf=0)


def encode(path, frames, times=None, codec="libx264", format=None, setup=None):
    """A file of frames shown at ``times`` seconds (default: 30 a second), by PyAV alone and without tags for colour."""
    unit = Fraction(1, 30 if times is None else 1000)
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "4"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[2:], "yuv420p"
        stream.codec_context.time_base = unit
        if setup is not None:
            setup(stream)
        for k, pixels in enumerate((frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = k if times is None else round(times[k] * 1000), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("size", [(64, 96), (720, 1280)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_round_trip_keeps_colours(tmp_path, size, suffix):
    frames = smooth_frames(3, *size)
    path = write_video(frames, tmp_path / f"a{suffix}", 16, crf=4)
    error = (read_video(path) - frames).abs()
    assert error.mean() < 0.008 and error.max() < 0.05


def test_flat_colours_come_back_within_two_levels(tmp_path):
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 30, 90], [10, 200, 220]])
    for index, colour in enumerate(colours):
        path = write_video(colour.byte()[None, :, None, None].expand(2, 3, 32, 32), tmp_path / f"{index}.mp4", 16, crf=1)
        assert (read_video(path, dtype=torch.uint8).int() - colour[None, :, None, None]).abs().max() <= 2


def test_file_says_its_colours_and_has_its_index_first(tmp_path):
    path = write_video(smooth_frames(), tmp_path / "a.mp4", 16)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_range, context.colorspace) == (ColorRange.MPEG, Colorspace.ITU709)
        assert (context.color_primaries, context.color_trc) == (ColorPrimaries.BT709, ColorTrc.BT709)
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("size", "space"), [((480, 640), Colorspace.ITU601), ((720, 1280), Colorspace.ITU709)])
def test_untagged_colours_are_taken_as_players_do(tmp_path, size, space):
    colour = torch.tensor([200, 60, 90])
    path = encode(tmp_path / "a.mp4", (colour / 255)[None, :, None, None].expand(2, 3, *size))  # written as BT.709
    distance = int((read_video(path, dtype=torch.uint8)[0, :, 8, 8].int() - colour).abs().max())
    assert distance <= 3 if space == Colorspace.ITU709 else distance > 8


def test_probe_tells_what_is_written(clip):
    info = probe_video(clip)
    assert (info.num_frames, info.fps, info.height, info.width, info.duration) == (90, 30, 16, 128, 3)
    assert (info.rotation_deg, info.codec, info.has_audio) == (0, "h264", False)


@pytest.mark.parametrize(("suffix", "codec"), [(".mkv", "libx264"), (".avi", "libx264"), (".ts", "libx264"), (".webm", "libvpx-vp9")])
def test_other_containers_are_read_and_their_frames_counted(tmp_path, suffix, codec):
    path = encode(tmp_path / f"a{suffix}", numbered_frames(20), codec=codec, format={".ts": "mpegts"}.get(suffix))
    info = probe_video(path)
    assert (info.num_frames, info.height, info.width) == (20, 16, 128)
    assert numbers(iter_video(path)) == list(range(20))
    assert numbers(iter_video(path, fps=15)) == list(range(0, 20, 2))


def test_frames_come_in_order_whole_or_from_a_time_on(clip):
    assert numbers(iter_video(clip)) == list(range(90))
    assert numbers(iter_video(clip, start=2.5)) == list(range(75, 90))
    assert numbers(iter_video(clip, start=2.5, num_frames=3)) == [75, 76, 77]
    assert numbers(iter_video(clip, start=0.51))[0] == 16


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_starting_late_gives_the_same_frames_as_reading_through(tmp_path, suffix):
    path = encode(tmp_path / f"a{suffix}", numbered_frames(120), setup=lambda stream: setattr(stream.codec_context, "gop_size", 25))
    for start in (1.1, 3.3):
        assert numbers(iter_video(path, start=start)) == list(range(math.ceil(start * 30 - 1e-6), 120))


@pytest.mark.parametrize("start", [0, 0.7, 2])
@pytest.mark.parametrize("fps", [16, 30, 24.0, 60])
def test_other_rates_take_the_nearest_frame(clip, fps, start):
    seen = numbers(iter_video(clip, fps=fps, start=start))
    assert len(seen) == math.ceil((3 - start) * fps - 1e-6)
    for k, frame in enumerate(seen):
        assert abs(frame / 30 - (start + k / fps)) <= (1 / 60 if frame < 89 else 1 / 30) + 1e-6


def test_unequal_times_are_read_by_when_frames_are_shown(tmp_path):
    times = [0, 0.1, 0.15, 0.6, 0.65, 1.4]
    path = encode(tmp_path / "vfr.mp4", numbered_frames(6), times)
    assert numbers(iter_video(path, num_frames=6)) == list(range(6))
    wanted = np.arange(14) / 10 + 0.01
    assert numbers(iter_video(path, fps=10, start=0.01, num_frames=14)) == np.abs(wanted[:, None] - times).argmin(1).tolist()


def test_choosing_frames_is_nearest_for_any_spacing():
    generator = np.random.default_rng(0)
    for _ in range(50):
        times = np.cumsum(generator.uniform(0.01, 0.3, 12))
        times -= times[0]
        fps, start = float(generator.uniform(2, 40)), float(generator.uniform(0, 0.5))
        timed = [TimedFrame(float(time), 0.05, index, 1.0) for index, time in enumerate(times)]
        chosen = [each.frame for each in chosen_frames(iter(timed), start, fps)]
        wanted = start + np.arange(math.ceil((times[-1] + 0.05 - start) * fps)) / fps
        assert chosen == np.abs(wanted[:, None] - times).argmin(1).tolist()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_display_matrix_is_honoured(tmp_path, turns, mirrored):
    path = tmp_path / "turned.mp4"
    stored = (smooth_frames(1, 32, 64)[0] * 255).round().byte()
    stored[:, :16, :16] = 0  # a dark corner
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90 * turns, hflip=mirrored)
        frame = av.VideoFrame.from_ndarray(stored.permute(1, 2, 0).contiguous().numpy(), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    upright = torch.rot90(stored, turns, (1, 2))
    upright = upright.flip(-1) if mirrored else upright
    seen = read_video(path, dtype=torch.uint8)[0]
    info = probe_video(path)
    assert seen.shape == upright.shape == (3, info.height, info.width)
    dark = (seen.float().mean(0) < 30).float(), (upright.float().mean(0) < 30).float()
    assert (dark[0] - dark[1]).abs().mean() < 0.02


def test_matrix_of_a_telephone_held_upright_turns_clockwise():
    one = 1 << 16
    matrix = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], np.int32).tobytes()
    pixels = np.arange(12).reshape(3, 4, 1)
    assert np.array_equal(turn_upright(pixels, orientation_from_matrix(matrix)), np.rot90(pixels, -1))


def test_a_display_matrix_that_leans_is_refused():
    one = 1 << 16
    leaning = np.array([one * 8 // 10, one * 6 // 10, 0, -one * 6 // 10, one * 8 // 10, 0, 0, 0, 1 << 30], np.int32).tobytes()
    with pytest.raises(ValueError, match="other than quarter turns"):
        orientation_from_matrix(leaning)


def test_wide_pixels_become_square(tmp_path):
    def setup(stream):
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)

    path = encode(tmp_path / "wide.mp4", torch.zeros(2, 3, 32, 64), setup=setup)
    assert (probe_video(path).height, probe_video(path).width) == (32, 96) and read_video(path).shape == (2, 3, 32, 96)


def test_streaming_holds_one_frame_at_a_time(tmp_path):
    path = write_video(numbered_frames(40), tmp_path / "a.mp4", 30)
    frames = iter_video(path, dtype=torch.uint8)
    first = next(frames)
    assert first.dtype == torch.uint8 and first.shape == (3, 16, 128)
    frames.close()  # and the file with it
    path.unlink()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8])
def test_frames_have_the_type_that_is_asked_for(clip, dtype):
    frames = read_video(clip, num_frames=2, dtype=dtype)
    assert frames.dtype == dtype and frames.max() <= (255 if dtype == torch.uint8 else 1)


def test_without_x264_mpeg4_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(video_writing.av, "codecs_available", {"mpeg4"})
    path = write_video(smooth_frames(4), tmp_path / "a.mp4", 16, crf=4)
    assert probe_video(path).codec == "mpeg4" and (read_video(path) - smooth_frames(4)).abs().mean() < 0.03


def bad_file(folder, kind):
    path = folder / "a.mp4"
    if kind == "text":
        path.write_text("no pictures here\n" * 100)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "playlist":
        path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")
    elif kind == "image":
        Image.new("RGB", (32, 32)).save(path, format="PNG")
    elif kind == "bare stream":
        encode(path, numbered_frames(4), format="h264")
    elif kind == "sound":
        path = folder / "a.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            frame.rate = 8000
            container.mux(stream.encode(frame))
    elif kind == "truncated":
        write_video(torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)), path, 16)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "header":
        write_video(numbered_frames(4), path, 16)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "corrupt":
        write_video(torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(0)), path, 16)
        data = bytearray(path.read_bytes())
        for position in np.random.default_rng(0).integers(data.index(b"mdat") + 1500, len(data), 30):
            data[position] ^= 255
        path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("missing", FileNotFoundError, r"no video file .*a\.mp4"),
        ("text", ValueError, r"a\.mp4 is not a video that can be read"),
        ("empty", ValueError, "is not a video"),
        ("playlist", ValueError, "is not a video"),
        ("image", ValueError, "is not a video"),
        ("bare stream", ValueError, "is not a video"),
        ("sound", ValueError, r"a\.mkv has no video stream"),
        ("truncated", ValueError, r"a\.mp4 is truncated: \d+ of its 20 frames are missing"),
        ("header", ValueError, r"is not a video|is damaged|no video stream"),
        ("corrupt", ValueError, r"a\.mp4 is damaged"),
    ],
)
def test_files_that_are_no_whole_videos_are_named(tmp_path, kind, error, message):
    path = bad_file(tmp_path, kind)
    with pytest.raises(error, match=message):
        read_video(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fps": 0}, "fps must be positive; got 0"),
        ({"fps": -16.0}, "fps must be positive; got -16"),
        ({"fps": float("nan")}, "fps must be positive"),
        ({"start": -1}, "start must be 0 or more seconds; got -1"),
        ({"start": 3.2}, r"clip\.mp4 has no frames from 3.2 s on"),
        ({"num_frames": 0}, "num_frames must be 1 or more; got 0"),
        ({"num_frames": 81, "fps": 16}, "has 48 frames from 0 s on at 16 frames a second, but 81 were asked for"),
        ({"dtype": torch.int64}, "dtype must be floating point or uint8"),
        ({"max_bytes": 50_000}, r"3 or more frames of 128x16 need 7.37e-05 GB"),
        ({"max_bytes": 50_000, "num_frames": 50}, r"50 or more frames of 128x16"),
    ],
)
def test_what_cannot_be_read_is_refused(clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_video(clip, **arguments)


def test_frames_that_are_too_large_are_refused(clip):
    with pytest.raises(ValueError, match=r"frames of 128x16, more than the 1,000 pixels accepted"):
        next(iter_video(clip, max_pixels=1000))


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (torch.zeros(2, 3, 33, 32), {}, r"even height and width \(4:2:0 chroma\); got 33x32; crop or resize"),
        ([torch.zeros(3, 32, 32), torch.zeros(3, 16, 32)], {}, "have one size; got 16x32 after 32x32"),
        (torch.full((2, 3, 32, 32), 7.0), {}, "divide by 255"),
        (torch.zeros(2, 3, 32, 32), {"fps": 0}, "fps must be positive; got 0"),
        (torch.zeros(2, 3, 32, 32), {"crf": 60}, r"crf must be 0 \(best\) to 51; got 60"),
        (torch.zeros(2, 3, 32, 32), {"path": "a.gif"}, r"written as \.mp4, \.m4v, \.mov; got 'a\.gif'"),
        ([], {}, "at least one frame"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, frames, arguments, message):
    arguments = {"fps": 16, **arguments, "path": tmp_path / arguments.get("path", "a.mp4")}
    with pytest.raises(ValueError, match=message):
        write_video(frames, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_video_leaves_the_one_from_before(tmp_path, interruption):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    with pytest.raises(interruption), video_writer(path, 16) as writer:
        writer.write(torch.zeros(3, 32, 32))
        raise interruption
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
