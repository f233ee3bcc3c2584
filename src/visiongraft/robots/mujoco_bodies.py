"""Bodies and geoms of a MuJoCo model by name: poses, contacts, and which geom belongs to which object."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import mujoco
import numpy as np
from jaxtyping import Float, Int32

from visiongraft.robots.poses import make_pose


def body_id(model: mujoco.MjModel, name: str) -> int:
    """Index of a body.

    Raises:
        ValueError: no such body; the message lists those there are.
    """
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if index < 0:
        names = ", ".join(filter(None, (model.body(i).name for i in range(model.nbody))))
        raise ValueError(f"The model has no body {name!r}; its bodies are: {names}.")
    return index


def bodies_below(model: mujoco.MjModel, roots: Iterable[int]) -> list[int]:
    """Bodies and all that hang from them, in the model's order."""
    inside = np.zeros(model.nbody, bool)
    inside[list(roots)] = True
    for index in range(1, model.nbody):  # parents come first
        inside[index] |= inside[model.body_parentid[index]]
    return [int(index) for index in np.flatnonzero(inside)]


def geoms_of(model: mujoco.MjModel, bodies: Iterable[int]) -> list[int]:
    """Geoms that belong to bodies, in the model's order."""
    return [int(index) for index in np.flatnonzero(np.isin(model.geom_bodyid, list(bodies)))]


def geom_objects(
    model: mujoco.MjModel, object_names: Sequence[str], object_bodies: Mapping[str, Sequence[str]]
) -> Int32[np.ndarray, "geoms"]:
    """For every geom the index of its object in ``object_names``, or -1: what a segmentation image shows.

    Raises:
        ValueError: a body that the model does not have.
    """
    owners = np.full(model.ngeom, -1, np.int32)
    for index, name in enumerate(object_names):
        owners[np.isin(model.geom_bodyid, [body_id(model, body) for body in object_bodies[name]])] = index
    return owners


def body_pose(data: mujoco.MjData, body: int) -> Float[np.ndarray, "4 4"]:
    """Pose of a body in the world."""
    return make_pose(data.xmat[body].reshape(3, 3), data.xpos[body])


def site_pose(data: mujoco.MjData, site: int) -> Float[np.ndarray, "4 4"]:
    """Pose of a site in the world."""
    return make_pose(data.site_xmat[site].reshape(3, 3), data.site_xpos[site])


def camera_pose(data: mujoco.MjData, camera: int) -> Float[np.ndarray, "4 4"]:
    """Pose of a camera in the world with OpenCV axes; MuJoCo's own look along -z with y up."""
    return make_pose(data.cam_xmat[camera].reshape(3, 3) * np.array([1.0, -1.0, -1.0]), data.cam_xpos[camera])


@contextmanager
def camera_moved(data: mujoco.MjData, camera: int, camera_to_world: Float[np.ndarray, "4 4"]) -> Iterator[None]:
    """Puts a camera elsewhere (OpenCV axes) for what is rendered inside; the next physics step would put it back."""
    place, turn = data.cam_xpos[camera].copy(), data.cam_xmat[camera].copy()
    data.cam_xpos[camera] = camera_to_world[:3, 3]
    data.cam_xmat[camera] = (camera_to_world[:3, :3] * np.array([1.0, -1.0, -1.0])).reshape(-1)
    try:
        yield
    finally:
        data.cam_xpos[camera], data.cam_xmat[camera] = place, turn


def touching(data: mujoco.MjData, first: Iterable[int], second: Iterable[int]) -> bool:
    """Whether any geom of one group touches any of the other."""
    first, second = set(first), set(second)
    for one, other in data.contact.geom[: data.ncon].tolist() if data.ncon else ():
        if (one in first and other in second) or (one in second and other in first):
            return True
    return False


def update_positions(model: mujoco.MjModel, data: mujoco.MjData) -> None:
    """Brings poses, cameras and contacts up to date with the joints; leaves what the next physics step starts from untouched."""
    mujoco.mj_kinematics(model, data)
    mujoco.mj_comPos(model, data)
    mujoco.mj_camlight(model, data)
    mujoco.mj_collision(model, data)


_STATE = int(mujoco.mjtState.mjSTATE_FULLPHYSICS) | int(mujoco.mjtState.mjSTATE_CTRL) | int(mujoco.mjtState.mjSTATE_WARMSTART)


def read_state(model: mujoco.MjModel, data: mujoco.MjData, mocap: bool = False) -> Float[np.ndarray, "state"]:
    """Time, joints, velocities, activations, controls and the solver's warm start: the next step repeats to the bit.

    Args:
        model: of the scene.
        data: its present moment.
        mocap: whether the poses of mocap bodies belong to the state.
    """
    specification = _specification(mocap)
    state = np.empty(mujoco.mj_stateSize(model, specification))
    mujoco.mj_getState(model, data, state, specification)
    return state


def write_state(model: mujoco.MjModel, data: mujoco.MjData, state: Float[np.ndarray, "state"], mocap: bool = False) -> None:
    """Comes back to a state of :func:`read_state` and brings poses up to date.

    Raises:
        ValueError: a state of another size.
    """
    specification = _specification(mocap)
    size = mujoco.mj_stateSize(model, specification)
    if state.shape != (size,):
        raise ValueError(f"A state of this scene has {size} numbers, got {state.size}; it is of another task, pair or robot.")
    mujoco.mj_setState(model, data, np.ascontiguousarray(state), specification)
    update_positions(model, data)


def _specification(mocap: bool) -> int:
    return _STATE | (int(mujoco.mjtState.mjSTATE_MOCAP_POS) | int(mujoco.mjtState.mjSTATE_MOCAP_QUAT) if mocap else 0)
