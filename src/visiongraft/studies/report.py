"""What a study found: claims, tables, figures and notes, as JSON for programs and Markdown for people."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from visiongraft.media.files import atomic_write
from visiongraft.studies.claim import Claim, spread

Cell = str | float | int | bool


@dataclass(kw_only=True)
class Table:
    """A table with a title; every row has as many cells as there are columns.

    Raises:
        ValueError: a row of another length.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"The table {self.title!r} has {len(self.columns)} columns, but a row has {len(row)} cells: {row}.")


@dataclass(kw_only=True)
class Figure:
    """A PNG with what it shows; ``path`` is relative to the report's folder."""

    title: str
    path: str
    caption: str = ""
    alt: str = ""


@dataclass(kw_only=True)
class Report:
    """Everything a study found. ``elapsed_s`` is wall time in seconds."""

    method: str
    title: str
    claims: list[Claim] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    elapsed_s: float = 0.0
    version: str = ""

    def write(self, folder: str | Path) -> Path:
        """Writes ``report.json`` and ``report.md``, each atomically, and returns the folder.

        Infinity and NaN, which JSON has no numbers for, are written as the texts "inf" and "nan".
        """
        folder = Path(folder)
        record = _strict({**asdict(self), "claims": [claim.to_dict() for claim in self.claims]})
        with atomic_write(folder / "report.json") as path:
            path.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        with atomic_write(folder / "report.md") as path:
            path.write_text(self.to_markdown(), encoding="utf-8")
        return folder

    @classmethod
    def read(cls, folder: str | Path) -> "Report":
        """Reads what :meth:`write` wrote.

        Raises:
            FileNotFoundError: no report there.
            ValueError: a file that is no report.
        """
        path = Path(folder) / "report.json"
        if not path.is_file():
            raise FileNotFoundError(f"There is no report.json in {folder}; run the study first.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            parts = {
                "claims": [Claim.from_dict(claim) for claim in record["claims"]],
                "tables": [Table(**table) for table in record["tables"]],
                "figures": [Figure(**figure) for figure in record["figures"]],
                "seeds": tuple(record["seeds"]),
            }
            return cls(**{**record, **parts})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a report of a study ({error}).") from error

    def to_markdown(self) -> str:
        """The report as Markdown, claims first; its headings start at level 3."""
        facts = [f"visiongraft {self.version}"] if self.version else []
        if self.seeds:
            facts = [f"Seeds {', '.join(map(str, self.seeds))}", _duration(self.elapsed_s), *facts]
        lines = [f"### Study: {self.title}"]
        if facts:
            lines += ["", "; ".join(facts) + "."]
        if self.claims:
            lines += ["", *_claim_rows(self.claims)]
        for table in self.tables:
            lines += ["", f"**{table.title}**", "", *_rows(table.columns, table.rows)]
            if table.note:
                lines += ["", table.note]
        for figure in self.figures:
            lines += ["", f"![{figure.alt or figure.title}]({figure.path})", "", f"*{figure.title}.* {figure.caption}"]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes), ""])


def cell_text(cell: Cell) -> str:
    """A cell as people read it: floats with at most four digits (``0.30000000000000004`` is 0.3), truth as yes or no."""
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float) and math.isfinite(cell) and abs(cell) >= 1000:
        return f"{cell:.0f}"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _claim_rows(claims: list[Claim]) -> list[str]:
    return _rows(
        ["claim", "quantity", "without", "with the graft", "held here", "rule"],
        [
            [
                f"{c.sentence} ({c.source})",
                c.quantity,
                spread(c.without),
                spread(c.with_graft),
                c.verdict if c.held else f"**{c.verdict}**",
                c.rule,
            ]
            for c in claims
        ],
    )


def _rows(columns: list[str], rows: list[list[Any]]) -> list[str]:
    def line(cells: list[Any]) -> str:
        texts = [cell_text(cell).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ") for cell in cells]
        return "| " + " | ".join(texts) + " |"

    return [line(columns), "|" + "---|" * len(columns), *(line(row) for row in rows)]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _strict(value: Any) -> Any:
    """The same with every float that JSON has no number for as text."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
