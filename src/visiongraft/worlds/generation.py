"""Scenes from a kind and a seed."""

from collections.abc import Callable

from visiongraft.worlds.dice import Dice
from visiongraft.worlds.landscapes import landscape
from visiongraft.worlds.rooms import room
from visiongraft.worlds.scenes import Scene
from visiongraft.worlds.streets import street
from visiongraft.worlds.tabletops import tabletop

_GENERATORS: dict[str, Callable[[Dice], Scene]] = {"room": room, "street": street, "landscape": landscape, "tabletop": tabletop}
KINDS = tuple(_GENERATORS)


def make_scene(kind: str, seed: int) -> Scene:
    """A random scene with a caption; the same seed gives the same scene on every machine.

    Args:
        kind: one of ``KINDS``.
        seed: any integer.

    Raises:
        ValueError: an unknown kind.

    Example:
        >>> scene = make_scene("room", 0)
        >>> render_panorama(scene, scene.viewpoint, 256).color.shape
        torch.Size([3, 256, 512])
    """
    if kind not in _GENERATORS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    return _GENERATORS[kind](Dice(seed))
