import base64
import math
import re

import pytest
import torch
from PIL import Image

from browser_pipe import CHROMIUM, Browser
from visiongraft.geometry.cameras import rotation_from_angles
from visiongraft.geometry.panoramas import panorama_rays, perspective_from_panorama
from visiongraft.media.gpano import save_panorama
from visiongraft.media.spherical import SphericalVideo
from visiongraft.media.video import read_video
from visiongraft.media.video_writing import write_video
from visiongraft.methods.panorama.viewer import viewer_snippet, write_viewer

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
TOLERANCE = 4 / 255  # graphics hardware interpolates with 8 bits


@pytest.fixture(scope="module")
def panorama():
    """Directions as colours, with a line every 30 degrees; 8 bits."""
    rays = panorama_rays(128, 256)
    x, y, z = rays.unbind(-1)
    lines = (torch.remainder(torch.atan2(x, z), math.pi / 6) < 0.06) | (torch.remainder(torch.asin(-y), math.pi / 6) < 0.06)
    colours = torch.stack([0.5 + 0.5 * x, 0.5 - 0.5 * y, 0.5 + 0.5 * z]) * torch.where(lines, 0.5, 1.0)
    return (colours * 255).round() / 255


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


class Viewer:
    """The ``number``-th viewer of the page that a browser shows."""

    def __init__(self, browser, number=0):
        self.browser, self.element = browser, f"document.querySelectorAll('.panorama-viewer')[{number}]"
        self.run(
            """new Promise((done, fail) => { let tries = 0; const look = () => part("view").width !== 300 || "failed" in viewer.dataset
            ? done() : tries++ > 200 ? fail(Error("nothing was drawn")) : setTimeout(look, 20); look(); })"""
        )

    def run(self, code):
        return self.browser.run(
            f"((viewer) => {{ const part = (name) => viewer.querySelector(`[data-part=${{name}}]`); return {code}; }})({self.element})"
        )

    def drawn(self):
        self.browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    @property
    def box(self):
        return self.run('(({x, y, width, height}) => [x, y, width, height])(part("view").getBoundingClientRect())')

    @property
    def middle(self):
        x, y, width, height = self.box
        return x + width / 2, y + height / 2

    @property
    def state(self):
        """Yaw, pitch and field of view as the page writes them."""
        return [int(value) for value in re.findall(r"-?\d+(?=°)", self.run('part("state").value'))]

    def press(self, button):
        self.run(f'part("{button}").click()')

    def picture(self):
        """What the canvas shows on the screen."""
        self.drawn()
        x, y, width, height = (round(value) for value in self.box)
        shot = self.browser.shot()[y : y + height, x : x + width]
        return torch.from_numpy(shot.copy()).permute(2, 0, 1).float() / 255

    def error(self, panorama, **view):
        """Largest difference to the library's own perspective view."""
        shown = self.picture()
        return float(inner(shown - reference(panorama, tuple(shown.shape[1:]), **view)).abs().max())


def inner(picture):
    """Without the rounded corners and the mark of the focus."""
    return picture[:, 16:-16, 16:-16]


def reference(panorama, size, hfov_deg=90.0, yaw_deg=0.0, pitch_deg=0.0):
    angles = torch.tensor([yaw_deg, pitch_deg, 0.0]).deg2rad()
    return perspective_from_panorama(panorama[None], torch.tensor([hfov_deg]).deg2rad(), rotation_from_angles(*angles)[None], size)[0]


