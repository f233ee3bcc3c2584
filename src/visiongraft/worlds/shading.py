"""The light that leaves the surfaces that rays meet: texture, one light with shadows, ambient light, haze."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.worlds.intersections import sum_of_products
from visiongraft.worlds.patterns import PATTERN_COLORS, Surface
from visiongraft.worlds.scenes import PATTERNS, SHAPES, Light, column
from visiongraft.worlds.visibility import FARTHEST, Posed, hidden

SHADOW_GAP = 1e-3  # metres between a surface and the rays that look for its light
MATERIAL, SIZE, POSITION, ROTATION = slice(0, 12), slice(12, 15), slice(15, 18), slice(18, 27)
_SPHERE, _CYLINDER, _CAPSULE = (SHAPES.index(shape) for shape in ("ellipsoid", "cylinder", "capsule"))


@dataclass(frozen=True)
class Frame:
    """Where rays meet solids, in the axes of each solid.

    Args:
        inside: the point, metres from the middle of the solid.
        way: direction of the ray.
        normal: facing the ray.
        world_normal: the same in world axes.
        size: half size of the solid, metres.
    """

    inside: Float[Tensor, "3 rays"]
    way: Float[Tensor, "3 rays"]
    normal: Float[Tensor, "3 rays"]
    world_normal: Float[Tensor, "3 rays"]
    size: Float[Tensor, "3 rays"]

    def at(self, rows: Int[Tensor, " some"]) -> "Frame":
        """The frame of some of the rays."""
        parts = (self.inside, self.way, self.normal, self.world_normal, self.size)
        return Frame(*(part[:, rows] for part in parts))


def local_frame(posed: Posed, solid: Int[Tensor, " rays"], point: Float[Tensor, "3 rays"], direction: Float[Tensor, "3 rays"]) -> Frame:
    """Point, direction and normal in the axes of each ray's solid, and the normal in world axes; normals face the ray."""
    place = _gather(posed, POSITION, solid)
    rotation = _gather(posed, ROTATION, solid).view(3, 3, -1)
    size = _gather(posed, SIZE, solid)
    offset = point - place
    inside, way = (torch.stack([sum_of_products(rotation[:, i], vector) for i in range(3)]) for vector in (offset, direction))
    normal = _local_normal(posed, solid, inside, size)
    normal *= -torch.sign(sum_of_products(normal, way) + 1e-30)
    world = torch.stack([sum_of_products(rotation[i], normal) for i in range(3)])
    return Frame(inside, way, normal, world, size)


def _local_normal(posed: Posed, solid: Tensor, inside: Tensor, size: Tensor) -> Float[Tensor, "3 rays"]:
    """Outward normals, shape by shape."""
    counts = posed.scene.counts
    if sum(count > 0 for count in counts) == 1:
        return _NORMALS[next(i for i, count in enumerate(counts) if count)](inside, size)
    normal = torch.empty_like(inside)
    shape = posed.shape[solid]
    for kind, count in enumerate(counts):
        rows = (shape == kind).nonzero()[:, 0] if count else ()
        if len(rows):
            normal[:, rows] = _NORMALS[kind](inside[:, rows], size[:, rows])
    return normal


def _unit(vector: Tensor) -> Tensor:
    return vector * sum_of_products(vector, vector).clamp_(min=1e-24).rsqrt_()


def _box_normal(point: Tensor, size: Tensor) -> Tensor:
    """The axis along which the point is farthest out."""
    relative = point / size
    x, y, z = relative.abs()
    on_x, on_y = torch.maximum(y, z) <= x, z <= y
    return relative.sign_() * torch.stack([on_x, ~on_x & on_y, ~on_x & ~on_y])


def _ellipsoid_normal(point: Tensor, size: Tensor) -> Tensor:
    return _unit(point * (size.amin(0) / size).square_())


def _cylinder_normal(point: Tensor, size: Tensor) -> Tensor:
    radial = point[0] ** 2 + point[2] ** 2
    lid = (point[1] / size[1]).square_() > radial / size[0] ** 2
    side = ~lid * radial.clamp_(min=1e-24).rsqrt_()
    return torch.stack([point[0] * side, point[1].sign() * lid, point[2] * side])


def _capsule_normal(point: Tensor, size: Tensor) -> Tensor:
    axial = torch.minimum(torch.maximum(point[1], -size[1]), size[1])
    return _unit(torch.stack([point[0], point[1] - axial, point[2]]))


def _plane_normal(point: Tensor, size: Tensor) -> Tensor:
    zero = torch.zeros_like(point[0])
    return torch.stack([zero, zero + 1, zero])


_NORMALS = (_box_normal, _ellipsoid_normal, _cylinder_normal, _capsule_normal, _plane_normal)


