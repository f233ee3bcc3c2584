"""The boxes of MP4 and QuickTime files (ISO 14496-12): walking them, and rewriting the index when its length changes."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_INDEX_BYTES = 1 << 30
SAMPLE_TABLES = (b"trak", b"mdia", b"minf", b"stbl")


@dataclass(frozen=True)
class Box:
    """Where a box lies in a file or in a parent's bytes.

    Args:
        kind: four characters.
        start: of its header.
        content: where its content begins.
        end: one past its last byte.
    """

    kind: bytes
    start: int
    content: int
    end: int


def file_boxes(file: BinaryIO, size: int) -> list[Box]:
    """The boxes of a file, whose contents are not read.

    Raises:
        ValueError: the file is no sequence of boxes.
    """
    boxes, position = [], 0
    while position < size:
        file.seek(position)
        box = _box(file.read(16), position, size)
        boxes.append(box)
        position = box.end
    return boxes


def child_boxes(parent: bytes, begin: int = 0) -> Iterator[Box]:
    """The boxes in the content of a box, from ``begin`` on; up to seven bytes at the end are a terminator, as QuickTime writes.

    Raises:
        ValueError: a box that does not fit.
    """
    while len(parent) - begin >= 8:
        box = _box(parent[begin : begin + 16], begin, len(parent))
        yield box
        begin = box.end


def _box(header: bytes, start: int, limit: int) -> Box:
    if len(header) < 8:
        raise ValueError(f"box header cut off at byte {start}")
    size, kind = struct.unpack(">I4s", header[:8])
    content = start + 8
    if size == 1 and len(header) == 16:
        size, content = struct.unpack(">Q", header[8:])[0], start + 16
    elif size == 0:  # up to the end
        size = limit - start
    end = start + size
    if end < content or end > limit:
        raise ValueError(f"box {kind!r} at byte {start} has a wrong size of {size}")
    return Box(kind, start, content, end)


def make_box(kind: bytes, content: bytes) -> bytes:
    """A box with its header."""
    if len(content) + 8 >= 1 << 32:
        raise ValueError(f"box {kind!r} is too large")
    return struct.pack(">I4s", len(content) + 8, kind) + content


def make_full_box(kind: bytes, content: bytes) -> bytes:
    """A box with its header, version 0 and no flags."""
    return make_box(kind, bytes(4) + content)


def find(parent: bytes, *kinds: bytes) -> bytes | None:
    """The content of the first box on a path of kinds; ``None`` where there is none."""
    for kind in kinds:
        box = next((box for box in child_boxes(parent) if box.kind == kind), None)
        if box is None:
            return None
        parent = parent[box.content : box.end]
    return parent


def rewrite(parent: bytes, path: tuple[bytes, ...], change: Callable[[bytes], bytes]) -> bytes:
    """A box's content where every box at the end of a path of kinds has its content changed; all sizes on the way follow.

    Args:
        path: such as (b"trak", b"mdia"): the ``mdia`` of every ``trak``.
        change: given the content of a box, returns the new one.
    """
    parts, position = [], 0
    for box in child_boxes(parent):
        content = parent[box.content : box.end]
        if box.kind == path[0]:
            new = change(content) if len(path) == 1 else rewrite(content, path[1:], change)
            parts.append(make_box(box.kind, new) if new != content else parent[box.start : box.end])
        else:
            parts.append(parent[box.start : box.end])
        position = box.end
    return b"".join(parts) + parent[position:]


def replace_children(parent: bytes, begin: int, drop: Callable[[bytes, bytes], bool], new: bytes) -> bytes:
    """A box's content, of whose boxes (from ``begin`` on) some are dropped and ``new`` ones stand last, before any terminator.

    Args:
        drop: given a box's kind and content, whether it goes.
    """
    kept, position = [parent[:begin]], begin
    for box in child_boxes(parent, begin):
        if not drop(box.kind, parent[box.content : box.end]):
            kept.append(parent[box.start : box.end])
        position = box.end
    return b"".join(kept) + new + parent[position:]


def shift_chunks(moov: bytes, after: int, delta: int) -> bytes:
    """The content of a ``moov`` box whose chunk offsets (stco, co64) beyond the byte ``after`` grow by ``delta``.

    Raises:
        ValueError: an offset that no longer fits 32 bits.
    """

    def shifted(format: str) -> Callable[[bytes], bytes]:
        def change(table: bytes) -> bytes:
            count = struct.unpack(">I", table[4:8])[0]
            layout = f">{count}{format}"
            offsets = [o + delta if o >= after else o for o in struct.unpack(layout, table[8 : 8 + struct.calcsize(layout)])]
            if offsets and max(offsets) >= 1 << (8 * struct.calcsize(f">{format}")):
                raise ValueError("its chunk offsets do not fit 32 bits; write it with 64-bit offsets first")
            return table[:8] + struct.pack(layout, *offsets) + table[8 + struct.calcsize(layout) :]

        return change

    return rewrite(rewrite(moov, (*SAMPLE_TABLES, b"stco"), shifted("I")), (*SAMPLE_TABLES, b"co64"), shifted("Q"))


def replace_moov(source: Path, target: Path, change: Callable[[bytes], bytes]) -> None:
    """Copies an MP4 file with the content of its index (``moov``) changed, and the chunk offsets moved along.

    Args:
        source: the file.
        target: another file, created or overwritten.
        change: given the content of ``moov``, returns the new one.

    Raises:
        ValueError: not an MP4 file, a fragmented one, or one whose index points into the file in other ways than by chunks.
    """
    with source.open("rb") as file:
        boxes = file_boxes(file, source.stat().st_size)
        kinds = [box.kind for box in boxes]
        if b"moov" not in kinds:
            raise ValueError("it has no index (moov box)")
        if b"moof" in kinds:
            raise ValueError("it is fragmented; write it as a plain MP4 first")
        moov = boxes[kinds.index(b"moov")]
        old = _read(file, moov)
        rewrite(old, (*SAMPLE_TABLES, b"saio"), _refuse_encrypted)
        new = change(old)
        new = shift_chunks(new, moov.end, len(new) + 8 - (moov.end - moov.start))
        with target.open("wb") as copy:
            for box in boxes:
                if box is moov:
                    copy.write(make_box(b"moov", new))
                else:
                    _copy(file, copy, box)


def read_moov(path: Path) -> bytes:
    """The content of the index of an MP4 file.

    Raises:
        ValueError: not an MP4 file.
    """
    with path.open("rb") as file:
        moov = next((box for box in file_boxes(file, path.stat().st_size) if box.kind == b"moov"), None)
        if moov is None:
            raise ValueError("it has no index (moov box)")
        return _read(file, moov)


def _refuse_encrypted(table: bytes) -> bytes:
    raise ValueError("it is encrypted")


def _read(file: BinaryIO, box: Box) -> bytes:
    if box.end - box.content > MAX_INDEX_BYTES:
        raise ValueError(f"its index has {box.end - box.content:,} bytes, more than the {MAX_INDEX_BYTES:,} accepted")
    file.seek(box.content)
    return file.read(box.end - box.content)


def _copy(source: BinaryIO, target: BinaryIO, box: Box) -> None:
    source.seek(box.start)
    left = box.end - box.start
    while left:
        block = source.read(min(left, 1 << 20))
        if not block:
            raise ValueError("it became shorter while it was read")
        target.write(block)
        left -= len(block)
