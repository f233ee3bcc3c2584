import pytest

from visiongraft.training import TrainerConfig


@pytest.fixture
def config(tmp_path):
    """A quick configuration; every argument can be changed."""

    def make(**changed) -> TrainerConfig:
        quick = {"output": tmp_path / "run", "steps": 12, "batch_size": 8, "checkpoint_every": 3, "log_every": 1, "logger": "none"}
        return TrainerConfig(**{**quick, "progress": False, **changed})

    return make
