"""The result of every mode: one mesh that moves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.user_mesh import UserMesh


@dataclass(frozen=True, eq=False, kw_only=True)
class Animation:
    """An animated mesh: one topology, vertices for each time.

    Args:
        vertices: Y up; in the box [-1, 1]^3, or in the coordinates and the order of the mesh that was given.
        faces: of all times, counter-clockwise seen from outside.
        times: of each vertex set, in frames of the clip.
        anchor: frame that the mesh was made or given for.
        latents: one for each frame of the clip. With them a longer clip can go on; an animation from a file has none.
        box_vertices: as stage II made them: in the box, duplicate vertices merged. Without a given mesh they are ``vertices``.
        user_mesh: the given mesh, how it was turned (``yaw_deg``) and brought into the box.
    """

    vertices: Float[Tensor, "times v 3"]
    faces: Int[Tensor, "f 3"]
    times: tuple[float, ...]
    anchor: int
    latents: Float[Tensor, "frames tokens channels"] | None = None
    box_vertices: Float[Tensor, "times w 3"] | None = None
    user_mesh: UserMesh | None = None

    def latent_bank(self) -> TimeBank:
        """Latents (1 x tokens x channels) by frame.

        Raises:
            ValueError: an animation without latents.
        """
        if self.latents is None:
            raise ValueError("The animation has no latents, so that no clip can go on from it; only what a pipeline returned has them.")
        return TimeBank({frame: latent[None] for frame, latent in enumerate(self.latents)})

    def vertex_bank(self) -> TimeBank:
        """Vertices in the box by time."""
        vertices = self.vertices if self.box_vertices is None else self.box_vertices
        return TimeBank(dict(zip(self.times, torch.unbind(vertices), strict=True)))

    def anchor_mesh(self) -> tuple[Float[Tensor, "w 3"], Int[Tensor, "f 3"]]:
        """The anchor's mesh in the box."""
        if self.user_mesh is not None:
            return self.user_mesh.vertices, self.user_mesh.faces
        return self.vertex_bank()[self.anchor], self.faces
