import itertools
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

import visiongraft.studies
from visiongraft.studies import Claim, Figure, Section, Table, write_demo, write_gallery

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
HOSTILE = """"'><script>document.title = 'hacked'</script><img src=x onerror="document.title = 'hacked'">"""

# runs in a page that holds the gallery in a frame as wide as a screen
PROBE = """
async function probe(frame) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const find = (selector) => page.querySelector(selector), all = (selector) => [...page.querySelectorAll(selector)];
  const pictures = all(".zoom img"), dialog = find("dialog"), stage = find(".stage"), seen = {};
  seen.title = page.title;
  seen.overflow = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  seen.tables = all(".scroll").map((box) => box.scrollWidth > box.clientWidth);
  seen.loaded = pictures.length > 0 && pictures.every((p) => p.naturalWidth > 0 && p.clientWidth > 0);
  seen.described = pictures.every((p) => p.alt !== "");
  seen.scripts = page.scripts.length + all("[onerror]").length;
  seen.badges = all(".badge").map((badge) => badge.textContent);
  const ground = () => view.getComputedStyle(page.body).backgroundColor, before = ground();
  find("#theme").click(); seen.toggled = ground() !== before;
  find("#theme").click(); seen.toggledBack = ground() === before;
  find(".zoom").click(); await stage.querySelector("img").decode();
  seen.opened = dialog.open && stage.querySelector("img").naturalWidth > 0;
  seen.fits = dialog.scrollWidth <= view.innerWidth && stage.scrollWidth <= stage.clientWidth;
  find("[data-do=size]").click(); seen.fullSize = stage.querySelector("img").clientWidth === pictures[0].naturalWidth;
  find("[data-do=size]").click();
  const shown = () => find(".tools p").textContent, press = (key) => dialog.dispatchEvent(new view.KeyboardEvent("keydown", {key}));
  seen.walk = [shown()]; for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"]) { press(key); seen.walk.push(shown()); }
  find("[data-do=close]").click(); seen.closed = !dialog.open;
  const copy = find(".command button"), copied = [];
  const changed = () => new Promise((done) => new MutationObserver(done).observe(copy, {childList: true}));
  const withClipboard = async (writeText) => {
    Object.defineProperty(view.navigator, "clipboard", {value: {writeText}, configurable: true});
    const change = changed(); copy.click(); await change; copied.push(copy.textContent);
  };
  await withClipboard(async (text) => { copied.push(text); });
  copy.textContent = "Copy";
  await withClipboard(async () => { throw new Error("not allowed"); });
  seen.copied = [...copied, view.getSelection().toString()];
  seen.targets = all("a[href^='#']").every((a) => a.hash === "" || page.getElementById(a.getAttribute("href").slice(1)));
  return seen;
}
addEventListener("load", async () => {
  try { document.title = JSON.stringify(await probe(document.querySelector("iframe"))); }
  catch (error) { document.title = JSON.stringify({failed: String(error)}); }
});
"""


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 1700, 3), dtype=np.uint8)).save(path)
    return str(path)


def section(picture, method="a_method", text="Some words"):
    claim = {"name": text, "source": text, "quantity": text, "rule": text}
    return Section(
        method=method,
        title=text,
        arxiv="2601.00000",
        lead=text,
        figures=[Figure(title=f"{name} {text}", path=picture, caption=text, alt=text) for name in ("first", "second")],
        tables=[Table(title=text, columns=[f"{i} {text}" for i in range(20)], rows=[["0.123 (0.100 to 0.200)", *[text] * 19]], note=text)],
        claims=[
            Claim(**claim, sentence=text, without=(0.1, 0.2), with_graft=(0.8, 0.9), held=True),
            Claim(**claim, sentence=text, without=None, with_graft=(-3.0, float("inf")), held=False),
        ],
        notes=[text],
        commands=[text + " --long-option=with-a-value-that-is-long-and-has-no-place-to-break-at-all"],
    )


def browser(folder, page, *flags):
    command = [CHROMIUM, "--headless=new", *QUIET.split(), f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", *flags]
    return subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)


def probed(folder, page, width):
    """What the probe saw on a screen of a width (a frame, as headless windows are at least 500 pixels wide)."""
    frame = page.with_name("frame.html")
    frame.write_text(f'<iframe src="{page.name}" width="{width}" height="800" style="border: 0"></iframe><script>{PROBE}</script>')
    flags = ["--allow-file-access-from-files", "--virtual-time-budget=5000", f"--window-size={max(width, 500) + 50},900", "--dump-dom"]
    result = browser(folder, frame, *flags)
    assert "CONSOLE" not in result.stderr, result.stderr
    return json.loads(unescape(re.search(r"<title>(.*?)</title>", result.stdout, re.DOTALL)[1]))


@needs_chromium
@pytest.mark.parametrize("width", [390, 1600])
def test_page_works_in_a_browser_whatever_texts_it_is_given(picture, tmp_path, width):
    sections = [section(picture, "one", HOSTILE), section(picture, 'two"><script>', HOSTILE)]
    seen = probed(tmp_path, write_gallery(sections, tmp_path / "gallery"), width)
    walk, command = [f"{name} {HOSTILE}" for name in ("first", "second", "first", "second")], sections[0].commands[0]
    assert seen == {
        "title": "visiongraft – gallery",
        "overflow": 0,
        "tables": [True, True],
        "loaded": True,
        "described": True,
        "scripts": 1,
        "badges": ["held", "did not hold"] * 2,
        "toggled": True,
        "toggledBack": True,
        "opened": True,
        "fits": True,
        "fullSize": True,
        "walk": walk,
        "closed": True,
        "copied": [command, "Copied", "Copied", command],  # by the clipboard; by a selection where that is not allowed
        "targets": True,
    }


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_screenshot_shows_a_page_in_the_asked_colours(picture, tmp_path, dark):
    page = write_gallery([section(picture)], tmp_path / "gallery")
    shot = tmp_path / "shot.png"
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browser(tmp_path, page, f"--screenshot={shot}", "--window-size=1000,800", *flags)
    pixels = np.asarray(Image.open(shot).convert("L"), float)
    assert pixels.std() > 5
    assert bool(np.median(pixels) < 60) is dark


