import base64
import io
import json
import re
from html import unescape

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from browser_pipe import CHROMIUM, Browser
from visiongraft.methods.action_mesh.viewer import viewer_snippet, write_viewer

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def ball(radius=0.5, center=(0.0, 0.0, 0.0), subdivisions=3):
    shape = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return torch.from_numpy(shape.vertices.astype(np.float32)) + torch.tensor(center), torch.from_numpy(shape.faces.astype(np.int64))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


class Viewer:
    """The ``number``-th viewer of the page that a browser shows."""

    def __init__(self, browser, number=0):
        self.browser, self.element = browser, f"document.querySelectorAll('.mesh-viewer')[{number}]"
        self.run(
            """new Promise((done, fail) => { let tries = 0; const look = () => "drawn" in viewer.dataset || "failed" in viewer.dataset
            ? done() : tries++ > 500 ? fail(Error("nothing was drawn")) : setTimeout(look, 20); look(); })"""
        )

    def run(self, code):
        return self.browser.run(
            f"((viewer) => {{ const part = (name) => viewer.querySelector(`[data-part=${{name}}]`); return {code}; }})({self.element})"
        )

    def settle(self):
        self.browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))")

    @property
    def middle(self):
        x, y, width, height = self.run('(({x, y, width, height}) => [x, y, width, height])(part("view").getBoundingClientRect())')
        return x + width / 2, y + height / 2

    @property
    def frame(self):
        return float(self.run("viewer.dataset.drawn"))

    def picture(self):
        """The canvas over white: height x width x 3."""
        self.settle()
        url = self.run('part("view").toDataURL("image/png")')
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture)
        return np.asarray(page.convert("RGB")).astype(int)

    def mask(self):
        """Where the mesh is: its colours are far from the grey lines of the ground."""
        picture = self.picture()
        return (picture.max(-1) - picture.min(-1)) > 40

    def center(self):
        rows, columns = self.mask().nonzero()
        return columns.mean(), rows.mean()


RED = torch.tensor([[1.0, 0.1, 0.1]])


def moving_ball(tmp_path, num_frames=5, **options):
    """A red ball that goes from left to right."""
    vertices, faces = ball(0.3)
    frames = torch.stack([vertices + torch.tensor([x, 0.0, 0.0]) for x in torch.linspace(-0.7, 0.7, num_frames)])
    options = {"colors": RED.expand(len(vertices), 3), "yaw_deg": 0, "pitch_deg": 0, "play": False, **options}
    return write_viewer(tmp_path / "viewer.html", frames, faces, **options)


@needs_chromium
def test_a_ball_is_as_large_as_the_camera_says_and_moves_from_frame_to_frame(browser, tmp_path):
    browser.open(moving_ball(tmp_path), 640, 640)
    viewer = Viewer(browser)
    height, width = viewer.picture().shape[:2]
    mask = viewer.mask()
    # the box of all frames, 2 x 0.6 x 0.6, has its farthest vertex about 1 from its middle; 30 degrees span the shorter side
    reach = 1 / np.tan(np.radians(15))
    distance = 1 / np.sin(np.radians(15))
    radius = 0.3 * reach / distance * min(height, width) / 2
    found = [np.sqrt(mask.sum() / np.pi)]
    places = []
    for k in range(5):
        viewer.run(f'(part("scrub").value = {k}, part("scrub").dispatchEvent(new Event("input")))')
        places.append(viewer.center())
        assert viewer.frame == k
        assert viewer.run('part("state").value') == f"frame {k + 1} of 5"
    assert found[0] == pytest.approx(radius, rel=0.06)
    columns = np.array([x for x, _ in places])
    assert np.diff(columns) == pytest.approx(np.full(4, np.diff(columns).mean()), rel=0.05)
    assert columns[2] == pytest.approx(width / 2, abs=2) and places[2][1] == pytest.approx(height / 2, abs=2)
    viewer.run('(part("scrub").value = 2.5, part("scrub").dispatchEvent(new Event("input")))')
    assert viewer.center()[0] == pytest.approx(columns[2:4].mean(), abs=2)  # blended
    assert not browser.problems


@needs_chromium
def test_keys_turn_step_play_and_reset(browser, tmp_path):
    browser.open(moving_ball(tmp_path), 640, 640)
    viewer = Viewer(browser)
    start = viewer.center()
    viewer.run('part("view").focus()')
    browser.key(".", 2)
    viewer.settle()
    assert viewer.frame == 2
    browser.key(",")
    browser.key(",", 5)
    viewer.settle()
    assert viewer.frame == 0
    browser.key("ArrowRight", 36)  # half round: left is right
    width = viewer.picture().shape[1]
    assert viewer.center()[0] == pytest.approx(width - start[0], abs=4)
    browser.key("+", 3)
    large = viewer.mask().sum()
    browser.key("0")
    assert viewer.center() == pytest.approx(start, abs=1) and viewer.mask().sum() < large
    browser.key(" ")
    assert viewer.run('part("play").textContent') == "Pause"
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert viewer.frame > 0
    browser.key(" ")
    viewer.settle()
    frame = viewer.frame
    viewer.settle()
    assert viewer.run('part("play").textContent') == "Play" and viewer.frame == frame
    assert not browser.problems


@needs_chromium
def test_the_mesh_follows_the_pointer_and_the_colours_can_be_taken_off(browser, tmp_path):
    browser.open(moving_ball(tmp_path), 640, 640)
    viewer = Viewer(browser)
    before = viewer.center()
    browser.drag(viewer.middle, (150, 0))  # the ball is on the left: turning it rightward brings it to the front and the middle
    after = viewer.center()
    assert after[0] > before[0] + 10
    viewer.run('part("tint").click()')
    assert viewer.mask().sum() == 0 and viewer.run('part("tint").getAttribute("aria-pressed")') == "false"
    browser.mouse("mouseWheel", *viewer.middle, deltaX=0, deltaY=-300)
    viewer.run('part("tint").click()')
    assert viewer.mask().sum() > 0
    assert not browser.problems


