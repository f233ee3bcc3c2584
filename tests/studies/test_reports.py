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


def test_spread_of_one_of_several_and_of_nothing():
    assert (spread((0.25,)), spread((1.0, 2.0), 1), spread(None)) == ("0.250", "1.5 (1.0 to 2.0)", "–")


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
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(ValueError, match="not a report"):
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


def test_plot_style_stays_inside_its_block(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.rcParams["axes.spines.top"], plt.rcParams["lines.linewidth"]
    with plot_style():
        figure, axes = plt.subplots()
        axes.plot([0, 1])
        save_figure(figure, tmp_path / "a.png")
        plt.close(figure)
    assert (plt.rcParams["axes.spines.top"], plt.rcParams["lines.linewidth"]) == before
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
