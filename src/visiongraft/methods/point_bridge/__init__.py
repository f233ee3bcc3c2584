"""Policies on points that cross from simulation to reality (Point Bridge, arXiv 2601.16212): images never reach the policy.

Base: frozen perception models (a vision language model that names and points, SAM 2, stereo depth). Graft: the scene filter that turns
their answers into a few labelled points in the robot's base frame, and a transformer policy on points that is trained in simulation only.

    policy = load_policy("small")
    result = evaluate(["tabletop/put_on_plate"], policy, observer_factory=SimulatorPoints)
    print(result.success(), result.interval())
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visiongraft.methods.point_bridge.filtering import SceneFilter, plane_filter, simulator_filter
    from visiongraft.methods.point_bridge.model import PointBridgeModel, create_model
    from visiongraft.methods.point_bridge.perception import perceive
    from visiongraft.methods.point_bridge.policy import PointBridgePolicy
    from visiongraft.methods.point_bridge.recipe import PointBridgeRecipe
    from visiongraft.methods.point_bridge.released import build, load
    from visiongraft.methods.point_bridge.small import load_policy

_HOME = {
    "PointBridgeModel": "model",
    "PointBridgePolicy": "policy",
    "PointBridgeRecipe": "recipe",
    "SceneFilter": "filtering",
    "build": "released",
    "create_model": "model",
    "load": "released",
    "load_policy": "small",
    "perceive": "perception",
    "plane_filter": "filtering",
    "simulator_filter": "filtering",
}
__all__ = [
    "PointBridgeModel",
    "PointBridgePolicy",
    "PointBridgeRecipe",
    "SceneFilter",
    "build",
    "create_model",
    "load",
    "load_policy",
    "perceive",
    "plane_filter",
    "simulator_filter",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
