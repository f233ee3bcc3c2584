import json
import re
import subprocess
import sys

import pytest

from visiongraft.studies import Claim, Figure, Report, Study, Table
from visiongraft.studies.claim import spread
from visiongraft.studies.plots import plot_style, save_figure


def claim(**changes):
    values = {"name": "c", "sentence": "It helps.", "source": "Table 1", "quantity": "accuracy", "rule": "higher in every seed"}
    return Claim(**{**values, "without": (0.1, 0.2), "with_graft": (0.6, 0.8), "held": True, **changes})


def test_report_round_trip(tmp_path):
    report = Report(
        method="m", title="A study", claims=[claim(), claim(without=None, held=False)],
        tables=[Table(title="T", columns=["a"], rows=[["x|y"]])],
        figures=[Figure(title="F", path="f.png")], notes=["note"], settings={"n": 1}, seeds=(0, 1), elapsed_s=61.0, version="0",
    )  # fmt: skip
    report.write(tmp_path)
    assert Report.read(tmp_path) == report
    text = (tmp_path / "report.md").read_text()
    assert "0.700 (0.600 to 0.800)" in text and "**did not hold**" in text and "x\\|y" in text and "![F](f.png)" in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (None, "–"),
        ((0.25,), "0.250"),
        ((1.0, 2.0), "1.500 (1.000 to 2.000)"),
        ((0.0, 0.0), "0.000 (0.000 to 0.000)"),
        ((1e-5, 3e-5), "2e-05 (1e-05 to 3e-05)"),
        ((25_000.0,), "2.5e+04"),
        ((-0.5, 0.25), "-0.125 (-0.500 to 0.250)"),
        ((1.0, float("inf")), "inf (1 to inf)"),
    ],
)
def test_spread_is_the_mean_with_the_range_in_digits_that_say_something(values, text):
    assert spread(values) == text


def test_markdown_starts_with_a_heading_for_a_page_and_puts_claims_before_tables():
    report = Report(
        method="m", title="A study", claims=[claim(sentence="p < 0.05 | one\nline")], seeds=(3, 4), elapsed_s=600.0, version="1",
        tables=[Table(title="T", columns=["a", "b"], rows=[[0.1 + 0.2, True]], note="A note.")],
    )  # fmt: skip
    lines = report.to_markdown().splitlines()
    assert lines[0] == "### Study: A study" and lines[2] == "Seeds 3, 4; 10 minutes; visiongraft 1."
    assert lines[4].startswith("| claim |") and lines[6].startswith("| p &lt; 0.05 \\| one line (Table 1) |")
    assert lines.index("| 0.3 | yes |") > 6 and "A note." in lines


def test_every_table_of_a_report_has_as_many_cells_as_columns_in_markdown():
    cells = ["a|b", "c\nd", "||", ""]
    table = Table(title="T", columns=["1", "2", "3", "4"], rows=[cells])
    lines = [line for line in Report(method="m", title="A", tables=[table]).to_markdown().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [5, 5, 5]


def test_report_is_json_that_every_program_reads_even_with_infinities(tmp_path):
    infinite = claim(without=None, with_graft=(float("inf"), 1.0), held=False)
    Report(method="m", title="A", claims=[infinite], settings={"limit": float("nan")}).write(tmp_path)

    def refuse(constant):
        raise ValueError(constant)

    record = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert record["settings"] == {"limit": "nan"}
    assert Report.read(tmp_path).claims == [infinite]


def test_importing_studies_imports_nothing_heavy():
    code = "import sys, visiongraft.studies; sys.exit(bool({'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: claim(with_graft=()), "no measured values"),
        (lambda: claim(without=(0.1,)), "one of each for every seed"),
        (lambda: Table(title="T", columns=["a", "b"], rows=[["x"]]), "has 2 columns, but a row has 1 cells"),
    ],
)
def test_incomplete_results_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_and_broken_reports_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the study first"):
        Report.read(tmp_path)
    for text in ("{}", "[]", "nonsense", '{"claims": [1]}'):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report\.json is not a report"):
            Report.read(tmp_path)


def test_units_are_computed_once_and_again_when_settings_change(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"value": (1, 2)}

    first = Study("s", tmp_path, {"n": 1})
    assert first.unit("a b/c", work) == {"value": [1, 2]} == Study("s", tmp_path, {"n": 1}).unit("a b/c", work)
    assert len(calls) == 1
    Study("s", tmp_path, {"n": 2}).unit("a b/c", work)
    first.unit("another", work)
    assert len(calls) == 3


def test_a_unit_that_fails_leaves_nothing_behind(tmp_path):
    study = Study("s", tmp_path, {})
    with pytest.raises(ZeroDivisionError):
        study.unit("a", lambda: 1 / 0)
    assert list((tmp_path / "units").iterdir()) == []
    assert study.unit("a", lambda: 3) == 3


def test_units_whose_keys_read_alike_are_kept_apart(tmp_path):
    keys = ["a b", "a-b", "a/b", "é", "", "x" * 200, "x" * 201]
    study = Study("s", tmp_path, {})
    assert [study.unit(key, lambda key=key: key) for key in keys] == keys
    assert [Study("s", tmp_path, {}).unit(key, lambda: None) for key in keys] == keys
    assert {path.parent for path in tmp_path.rglob("*.json")} == {tmp_path / "units"}


def test_time_of_units_counts_when_they_are_read_back(tmp_path):
    first, second = Study("s", tmp_path, {}), Study("s", tmp_path, {})
    first.unit("a", lambda: 1)
    second.unit("a", lambda: 1)
    assert first.seconds == second.seconds > 0


def test_a_stopped_study_keeps_the_units_it_finished(tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study = Study("s", tmp_path, {})
        study.unit("a", lambda: 1)
        study.unit("b", stop)
    again = Study("s", tmp_path, {})
    assert (again.unit("a", stop), again.unit("b", lambda: 2)) == (1, 2)


def test_units_that_cannot_be_kept_or_read_are_named(tmp_path):
    study = Study("s", tmp_path, {})
    with pytest.raises(TypeError, match="unit 'set' cannot be kept"):
        study.unit("set", lambda: {1})
    study.unit("a", lambda: 1)
    for text in ("", "[]", "{}"):
        next((tmp_path / "units").glob("a-*.json")).write_text(text)
        with pytest.raises(ValueError, match=r"a-\w+\.json is damaged .* delete it"):
            study.unit("a", lambda: 1)


def test_plot_style_is_the_same_whatever_the_user_set_and_gone_after_its_block(tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    def draw(path):
        with plot_style():
            assert matplotlib.get_backend() == "agg"
            figure, axes = plt.subplots(figsize=(2, 1))
            axes.plot([0, 1])
            axes.set_xlabel("x")
            save_figure(figure, path)
            plt.close(figure)
        return path.read_bytes()

    plain = draw(tmp_path / "a.png")
    with plt.style.context("dark_background"):
        plt.switch_backend("svg")
        before = dict(plt.rcParams)
        assert draw(tmp_path / "b.png") == plain
        assert dict(plt.rcParams) == before and matplotlib.get_backend() == "svg"
    plt.switch_backend("agg")


def test_a_plot_is_a_white_card(tmp_path):
    import matplotlib.pyplot as plt
    import numpy as np
    from PIL import Image

    with plot_style():
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1])
        save_figure(figure, tmp_path / "a.png")
        plt.close(figure)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert pixels[..., :3].min() < 128
