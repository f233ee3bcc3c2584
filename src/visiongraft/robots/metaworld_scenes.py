"""Meta-World's simulators with their goals as bodies, and what in their models is an object."""

from typing import Any

import mujoco
import numpy as np

from visiongraft.robots.extras import require
from visiongraft.robots.mujoco_bodies import bodies_below

_FURNITURE = ("tablelink", "RetainingWall")
_GOAL_RADIUS = 0.02


def load_simulator(task: str) -> tuple[Any, str]:
    """Meta-World's simulator of a task with random, seeded starts and visible goals, and the MJCF of its scene.

    Bodies without a name get one, and where the model marks the goal with a site, a ball that touches nothing is put there.
    """
    require("metaworld")
    from metaworld.env_dict import ENV_CLS_MAP

    kind = ENV_CLS_MAP[task]
    xml: list[str] = []

    def initialise(self: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
        specification = mujoco.MjSpec.from_file(self.fullpath)
        _name_and_mark(specification)
        model = specification.compile()
        xml.append(specification.to_xml())
        return model, mujoco.MjData(model)

    simulator = type(f"Marked{kind.__name__}", (kind,), {"_initialize_simulation": initialise})()
    simulator._freeze_rand_vec, simulator.seeded_rand_vec = False, True
    simulator._partially_observable, simulator._set_task_called = False, True
    # the observation's bounds are cached, and those for hidden goals would cut the goals to zero
    simulator.__dict__.pop("sawyer_observation_space", None)
    return simulator, xml[-1]


def _name_and_mark(specification: mujoco.MjSpec) -> None:
    _name_children(specification.worldbody, set(body.name for body in specification.bodies))
    if any(site.name == "goal" for site in specification.sites):
        ball = specification.worldbody.add_body(name="goal")
        ball.add_geom(
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=[_GOAL_RADIUS, 0.0, 0.0],
            rgba=[0.8, 0.1, 0.1, 1.0],
            contype=0,
            conaffinity=0,
        )


def _name_children(parent: Any, taken: set[str]) -> None:
    """Names bodies after what they hang on, such as ``dial_part``."""
    for body in parent.bodies:
        if not body.name:
            stem = "fixture" if parent.name == "world" else f"{parent.name}_part"
            body.name = next(name for name in (stem, *(f"{stem}_{number}" for number in range(2, 1000))) if name not in taken)
            taken.add(body.name)
        _name_children(body, taken)


def find_objects(model: mujoco.MjModel) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Objects of a model: name -> bodies, and the names of those that move freely.

    What stands on its own in the world is an object unless it is the robot, its table, or a handle of the simulation. A part that a
    joint moves is an object apart from what it hangs on. Moving objects come first.
    """
    robot = _root(model, model.body("hand").id)
    moving: dict[str, tuple[str, ...]] = {}
    standing: dict[str, tuple[str, ...]] = {}
    free: list[str] = []
    for root in range(1, model.nbody):
        is_apart = model.body_parentid[root] == 0 and root != robot and model.body_mocapid[root] < 0
        if not is_apart or model.body(root).name in _FURNITURE:
            continue
        tree = bodies_below(model, [root])
        jointed = [body for body in tree if model.body_jntnum[body]]
        parts = {body: bodies_below(model, [body]) for body in jointed}
        for body, part in parts.items():
            if _visible(model, part):
                moving[_name(model, body)] = _names(model, part)
                if model.jnt_type[model.body_jntadr[body]] == mujoco.mjtJoint.mjJNT_FREE:
                    free.append(_name(model, body))
        rest = [body for body in tree if not any(body in part for part in parts.values())]
        if _visible(model, rest):
            standing[_name(model, rest[0])] = _names(model, rest)
    return moving | standing, tuple(free)


def _root(model: mujoco.MjModel, body: int) -> int:
    return int(model.body_rootid[body])


def _name(model: mujoco.MjModel, body: int) -> str:
    return model.body(body).name


def _names(model: mujoco.MjModel, bodies: list[int]) -> tuple[str, ...]:
    """Of the bodies that own geoms; the first names the object's frame and is kept in any case."""
    return tuple(_name(model, body) for index, body in enumerate(bodies) if index == 0 or model.body_geomnum[body])


def _visible(model: mujoco.MjModel, bodies: list[int]) -> bool:
    """Whether bodies own a geom that is drawn."""
    mine = np.isin(model.geom_bodyid, bodies)
    return bool((mine & (model.geom_group < 3) & (model.geom_rgba[:, 3] > 0)).any())