@needs_chromium
def test_snippets_share_a_page_and_meshes_of_their_own_are_not_blended(browser, tmp_path):
    small, large = ball(0.3, (-0.5, 0.0, 0.0), 1), ball(0.5, (0.4, 0.0, 0.0), 2)
    colors = RED.expand(len(small[0]) + len(large[0]), 3)
    lists = viewer_snippet([small[0], large[0]], [small[1], large[1]], colors=colors, frame=1, play=False, title="Lists", yaw_deg=0)
    still = viewer_snippet(large[0][None], large[1], title="Still")
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><div style='--ink: rgb(1, 2, 3)'>{lists}{still}</div>")
    browser.open(page, 600, 1400)
    first, second = Viewer(browser), Viewer(browser, 1)
    assert browser.run("document.querySelectorAll('[id]').length") == 0
    assert browser.run("getComputedStyle(document.querySelector('.mesh-viewer')).color") == "rgb(1, 2, 3)"
    one = first.mask().sum()
    first.run('(part("scrub").value = 0.9, part("scrub").dispatchEvent(new Event("input")))')
    zero = first.mask().sum()
    assert zero / one == pytest.approx((0.3 / 0.5) ** 2, rel=0.15)
    assert second.run('part("play")') is None and second.run('part("state").value') == "320 faces"
    assert not browser.problems


@needs_chromium
def test_without_webgl_a_reason_is_shown(browser, tmp_path):
    page = moving_ball(tmp_path)
    page.write_text(page.read_text().replace("<head>", "<head><script>HTMLCanvasElement.prototype.getContext = () => null;</script>"))
    browser.open(page, 640, 400)
    viewer = Viewer(browser)
    assert viewer.run('part("problem").textContent').startswith("This browser has no WebGL 2")
    assert viewer.run('part("view").clientWidth') == 0 and viewer.run('part("problem").clientHeight') > 0


@needs_chromium
def test_an_animation_plays_by_itself_unless_less_motion_is_asked_for(browser, tmp_path):
    page = moving_ball(tmp_path, play=True)
    browser.open(page, 640, 640)
    assert Viewer(browser).run('part("play").textContent') == "Pause"
    browser.open(page, 640, 640, prefers_reduced_motion="reduce")
    assert Viewer(browser).run('part("play").textContent') == "Play"


def test_the_page_holds_the_mesh_to_sixteen_bits():
    generator = torch.Generator().manual_seed(0)
    vertices = torch.randn(3, 20, 3, generator=generator)
    faces = torch.randint(20, (7, 3), generator=generator)
    text = viewer_snippet(vertices, faces)
    layout = json.loads(unescape(re.search(r'data-layout="([^"]*)"', text)[1]))
    data = base64.b64decode(re.search(r'data-part="data">([^<]*)<', text)[1])
    assert np.array_equal(np.frombuffer(data, "<u4", 21).reshape(7, 3), faces)
    positions = np.frombuffer(data, "<i2", 180, 84).reshape(3, 20, 3) / 32767 * layout["half"] + layout["center"]
    assert np.abs(positions - vertices.numpy()).max() < layout["half"] / 32767
    assert layout["vertices"] == [20] * 3 and layout["faces"] == [7] and layout["colors"] == 20
    assert len(data) == 84 + 360 + 60
    tint = np.frombuffer(data, np.uint8, 60, 444).reshape(20, 3)
    assert tint.min(0).tolist() == [51] * 3 and tint.max(0).tolist() == [242] * 3


def test_the_page_is_one_file_that_loads_nothing_and_escapes_texts(tmp_path):
    hostile = '"><script>alert(1)</script>'
    text = moving_ball(tmp_path, title=hostile, note=hostile).read_text()
    assert hostile not in text and not re.search(r"""(src|href)=["'](?!data:)""", text) and "url(" not in text and "http" not in text


LISTS = {"vertices": [ball(subdivisions=0)[0]], "faces": [ball(subdivisions=0)[1]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vertices": torch.zeros(0, 4, 3)}, "at least one frame"),
        ({"vertices": [torch.zeros(4, 3)], "faces": []}, "got 1 frames, 0 faces"),
        ({"faces": torch.tensor([[0, 1, 99]])}, "Frame 0 has 12 vertices, but its faces name 0 to 99"),
        ({"vertices": torch.full((2, 12, 3), float("nan"))}, "Frame 0 .* finite vertices"),
        ({"vertices": torch.zeros(2, 12, 3)}, "in one place"),
        ({"fps": 0}, "fps must be positive; got 0"),
        ({"pitch_deg": 91}, r"pitch_deg in \[-90, 90\]"),
        ({"frame": 2}, "has frames 0 to 1; got frame 2"),
        ({**LISTS, "colors": torch.zeros(3, 3)}, r"RGB in \[0, 1\] for each of 12 vertices; got shape \(3, 3\)"),
        ({"colors": torch.full((12, 3), 2.0)}, r"RGB in \[0, 1\]"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_no_page_is_written(tmp_path, change, message):
    vertices, faces = ball(subdivisions=0)
    with pytest.raises(ValueError, match=message):
        write_viewer(tmp_path / "v.html", **{"vertices": torch.stack([vertices, vertices]), "faces": faces, **change})
    assert not list(tmp_path.iterdir())


def test_an_animation_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("visiongraft.methods.action_mesh.viewer.MAX_EMBEDDED_BYTES", 100)
    with pytest.raises(ValueError, match="more than the 100 of a page; decimate it"):
        moving_ball(tmp_path)
