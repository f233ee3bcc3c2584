"""Real processes under ``accelerate launch``."""

import pytest
from safetensors.torch import load_file
from small_runs import Adversarial, Cut, Interrupted, cut_at, launch, rows, same_tensors

from visiongraft.training import train
from visiongraft.training.distributed import sharding


def furthest(one, other):
    assert [row.keys() for row in one] == [row.keys() for row in other]
    return max(abs(mine[name] - theirs[name]) for mine, theirs in zip(one, other, strict=True) for name in mine)


@pytest.mark.parametrize(
    ("options", "tolerance"), [(("--multi_gpu",), 1e-5), (("--use_fsdp", "--fsdp_version", "2"), 1e-4)], ids=["DDP", "FSDP2"]
)
def test_two_processes_give_the_curve_of_one(options, tolerance, tmp_path, config):
    settings = {"steps": 6, "accumulate": 2, "ema_decay": 0.9, "preview_every": 3, "checkpoint_every": 2}
    one, two = config(output=tmp_path / "one", **settings), config(output=tmp_path / "two", **settings)
    trained = train(Adversarial(), one)
    with pytest.raises(Cut):  # in step 3
        train(cut_at(Adversarial(), 2 * 2 * 2 + 2), two)

    launch("adversarial", two, *options)

    assert furthest(rows(one.output), rows(two.output)) < tolerance
    continued = train(Adversarial(), two)
    for name, module in trained.items():
        saved = load_file(two.output / name / "model.safetensors")
        assert same_tensors(continued[name].state_dict(), saved)
        assert all((saved[key] - value).abs().max() < tolerance for key, value in module.state_dict().items())


def test_ctrl_c_on_one_process_stops_both_after_the_same_step(tmp_path, config):
    stopped = config(steps=9, checkpoint_every=100)
    told = launch("interrupted", stopped, "--multi_gpu", status=1)
    assert f"Stopped after step 4; run the same command again to continue from {stopped.output}" in told

    train(Interrupted(), stopped)
    train(Interrupted(), config(steps=9, output=tmp_path / "whole"))

    assert furthest(rows(stopped.output), rows(tmp_path / "whole")) < 1e-5


def test_first_version_of_fsdp_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="Only FSDP2 is supported; launch with --use_fsdp --fsdp_version 2"):
        sharding()
