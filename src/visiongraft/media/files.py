"""Files that are whole or not there: atomic writes, and JSON Lines that survive a kill."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends, and vanishes when it raises.

    Args:
        path: file to create or replace; its folder is created.

    Yields:
        The temporary file to write, with the same suffix.

    Raises:
        PermissionError: a folder that cannot be written.
    """
    path = Path(path)
    ensure_writable_folder(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def ensure_writable_folder(folder: str | Path) -> Path:
    """Creates a folder and checks that files can be written to it.

    Raises:
        PermissionError: it cannot be created or written, or is a file.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or str(error)
        raise PermissionError(f"The folder {folder} cannot be written ({reason}); choose another output folder.") from error


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Appends one row and flushes it to disk.

    A last line without its line break is what a kill left: it is completed where it is whole, and cut off where it is not, so
    that the file goes on from the rows that :func:`read_jsonl` gives.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    line = json.dumps(row, allow_nan=False) + "\n"
    with Path(path).open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = _end_last_line(file) + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _end_last_line(file: BinaryIO) -> str:
    """The line break that a whole last line lacks; an unfinished one is cut off and needs none."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    try:
        json.loads(content[start:])
    except ValueError:
        file.truncate(start)
        return ""
    return "\n"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file; an unfinished last line is left out with a warning.

    Raises:
        ValueError: a line before the last that is not JSON; the message names it.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not JSON ({error.msg}); delete the line or start a new file.") from error
            warnings.warn(f"{path}: the last line is unfinished and is left out.", stacklevel=2)
    return rows
