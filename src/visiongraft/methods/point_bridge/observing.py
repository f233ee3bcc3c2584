"""What a policy is shown, by name: the simulator's own points, or points from rendered images as a robot would have them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, get_args

from visiongraft.methods.point_bridge.commands import PerceptionName
from visiongraft.robots.observers import Observer
from visiongraft.robots.views import Modality, View

if TYPE_CHECKING:
    from visiongraft.robots.environment import RobotEnvironment

PERCEPTIONS: tuple[str, ...] = get_args(PerceptionName)
"""``simulator``: points of the true surfaces. ``aligned``: those, moved to what a camera sees (training data). ``random_camera``: the
same, and the camera stands elsewhere in every episode. ``segmentation``: the scene filter with the simulator's masks, eroded, and noisy
depth. ``stereo``: the same with depth of a stereo pair by semi-global matching. ``plane``: pieces above the table plane in noisy depth; the
simulator only says where they are in the first frame. ``scene``: the unfiltered cloud. ``images``: nothing is added."""


_IMAGE_SIZE, _STEREO_SIZE = (120, 160), (480, 640)
_OBJECT_POINTS, _SCENE_POINTS = 128, 512


@dataclass(frozen=True)
class Eyes:
    """How observations are made.

    Args:
        perception: see :data:`PERCEPTIONS`.
        camera: the camera in use; ``images`` sees it too.
        right_camera: the other one of the stereo pair.
        size: height and width of its images in pixels.
        points: of every object, or of the scene.
        renderer: see :class:`visiongraft.robots.environment.View`.
        seed: of everything that is drawn.

    Raises:
        ValueError: an unknown perception.
    """

    perception: str = "simulator"
    camera: str = "left"
    right_camera: str = "right"
    size: tuple[int, int] = (120, 160)
    points: int = 128
    renderer: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.perception not in PERCEPTIONS:
            raise ValueError(f"Unknown perception {self.perception!r}; there are {', '.join(PERCEPTIONS)}.")

    @property
    def view(self) -> View:
        """What environments have to render for it."""
        modalities: dict[str, tuple[Modality, ...]] = {
            "aligned": ("depth",),
            "segmentation": ("images", "depth", "segmentation"),
            "stereo": ("images", "depth", "segmentation"),
            "plane": ("images", "depth", "segmentation"),
            "scene": ("depth",),
            "images": ("images",),
        }
        if self.perception in ("simulator", "random_camera"):  # the latter renders for itself
            return View(size=self.size, renderer=self.renderer)
        cameras = (self.camera, self.right_camera) if self.perception == "stereo" else (self.camera,)
        return View(cameras=cameras, modalities=modalities[self.perception], size=self.size, renderer=self.renderer)

    @property
    def observer_factory(self) -> "Callable[[RobotEnvironment], Observer] | None":
        """Gives an environment its observer; None where nothing is added. It can be sent to other processes."""
        return None if self.perception == "images" else partial(make_observer, self)


def eyes_by_name(perception: str, *, size: tuple[int, int] | None, points: int | None, camera: str, seed: int) -> Eyes:
    """Eyes of the command line: what is None is what suits the perception, the same where demonstrations are recorded and where policies
    are rolled out.

    Args:
        perception: see :data:`PERCEPTIONS`.
        size: height and width of images in pixels; None: 120 x 160, of a stereo pair 480 x 640 (disparities of few pixels tell no depth).
        points: of every object, or of the scene; None: 128, of a scene 512.
        camera: the camera in use.
        seed: of everything that is drawn.

    Raises:
        ValueError: an unknown perception.
    """
    size = size or (_STEREO_SIZE if perception == "stereo" else _IMAGE_SIZE)
    points = points if points is not None else _SCENE_POINTS if perception == "scene" else _OBJECT_POINTS
    return Eyes(perception, camera=camera, size=size, points=points, seed=seed)


def make_observer(eyes: Eyes, environment: "RobotEnvironment") -> Observer:
    """The observer of an environment.

    Raises:
        ValueError: ``images``, which needs none, or a camera that the environment does not have.
    """
    from visiongraft.methods.point_bridge.filtering import plane_filter, simulator_filter
    from visiongraft.methods.point_bridge.naming import given_names
    from visiongraft.methods.point_bridge.perception_noise import PerceptionNoise
    from visiongraft.methods.point_bridge.simulated import InstancePointer
    from visiongraft.methods.point_bridge.stereo import SemiGlobalMatcher, StereoDepth
    from visiongraft.robots.points import SimulatorPoints
    from visiongraft.robots.scene_clouds import SceneCloud

    names = environment.object_names
    if eyes.perception == "images":
        raise ValueError("An image policy sees the images themselves; it needs no observer.")
    if eyes.perception in ("simulator", "aligned", "random_camera"):
        camera = None if eyes.perception == "simulator" else eyes.camera
        return SimulatorPoints(environment, eyes.points, eyes.seed, camera, random_camera=eyes.perception == "random_camera")
    if eyes.perception == "scene":
        return SceneCloud(eyes.camera, eyes.points)
    if eyes.perception == "plane":
        return plane_filter(
            given_names(names), InstancePointer(names), eyes.camera, noise=PerceptionNoise(), num_points=eyes.points, seed=eyes.seed
        )
    depth, right = (StereoDepth(SemiGlobalMatcher()), eyes.right_camera) if eyes.perception == "stereo" else (None, None)
    return simulator_filter(names, eyes.camera, depth=depth, right_camera=right, num_points=eyes.points, seed=eyes.seed)
