"""What ``animate`` is asked for: which mode its input means, and what that mode needs, checked before anything is loaded."""

from dataclasses import dataclass
from pathlib import Path

from visiongraft.media.meshes import MESH_SUFFIXES, read_mesh
from visiongraft.media.video import VIDEO_SUFFIXES
from visiongraft.methods.action_mesh.animate_options import AnimateOptions, Mode

_WAN = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_MAKES_CLIP = ("mesh-text", "image-text", "text")
_TAKES_MESH = ("mesh", "motion-transfer")


@dataclass(frozen=True)
class Request:
    """A mode and its inputs.

    Args:
        mode: what to do.
        clip: a video or a folder of pictures.
        picture: one picture.
        mesh: to be animated.
        prompt: text that is drawn, for ``text``.
        motion: text that says how it moves.
        name: of the outputs, beside the input.
    """

    mode: Mode
    name: Path
    clip: Path | None = None
    picture: Path | None = None
    mesh: Path | None = None
    prompt: str | None = None
    motion: str | None = None

    @property
    def makes_clip(self) -> bool:
        """Whether a generator makes the frames."""
        return self.mode in _MAKES_CLIP


def understood(options: AnimateOptions) -> Request:
    """The mode that is asked for or that the input means.

    Raises:
        FileNotFoundError: no such input.
        ValueError: inputs that do not go together, or generators that are missing.
    """
    if options.mode == "text":
        return _text(options)
    path = Path(options.input)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}; give a video, a folder of pictures, one picture or a mesh. To start from words alone, add --mode text."
        )
    kind = _kind(path)
    mode = options.mode or _meant(kind, options)
    _check_together(mode, kind, path, options)
    request = Request(
        mode=mode,
        name=path.parent / f"{path.stem if path.is_file() else path.resolve().name}-animated",
        clip=path if kind == "clip" else None,
        picture=path if kind == "picture" else None,
        mesh=path if kind == "mesh" else options.mesh,
        motion=options.text,
    )
    if request.mesh is not None:
        read_mesh(request.mesh, warn=False)  # refuses a bad one before the weights are loaded, which take longer
    _check_generators(request, options)
    return request


def _text(options: AnimateOptions) -> Request:
    if not options.input.strip():
        raise ValueError("With --mode text the input is the text itself: say what is to be seen and how it moves.")
    if options.mesh is not None or options.mesh_sequence is not None:
        raise ValueError("With --mode text everything is made from the text; to move a mesh by a text, make it the input.")
    request = Request(mode="text", name=Path("text-animated"), prompt=options.input, motion=options.text)
    _check_unused_clip_options(options, "text")
    _check_generators(request, options)
    return request


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix in VIDEO_SUFFIXES:
        return "clip"
    if suffix in _PICTURES:
        return "picture"
    if suffix in MESH_SUFFIXES:
        return "mesh"
    raise ValueError(
        f"{path} is no video ({', '.join(sorted(VIDEO_SUFFIXES))}), picture ({', '.join(_PICTURES)}), mesh ({', '.join(MESH_SUFFIXES)}) "
        "or folder of pictures."
    )


def _meant(kind: str, options: AnimateOptions) -> Mode:
    if kind == "mesh":
        return "mesh-text"
    if kind == "picture":
        return "image-text"
    if options.mesh_sequence is not None:
        return "extrapolate"
    return "video" if options.mesh is None else "mesh"


def _check_together(mode: Mode, kind: str, path: Path, options: AnimateOptions) -> None:
    needed = {"mesh-text": "mesh", "image-text": "picture"}.get(mode, "clip")
    if kind != needed:
        wanted = {"clip": "a video or a folder of pictures", "picture": "one picture", "mesh": "a mesh"}
        hint = "; need at least 2 frames, got 1" if kind == "picture" else ""
        raise ValueError(f"Mode {mode} starts from {wanted[needed]}, and {path} is {wanted[kind]}{hint}.")
    if mode in _TAKES_MESH and options.mesh is None:
        raise ValueError(f"Mode {mode} moves a mesh; give --mesh with its file.")
    if options.mesh is not None and mode not in _TAKES_MESH:
        raise ValueError(f"Mode {mode} takes no --mesh; leave it out, or give a clip and --mode mesh or motion-transfer.")
    if options.mesh_sequence is not None and mode != "extrapolate":
        raise ValueError(f"Mode {mode} takes no --mesh_sequence; it is for --mode extrapolate.")
    given_mesh = mode in (*_TAKES_MESH, "mesh-text") or options.mesh_sequence is not None
    if given_mesh and options.faces is not None:
        raise ValueError("A given mesh keeps its topology, so that --faces has no meaning for it; decimate the file first.")
    if not given_mesh and (options.mesh_yaw is not None or options.fit_scale != 1):
        raise ValueError(f"--mesh_yaw and --fit_scale turn and scale a given mesh; mode {mode} has none here. Leave them out.")
    if options.text is not None and mode not in _MAKES_CLIP:
        raise ValueError(f"Mode {mode} takes its motion from the clip, not from --text; leave it out.")
    if mode in _MAKES_CLIP:
        if not (options.text or "").strip():
            single = "; need at least 2 frames, got 1" if kind == "picture" else ""
            raise ValueError(f"{path} alone does not move{single}: say with --text how it moves, or give a video of it.")
        _check_unused_clip_options(options, mode)
    if mode == "mesh-text" and options.mesh_yaw == "auto":
        raise ValueError("The clip starts from a picture of the mesh itself, so that there is no turn to search for; give degrees.")


def _check_unused_clip_options(options: AnimateOptions, mode: str) -> None:
    used = {"masks": None, "first": 0, "stride": 1, "max_frames": None, "fps": None, "max_side": None}
    if given := [name for name, usual in used.items() if getattr(options, name) != usual]:
        raise ValueError(
            f"Mode {mode} makes its clip, and {', '.join(f'--{name}' for name in given)} choose from one that is read; "
            "leave them out, or see --generator_frames and --generator_stride."
        )
    if options.anchor != 0:
        raise ValueError(f"A clip that is made begins with what was given, so that the anchor is 0; got {options.anchor}.")


def _check_generators(request: Request, options: AnimateOptions) -> None:
    """What is missing, and how to pass it."""
    if not request.makes_clip:
        return
    if request.mode == "text" and options.text_video_generator is not None:
        if options.image_generator is not None or options.video_generator is not None:
            raise ValueError("--text_video_generator takes the place of --image_generator and --video_generator; give it, or those two.")
        if request.motion is not None:
            raise ValueError("--text says how a picture moves, and --text_video_generator starts from no picture; put it into the input.")
        return
    if request.mode == "text" and options.image_generator is None:
        raise ValueError(
            "Mode text needs a model that draws: give --image_generator with the folder or hub id of a Diffusers text-to-image pipeline "
            f"and --video_generator with that of an image-to-video one, such as {_WAN}; "
            "or --text_video_generator with a Wan text-to-video one."
        )
    if options.video_generator is None:
        raise ValueError(
            f"Mode {request.mode} needs a model that makes a video from a picture and a text: give --video_generator with the folder or "
            f"hub id of a Diffusers pipeline, such as {_WAN}; or make the video yourself and animate that."
        )
