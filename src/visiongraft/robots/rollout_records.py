"""The folder of an evaluation: what it was, which episodes have ended, and their videos."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visiongraft.media.files import append_jsonl, atomic_write, ensure_writable_folder, read_jsonl
from visiongraft.robots.environment import View
from visiongraft.robots.results import EpisodeResult, EvaluationResult
from visiongraft.robots.rollout_episode import EpisodeRules, EpisodeSpec, Finished, Recording

_SCHEMA = 1


class RolloutRecords:
    """Keeps finished episodes in a folder, one line each, so that an evaluation that was stopped goes on.

    Args:
        folder: created if need be.
        seed, rules, view, observer, identity: everything that results depend on besides task and index; a folder that was written
            under others is refused.
        recording: which episodes are filmed; ``None`` films none. May change when an evaluation goes on.

    Raises:
        ValueError: a folder of another evaluation, or settings that JSON does not have.
        PermissionError: a folder that cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        rules: EpisodeRules,
        view: View,
        observer: str | None,
        identity: dict[str, Any],
        recording: Recording | None,
    ) -> None:
        self._folder, self._recording = ensure_writable_folder(folder), recording
        self._episodes = folder / "episodes.jsonl"
        self._filmed: Counter[tuple[str, bool]] = Counter()
        settings = {"schema": _SCHEMA, "seed": seed, **asdict(rules), "view": asdict(view), "observer": observer, "identity": identity}
        self._check_settings(_as_json(settings))
        for path in folder.glob("videos/.*-unfinished.mp4"):  # of a process that was killed
            path.unlink()

    def finished(self, planned: Mapping[tuple[str, int], EpisodeSpec]) -> dict[tuple[str, int], EpisodeResult]:
        """Planned episodes that have already ended; others in the folder are left alone.

        Raises:
            ValueError: an episode whose label now means another task, options or seed, or a row that is no episode.
        """
        if not self._episodes.exists():
            return {}
        ended = {}
        for row in read_jsonl(self._episodes):
            try:
                video = row.pop("video")
                result = EpisodeResult(**row)
            except (TypeError, KeyError) as error:
                raise ValueError(f"{self._episodes} holds a row that is no episode ({error}); choose another folder.") from error
            self._filmed[result.label, result.success] += video is not None
            spec = planned.get((result.label, result.index))
            if spec is None:
                continue
            if (result.task, result.options, result.seed) != (spec.task, _as_json(spec.options), spec.seed):
                raise ValueError(
                    f"{self._episodes} has episodes of {result.label!r} with other options ({result.task}, {result.options}); "
                    "choose another folder or another label."
                )
            ended[result.label, result.index] = result
        return ended

    def with_video(self, spec: EpisodeSpec) -> EpisodeSpec:
        """The episode, to be filmed if successes or failures of its task are still wanted."""
        if self._recording is None or all(self._filmed[spec.label, success] >= self._recording.first for success in (True, False)):
            return spec
        folder = self._folder / "videos"
        folder.mkdir(exist_ok=True)
        name = "".join(character if character.isalnum() or character in "-._=" else "_" for character in spec.label)
        return replace(spec, video=folder / f"{name}-{spec.index:04d}")

    def add(self, event: Finished) -> None:
        """Writes down an episode that has ended, and keeps its video or not."""
        video, kind = event.video, (event.result.label, event.result.success)
        if video is not None and self._recording is not None and self._filmed[kind] >= self._recording.first:
            video.unlink()
            video = None
        self._filmed[kind] += video is not None
        append_jsonl(self._episodes, {**asdict(event.result), "video": None if video is None else video.name})

    def write_result(self, result: EvaluationResult) -> None:
        """Writes ``result.json``."""
        with atomic_write(self._folder / "result.json") as path:
            path.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self._folder / "settings.json"
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path} is not JSON ({error}); choose another folder.") from error
            names = [name for name in {**stored, **settings} if stored.get(name) != settings.get(name)]
            if names:
                told = "; ".join(f"{name} was {stored.get(name)!r} and is {settings.get(name)!r}" for name in names)
                raise ValueError(f"The folder {self._folder} holds an evaluation of something else: {told}. Choose another folder.")
        elif self._episodes.exists():
            raise ValueError(f"{self._episodes} lacks the settings.json beside it, which says what it is; choose another folder.")
        else:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _as_json(value: Any) -> Any:
    """What comes back when the value has been through a file."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Options and identity of an evaluation must be JSON-able to be kept in a folder: {error}.") from error