def test_page_is_one_file_that_loads_nothing(picture, tmp_path):
    text = write_gallery([section(picture), section(picture, "b")], tmp_path / "gallery").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#|https://arxiv\.org/abs/)""", text)
    assert "url(" not in text and "@import" not in text and "<link rel" in text
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["index.html"]


def test_texts_are_escaped_and_only_a_viewer_is_markup(picture, tmp_path):
    hostile = section(picture, text=HOSTILE)
    hostile.html = "<p id='viewer'>markup</p>"
    text = write_gallery([hostile], tmp_path).read_text()
    assert HOSTILE not in text and str(escape(HOSTILE)) in text
    assert "<p id='viewer'>markup</p>" in text


def test_claims_show_verdict_mean_range_and_where_each_seed_lies(picture, tmp_path):
    text = write_gallery([section(picture)], tmp_path).read_text()
    assert "1 of 2 claims held here" in text and 'class="badge failed">did not hold<' in text and 'class="badge held">held<' in text
    assert "0.150<span>0.100 to 0.200</span>" in text and "0.850<span>0.800 to 0.900</span>" in text
    first, second = re.findall(r'<div class="axis".*?</div><span>[^<]*</span>', text, re.DOTALL)
    assert re.findall(r'"dot(?: with)?" style="left:([\d.]+)%', first) == ["10.0", "20.0", "80.0", "90.0"]  # from 0 to 1
    assert re.findall(r"<span>([^<]+)</span>", second) == ["-3", "0"]  # infinity has no place on an axis
    assert re.findall(r'"dot with" style="left:([\d.]+)%', second) == ["0.0"]


def test_a_claim_without_a_finite_value_has_no_axis(picture, tmp_path):
    only = section(picture)
    only.claims = [Claim(name="c", sentence="s", source="t", quantity="q", without=None, with_graft=(float("nan"),), held=False, rule="r")]
    text = write_gallery([only], tmp_path).read_text()
    assert 'class="axis"' not in text and "nan" in text


@pytest.mark.parametrize(
    ("cell", "markup"),
    [
        ("0.912 (0.900 to 0.930)", '<td class="number">0.912 <span class="soft">(0.900 to 0.930)</span></td>'),
        (0.1 + 0.2, '<td class="number">0.3</td>'),
        (-1, '<td class="number">-1</td>'),
        (True, "<td>yes</td>"),
        ("seed 0 (of 3)", "<td>seed 0 (of 3)</td>"),
        ("3 images", "<td>3 images</td>"),
    ],
)
def test_cells_that_are_numbers_break_before_their_range_only(picture, tmp_path, cell, markup):
    only = section(picture)
    only.tables = [Table(title="T", columns=["a"], rows=[[cell]])]
    assert markup in write_gallery([only], tmp_path).read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_the_contrast_that_the_web_guidelines_ask_for(theme):
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    style = (Path(visiongraft.studies.__file__).parent / "templates" / "gallery.css").read_text()
    blocks = re.findall(r"color-scheme: (\w+);\s+([^}]+)}", style)
    colours = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for name, block in blocks if name == theme]
    assert colours and all(one == colours[0] for one in colours)  # the button and the system give the same page
    pairs = [*itertools.product(["ink", "soft", "accent"], ["ground", "card", "tint"]), ("ink", "code")]
    for text, ground in [*pairs, ("good", "good-ground"), ("bad", "bad-ground")]:
        dark, light = sorted((luminance(colours[0][text]), luminance(colours[0][ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_demos_run_in_their_own_folders_and_join_in_one_page(picture, tmp_path):
    seen = []

    def demo(folder):
        seen.append(folder)
        return section(picture, folder.name)

    page = write_demo(tmp_path / "gallery", {"one": demo, "two": demo})
    assert seen == [tmp_path / "gallery" / "one", tmp_path / "gallery" / "two"]
    assert page == tmp_path / "gallery" / "index.html"
    assert re.findall(r'<section class="method" id="(\w+)">', page.read_text()) == ["one", "two"]


def missing(picture):
    return [Section(method="m", title="t", arxiv="0", lead="l", figures=[Figure(title="f", path=picture + "missing")])]


def no_png(picture):
    Path(picture).write_bytes(b"GIF89a")
    return [section(picture)]


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        (lambda picture: [], ValueError, "at least one section"),
        (lambda picture: [section(picture), section(picture)], ValueError, "one section a method.*a_method, a_method"),
        (missing, FileNotFoundError, "does not exist; run the study or the demo"),
        (no_png, ValueError, "is not a PNG"),
    ],
)
def test_what_makes_no_gallery_is_refused_and_the_page_before_stays(picture, tmp_path, sections, error, message):
    (tmp_path / "index.html").write_text("before")
    with pytest.raises(error, match=message):
        write_gallery(sections(picture), tmp_path)
    assert (tmp_path / "index.html").read_text() == "before"
