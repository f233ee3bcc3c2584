"""What a run leaves to look at: losses.jsonl, TensorBoard or Weights & Biases, preview pictures."""

import json
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image
from torch import Tensor

from visiongraft.media.files import append_jsonl, atomic_write, read_jsonl
from visiongraft.training.config import TrainerConfig
from visiongraft.training.order import derived_seed


def trackers(config: TrainerConfig) -> dict:
    """Accelerate's arguments for the chosen logger.

    Raises:
        ValueError: Weights & Biases is chosen and not installed.
    """
    if config.logger == "wandb" and find_spec("wandb") is None:
        raise ValueError("logger wandb needs the package wandb; install it, or choose tensorboard or none.")
    project = ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output / "logs"))
    return {"log_with": None if config.logger == "none" else config.logger, "project_config": project}


class Recording:
    """Rows, scalars and pictures of a run, written by the first process.

    Args:
        accelerator: of the run.
        output: the run's folder.
        start: finished steps; what an earlier process recorded after them is dropped, since it is done again.
    """

    def __init__(self, accelerator: Accelerator, output: Path, start: int) -> None:
        self.accelerator, self.output, self._rows = accelerator, output, output / "losses.jsonl"
        if accelerator.is_main_process:
            rows = [row for row in (read_jsonl(self._rows) if self._rows.exists() else []) if row["step"] <= start]
            with atomic_write(self._rows) as path:
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        wandb = {"name": output.name, "id": f"{output.name}-{derived_seed(str(output.resolve())):x}", "resume": "allow"}
        accelerator.init_trackers("visiongraft", init_kwargs={"tensorboard": {"purge_step": start + 1}, "wandb": wandb})

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def losses(self, step: int, losses: dict[str, float], rates: dict[str, float], norms: dict[str, float]) -> None:
        """One row of losses; the logger also gets learning rates and gradient norms."""
        if self.accelerator.is_main_process:
            append_jsonl(self._rows, {"step": step, **losses})
        named = {"loss": losses, "learning_rate": rates, "gradient_norm": norms}
        self.accelerator.log({f"{kind}/{name}": value for kind, values in named.items() for name, value in values.items()}, step=step)

    def previews(self, step: int, pictures: dict[str, Tensor], figures: dict[str, float]) -> None:
        """Pictures (3 x height x width in [0, 1]) to ``previews`` and the logger; figures to the logger."""
        self.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, step=step)
        if not self.accelerator.is_main_process:
            return
        for name, picture in pictures.items():
            pixels = (picture.detach().cpu().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            with atomic_write(self.output / "previews" / f"{name}-{step:08d}.png") as path:
                Image.fromarray(pixels).save(path)
            for tracker in self.accelerator.trackers:
                dataformats = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: pixels[None]}, step=step, **dataformats)
