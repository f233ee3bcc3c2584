"""The gallery: what every method does and measured, in one self-contained HTML page."""

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from visiongraft import __version__
from visiongraft.media.files import atomic_write
from visiongraft.studies.claim import Claim, mean_text, range_text
from visiongraft.studies.report import Cell, Figure, Table, cell_text


@dataclass(kw_only=True)
class Section:
    """A method's part of the gallery.

    Args:
        method: package name; it is also the section's address in the page.
        title: heading.
        arxiv: id of the paper, such as 2601.16200.
        lead: one paragraph.
        figures: PNG files by absolute path (or relative to the working folder).
        tables, claims: of the study and the demo.
        notes: one paragraph each; the first is what a reader must not miss, and stands out.
        commands: shell lines a reader can copy.
        html: trusted markup of a viewer, placed after the first figure; it must not load anything from elsewhere.
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
        ValueError: no sections, two of one method, or a figure that is no PNG.
        FileNotFoundError: a figure that does not exist.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if not sections:
        raise ValueError("The gallery needs at least one section.")
    methods = [section.method for section in sections]
    if len(set(methods)) < len(methods):
        raise ValueError(f"The gallery has one section a method, but these were given: {', '.join(methods)}.")
    environment = Environment(
        loader=PackageLoader("visiongraft.studies"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(embedded=_embedded, mean_text=mean_text, range_text=range_text, seed_axis=_seed_axis)
    environment.filters.update(cell_parts=_cell_parts, is_number=_is_number)
    page = environment.get_template("gallery.html.j2").render(sections=sections, version=__version__)
    path = Path(output) / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def write_demo(output: str | Path, demos: Mapping[str, Callable[[Path], Section]]) -> Path:
    """Runs demos one after the other and writes the gallery.

    Args:
        output: folder of the gallery; each demo gets a folder of its own in it.
        demos: by method name: given a folder, a demo returns its section.
    """
    output = Path(output).resolve()
    sections = [demo(output / name) for name, demo in tqdm(demos.items(), desc="demo", unit="method")]
    return write_gallery(sections, output)


def _embedded(path: str) -> str:
    """A PNG file as a data URL."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"The figure {file} does not exist; run the study or the demo that draws it first.")
    content = file.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"The figure {file} is not a PNG; save it as one.")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _seed_axis(claim: Claim) -> dict[str, Any] | None:
    """Where each seed's value lies, in percent of an axis from 0 to 1, or from 0 to the farthest values where they leave that.

    Returns:
        ``low``, ``high`` and the positions ``without`` and ``with_graft``; ``None`` where no value is finite.
    """
    finite = [[value for value in values or () if math.isfinite(value)] for values in (claim.without, claim.with_graft)]
    if not any(finite):
        return None
    low, high = min(0.0, *finite[0], *finite[1]), max(0.0, *finite[0], *finite[1])
    if low == 0 and high <= 1:
        high = 1.0
    without, with_graft = ([round(100 * (value - low) / (high - low), 2) for value in values] for values in finite)
    return {"low": f"{low:.3g}", "high": f"{high:.3g}", "without": without, "with_graft": with_graft}


def _cell_parts(cell: Cell) -> tuple[str, str]:
    """A cell's text, and apart from it the range at its end: "0.912 (0.900 to 0.930)" may break before the bracket only."""
    text = cell_text(cell)
    value, bracket, between = text.partition(" (")
    return (value, bracket.strip() + between) if _is_number(value) and between.endswith(")") else (text, "")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+−]?[\d.,]+(e[-+]?\d+)?( ?[%x]| [a-z]{1,3})?", text) is not None
