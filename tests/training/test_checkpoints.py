import json

import pytest
import torch
from safetensors.torch import load_file

from visiongraft.training.checkpoints import list_checkpoints, load_latest, save_checkpoint


def tensors(step):
    return {"module-net": {"weight": torch.full((2, 3), float(step)), "count": torch.tensor(step)}, "optimizer-main": {}}


def test_checkpoint_comes_back_as_written(tmp_path):
    path = save_checkpoint(tmp_path, 7, tensors(7), {"scale": 0.1 + 0.2}, keep=1)
    found = load_latest(tmp_path)

    assert found is not None
    assert (found.path, found.step, found.state) == (path, 7, {"scale": 0.1 + 0.2})
    assert found.tensors.keys() == {"module-net", "optimizer-main"}
    assert torch.equal(found.tensors["module-net"]["weight"], torch.full((2, 3), 7.0))
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_newest_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, step, tensors(step), {}, keep=2)

    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000015", "step-00000020"]


def test_leftovers_of_a_kill_are_swept_and_never_read(tmp_path):
    save_checkpoint(tmp_path, 5, tensors(5), {}, keep=2)
    for name in (".step-00000010", ".step-00000005-old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"step": 10}))

    assert load_latest(tmp_path).step == 5
    save_checkpoint(tmp_path, 10, tensors(10), {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000010"]


def test_full_disk_leaves_the_earlier_checkpoint_the_newest(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 5, tensors(5), {}, keep=1)

    def full(named, file):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr("visiongraft.training.checkpoints.save_file", full)
        save_checkpoint(tmp_path, 10, tensors(10), {}, keep=1)

    assert load_latest(tmp_path).step == 5


def test_rewritten_step_takes_the_place_of_the_damaged_one(tmp_path):
    path = save_checkpoint(tmp_path, 5, tensors(0), {}, keep=1)
    (path / "state.json").unlink()
    save_checkpoint(tmp_path, 5, tensors(5), {}, keep=1)

    assert load_file(path / "module-net.safetensors")["count"] == 5
    assert load_latest(tmp_path).path == path


def test_folder_without_a_readable_checkpoint_gives_none(tmp_path):
    assert load_latest(tmp_path / "absent") is None
    path = save_checkpoint(tmp_path, 5, tensors(5), {}, keep=1)
    (path / "optimizer-main.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"step-00000005 is damaged \(optimizer-main.safetensors is not what was written\)"):
        assert load_latest(tmp_path) is None
