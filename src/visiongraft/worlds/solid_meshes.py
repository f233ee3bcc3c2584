"""Closed triangle meshes of simple solids, without poles of zero area or seams; counter-clockwise from outside, float64."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MeshParts = tuple[Float[Tensor, "_ 3"], Int[Tensor, "_ 3"]]


def box_mesh(half: Float[Tensor, "3"], cells: tuple[int, int, int]) -> MeshParts:
    """A box at the origin whose sides are grids; neighbouring sides share their vertices.

    Args:
        half: half sizes along x, y, z.
        cells: of the grid along x, y, z.

    Raises:
        ValueError: fewer than one cell along an axis.
    """
    if min(cells) < 1:
        raise ValueError(f"A box has at least one cell along each axis; got {cells}.")
    counts = torch.tensor(cells)
    squares = []
    for axis in range(3):
        along, other = (axis + 1) % 3, (axis + 2) % 3
        steps = torch.meshgrid(torch.arange(cells[along]), torch.arange(cells[other]), indexing="ij")
        first, second = steps[0].flatten(), steps[1].flatten()
        for side in (0, 1):
            corners = []
            # counter-clockwise about +axis on the far side, the other way round on the near one
            for da, db in ((0, 0), (1, 0), (1, 1), (0, 1)) if side else ((0, 0), (0, 1), (1, 1), (1, 0)):
                node = torch.zeros(len(first), 3, dtype=torch.long)
                node[:, axis], node[:, along], node[:, other] = side * cells[axis], first + da, second + db
                corners.append(node)
            squares.append(torch.stack(corners, 1))
    nodes = torch.cat(squares).reshape(-1, 3)
    unique, index = torch.unique(nodes, dim=0, return_inverse=True)
    a, b, c, d = index.reshape(-1, 4).unbind(1)
    vertices = (2 * unique.double() / counts - 1) * half
    return vertices, torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])


def revolved_mesh(profile: Float[Tensor, "rings 2"], segments: int) -> MeshParts:
    """A surface of revolution about the x axis, closed by one vertex at each end.

    Args:
        profile: (x, radius) of each ring with x ascending; the first and the last row are the tips, whose radius is not used.
        segments: around the axis.

    Raises:
        ValueError: fewer than three rows or segments.
    """
    rings = len(profile) - 2
    if rings < 1 or segments < 3:
        raise ValueError(f"A surface of revolution needs at least 3 profile rows and 3 segments; got {len(profile)} and {segments}.")
    turn = torch.arange(segments, dtype=torch.float64) * (2 * torch.pi / segments)
    x, radius = profile[1:-1].double().unbind(1)
    around = torch.stack([torch.zeros_like(turn), turn.cos(), turn.sin()], -1)
    body = radius[:, None, None] * around + x[:, None, None] * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    tips = torch.stack([profile[[0, -1], 0].double(), torch.zeros(2), torch.zeros(2)], -1)
    vertices = torch.cat([body.reshape(-1, 3), tips])
    node = torch.arange(rings * segments).view(rings, segments)
    after = node.roll(-1, 1)
    a, b, c, d = node[:-1].flatten(), after[:-1].flatten(), after[1:].flatten(), node[1:].flatten()
    first, last = torch.full((segments,), rings * segments), torch.full((segments,), rings * segments + 1)
    faces = [(a, b, c), (a, c, d), (first, after[0], node[0]), (last, node[-1], after[-1])]
    return vertices, torch.cat([torch.stack(corner, 1) for corner in faces])


def sphere_mesh(rings: int, segments: int) -> MeshParts:
    """The unit sphere: tips at x = -1 and 1 and rings at even angles between."""
    angle = torch.linspace(0, torch.pi, rings + 2, dtype=torch.float64)
    return revolved_mesh(torch.stack([-angle.cos(), angle.sin()], -1), segments)


def capsule_mesh(length: float, radius: float, rings: int, segments: int) -> MeshParts:
    """A capsule from the origin along x.

    Args:
        length: of its axis.
        radius: of it.
        rings: along the cylinder; each half sphere has ``segments / 4`` more.
        segments: around.
    """
    quarter = torch.linspace(0, torch.pi / 2, max(segments // 4, 1) + 1, dtype=torch.float64)
    cap = torch.stack([-radius * quarter.cos(), radius * quarter.sin()], -1)
    side = torch.linspace(0, length, rings + 1, dtype=torch.float64)[1:-1]
    middle = torch.stack([side, torch.full_like(side, radius)], -1)
    far = torch.stack([length - cap[:, 0], cap[:, 1]], -1).flip(0)
    return revolved_mesh(torch.cat([cap, middle, far]), segments)


def join(meshes: list[MeshParts]) -> tuple[Float[Tensor, "v 3"], Int[Tensor, "f 3"], Int[Tensor, "v"]]:
    """One mesh of several, and which one each vertex is of."""
    counts = torch.tensor([len(vertices) for vertices, _ in meshes])
    starts = (counts.cumsum(0) - counts).tolist()
    faces = torch.cat([faces + start for (_, faces), start in zip(meshes, starts, strict=True)])
    return torch.cat([vertices for vertices, _ in meshes]), faces, torch.repeat_interleave(torch.arange(len(meshes)), counts)