def shade(
    posed: Posed,
    solid: Int[Tensor, " rays"],
    point: Float[Tensor, "3 rays"],
    direction: Float[Tensor, "3 rays"],
    distance: Float[Tensor, " rays"],
    frame: Frame,
    footprint: float,
    shadows: bool,
) -> Float[Tensor, "3 rays"]:
    """Colour of the surfaces at the points, in linear light."""
    albedo, glow = _surface_color(posed, solid, frame, distance * footprint)
    sky = posed.scene.sky
    up = (0.5 - 0.5 * frame.world_normal[1]).unsqueeze(0)
    received = torch.lerp(column(sky.ambient_down, point), column(sky.ambient_up, point), up) + glow
    for light in posed.scene.lights:
        received = torch.addcmul(received, column(light.color, point), _direct(posed, light, point, frame.world_normal, shadows))
    color = albedo * received
    if sky.haze > 0:
        color = torch.lerp(column(sky.horizon, point), color, torch.exp(-sky.haze * distance))
    return color


def _direct(posed: Posed, light: Light, point: Tensor, normal: Tensor, shadows: bool) -> Float[Tensor, " rays"]:
    """Share of a light's colour that arrives at the points."""
    if light.direction is not None:
        strength = sum_of_products(normal, column(light.direction, point)).clamp_(min=0)
    else:
        to_lamp = column(light.position, point) - point
        square = sum_of_products(to_lamp, to_lamp)
        cosine = sum_of_products(normal, to_lamp).clamp_(min=0) * square.clamp(min=1e-6).rsqrt_()
        strength = cosine * (2 * light.reach**2 / (square + light.reach**2))
    lit = (strength > 1e-3).nonzero()[:, 0] if shadows else ()
    if len(lit):
        start = point[:, lit] + SHADOW_GAP * normal[:, lit]
        if light.direction is not None:
            dark = hidden(posed, start, column(light.direction, point), FARTHEST, posed.casters)
        else:
            lamp = column(light.position, point)
            dark = hidden(posed, lamp, start - lamp, 1.0, posed.casters)
        strength[lit] *= ~dark
    return strength


def _surface_color(posed: Posed, solid: Tensor, frame: Frame, width: Tensor) -> tuple[Float[Tensor, "3 rays"], Float[Tensor, " rays"]]:
    """Colour, and light given off as a multiple of it; each pattern for its own rays."""
    values = _gather(posed, MATERIAL, solid)
    color, glow = values[:3].clone(), values[11].clone()
    patterns = posed.scene.pattern[solid]
    for kind in posed.patterns:
        rows = (patterns == kind).nonzero()[:, 0]
        if len(rows):
            surface = _surface(posed.shape[solid[rows]], frame.at(rows), values[:, rows], width[rows])
            color[:, rows], glow[rows] = PATTERN_COLORS[PATTERNS[kind]](surface)
    return color, glow


def _surface(shape: Tensor, frame: Frame, values: Tensor, width: Tensor) -> Surface:
    """Position on the surface and footprint, both in periods of the pattern."""
    (x, y, z), way, normal = frame.inside, frame.way, frame.normal
    size = frame.size * (frame.size < FARTHEST)  # what is endless is measured from its middle
    steep = normal.abs()
    on_x = (torch.maximum(steep[1], steep[2]) <= steep[0]).to(x.dtype)
    on_y = (steep[2] <= steep[1]).to(x.dtype) * (1 - on_x)
    on_z = 1 - on_x - on_y
    # u to the right and v down for someone who looks at the surface, from its corner
    u = on_x * (normal[0].sign() * z + size[2]) + on_y * (x + size[0]) + on_z * (size[0] - normal[2].sign() * x)
    v = on_y * (size[2] - z) + (1 - on_y) * (y + size[1])
    u_way, v_way = torch.lerp(way[0], way[2], on_x), torch.lerp(way[1], way[2], on_y)

    around = ((shape == _CYLINDER) & (steep[1] < 0.5)) | (shape == _CAPSULE) | ((values[10] > 0) & (shape == _SPHERE))
    rows = around.nonzero()[:, 0]
    if len(rows):
        u[rows] = torch.atan2(x[rows], z[rows]) * size[0, rows]
        globe = shape[rows] == _SPHERE
        latitude = torch.asin((y[rows] / size[1, rows]).clamp(-1, 1)) * size[1, rows]
        v[rows] = torch.where(globe, latitude, y[rows] + size[1, rows])

    # the footprint of a cone on a slanted surface is an ellipse; these are its extents along u and v
    facing = sum_of_products(way, normal).square_().clamp_(min=1e-6)
    period_u, period_v = values[6], values[7]
    width_u = (width * (1 + u_way * u_way / facing).sqrt_() / period_u).clamp_(min=1e-4)
    width_v = (width * (1 + v_way * v_way / facing).sqrt_() / period_v).clamp_(min=1e-4)
    aspect = period_u / period_v
    image = values[9].long()
    return Surface(u / period_u, v / period_v, width_u, width_v, aspect, values[:3], values[3:6], values[8], image, values[11])


def _gather(posed: Posed, columns: slice, solid: Int[Tensor, " rays"]) -> Float[Tensor, "columns rays"]:
    """Each ray's numbers, one contiguous row a number."""
    table = posed.columns[columns]
    rows = table.new_empty(len(table), len(solid))
    for source, target in zip(table, rows, strict=True):
        torch.index_select(source, 0, solid, out=target)
    return rows
