import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from visiongraft.studies import Claim, Figure, Section, Table, write_demo, write_gallery

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
HOSTILE = "<script>document.title = 'hacked'</script>"


@pytest.fixture
def section(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 900, 3), dtype=np.uint8)).save(path)
    figures = [Figure(title=f"Figure {i}", path=str(path), caption=HOSTILE, alt="noise") for i in range(2)]
    claims = [
        Claim(name="a", sentence="It holds.", source="Table 1", quantity="q", without=(0.1,), with_graft=(0.9,), held=True, rule="r"),
        Claim(name="b", sentence="It fails.", source="Table 2", quantity="q", without=None, with_graft=(0.9,), held=False, rule="r"),
    ]
    wide = Table(title="Wide", columns=[f"column {i}" for i in range(20)], rows=[["0.123 (0.100 to 0.200)"] * 20])
    return Section(
        method="m", title="A method", arxiv="2601.00000", lead=HOSTILE, figures=figures, tables=[wide], claims=claims,
        notes=["A note."], commands=["visiongraft m run --long-option with-a-value-that-is-long another-word"],
    )  # fmt: skip


def browser(tmp_path, page, *flags):
    quiet = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    )
    profile = tmp_path / "profile"
    command = [CHROMIUM, "--headless=new", *quiet.split(), f"--user-data-dir={profile}", "--enable-logging=stderr", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_page_is_self_contained_and_escapes_what_it_is_given(section, tmp_path):
    page = write_gallery([section, section], tmp_path / "gallery")
    text = page.read_text()
    assert HOSTILE not in text and "&lt;script&gt;" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#|https://arxiv\.org/abs/)""", text) and "url(" not in text
    assert text.count('aria-label="methods"') == 1
    assert "did not hold" in text and ">held<" in text


@needs_chromium
def test_page_works_in_a_browser_without_errors(section, tmp_path):
    page = write_gallery([section], tmp_path / "gallery")
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const pictures = [...document.querySelectorAll(".zoom img")];
      document.getElementById("theme").click();
      document.querySelector(".zoom").click();
      document.title = JSON.stringify({loaded: pictures.length > 0 && pictures.every((p) => p.naturalWidth > 0),
        theme: document.documentElement.dataset.theme, open: document.querySelector("dialog").open,
        overflow: document.documentElement.scrollWidth - innerWidth});
    }, 50));</script></body>"""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", probe))
    for width in (500, 1600):  # headless windows are at least 500 wide
        result = browser(tmp_path, probed, f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom")
        title = re.search(r"<title>(.*?)</title>", result.stdout)[1].replace("&quot;", '"')
        assert '"loaded":true' in title and '"open":true' in title and '"theme":"dark"' in title, title
        assert int(re.search(r'"overflow":(-?\d+)', title)[1]) <= 0
        assert "CONSOLE" not in result.stderr, result.stderr


@needs_chromium
def test_page_does_not_overflow_on_a_phone(section, tmp_path):
    page = write_gallery([section], tmp_path / "gallery")
    frame = tmp_path / "gallery" / "frame.html"
    probe = """<iframe id="f" src="index.html" width="390" height="800"></iframe><script>
      document.getElementById("f").addEventListener("load", (e) => {
        try { const root = e.target.contentDocument.documentElement; document.title = "overflow " + (root.scrollWidth - 390); }
        catch (error) { document.title = String(error); } });</script>"""
    frame.write_text(probe)
    result = browser(tmp_path, frame, "--window-size=800,900", "--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom")
    assert int(re.search(r"<title>overflow (-?\d+)</title>", result.stdout)[1]) <= 0
    assert page.is_file()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_screenshot_shows_a_page_in_the_asked_colours(section, tmp_path, dark):
    page = write_gallery([section], tmp_path / "gallery")
    shot = tmp_path / "shot.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browser(tmp_path, page, f"--screenshot={shot}", "--window-size=1000,800", *flags)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.std() > 5
    assert bool(np.median(pixels) < 60) is dark


def test_demos_run_in_their_own_folders_and_join_in_one_page(section, tmp_path):
    seen = []

    def demo(folder):
        seen.append(folder)
        return section

    page = write_demo(tmp_path / "gallery", {"one": demo, "two": demo})
    assert seen == [tmp_path / "gallery" / "one", tmp_path / "gallery" / "two"]
    assert page == tmp_path / "gallery" / "index.html" and page.is_file()


def test_missing_figures_and_empty_galleries_are_refused_and_write_nothing(section, tmp_path):
    section.figures[0].path = str(tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_gallery([section], tmp_path / "gallery")
    with pytest.raises(ValueError, match="at least one section"):
        write_gallery([], tmp_path / "gallery")
    assert not (tmp_path / "gallery" / "index.html").exists()
