"""A run that is killed and started again is the run that was not."""

import json
import os
import signal

import pytest
import torch
from small_runs import Adversarial, Cut, Points, Random, Smooth, cut_at, last_checkpoint, rows, same_tensors, train_and_be_killed

from visiongraft.training import TrainerConfig, train

# stops in the middle of an epoch of 41 samples
SETTINGS = {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 2, "log_every": 2, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    train(Random(), TrainerConfig(output=output, logger="none", progress=False, **SETTINGS))
    return output


def assert_same_run(output, other):
    assert rows(output) == rows(other)
    assert same_tensors(last_checkpoint(output), last_checkpoint(other))
    assert (output / "net" / "model.safetensors").read_bytes() == (other / "net" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("moment", ["loss 2", "loss 8", "loss 12", "half 2", "written 1", "written 3", "removed 1"])
def test_killed_run_continues_bit_for_bit(moment, config, uninterrupted):
    settings = config(**SETTINGS)
    train_and_be_killed("random", settings, moment)
    assert not (settings.output / "net").exists()

    train(Random(), settings)

    assert_same_run(settings.output, uninterrupted)
    assert sorted(path.name for path in (settings.output / "checkpoints").iterdir()) == ["step-00000009", "step-00000012"]


def test_run_killed_twice_with_a_loading_process_continues_bit_for_bit(config, uninterrupted):
    settings = config(**SETTINGS, workers=1)
    train_and_be_killed("random", settings, "loss 5")
    train_and_be_killed("random", settings, "loss 4")

    train(Random(), settings)

    assert_same_run(settings.output, uninterrupted)


@pytest.mark.parametrize("recipe", [Random, Adversarial])
def test_run_cut_anywhere_in_any_step_continues_bit_for_bit(recipe, tmp_path, config):
    settings = {"steps": 5, "accumulate": 2, "ema_decay": 0.9, "checkpoint_every": 2}
    whole = config(output=tmp_path / "whole", **settings)
    train(recipe(), whole)
    for call in range(1, 5 * 2 * len(recipe().optimizers) + 1):
        cut = config(output=tmp_path / f"cut-{call}", **settings)
        with pytest.raises(Cut):
            train(cut_at(recipe(), call), cut)
        train(recipe(), cut)

        assert same_tensors(last_checkpoint(cut.output), last_checkpoint(whole.output))
        assert rows(cut.output) == rows(whole.output)


@pytest.mark.parametrize("damage", ["cut", "one bit flipped", "missing", "state cut", "state missing"])
def test_damaged_newest_checkpoint_is_skipped_with_a_warning(damage, config, uninterrupted):
    settings = config(**SETTINGS)
    train(Random(), settings)
    newest = max((settings.output / "checkpoints").iterdir())
    file = newest / ("state.json" if damage.startswith("state") else "module-net.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "one bit flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage.endswith("cut"):
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()

    with pytest.warns(UserWarning, match=rf"{newest} is damaged \(.+\) and is skipped"):
        train(Random(), settings)

    assert_same_run(settings.output, uninterrupted)


def test_damaged_checkpoint_does_not_push_out_earlier_good_ones(config):
    settings = config(**{**SETTINGS, "keep_checkpoints": 1})
    train(Random(), settings)
    folder = settings.output / "checkpoints"
    (folder / "step-00000012" / "state.json").write_text("{")

    with pytest.warns(UserWarning, match="damaged"), pytest.raises(Cut):
        train(cut_at(Random(), 8), settings)

    assert [path.name for path in folder.iterdir()] == ["step-00000006"]


def test_finished_run_returns_its_modules_without_a_step(config):
    settings = config(ema_decay=0.9)
    first = train(Smooth(), settings)["net"].state_dict()
    again = Smooth()
    again.losses = again.data = None

    assert same_tensors(train(again, settings)["net"].state_dict(), first)


def test_longer_run_with_a_constant_schedule_continues_a_finished_one(tmp_path, config):
    train(Smooth(), config(steps=5))
    train(Smooth(), config(steps=12))
    train(Smooth(), config(steps=12, output=tmp_path / "whole"))

    assert same_tensors(last_checkpoint(config().output), last_checkpoint(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"batch_size": 4}, "batch_size was 8 and is now 4"),
        ({"ema_decay": 0.5}, "ema_decay was None and is now 0.5"),
        ({"steps": 4}, "is at step 12, past the 4 asked for; ask for more steps"),
        ({"resume": False}, "has checkpoints of an earlier run; choose another output folder, or resume it"),
    ],
)
def test_other_configuration_in_the_same_folder_is_refused(changed, message, config):
    train(Smooth(), config())
    with pytest.raises(ValueError, match=message):
        train(Smooth(), config(**changed))


def test_other_length_of_a_scheduled_run_is_refused(config):
    train(Smooth(schedule="cosine"), config())
    with pytest.raises(ValueError, match="steps was 12 and is now 20"):
        train(Smooth(schedule="cosine"), config(steps=20))


def test_other_recipe_in_the_same_folder_is_refused(config):
    train(Smooth(), config())
    wider = Smooth()
    wider.modules["net"][0] = torch.nn.Linear(4, 9)
    with pytest.raises(ValueError, match=r"0\.weight of the module 'net' was \(8, 4\) and is now \(9, 4\); choose another output folder"):
        train(wider, config())
    with pytest.raises(ValueError, match=r"learning_rate=0\.01.* and is now .*learning_rate=0\.5"):
        train(Smooth(learning_rate=0.5), config())
    with pytest.raises(ValueError, match="recipe was Smooth and is now Adversarial"):
        train(Adversarial(), config())


def test_checkpoint_holds_no_frozen_parameters_and_continues_bit_for_bit(tmp_path, config):
    def recipe():
        made = Random()
        made.modules["net"][0].requires_grad_(False)
        return made

    settings = {"steps": 6, "ema_decay": 0.9}
    whole, cut = (config(output=tmp_path / name, **settings) for name in ("whole", "cut"))
    trained = train(recipe(), whole)["net"]
    with pytest.raises(Cut):
        train(cut_at(recipe(), 5), cut)
    resumed = train(recipe(), cut)["net"]

    assert same_tensors(resumed.state_dict(), trained.state_dict())
    assert not [name for name in last_checkpoint(whole.output) if name.split("/")[1].startswith("0.")]


def test_other_frozen_parameters_in_the_same_folder_are_refused(config):
    first, second = Smooth(), Smooth()
    first.modules["net"][0].requires_grad_(False)
    train(first, config())
    second.modules["net"][0].requires_grad_(False).weight[0, 0] += 0.5

    with pytest.raises(ValueError, match="the frozen parameters of the module 'net' are others now; choose another output folder, or the"):
        train(second, config())


def test_a_checkpoint_of_an_earlier_version_is_refused(config):
    settings = config()
    train(Smooth(), settings)
    state = max((settings.output / "checkpoints").glob("step-*")) / "state.json"
    content = json.loads(state.read_text())
    del content["frozen"]
    state.write_text(json.dumps(content))

    with pytest.raises(ValueError, match="earlier version"):
        train(Smooth(), settings)


def test_other_data_in_the_same_folder_is_refused(config):
    with pytest.raises(Cut):
        train(cut_at(Smooth(), 8), config())
    more = Smooth()
    more.data = lambda: Points(82)
    with pytest.raises(ValueError, match="samples was 41 and is now 82"):
        train(more, config())


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_continue(tmp_path, capfd):
    whole, settings = ({"output": tmp_path / name, "steps": 9, "logger": "none", "progress": False} for name in ("whole", "run"))
    train(Smooth(), TrainerConfig(**whole))
    stopped = Smooth()
    original, calls = stopped.losses, 0

    def losses(*arguments):
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments)

    stopped.losses = losses
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, TrainerConfig(**settings))

    assert f"Stopped after step 5; run the same command again to continue from {settings['output']}" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert (settings["output"] / "checkpoints" / "step-00000005").is_dir()
    train(Smooth(), TrainerConfig(**settings))
    assert same_tensors(last_checkpoint(settings["output"]), last_checkpoint(whole["output"]))
