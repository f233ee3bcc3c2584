"""The files behind ``collect`` and ``generate``: one of every instance pair of a task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from visiongraft.methods.point_bridge.commands import CollectOptions, GenerateOptions, RecordingOptions
from visiongraft.methods.point_bridge.observing import Eyes, eyes_by_name
from visiongraft.robots.extras import require

TRAINING_PAIRS = (0, 1, 2, 3)


def collect_files(options: CollectOptions) -> int:
    """Runs ``collect``; prints the files."""
    require("mujoco")
    from visiongraft.robots.generation import collect

    output = options.output or Path("runs/point_bridge") / f"{options.task.replace('/', '-')}-source.hdf5"
    if output.suffix != ".hdf5":
        raise ValueError(f"Demonstrations are written as .hdf5, got {output.name}.")
    eyes = _eyes(options)
    for pair in pairs_of(options.task, options.pairs):
        path = output if pair is None else output.with_name(f"{output.stem.removesuffix('-source')}-{pair}-source.hdf5")
        made = collect(
            options.task,
            path,
            num=options.num,
            options=_environment_options(pair, options.twin) | {"view": eyes.view},
            seed=options.seed,
            make_observer=eyes.observer_factory,
            workers=options.workers,
            engine=options.engine,
        )
        print(f"{made.path}  {made.successes} demonstrations, {made.success_rate:.0%} of {made.attempts} attempts")
    return 0


def generate_files(options: GenerateOptions) -> int:
    """Runs ``generate``; prints the files."""
    require("mujoco")
    from visiongraft.robots.demonstrations import read_demonstrations
    from visiongraft.robots.generation import generate
    from visiongraft.robots.subtasks import preset

    sources = [path for path in demonstration_files(options.sources) if "-source" in path.stem or path in options.sources]
    if not sources:
        raise ValueError(f"There are no source demonstrations (*-source.hdf5) in {', '.join(map(str, options.sources))}; collect some.")
    settings = replace(preset(options.preset).settings, trim_approach=options.trim)
    eyes = _eyes(options)
    left_out: list[Any] = []
    for source in sources:
        with read_demonstrations(source) as file:
            arguments = file.environment_args
        known = {name: value for name, value in arguments.get("env_kwargs", {}).items() if name in ("pair", "distractors")}
        if options.pairs is not None and known.get("pair") not in options.pairs:
            left_out.append(known.get("pair"))
            continue
        path = (options.output or source.parent) / f"{source.stem.removesuffix('-source')}.hdf5"
        if path.resolve() == source.resolve():
            path = path.with_stem(path.stem + "-generated")
        made = generate(
            arguments["env_name"],
            source,
            path,
            num=options.num,
            options=known | _environment_options(None, options.twin) | {"view": eyes.view},
            seed=options.seed,
            preset_name=options.preset,
            offset_range=options.offset,
            settings=settings,
            make_observer=eyes.observer_factory,
            workers=options.workers,
            engine=options.engine,
        )
        print(f"{made.path}  {made.successes} demonstrations, {made.success_rate:.0%} of {made.attempts} attempts")
    if len(left_out) == len(sources):
        raise ValueError(f"No source demonstrations are of pairs {options.pairs}; these are of {', '.join(map(str, left_out))}.")
    return 0


def demonstration_files(paths: list[Path]) -> list[Path]:
    """HDF5 files of paths and of the folders among them, sorted within each.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without any.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(path.glob("*.hdf5"))
            if not found:
                raise ValueError(f"The folder {path} has no .hdf5 files; collect or generate demonstrations first.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"There is no file or folder {path}.")
    return files


def pairs_of(task: str, pairs: list[int] | None) -> tuple[int | None, ...]:
    """Instance pairs to run: those given, else the training pairs of a tabletop task; other suites have none.

    Raises:
        ValueError: pairs of a suite that has none.
    """
    if not task.startswith("tabletop/"):
        if pairs:
            raise ValueError(f"Only tabletop tasks have instance pairs; leave pairs out for {task}.")
        return (None,)
    return tuple(pairs) if pairs else TRAINING_PAIRS


def _environment_options(pair: int | None, twin: bool) -> dict[str, Any]:
    return ({} if pair is None else {"pair": pair}) | ({"twin": True} if twin else {})


def _eyes(options: RecordingOptions) -> Eyes:
    return eyes_by_name(options.perception, size=options.image_size, points=options.points, camera=options.camera, seed=options.seed)
