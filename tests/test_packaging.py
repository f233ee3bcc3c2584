import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints():
    pairs = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_core_and_development_dependency_is_pinned_within_its_bounds():
    pinned = constraints()
    for requirement in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"], *PROJECT["optional-dependencies"]["docs"]]:
        name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
        version = pinned[name.lower().replace("_", "-")]
        if bound:
            numbers = lambda text: [int(n) for n in re.findall(r"\d+", text)]
            assert numbers(version) >= numbers(bound), f"{name} {version} < {bound}"


def test_pins_are_plain_versions():
    assert constraints()["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in constraints().values())


def test_extras_are_those_of_the_documentation():
    assert set(PROJECT["optional-dependencies"]) == {"robots", "detection", "serve", "distributed", "gpu", "docs", "dev"}


def test_importing_the_package_does_not_import_torch():
    code = "import sys, visiongraft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_package_files_that_are_not_python_ship_beside_the_code():
    package = ROOT / "src" / "visiongraft"
    assert (package / "py.typed").is_file()
    assert (package / "studies" / "templates" / "gallery.html.j2").is_file()
    assert {p.parent.name for p in package.rglob("*.safetensors")} == {"clip", "purifier", "mapper"}
