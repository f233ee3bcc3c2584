"""What the image and the video pipeline have in common: the graft's configuration, kept in the pipeline's own."""

from typing import Any, ClassVar

from diffusers import DiffusionPipeline

from visiongraft.methods.panorama.config import GraftConfig, Mode

MAX_WORDS = 512
"""Tokens of text that FLUX and Wan were trained with."""


class Grafted(DiffusionPipeline):
    """A pipeline whose weights were trained for a graft of one mode."""

    graft_mode: ClassVar[Mode]

    @property
    def graft(self) -> GraftConfig:
        """What the weights were trained for; kept in ``model_index.json``.

        Raises:
            ValueError: when a graft of the other mode is set.
        """
        return GraftConfig.from_dict(self.config.graft)

    @graft.setter
    def graft(self, graft: GraftConfig | dict[str, Any]) -> None:
        config = graft if isinstance(graft, GraftConfig) else GraftConfig.from_dict(graft)
        if config.mode != self.graft_mode:
            other = "PanoramaVideoPipeline" if config.mode == "video" else "PanoramaImagePipeline"
            raise ValueError(f"{type(self).__name__} needs a graft of mode {self.graft_mode!r}; got {config.mode!r}. Use {other}.")
        self.register_to_config(graft=config.to_dict())