@needs_chromium
def test_viewer_shows_what_the_library_sees_and_follows_mouse_keys_and_wheel(panorama, browser, tmp_path):
    browser.open(write_viewer(panorama, tmp_path / "viewer.html", title="A <b>room</b>"), 800, 600)
    viewer = Viewer(browser)
    width = viewer.box[2]
    focal = width / 2  # at 90 degrees
    assert browser.run("document.title") == "A <b>room</b>"
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert viewer.run('part("view").ariaLabel').startswith("A <b>room</b>: panorama. Arrow keys turn")
    assert viewer.state == [0, 0, 90] and viewer.error(panorama) < TOLERANCE

    browser.drag(viewer.middle, (-150, 0))
    yaw = math.degrees(150 / focal)
    assert viewer.state == [round(yaw), 0, 90] and viewer.error(panorama, yaw_deg=yaw) < TOLERANCE  # dragging left looks right
    viewer.press("reset")
    browser.drag(viewer.middle, (0, 80))
    pitch = math.degrees(80 / focal)
    assert viewer.state == [0, round(pitch), 90] and viewer.error(panorama, pitch_deg=pitch) < TOLERANCE
    browser.drag(viewer.middle, (0, 2000))
    assert viewer.state == [0, 90, 90]  # not over the pole

    browser.key("0")
    browser.key("ArrowRight", 36)
    assert abs(viewer.state[0]) == 180 and viewer.error(panorama, yaw_deg=180.0) < TOLERANCE
    browser.key("Home")
    browser.key("ArrowLeft", 2)
    browser.key("ArrowDown", 3)
    assert viewer.state == [-10, -15, 90] and viewer.error(panorama, yaw_deg=-10.0, pitch_deg=-15.0) < TOLERANCE
    browser.key("0")
    browser.key("+")
    assert viewer.state == [0, 0, 81]
    viewer.press("reset")
    viewer.press("farther")
    assert viewer.state == [0, 0, 113] and viewer.error(panorama, hfov_deg=112.5) < TOLERANCE
    viewer.press("reset")
    browser.mouse("mouseWheel", *viewer.middle, deltaX=0, deltaY=-300)
    viewer.drawn()
    assert viewer.state == [0, 0, round(90 * math.exp(-0.3))]
    for wheel, limit in ((9000, 130), (-90000, 20)):
        browser.mouse("mouseWheel", *viewer.middle, deltaX=0, deltaY=wheel)
        viewer.drawn()
        assert viewer.state[2] == limit
    assert not browser.problems


@needs_chromium
def test_two_fingers_zoom_and_one_turns(panorama, browser, tmp_path):
    browser.open(write_viewer(panorama, tmp_path / "viewer.html"), 800, 600)
    viewer = Viewer(browser)
    x, y = viewer.middle
    browser.touch("touchStart", (x - 50, y), (x + 50, y))
    browser.touch("touchMove", (x - 75, y), (x + 75, y))
    browser.touch("touchEnd")
    assert viewer.state == [0, 0, 60]
    browser.touch("touchStart", (x, y))
    browser.touch("touchMove", (x + 30, y))
    browser.touch("touchEnd")
    yaw, pitch, hfov = viewer.state
    assert yaw < 0 and (pitch, hfov) == (0, 60) and not browser.problems


@needs_chromium
def test_no_line_is_drawn_where_the_borders_meet_nor_at_the_poles(browser, tmp_path):
    plain = torch.full((3, 64, 128), 102 / 255)
    for yaw, pitch in ((180, 0), (-180, 0), (0, 90), (10, -90)):
        browser.open(write_viewer(plain, tmp_path / "viewer.html", yaw_deg=yaw, pitch_deg=pitch), 700, 500)
        assert float(inner(Viewer(browser).picture() - 102 / 255).abs().max()) == 0


@needs_chromium
def test_a_large_panorama_is_averaged_like_the_library_does(browser, tmp_path):
    noise = torch.rand(3, 1024, 2048, generator=torch.Generator().manual_seed(0))
    browser.open(write_viewer(noise, tmp_path / "viewer.html", hfov_deg=100), 400, 400)
    viewer = Viewer(browser)
    shown = viewer.picture()
    expected = reference((noise * 255).round() / 255, tuple(shown.shape[1:]), hfov_deg=100.0)
    assert float((shown - expected).abs().mean()) < 0.02  # without averaging 0.1


@needs_chromium
def test_several_snippets_live_on_one_page_and_take_its_colours(panorama, browser, tmp_path):
    snippets = [viewer_snippet(panorama, title=f"View {i}", yaw_deg=yaw, hfov_deg=60.0) for i, yaw in enumerate((0.0, 120.0))]
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><style>:root {{ --ink: rgb(1, 2, 3); }}</style>{''.join(snippets)}<div style='height: 2000px'></div>")
    browser.open(page, 480, 900)
    first, second = Viewer(browser), Viewer(browser, 1)
    assert browser.run("getComputedStyle(document.querySelector('.panorama-viewer')).color") == "rgb(1, 2, 3)"
    assert browser.run("document.querySelectorAll('[id]').length") == 0
    assert second.error(panorama, yaw_deg=120.0, hfov_deg=60.0) < TOLERANCE
    browser.drag(first.middle, (-50, 0))
    browser.mouse("mouseWheel", *first.middle, deltaX=0, deltaY=200)
    first.drawn()
    assert first.state[0] > 0 and first.state[2] == round(60 * math.exp(0.2)) and browser.run("scrollY") == 0
    browser.mouse("mouseWheel", *second.middle, deltaX=0, deltaY=200)  # not clicked: the page scrolls
    browser.run("new Promise((done) => setTimeout(done, 400))")
    assert second.state == [120, 0, 60] and browser.run("scrollY") > 0
    assert not browser.problems


