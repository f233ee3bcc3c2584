import os
import stat
import warnings

import pytest

from visiongraft.media.files import append_jsonl, atomic_write, ensure_writable_folder, read_jsonl


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError, match="broken"), atomic_write(file) as path:
        path.write_text("half")
        raise RuntimeError("broken")
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    for text in ("first", "second"):
        with atomic_write(tmp_path / "new" / "a.txt") as path:
            path.write_text(text)
    assert (tmp_path / "new" / "a.txt").read_text() == "second"


def test_a_written_file_is_as_private_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as path:
            path.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_the_temporary_file_has_the_suffix_that_writers_choose_a_format_by(tmp_path):
    with atomic_write(tmp_path / "a.png") as path:
        path.write_bytes(b"x")
        assert path.suffix == ".png" and path.parent == tmp_path


def test_rows_survive_a_line_that_a_kill_cut_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    for i in range(3):
        append_jsonl(file, {"i": i})
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="last line is unfinished"):
        assert read_jsonl(file) == [{"i": 0}, {"i": 1}]
    append_jsonl(file, {"i": 9})
    assert read_jsonl(file) == [{"i": 0}, {"i": 1}, {"i": 9}]


@pytest.mark.parametrize("lost", range(1, 12))
def test_appending_goes_on_from_the_rows_that_reading_gives_wherever_a_kill_came(tmp_path, lost):
    file = tmp_path / "rows.jsonl"
    for i in range(2):
        append_jsonl(file, {"row": i})
    file.write_bytes(file.read_bytes()[:-lost])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = read_jsonl(file)
    append_jsonl(file, {"row": 9})
    assert read_jsonl(file) == [*before, {"row": 9}]


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"i": 0}\nnonsense\n{"i": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_jsonl(file)


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_jsonl(tmp_path / "rows.jsonl", {"x": float("nan")})
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError, match="cannot be written"):
        ensure_writable_folder(tmp_path / "file" / "inner")
