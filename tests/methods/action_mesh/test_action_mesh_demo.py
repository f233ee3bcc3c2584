"""The gallery section of ActionMesh, with untrained weights and few steps."""

import base64
import io
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_action_mesh import QUICK, tiny_models

from visiongraft.media.animated_glb import read_animated_glb
from visiongraft.methods.action_mesh import demo as demo_module
from visiongraft.studies import Claim, Report, write_gallery

FRAMES, DRAWN = 4, 2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def section(place):
    """The demo of untrained models beside a made-up study."""
    for name, model in tiny_models().items():
        model.save_pretrained(place / "weights" / name)
    claim = Claim(name="c", sentence="It works.", source="s", quantity="q", without=(0.1,), with_graft=(0.2,), held=True, rule="more")
    Report(method="action_mesh", title="study", claims=[claim], notes=["a note"]).write(place / "study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "preset_for", lambda model: QUICK)
        patch.setattr(demo_module, "resolution_for", lambda model: 12)
        quick = {"_LOOPS": 1, "_POINTS": 60, "_ICP_STEPS": 5, "_DRAWN": DRAWN, "_VIDEO_SIDE": 64, "_TILE": (32, 48), "_FILM_TILE": (36, 48)}
        for name, value in quick.items():
            patch.setattr(demo_module, name, value)
        return demo_module.demo(place / "out", weights=place / "weights", study_folder=place / "study")


def test_every_clip_has_a_turntable_of_the_video_and_of_meshes_before_and_after(section):
    films = re.findall(r'aria-label="([^"]+)" src="data:video/mp4;base64,([^"]+)"', section.html)
    assert [said.split(":")[0].lower() for said, _ in films] == list(demo_module._MOTIONS.values())
    height, width = 36, 48
    for _, film in films:
        with av.open(io.BytesIO(base64.b64decode(film))) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 2 * FRAMES - 2  # forwards and back, without showing an end twice
        assert frames[0].shape == (height + demo_module._LABEL, 4 * width, 3)
        panels = np.stack(frames)[:, demo_module._LABEL :].reshape(len(frames), height, 4, width, 3)
        assert (panels.min((0, 1, 3, 4)) < 180).all()  # something is drawn in each
        assert np.abs(np.diff(panels.astype(float), axis=0)).mean((1, 2, 3, 4)).min() > 0.1  # and moves


def test_the_sheet_has_a_row_for_the_video_and_each_way_of_every_clip(section):
    sheet = np.asarray(Image.open(section.figures[0].path))
    height, width = 32, 48
    assert sheet.shape == (2 * (4 * height + demo_module._LABEL), 4 * demo_module._LABEL + FRAMES * width, 3)


def test_the_animated_mesh_is_written_and_is_the_given_one(section, place):
    animation = read_animated_glb(place / "out" / "const.glb")
    assert len(animation.vertices) == FRAMES and bool(animation.vertices.isfinite().all())
    assert len(animation.vertices[0]) in {
        int(row[-1].replace(",", "")) for row in section.tables[0].rows if row[:2] == ["const", "stage I + II"]
    }
    clips = demo_module.held_out_clips("const", DRAWN, FRAMES, 10, 8, demo_module._SEED, FRAMES)
    vertices, faces, _ = clips.mesh(demo_module._telling(clips.creatures.angles, "const"))
    assert torch.equal(animation.faces, faces)
    assert torch.allclose(animation.vertices[0], vertices[0], atol=1e-5)
    assert "given the first frame's mesh" in section.figures[0].caption


def test_the_page_holds_viewers_the_study_and_numbers_of_both_ways(section, place):
    assert [row[:2] for row in section.tables[0].rows] == [[m, w] for m in ("const", "mixed") for w in ("single frames", "stage I + II")]
    page = write_gallery([section], place / "gallery").read_text()
    assert page.count("<canvas") == 2 and page.count("<video") == 2 and "It works." in page and "a note" in page


@pytest.mark.parametrize(("motion", "angles"), [("const", [0.5, 0.6, 0.4]), ("mixed", [0.5, 0.1, -0.6])])
def test_clips_are_chosen_by_the_truth_alone(motion, angles):
    others = [[0.1, 0.6, 0.6], [0.5, 0.2, 0.3], [-0.4, 0.3, 0.4]]
    assert demo_module._telling(torch.tensor([*others, angles, angles]), motion) == 3
