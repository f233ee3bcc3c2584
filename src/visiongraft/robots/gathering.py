"""Numbered attempts into a file, until enough have succeeded: resumable, and the same file whatever the number of workers.

The file holds the first N successes in the order of the attempts. A log beside it says which attempts were made, so that resuming
repeats none, not even failures; it goes away when the file is finished.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from visiongraft.media.files import append_jsonl, ensure_writable_folder, read_jsonl
from visiongraft.robots.demonstration_reading import DemonstrationFile
from visiongraft.robots.demonstration_writing import DemonstrationWriter
from visiongraft.robots.engines import run_attempts
from visiongraft.robots.environment import RobotEnvironment
from visiongraft.robots.episodes import Demonstration

Task = str | Callable[..., RobotEnvironment]
"""Name of a task for ``make_environment``, or a function (at the top of a module, for other processes) that makes an environment."""


@dataclass(frozen=True)
class Gathered:
    """What came of it.

    Args:
        path: of the file.
        successes: demonstrations in the file.
        attempts: that were made for them, over all runs.
    """

    path: Path
    successes: int
    attempts: int

    @property
    def success_rate(self) -> float:
        """Share of attempts that succeeded."""
        return self.successes / max(self.attempts, 1)


def gather(
    make_attempt: Callable[[], Callable[[int], Demonstration | None]],
    output: str | Path,
    *,
    num: int,
    environment_args: Mapping[str, Any],
    recipe: Mapping[str, Any],
    workers: int = 1,
    engine: str | None = None,
    resume: bool = True,
    patience: int = 200,
    progress: bool = True,
) -> Gathered:
    """Makes attempts until ``num`` have succeeded.

    Ctrl-C or a kill keeps what is done; the same call continues it.

    Args:
        make_attempt: called once in every worker, gives the function of an attempt's number; None is a failure.
        output: HDF5 file.
        num: demonstrations in the file in the end.
        environment_args: robomimic's ``env_args``.
        recipe: everything that the data depend on; a file that was begun with another is refused.
        workers, engine: see :func:`visiongraft.robots.engines.run_attempts`.
        resume: continues a file that exists, finished or not.
        patience: gives up after so many failures in a row.
        progress: shows a bar.

    Raises:
        ValueError: a number below 1, or a file of another recipe.
        RuntimeError: too many failures in a row, or a worker that died.
    """
    if num < 1:
        raise ValueError(f"The number of demonstrations must be at least 1, got {num}.")
    output = Path(output)
    ensure_writable_folder(output.parent)
    log = output.with_name(output.name + ".attempts.jsonl")
    recipe_text = recipe_json(recipe)
    writer = DemonstrationWriter(output, environment_args, resume=resume, attributes={"recipe": recipe_text})
    made = _attempts_made(output, log, recipe_text, len(writer))
    if len(writer) < num:
        if not log.exists():
            append_jsonl(log, {"recipe": recipe_text})
        results = run_attempts(make_attempt, made, workers=workers, engine=engine)
        with writer:
            made = _fill(writer, results, log, num, made, patience, progress)
    successes = len(writer)
    if writer.parts.exists():
        writer.close()  # an earlier run had them all and was killed before it was done
    log.unlink(missing_ok=True)
    return Gathered(output, successes, made)


def _fill(writer: DemonstrationWriter, results: Any, log: Path, num: int, made: int, patience: int, progress: bool) -> int:
    """Appends successes until there are ``num``; returns the number of attempts made so far."""
    failures = 0
    with closing(results), tqdm(total=num, initial=len(writer), desc=writer.path.stem, unit="demo", disable=not progress) as bar:
        for number, demonstration in results:
            if demonstration is not None:
                demonstration.attributes["attempt"] = number
                writer.append(demonstration)
                bar.update()
            append_jsonl(log, {"attempt": number, "success": demonstration is not None})
            made = number + 1
            failures = 0 if demonstration is not None else failures + 1
            bar.set_postfix_str(f"{len(writer) / made:.0%} of {made} attempts succeed")
            if len(writer) >= num:
                break
            if failures >= patience:
                raise RuntimeError(
                    f"The last {failures} of {made} attempts failed, {len(writer)} of {num} demonstrations are in {writer.path}; "
                    "look at the expert, the source demonstrations or (with an observer) what its camera sees, or raise patience."
                )
    return made


def _attempts_made(output: Path, log: Path, recipe: str, successes: int) -> int:
    """Attempts of earlier runs: up to the last in the log or in the file, whichever is later (a kill may come between the two)."""
    rows = read_jsonl(log) if log.exists() else []
    if rows and not output.exists() and rows[0].get("recipe") != recipe:
        raise ValueError(f"{log} belongs to another run, with other settings; delete it, or choose another output.")
    made = max((row["attempt"] + 1 for row in rows if "attempt" in row), default=0)
    if successes:
        with DemonstrationFile(output, datagen_info=False) as file:
            made = max(made, int(file[len(file) - 1].attributes.get("attempt", -1)) + 1)
    return made


def recipe_json(recipe: Mapping[str, Any]) -> str:
    """A recipe as sorted JSON: dataclasses by their fields, functions by their names and, where some are bound, their arguments."""
    return json.dumps(recipe, sort_keys=True, default=_plain)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "options": value.keywords}
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def digest(demonstrations: list[Demonstration]) -> str:
    """A short name for the content of demonstrations."""
    content = hashlib.sha256()
    for demonstration in demonstrations:
        for array in (demonstration.actions, demonstration.states, demonstration.gripper_poses):
            content.update(np.ascontiguousarray(array, np.float64).tobytes())
    return content.hexdigest()[:16]
