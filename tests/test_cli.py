import subprocess
import sys

import pytest

import visiongraft
import visiongraft.methods
from visiongraft.cli import main

COMMANDS = '''
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar


@dataclass(kw_only=True)
class Nested:
    """Inner.

    Args:
        depth: how deep
    """

    depth: int = 1


@dataclass(kw_only=True)
class Options:
    """Options.

    Args:
        source: what to read
        noise_level: how much
        sizes: which
        nested: inner options
    """

    POSITIONAL: ClassVar[tuple[str, ...]] = ("source",)
    source: Path
    noise_level: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    nested: Nested = field(default_factory=Nested)


def echo(options: Options) -> int:
    """Print the options.

    examples:
      visiongraft mock echo file
    """
    print(options)
    return 0


def fail(options: Options) -> int:
    """Fail."""
    kinds = {"value": ValueError("the value is wrong"), "defect": KeyError("inner"), "stop": KeyboardInterrupt(), "pipe": BrokenPipeError()}
    raise kinds[str(options.source)]


VERBS = {"echo": echo, "fail-now": fail}
'''


@pytest.fixture(autouse=True)
def mock_method(tmp_path, monkeypatch):
    room = tmp_path / "methods" / "mock_method"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text('"""A method for tests (arXiv 0000.00000).\n\nMore."""\nraise_if_imported = True\n')
    (room / "commands.py").write_text(COMMANDS)
    monkeypatch.setattr(visiongraft.methods, "__path__", [*visiongraft.methods.__path__, str(room.parent)])
    yield
    for name in [n for n in sys.modules if n.startswith("visiongraft.methods.mock_method")]:
        del sys.modules[name]


def test_methods_are_found_without_being_imported(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "mock_method" in shown and "A method for tests (arXiv 0000.00000)." in shown and "feature_smoothing" in shown
    assert "visiongraft.methods.mock_method" not in sys.modules


def test_options_come_from_flags_positionals_and_nested_fields(capsys):
    assert main(["mock-method", "echo", "here", "--noise-level", "0.25", "--sizes", "[3,4]", "--nested.depth", "7"]) == 0
    shown = capsys.readouterr().out
    assert "noise_level=0.25" in shown and "sizes=(3, 4)" in shown and "depth=7" in shown and "PosixPath('here')" in shown


def test_printed_configuration_read_back_gives_the_same_options_and_flags_override_it(tmp_path, capsys):
    words = ["mock_method", "echo", "here", "--noise_level", "0.125", "--nested.depth", "3"]
    main(words)
    direct = capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--print_config"])
    assert stopped.value.code in (0, None)
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    main(["mock_method", "echo", "--config", str(tmp_path / "run.yaml"), "here"])
    assert capsys.readouterr().out == direct
    main(["mock_method", "echo", "--config", str(tmp_path / "run.yaml"), "here", "--noise_level", "0.75"])
    assert "noise_level=0.75" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mock_method", "echo"], ["source", "--help"]),
        (["mock_method", "echo", "x", "--noise_level", "loud"], ["noise_level", "loud", "--help"]),
        (["mock_method", "echo", "x", "--volume", "1"], ["--volume", "--help"]),
        (["mock_method", "ecko"], ["no verb 'ecko'", "did you mean echo"]),
        (["mock_methd", "echo"], ["Unknown command 'mock_methd'", "did you mean mock_method"]),
        (["mock_method", "fail-now", "value"], ["the value is wrong"]),
        (["mock_method", "fail-now", "defect"], ["KeyError", "--debug"]),
        (["demo", "--methods", '["nothing"]'], ["There is no demo of nothing", "feature_smoothing"]),
    ],
)
def test_errors_are_one_sentence_on_stderr_and_exit_code_two(words, parts, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("visiongraft: ") and len(error.strip().splitlines()) == 1
    assert all(part in error for part in parts)


def test_an_unknown_key_in_a_configuration_file_is_named(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("loudness: 3\n")
    assert main(["mock_method", "echo", "--config", str(tmp_path / "run.yaml"), "x"]) == 2
    assert "loudness" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert main(["mock_method", "--debug", "fail-now", "value"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_interruption_and_a_closed_pipe_end_quietly(capsys):
    assert main(["mock_method", "fail-now", "stop"]) == 130
    assert capsys.readouterr().err == "visiongraft: stopped.\n"


def test_help_shows_verbs_options_and_examples(capsys):
    for words, parts in (
        ([], ["examples:", "visiongraft demo"]),
        (["mock_method"], ["echo", "Print the options.", "fail-now"]),
    ):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert all(part in shown for part in parts)
    with pytest.raises(SystemExit):
        main(["mock_method", "echo", "--help"])
    shown = capsys.readouterr().out
    assert "how much" in shown and "what to read" in shown and "\n  visiongraft mock echo file" in shown


@pytest.mark.parametrize(
    "words", [["--help"], ["methods"], ["--version"], ["feature_smoothing"], ["feature_smoothing", "certify", "--help"]]
)
def test_looking_around_does_not_import_torch(words):
    code = f"import sys, visiongraft.cli as c\ntry:\n    c.main({words!r})\nexcept SystemExit:\n    pass\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_version_is_the_package_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.strip() == visiongraft.__version__
