"""Snippets of the README and the documentation run as they stand, unless a comment before them says why not."""

import re
import shlex
from pathlib import Path

import pytest

from visiongraft.cli import main

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"(?P<skip><!-- not run[^>]*-->\s*)?^```(?P<language>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, language):
    found = BLOCK.finditer(page.read_text())
    return [match["code"] for match in found if match["language"] == language and not match["skip"]]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: str(page.relative_to(ROOT)))
def test_python_snippets_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)
    assert len(names) > 1


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for code in blocks(page, "bash")
        for line in code.splitlines()
        if line.startswith("visiongraft ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documentation_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(shlex.split(command)[1:])
    except SystemExit as stopped:  # --help
        code = stopped.code or 0
    assert code == 0


def test_every_page_of_the_navigation_exists_and_every_page_is_in_it():
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.name != "README.md"}


@pytest.mark.parametrize("method", ["feature_smoothing", "panorama", "point_bridge", "action_mesh"])
def test_the_study_in_the_documentation_is_the_bundled_one(method):
    bundled = ROOT / f"src/visiongraft/methods/{method}/weights/study"
    shown = ROOT / f"docs/methods/{method}_study"
    assert {p.name: p.read_bytes() for p in shown.iterdir()} == {
        p.name: p.read_bytes() for p in bundled.iterdir() if p.suffix in (".md", ".png")
    }
