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


def test_rows_survive_a_line_that_a_kill_cut_off(tmp_path):
    file = tmp_path / "rows.jsonl"
    for i in range(3):
        append_jsonl(file, {"i": i})
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.warns(UserWarning, match="last line is unfinished"):
        assert read_jsonl(file) == [{"i": 0}, {"i": 1}]
    append_jsonl(file, {"i": 9})
    assert read_jsonl(file) == [{"i": 0}, {"i": 1}, {"i": 9}]


def test_a_line_that_is_no_json_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"i": 0}\nnonsense\n{"i": 1}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_jsonl(file)


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError):
        append_jsonl(tmp_path / "rows.jsonl", {"x": float("nan")})
    assert (tmp_path / "rows.jsonl").read_bytes() == b""


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(PermissionError, match="cannot be written"):
        ensure_writable_folder(tmp_path / "file" / "inner")
