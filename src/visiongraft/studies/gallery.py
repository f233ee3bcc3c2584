"""The gallery: what every method does and measured, in one self-contained HTML page."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from visiongraft.media.files import atomic_write
from visiongraft.studies.claim import Claim, spread
from visiongraft.studies.report import Figure, Table


@dataclass(kw_only=True)
class Section:
    """A method's part of the gallery.

    Args:
        method: package name.
        title: heading.
        arxiv: id of the paper, such as 2601.16200.
        lead: one paragraph.
        figures: PNG files by absolute path (or relative to the working folder).
        tables, claims, notes: of the study and the demo.
        commands: shell lines a reader can copy.
        html: trusted markup of a viewer, placed after the first figure.
    """

    method: str
    title: str
    arxiv: str
    lead: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    html: str | None = None


def write_gallery(sections: list[Section], output: str | Path) -> Path:
    """Writes ``output/index.html`` with everything inside it; opens without a network.

    Returns:
        The page.

    Raises:
        ValueError: no sections.
        FileNotFoundError: a figure that does not exist.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not sections:
        raise ValueError("The gallery needs at least one section.")
    environment = Environment(
        loader=PackageLoader("visiongraft.studies"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(spread=spread, embedded=_embedded)
    page = environment.get_template("gallery.html.j2").render(sections=sections)
    path = Path(output) / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _embedded(path: str) -> str:
    """A PNG file as a data URL."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The figure {file} does not exist; run the study or the demo that draws it first.")
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def write_demo(output: str | Path, demos: Mapping[str, Callable[[Path], Section]]) -> Path:
    """Runs demos one after the other and writes the gallery.

    Args:
        output: folder of the gallery; each demo gets a folder of its own in it.
        demos: by method name: given a folder, a demo returns its section.
    """
    output = Path(output).resolve()
    sections = [demo(output / name) for name, demo in tqdm(demos.items(), desc="demo", unit="method")]
    return write_gallery(sections, output)
