"""Running a study in units that are kept, so that an interrupted study goes on where it stopped."""

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from visiongraft.media.files import atomic_write, ensure_writable_folder

Result = TypeVar("Result")


class Study:
    """Units of work with results on disk.

    Args:
        name: of the study.
        output: folder; results go to ``units/``.
        settings: JSON-able; results of other settings are computed anew.

    Attributes:
        seconds: wall time that the units asked for so far took, whenever they were computed.
    """

    def __init__(self, name: str, output: str | Path, settings: dict[str, Any]) -> None:
        self.name, self.output = name, Path(output)
        self._settings = json.dumps(settings, sort_keys=True)
        self.seconds = 0.0
        ensure_writable_folder(self.output / "units")

    def unit(self, key: str, work: Callable[[], Result]) -> Result:
        """The result of ``work``, from disk if this unit was finished before with the same settings.

        Args:
            key: names the unit; every unit of a study has its own.
            work: gives a JSON-able result.

        Returns:
            The result as it reads back from JSON (tuples become lists), whether computed now or before.

        Raises:
            TypeError: a result that is not JSON-able.
            ValueError: a kept result that was damaged; the message names the file.
        """
        digest = hashlib.sha256(f"{key}\0{self._settings}".encode()).hexdigest()
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", key).strip("-")[:80]
        path = self.output / "units" / f"{slug}-{digest[:12]}.json"
        if path.is_file():
            return self._kept(path)
        started = time.monotonic()
        result = work()
        seconds = time.monotonic() - started
        self.seconds += seconds
        try:
            text = json.dumps({"key": key, "seconds": seconds, "result": result}, indent=1)
        except TypeError as error:
            raise TypeError(f"The result of the unit {key!r} cannot be kept ({error}); return numbers, texts, lists and dicts.") from error
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        tqdm.write(f"{self.name}: {key} ({seconds:.1f} s)")
        return json.loads(text)["result"]

    def _kept(self, path: Path) -> Any:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            seconds, result = record["seconds"], record["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to compute the unit anew.") from error
        self.seconds += seconds
        return result
