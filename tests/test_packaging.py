import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints():
    pairs = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_every_core_and_development_dependency_is_pinned_within_its_bounds():
    pinned = constraints()
    extras = PROJECT["optional-dependencies"]
    for requirement in [
        *PROJECT["dependencies"],
        *(each for name in ("dev", "docs", "robots", "serve", "generators") for each in extras[name]),
    ]:
        name, bound = re.match(r"([\w.-]+)(?:\[\w+\])?(?:>=([\d.]+))?", requirement).groups()
        version = pinned[name.lower().replace("_", "-")]
        if bound:
            numbers = lambda text: [int(n) for n in re.findall(r"\d+", text)]
            assert numbers(version) >= numbers(bound), f"{name} {version} < {bound}"


def test_pins_are_plain_versions():
    assert constraints()["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[\d.]+(post\d+)?", version) for version in constraints().values())


def test_extras_are_those_of_the_documentation():
    assert set(PROJECT["optional-dependencies"]) == {
        "robots",
        "robosuite",
        "libero",
        "detection",
        "generators",
        "serve",
        "distributed",
        "gpu",
        "docs",
        "dev",
    }


def test_importing_the_package_does_not_import_torch():
    code = "import sys, visiongraft; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_package_files_that_are_not_python_ship_beside_the_code():
    package = ROOT / "src" / "visiongraft"
    assert (package / "py.typed").is_file()
    assert (package / "studies" / "templates" / "gallery.html.j2").is_file()
    assert (package / "methods" / "panorama" / "templates" / "viewer.html.j2").is_file()


@pytest.mark.parametrize("method", ["feature_smoothing", "panorama", "point_bridge", "action_mesh"])
def test_bundled_weights_of_a_method_are_safetensors_of_at_most_8_mebibytes(method):
    weights = ROOT / "src" / "visiongraft" / "methods" / method / "weights"
    files = [file for file in weights.rglob("*") if file.is_file() and "study" not in file.parts]
    assert any(file.suffix == ".safetensors" for file in files)
    assert not any(file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl") for file in files)
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20
