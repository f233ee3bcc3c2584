"""One folder for a trained graft: round trip, whole or not at all, refusals by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from visiongraft.methods.feature_smoothing import bundle, released
from visiongraft.methods.feature_smoothing.diffusion_purifier import DiffusionPurifier
from visiongraft.methods.feature_smoothing.mapper import SmoothnessMapper
from visiongraft.methods.feature_smoothing.unet_purifier import UNetPurifier


def _parts() -> tuple[UNetPurifier, SmoothnessMapper]:
    torch.manual_seed(0)
    return UNetPurifier(widths=(8, 16), blocks_per_level=1, data_std=0.3), SmoothnessMapper(8, num_prefix_tokens=1, gate=True)


def _same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return type(first) is type(second) and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_both_parts_come_back_with_weights_and_configuration(tmp_path):
    purifier, mapper = _parts()
    folder = bundle.save(tmp_path / "feature_smoothing", purifier, mapper)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "mapper.safetensors", "purifier.safetensors"]
    first, second = released.load(folder, "purifier"), released.load(str(folder), "mapper")
    assert _same(first, purifier) and first.config.data_std == 0.3 and not first.training
    assert _same(second, mapper) and second.config.gate is True and second.config.num_prefix_tokens == 1
    assert [file.name for file in tmp_path.iterdir()] == ["feature_smoothing"]  # no temporary folder stays


def test_a_diffusion_purifier_is_a_purifier_too(tmp_path):
    purifier = DiffusionPurifier(16, (32, 32), 1, (), 16, t_mode="fractional")
    loaded = released.load(bundle.save(tmp_path / "out", purifier), "purifier")
    assert _same(loaded, purifier) and loaded.config.t_mode == "fractional"


def test_the_only_part_need_not_be_named_and_two_must_be(tmp_path):
    purifier, mapper = _parts()
    assert _same(released.load(bundle.save(tmp_path / "one", mapper=mapper)), mapper)
    bundle.save(tmp_path / "two", purifier, mapper)
    with pytest.raises(ValueError, match="two holds purifier and mapper; choose one with component="):
        released.load(tmp_path / "two")
    with pytest.raises(ValueError, match="one holds mapper; it has no purifier"):
        released.load(tmp_path / "one", "purifier")


def test_an_empty_folder_is_filled_and_another_is_left_alone(tmp_path):
    purifier, mapper = _parts()
    (tmp_path / "empty").mkdir()
    assert _same(released.load(bundle.save(tmp_path / "empty", purifier)), purifier)
    before = (tmp_path / "empty" / "config.json").read_bytes()
    with pytest.raises(FileExistsError, match="empty exists and is not empty; choose a new folder"):
        bundle.save(tmp_path / "empty", mapper=mapper)
    assert (tmp_path / "empty" / "config.json").read_bytes() == before and not (tmp_path / "empty" / "mapper.safetensors").exists()


def test_an_interrupted_save_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle.json, "dumps", stopped)  # after the weights, before the configuration
    with pytest.raises(KeyboardInterrupt):
        bundle.save(tmp_path / "out", *_parts())
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_save_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to save; give a purifier, a mapper or both"):
        bundle.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_are_named(tmp_path):
    purifier, mapper = _parts()
    folder = bundle.save(tmp_path / "out", purifier, mapper)
    tensors = mapper.state_dict()
    del tensors["proj_out.bias"]
    save_file(tensors, folder / "mapper.safetensors")
    with pytest.raises(ValueError, match=r"does not fit SmoothnessMapper: missing proj_out\.bias"):
        released.load(folder, "mapper")
    (folder / "purifier.safetensors").unlink()
    with pytest.raises(ValueError, match=r"purifier\.safetensors is no safetensors file, or is damaged"):
        released.load(folder, "purifier")


def test_a_newer_format_and_a_part_without_settings_are_refused(tmp_path):
    folder = bundle.save(tmp_path / "out", _parts()[0])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "purifier": None}))
    with pytest.raises(ValueError, match="holds no part; it has no purifier"):
        released.load(folder, "purifier")
    (folder / "config.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(ValueError, match=r"has version 2 of the format; this release reads version 1"):
        released.load(folder, "purifier")


def test_other_folders_are_not_taken_for_a_bundle(tmp_path):
    _parts()[0].save_pretrained(tmp_path)
    assert bundle.read_part(tmp_path, "purifier") is None and bundle.read_part(tmp_path / "nothing") is None
