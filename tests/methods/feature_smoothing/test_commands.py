"""The verbs as a user runs them, on the bundled small encoder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from visiongraft.cli import main
from visiongraft.methods.feature_smoothing import report as report_module
from visiongraft.methods.feature_smoothing.certification import DISCLAIMER
from visiongraft.worlds.scans import scanned_digits

FAST = ["--n", "40", "--n_ref", "4", "--token_mode", "pooled"]


@pytest.fixture
def folder(tmp_path):
    images, _ = scanned_digits("test", 40)
    target = tmp_path / "images"
    target.mkdir()
    for i in range(3):
        Image.fromarray((images[i].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(target / f"digit-{i}.png")
    return target


def run(*words):
    return main(["feature_smoothing", *map(str, words)])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_certify_writes_a_row_an_image_with_everything_needed_to_check_it(folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert run("certify", folder, "--output", output, *FAST, "--classes", '["a scanned digit zero", "a scanned digit one"]') == 0
    rows = rows_of(output / "report.jsonl")
    assert [row["path"].rsplit("/")[-1] for row in rows] == ["digit-0.png", "digit-1.png", "digit-2.png"]
    for row in rows:
        assert row["sigma"] == 0.25 and row["n"] == 40 and row["alpha"] == 0.001 and row["method"] == "betting"
        assert row["reference"]["lower"] < row["reference"]["mean"] <= 1
        assert set(row["bounds"]) == {"0.05", "0.1", "0.25", "0.5"} and set(row["radii"]) == {"fcsb", "reference", "smoothed"}
        assert row["prompt"].startswith("a scanned digit") and row["dtype"] == "float32" and len(row["image_sha256"]) == 64
        assert "l-infinity" in row["statement"]
    assert DISCLAIMER in capsys.readouterr().out and DISCLAIMER in (output / "summary.md").read_text()
    assert Image.open(output / "radius.png").size[0] > 400


def test_a_rerun_continues_and_gives_the_same_report(folder, tmp_path, monkeypatch):
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    run("certify", folder, "--output", whole, *FAST)
    calls, certify = [], report_module.certify

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return certify(*args, **kwargs)

    monkeypatch.setattr(report_module, "certify", stopping)
    assert run("certify", folder, "--output", halted, *FAST) == 130
    assert len(rows_of(halted / "report.jsonl")) == 1
    assert run("certify", folder, "--output", halted, *FAST) == 0
    assert len(calls) == 4  # one done, one stopped, two in the rerun
    strip = lambda path: [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(path / "report.jsonl")]
    assert strip(halted) == strip(whole)


def test_rows_of_other_settings_are_not_taken_over(folder, tmp_path):
    for sigma in (0.25, 0.5):
        run("certify", folder / "digit-0.png", "--output", tmp_path / "out", *FAST, "--sigma", sigma)
    assert [row["sigma"] for row in rows_of(tmp_path / "out" / "report.jsonl")] == [0.25, 0.5]


def test_an_unreadable_image_is_named_and_the_others_are_certified(folder, tmp_path, capsys):
    (folder / "digit-1.png").write_bytes(b"no image")
    assert run("certify", folder, "--output", tmp_path / "out", *FAST) == 1
    assert len(rows_of(tmp_path / "out" / "report.jsonl")) == 2
    assert "digit-1.png is not an image" in capsys.readouterr().err


@pytest.mark.parametrize("attack", ["pgd", "apgd", "attack-vlm", "m-attack", "foa"])
def test_attacks_stay_in_their_ball_and_are_reported(folder, tmp_path, attack):
    words = ["--attack", attack, "--target", folder / "digit-2.png", "--steps", 2, "--samples", 2, "--n0", 2]
    assert run("attack", folder / "digit-0.png", "--output", tmp_path / "out", "--token_mode", "pooled", *words) == 0
    (row,) = rows_of(tmp_path / "out" / "attacks.jsonl")
    if attack in ("pgd", "apgd"):
        assert 0 < row["l2"] <= 0.5 * (1 + 1e-5)
    else:
        assert 0 < row["linf"] <= (8 if attack == "attack-vlm" else 16) / 255 + 1e-6
    assert Image.open(tmp_path / "out" / f"digit-0-{attack}.png").size == (32, 32)


def test_an_attack_moves_the_bare_encoder_and_leaves_the_defended_one(folder, tmp_path):
    moved = {}
    for defended in ("false", "true"):
        output = tmp_path / defended
        run(
            "attack",
            folder / "digit-0.png",
            "--output",
            output,
            "--token_mode",
            "pooled",
            "--defended",
            defended,
            "--sigma",
            0.5,
            "--eps",
            2,
        )
        (row,) = rows_of(output / "attacks.jsonl")
        moved[defended] = row["cosine_bare"] if defended == "false" else row["cosine_smoothed"]
    assert moved["false"] < moved["true"] - 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["certify", "missing.png"], "no image or folder missing.png"),
        (["certify", "{image}", "--sigma", "0"], "sigma must be a positive number"),
        (["certify", "{image}", "--sigma", "loud"], "sigma"),
        (["certify", "{image}", "--alpha", "1.5"], "alpha is a failure probability"),
        (["certify", "{image}", "--n", "8"], "need n>=10"),
        (["certify", "{image}", "--n", "40", "--stop_radius", "0.2"], "needs n>="),
        (["certify", "{image}", "--encoder", "nonsense"], "Unknown encoder 'nonsense'"),
        (["certify", "{image}", "--purifier", "nowhere"], "There is no file or folder nowhere"),
        (["certify", "{image}", "--classes", '["one"]'], "at least two prompts"),
        (["certify", "{image}", "--output", "{image}/x"], "cannot be written"),
        (["attack", "{image}", "--attack", "foa"], "give one with --target"),
        (["attack", "{image}", "--eps", "-1"], "eps must be"),
        (["study", "--seeds", "[]"], "at least one seed"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_two(folder, words, message, capsys):
    image = folder / "digit-0.png"
    assert run(*(word.replace("{image}", str(image)) for word in words)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("visiongraft: ") and message in error


def test_a_pickled_purifier_is_refused_with_the_reason(folder, tmp_path, capsys):
    torch.save({"a": torch.zeros(1)}, tmp_path / "purifier.pt")
    assert run("certify", folder, "--purifier", tmp_path / "purifier.pt") == 2
    assert "is a pickle, which can run any code" in capsys.readouterr().err


def test_purifier_and_mapper_are_trained_on_a_folder_and_used(folder, tmp_path):
    words = ["--purifier.images", folder, "--purifier.output", tmp_path / "run", "--purifier.steps", 2, "--purifier.batch_size", 4]
    small = ["--purifier.widths", "[8,16]", "--purifier.patch_size", 2, "--mapper_steps", 2, "--mapper_batch_size", 4]
    assert run("train", *words, *small) == 0
    purifier, mapper = tmp_path / "run/purifier-stage/purifier", tmp_path / "run/mapper-stage/mapper"
    parts = ["--purifier", purifier, "--mapper", mapper]
    assert run("certify", folder / "digit-0.png", "--output", tmp_path / "out", *FAST, *parts) == 0
    (row,) = rows_of(tmp_path / "out" / "report.jsonl")
    assert row["purifier"] == str(purifier) and 0.5 < row["reference"]["mean"] < 1