@needs_chromium
def test_a_video_plays_and_turns(panorama, browser, tmp_path):
    frames = torch.stack([panorama * level for level in (0.3, 1.0)]).repeat_interleave(16, 0)
    video = write_video(frames, tmp_path / "panorama.mp4", 16, crf=4, spherical=SphericalVideo())
    browser.open(write_viewer(video, tmp_path / "viewer.html", yaw_deg=90), 640, 480)
    viewer = Viewer(browser)
    assert viewer.run('part("source").paused') is False and viewer.run('part("play").textContent') == "Pause"
    viewer.press("play")
    viewer.run(
        'new Promise((done) => { part("source").addEventListener("seeked", done, {once: true}); part("source").currentTime = 1.6; })'
    )
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert viewer.run('part("play").textContent') == "Play" and viewer.state == [90, 0, 90]
    shown, decoded = viewer.picture(), read_video(video)[25]
    assert float((shown - reference(decoded, tuple(shown.shape[1:]), yaw_deg=90.0)).abs().mean()) < 0.02
    assert not browser.problems


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_has_the_colours_that_the_system_asks_for(panorama, browser, tmp_path, scheme):
    browser.open(write_viewer(panorama, tmp_path / "viewer.html"), 640, 480, prefers_color_scheme=scheme)
    corner = browser.shot()[-1, 0]
    assert bool(corner.mean() < 60) is (scheme == "dark")


@needs_chromium
def test_without_webgl_the_flat_picture_and_a_reason_are_shown(panorama, browser, tmp_path):
    page = write_viewer(panorama, tmp_path / "viewer.html")
    page.write_text(page.read_text().replace("<head>", "<head><script>HTMLCanvasElement.prototype.getContext = () => null;</script>"))
    browser.open(page, 640, 600)
    viewer = Viewer(browser)
    assert viewer.run('part("problem").textContent').startswith("This browser has no WebGL 2")
    assert viewer.run('part("problem").clientHeight') > 0
    assert viewer.run('part("source").clientWidth') > 300 and viewer.run('part("view").clientWidth') == 0


def test_page_is_one_file_that_loads_nothing_and_escapes_texts(panorama, tmp_path):
    hostile = '"><script>alert(1)</script>'
    save_panorama(panorama, tmp_path / "p.jpg")
    text = write_viewer(tmp_path / "p.jpg", tmp_path / "viewer.html", title=hostile, note=hostile).read_text()
    assert hostile not in text and "data:image/jpeg;base64," in text
    assert not re.search(r"""(src|href)=["'](?!data:)""", text) and "url(" not in text and "http" not in text
    assert base64.b64encode((tmp_path / "p.jpg").read_bytes()).decode() in text


def test_a_linked_file_is_addressed_from_the_page(panorama, tmp_path):
    save_panorama(panorama, tmp_path / "my room.png")
    text = write_viewer(tmp_path / "my room.png", tmp_path / "pages" / "viewer.html", embed=False).read_text()
    assert 'src="../my%20room.png"' in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hfov_deg": 1.5}, "did you pass radians"),
        ({"hfov_deg": 150}, "from 20 to 130 degrees; got hfov_deg 150"),
        ({"yaw_deg": 270}, r"yaw_deg must be in \[-180, 180\]"),
        ({"panorama": torch.zeros(3, 8, 17)}, "W = 2H; got 8x17"),
        ({"panorama": "missing.png"}, "no panorama missing.png"),
        ({"panorama": __file__}, "A viewer shows .jpg"),
        ({"embed": False}, "Only a file can be linked"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_no_page_is_written(tmp_path, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_viewer(**{"panorama": torch.zeros(3, 8, 16), "path": tmp_path / "viewer.html", **arguments})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_twice_as_wide_as_high_is_named(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo\.png: ERP must have W = 2H; got 20x30"):
        viewer_snippet(tmp_path / "photo.png")
