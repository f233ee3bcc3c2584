"""The result of every mode: one mesh that moves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.methods.action_mesh.latent_bank import TimeBank


@dataclass(frozen=True, eq=False, kw_only=True)
class Animation:
    """An animated mesh: one topology, vertices for each time.

    Args:
        vertices: Y up; in the box [-1, 1]^3, or in the coordinates and the order of the mesh that was given.
        faces: of all times, counter-clockwise seen from outside.
        times: of each vertex set, in frames of the clip.
        anchor: frame that the mesh was made or given for.
        latents: one for each frame of the clip, with which a longer clip can go on (``extrapolate``).
        box_vertices: as stage II made them: in the box, duplicate vertices merged. With the latents they let a longer clip go on.
        mesh_yaw_deg: by how much a given mesh was turned about Y before it was encoded, in degrees; the result is turned back.
    """

    vertices: Float[Tensor, "times v 3"]
    faces: Int[Tensor, "f 3"]
    times: tuple[float, ...]
    anchor: int
    latents: Float[Tensor, "frames tokens channels"] | None = None
    box_vertices: Float[Tensor, "times w 3"] | None = None
    mesh_yaw_deg: float = 0.0

    def latent_bank(self) -> TimeBank:
        """Latents (1 x tokens x channels) by frame.

        Raises:
            ValueError: an animation without latents, such as one read from a file.
        """
        if self.latents is None:
            raise ValueError("The animation has no latents; only what a pipeline returned in this run has them.")
        return TimeBank({frame: latent[None] for frame, latent in enumerate(self.latents)})

    def vertex_bank(self) -> TimeBank:
        """Vertices in the box by time.

        Raises:
            ValueError: an animation that was read from a file.
        """
        if self.box_vertices is None:
            raise ValueError("The animation has no vertices in the box; only what a pipeline returned in this run has them.")
        return TimeBank(dict(zip(self.times, torch.unbind(self.box_vertices), strict=True)))
