"""Optional packages of the robot floor: imported where they are used, with one sentence where they are missing."""

from importlib import import_module
from types import ModuleType

_EXTRAS = {
    "mujoco": "robots",
    "metaworld": "robots",
    "gymnasium": "robots",
    "h5py": "robots",
    "cv2": "robots",
    "robosuite": "robosuite",
    "libero": "libero",
    "websockets": "serve",
    "msgpack": "serve",
    "ray": "distributed",
}


def require(module: str) -> ModuleType:
    """Imports an optional module.

    Args:
        module: dotted name; its first part says which extra it belongs to.

    Raises:
        ImportError: it is not installed; the sentence has the pip command.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # the package is there, and something that it needs is not
        raise ImportError(f"{package} is not installed; install it with: pip install 'visiongraft[{_EXTRAS[package]}]'") from None
