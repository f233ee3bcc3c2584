import json

import pytest

from visiongraft.methods.panorama.circular import CircularPadding
from visiongraft.methods.panorama.config import FILE_NAME, GraftConfig, read_config, with_prefix, write_config


def test_defaults_are_the_papers():
    image, video = GraftConfig.image(), GraftConfig.video()
    assert (image.height, image.width, image.condition_size, image.num_frames, image.time_offset) == (1024, 2048, 512, 1, 1.0)
    assert (video.height, video.width, video.condition_size, video.num_frames, video.time_offset) == (512, 1024, 256, 81, 0.1)
    assert image.padding == CircularPadding(pad_fraction=0.125, min_pad=112, multiple=16)
    assert video.flow_shift == 3.0 and image.flow_shift is None


@pytest.mark.parametrize("config", [GraftConfig.image(lora_rank=64, cond_timestep="zero"), GraftConfig.video(height=64, num_frames=9)])
def test_file_round_trip(config, tmp_path):
    write_config(config, tmp_path / "new")
    assert read_config(tmp_path / "new") == config
    assert read_config(tmp_path / "new" / FILE_NAME) == config
    assert [file.name for file in (tmp_path / "new").iterdir()] == [FILE_NAME]


def test_what_a_file_leaves_out_takes_the_papers_value(tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({"base": "some/base", "mode": "video", "height": 256}))
    assert read_config(tmp_path) == GraftConfig.video(base="some/base", height=256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "audio"}, "mode must be 'image' or 'video'; got 'audio'"),
        ({"cond_timestep": "none"}, "cond_timestep must be 'shared' or 'zero'; got 'none'"),
        ({"num_frames": 80}, r"num_frames must be 4k\+1 \(e.g. 81\); got 80"),
        ({"mode": "image"}, "num_frames of an image graft must be 1; got 81"),
        ({"height": 0}, "height must be a whole number of at least 2; got 0"),
        ({"height": 512.0}, "height must be a whole number of at least 2; got 512.0"),
        ({"condition_size": True}, "condition_size must be a whole number"),
        ({"pad_fraction": 0.0}, r"pad_fraction must be in \(0, 1\]"),
        ({"time_offset": float("nan")}, "time_offset must be finite"),
        ({"lora_rank": 0}, r"lora_rank must be None \(full fine-tune\) or at least 1; got 0"),
        ({"flow_shift": -1.0}, "flow_shift must be None"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    config = object.__new__(GraftConfig)  # past the type checker of the tests, which users do not have
    for name, value in (GraftConfig.video().to_dict() | changes).items():
        object.__setattr__(config, name, value)
    with pytest.raises(ValueError, match=message):
        config.__post_init__()


def test_changes_are_checked():
    with pytest.raises(ValueError, match="num_frames must be 4k"):
        GraftConfig.video().changed(num_frames=80)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold one JSON object; got a list"),
        ('{"mode": "image"}', "must name its base; got only mode"),
        ("{}", "must name its base and mode; got only nothing"),
        ('{"base": "b", "mode": "image", "hight": 4}', "has no hight; it has base, "),
        ('{"base": "b", "mode": "sound"}', "mode must be 'image' or 'video'; got 'sound'"),
        ('{"base": "b", "mode": "image", "height": -4}', "height must be a whole number"),
        ('{"base": "b", "mode": "image", "time_offset": "far"}', FILE_NAME),
    ],
)
def test_damaged_files_are_refused(text, message, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


def test_missing_file_says_what_a_graft_has(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a graft's folder has a graft_config\.json beside its weights"):
        read_config(tmp_path)


def test_prefix_is_added_once_and_never_to_the_null_text():
    prefix = "A 360° image of "
    assert with_prefix("a street", prefix) == "A 360° image of a street"
    assert with_prefix("a 360° Image of a street", prefix) == "a 360° Image of a street"
    assert with_prefix("  ", prefix) == ""
    assert with_prefix("a street", "") == "a street"
