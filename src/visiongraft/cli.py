"""The command line: ``visiongraft methods``, ``visiongraft demo`` and ``visiongraft <method> <verb>``.

A method is a package under ``visiongraft.methods`` with a ``commands`` module; ``commands.VERBS`` maps a verb to a function of
one dataclass of options. Only the method that is asked for is imported, and nothing here imports torch.
"""

import ast
import dataclasses
import difflib
import os
import pkgutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from visiongraft import __version__

_DESCRIPTION = """\
visiongraft grafts new abilities onto pretrained vision models.

usage:
  visiongraft methods                      what is here
  visiongraft demo                         the gallery of every method, from the bundled weights
  visiongraft <method> --help              the verbs of a method
  visiongraft <method> <verb> --help       the options of a verb

examples:
  visiongraft demo --output gallery
  visiongraft panorama lift photo.jpg -o pano.jpg
  visiongraft feature_smoothing certify photos/ --n 2000 --print_config > run.yaml
  visiongraft feature_smoothing certify --config run.yaml --sigma 0.12

  --debug     show the traceback of an error
  --version   show the version
"""
# errors that say what to do; anything else is a defect of ours and offers the traceback
_EXPLAINED = (ValueError, OSError, NotImplementedError, ImportError, FloatingPointError)


class UsageError(ValueError):
    """What was typed cannot be run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Args:
        arguments: without the program's name; default ``sys.argv[1:]``.

    Returns:
        Exit code: 0; 2 for an error, told in one sentence on stderr; 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("visiongraft: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            hint = "" if isinstance(error, _EXPLAINED) else " (run again with --debug for the traceback)"
            print(f"visiongraft: {_one_line(error)}{hint}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, _EXPLAINED) and text else f"{type(error).__name__}: {text}"


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_DESCRIPTION, end="")
        return 0
    first, rest = words[0], words[1:]
    if first == "--version":
        print(__version__)
        return 0
    if first == "methods":
        print(_methods_table())
        return 0
    if first == "demo":
        return _call("visiongraft demo", demo, rest)
    methods = find_methods()
    method = first.replace("-", "_")
    if method not in methods:
        raise UsageError(f"Unknown command {first!r}{_closest(first, ['methods', 'demo', *methods])}; see visiongraft --help.")
    verbs: dict[str, Callable[..., Any]] = import_module(f"visiongraft.methods.{method}.commands").VERBS
    if not rest or rest[0] in ("-h", "--help"):
        print(_method_help(method, methods[method], verbs))
        return 0
    if rest[0] not in verbs:
        raise UsageError(f"{method} has no verb {rest[0]!r}{_closest(rest[0], list(verbs))}; see visiongraft {method} --help.")
    return _call(f"visiongraft {method} {rest[0]}", verbs[rest[0]], rest[1:])


def _closest(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}" if found else f" (there are {', '.join(known)})"


# --- methods ----------------------------------------------------------------------------------------------------------


def find_methods() -> dict[str, str]:
    """Name and docstring of every method that has commands, without importing any."""
    import visiongraft.methods

    found = {}
    for module in pkgutil.iter_modules(visiongraft.methods.__path__):
        folder = Path(module.module_finder.path) / module.name  # pyright: ignore[reportAttributeAccessIssue]
        if module.ispkg and (folder / "commands.py").is_file():
            found[module.name] = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return found


def _methods_table() -> str:
    methods = find_methods()
    width = max((len(name) for name in methods), default=0)
    lines = [f"{name:<{width}}  {text.splitlines()[0] if text else ''}" for name, text in methods.items()]
    return "\n".join([*lines, "", "visiongraft <method> --help shows the verbs."])


def _method_help(method: str, text: str, verbs: dict[str, Callable[..., Any]]) -> str:
    width = max(len(name) for name in verbs)
    lines = [f"  {name:<{width}}  {(verb.__doc__ or '').strip().splitlines()[0]}" for name, verb in verbs.items()]
    return "\n".join([text, "", "verbs:", *lines, "", f"visiongraft {method} <verb> --help shows options and examples."])


@dataclasses.dataclass(kw_only=True)
class DemoOptions:
    """Options of ``demo``.

    Args:
        output: folder of the gallery
        methods: methods to show; default: all
    """

    output: Path = Path("gallery")
    methods: list[str] | None = None


def demo(options: DemoOptions) -> int:
    """Write the gallery: every method at work with its bundled weights, beside its study.

    examples:
      visiongraft demo
      visiongraft demo --output /tmp/gallery --methods '["feature_smoothing"]'
    """
    from visiongraft.studies.gallery import write_demo

    known = [name for name in find_methods() if find_spec(f"visiongraft.methods.{name}.demo") is not None]
    chosen = known if options.methods is None else [name.replace("-", "_") for name in options.methods]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UsageError(f"There is no demo of {', '.join(unknown)}; methods with one: {', '.join(known)}.")
    print(write_demo(options.output, {name: import_module(f"visiongraft.methods.{name}.demo").demo for name in chosen}))
    return 0


# --- options ----------------------------------------------------------------------------------------------------------


def _call(program: str, verb: Callable[..., Any], words: list[str]) -> int:
    """Parses the words into the verb's options and runs it."""
    options_class = next(kind for name, kind in get_type_hints(verb).items() if name != "return")
    parser = _parser(program, verb, options_class)
    parsed = parser.instantiate(parser.parse_args([_normalised(word) for word in words]))
    values = {field.name: parsed[field.name] for field in dataclasses.fields(options_class)}
    return int(verb(options_class(**values)) or 0)


def _normalised(word: str) -> str:
    """``--stop-radius 0.1`` as ``--stop_radius 0.1``, and ``-o`` as ``--output``."""
    if word == "-o":
        return "--output"
    name, separator, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + separator + value if name.startswith("--") else word


def _parser(program: str, verb: Callable[..., Any], options_class: type) -> Any:
    import argparse

    from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the lines of examples."""

    class Parser(ArgumentParser):
        """Errors are one sentence, told by :func:`main`."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(f"{_short(message)} See {program} --help.")

    text = textwrap.dedent("    " + (verb.__doc__ or "").strip())
    parser = Parser(prog=program, description=text, formatter_class=Formatter, exit_on_error=True)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    positional = getattr(options_class, "POSITIONAL", ())
    parser.add_class_arguments(options_class, skip=set(positional))
    helps = {p.arg_name: p.description for p in _documented(options_class)}
    for field in dataclasses.fields(options_class):
        if field.name in positional:
            kind = get_type_hints(options_class)[field.name]
            parser.add_argument(field.name, type=kind, help=helps.get(field.name))
    return parser


def _documented(options_class: type) -> list[Any]:
    from docstring_parser import parse

    return parse(options_class.__doc__ or "").params


def _short(message: str) -> str:
    """The telling lines of a parser's message, as one sentence."""
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip(" -\t^")]
    text = " ".join(lines[:3]).rstrip(".")
    return f"{text[:400]}."


if __name__ == "__main__":
    sys.exit(main())
