"""A scene of simple solids: what a generator describes in words and metres, and the tensors that the ray caster reads.

World axes are those of the cameras (x right, y down, z forward), so up is -y. A scene is made of *things* (a car, a lamp), each of
one or more *solids* that move together; an instance mask numbers the things.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visiongraft.geometry.cameras import skew
from visiongraft.worlds.textures import image_index

SHAPES = ("box", "ellipsoid", "cylinder", "capsule", "plane")
PATTERNS = ("plain", "checker", "stripes", "bricks", "planks", "windows", "mottled", "photograph")
Number = float | int
Vector = tuple[Number, Number, Number]


@dataclass(frozen=True)
class Material:
    """How a surface looks. Colours are linear light in [0, 1]; a pattern mixes ``color`` and ``second``.

    Args:
        color: of a plain surface, the light squares, the bricks, the wall between windows.
        pattern: one of ``PATTERNS``.
        second: the dark squares, the mortar, the glass, the dark patches.
        period: of the pattern along the two directions of the surface, in metres (a photograph's width and height).
        ratio: share of the first colour in a period.
        image: name of a texture for ``mottled`` and ``photograph``, see :mod:`visiongraft.worlds.textures`.
        around: lays the pattern around an ellipsoid like degrees on a globe, instead of projecting it along the nearest axis.
        emission: light given off, as a multiple of the colour.
    """

    color: Vector = (0.5, 0.5, 0.5)
    pattern: str = "plain"
    second: Vector = (0.2, 0.2, 0.2)
    period: tuple[Number, Number] = (1.0, 1.0)
    ratio: Number = 0.5
    image: str = "clouds"
    around: bool = False
    emission: Number = 0.0


@dataclass(frozen=True)
class Solid:
    """One shape. In its own axes a cylinder and a capsule stand along y, and a plane has the normal y.

    Args:
        shape: one of ``SHAPES``.
        position: of its middle, metres.
        half_size: half extents along its own axes; a capsule's middle number is half the distance between the centres of its two
            half spheres; infinity makes a plane endless; a plane's middle number means nothing.
        material: look.
        rotation: own axes to world axes.
        casts_shadow: off for the ground, for lamps around a light, and for what should not darken a room.
    """

    shape: str
    position: Vector
    half_size: Vector
    material: Material
    rotation: Float[Tensor, "3 3"] = field(default_factory=lambda: torch.eye(3))
    casts_shadow: bool = True


@dataclass(frozen=True)
class Thing:
    """What a caption or a mask calls one object: solids that move together.

    Args:
        name: such as "red car".
        solids: its parts.
        velocity: metres a second.
        spin: axis times radians a second.
        pivot: point the spin turns about, at time 0; the middle of the first solid by default.
    """

    name: str
    solids: Sequence[Solid]
    velocity: Vector = (0.0, 0.0, 0.0)
    spin: Vector = (0.0, 0.0, 0.0)
    pivot: Vector | None = None


@dataclass(frozen=True)
class Light:
    """The sun, the moon or the open sky above at infinity, or a lamp in the scene; surfaces cast shadows in it.

    Args:
        color: linear light on a surface that faces it; of a lamp, at ``reach`` metres.
        direction: unit vector towards it, or None for a lamp.
        position: of a lamp, metres.
        reach: of a lamp; its light falls with the square of the distance beyond, and reaches twice the colour near the lamp.
    """

    color: Vector
    direction: Vector | None = None
    position: Vector = (0.0, 0.0, 0.0)
    reach: Number = 2.0


@dataclass(frozen=True)
class Sky:
    """What surrounds the scene. Colours are linear light.

    Args:
        zenith: colour above; ``horizon``: at eye level and below.
        ambient_up: light on surfaces that face the sky; ``ambient_down``: on surfaces that face the ground.
        sun: unit vector towards the disc of the sun or the moon, or None if clouds hide it.
        sun_color: of the disc and its glow.
        clouds: share of the sky under clouds, 0 to 1.
        stars: brightness of the stars, 0 to 1.
        haze: share of light lost a metre.
    """

    zenith: Vector = (0.12, 0.27, 0.65)
    horizon: Vector = (0.6, 0.72, 0.85)
    ambient_up: Vector = (0.35, 0.4, 0.5)
    ambient_down: Vector = (0.18, 0.17, 0.15)
    sun: Vector | None = None
    sun_color: Vector = (1.0, 0.95, 0.85)
    clouds: Number = 0.4
    stars: Number = 0.0
    haze: Number = 0.002


@dataclass(frozen=True)
class Scene:
    """Solids as tensors, sorted by shape; built by :func:`assemble`.

    Args:
        kind: one of the generator's kinds.
        caption: a sentence that says what is there.
        names: of the things, in the order of the instance numbers.
        viewpoint: a camera position with a good view, metres.
        counts: solids of each of ``SHAPES``.
        position, rotation, half_size: poses at time 0, see :class:`Solid`.
        velocity, spin, pivot: motion of each solid, see :class:`Thing`.
        instance: number of the thing each solid belongs to.
        casts_shadow: see :class:`Solid`.
        pattern: index into ``PATTERNS``.
        material: rows color (3), second (3), period (2), ratio, image, around, emission.
        lights: lamps and the sun.
        sky: what surrounds it.
    """

    kind: str
    caption: str
    names: tuple[str, ...]
    viewpoint: Float[Tensor, "3"]
    counts: tuple[int, ...]
    position: Float[Tensor, "solids 3"]
    rotation: Float[Tensor, "solids 3 3"]
    half_size: Float[Tensor, "solids 3"]
    velocity: Float[Tensor, "solids 3"]
    spin: Float[Tensor, "solids 3"]
    pivot: Float[Tensor, "solids 3"]
    instance: Int[Tensor, " solids"]
    casts_shadow: Bool[Tensor, " solids"]
    pattern: Int[Tensor, " solids"]
    material: Float[Tensor, "solids 12"]
    lights: tuple[Light, ...]
    sky: Sky

    def to(self, target: torch.device | torch.dtype | str) -> "Scene":
        """The scene on another device, or with floats of another type."""
        as_dtype = isinstance(target, torch.dtype)
        moved = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and (value.is_floating_point() or not as_dtype):
                moved[f.name] = value.to(target)
        return dataclasses.replace(self, **moved)

    @property
    def moving(self) -> bool:
        """Whether anything moves by itself."""
        return bool(self.velocity.any() or self.spin.any())


def assemble(kind: str, caption: str, viewpoint: Vector, things: Sequence[Thing], lights: Sequence[Light], sky: Sky) -> Scene:
    """The tensors of a scene.

    Args:
        kind: name of the generator.
        caption: what is there.
        viewpoint: a good camera position, metres.
        things: in the order of their instance numbers.
        lights: lamps and the sun.
        sky: what surrounds it.

    Raises:
        ValueError: no things, an unknown shape or pattern, or a size that is not positive.
    """
    if not things:
        raise ValueError("a scene needs at least one thing; got none.")
    rows: list[tuple[int, Solid, Thing]] = [(i, solid, thing) for i, thing in enumerate(things) for solid in thing.solids]
    for _, solid, thing in rows:
        _check(solid, thing.name)
    rows.sort(key=lambda row: SHAPES.index(row[1].shape))
    solids = [solid for _, solid, _ in rows]
    materials = [solid.material for solid in solids]
    pivots = [thing.pivot or thing.solids[0].position for _, _, thing in rows]
    return Scene(
        kind=kind,
        caption=caption,
        names=tuple(thing.name for thing in things),
        viewpoint=torch.tensor(viewpoint, dtype=torch.float32),
        counts=tuple(sum(solid.shape == shape for solid in solids) for shape in SHAPES),
        position=torch.tensor([solid.position for solid in solids], dtype=torch.float32),
        rotation=torch.stack([solid.rotation.float() for solid in solids]),
        half_size=torch.tensor([solid.half_size for solid in solids], dtype=torch.float32),
        velocity=torch.tensor([thing.velocity for _, _, thing in rows], dtype=torch.float32),
        spin=torch.tensor([thing.spin for _, _, thing in rows], dtype=torch.float32),
        pivot=torch.tensor(pivots, dtype=torch.float32),
        instance=torch.tensor([i for i, _, _ in rows]),
        casts_shadow=torch.tensor([solid.casts_shadow for solid in solids]),
        pattern=torch.tensor([PATTERNS.index(m.pattern) for m in materials]),
        material=torch.tensor(
            [(*m.color, *m.second, *m.period, m.ratio, image_index(m.image), m.around, m.emission) for m in materials],
            dtype=torch.float32,
        ),
        lights=tuple(lights),
        sky=sky,
    )


def poses_at(scene: Scene, time: float) -> tuple[Float[Tensor, "solids 3"], Float[Tensor, "solids 3 3"]]:
    """Positions and rotations of the solids at a time in seconds."""
    if time == 0 or not scene.moving:
        return scene.position, scene.rotation
    turn = torch.matrix_exp(skew(scene.spin * time))
    arm = torch.einsum("nij,nj->ni", turn, scene.position - scene.pivot)
    return scene.pivot + scene.velocity * time + arm, turn @ scene.rotation


def column(vector: Vector, like: Tensor) -> Float[Tensor, "3 1"]:
    """A colour or a direction as a column, with the device and the floats of another tensor."""
    return torch.tensor(vector, dtype=like.dtype, device=like.device)[:, None]


def _check(solid: Solid, name: str) -> None:
    if solid.shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}; got {solid.shape!r} in {name}.")
    if solid.material.pattern not in PATTERNS:
        raise ValueError(f"pattern must be one of {', '.join(PATTERNS)}; got {solid.material.pattern!r} in {name}.")
    used = [size for axis, size in enumerate(solid.half_size) if not (solid.shape == "plane" and axis == 1)]
    endless = solid.shape == "plane"
    if not all(size > 0 and (endless or math.isfinite(size)) for size in used):
        raise ValueError(f"half sizes must be positive, and finite unless of a plane; got {solid.half_size} for a {solid.shape} in {name}.")
    if solid.shape in ("cylinder", "capsule") and solid.half_size[0] != solid.half_size[2]:
        raise ValueError(f"a {solid.shape} has one radius: half_size[0] and half_size[2] must be equal; got {solid.half_size} in {name}.")
