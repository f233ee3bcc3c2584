"""How panoramas are evaluated: published protocols as named presets, for :mod:`visiongraft.methods.panorama.evaluation`."""

from dataclasses import dataclass, replace
from typing import Literal

from visiongraft.geometry.cameras import check_hfov_deg


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """Everything that a number depends on besides the model, so that two numbers can be compared.

    Args:
        name: of the preset.
        media: what is evaluated.
        source: where the protocol comes from, and what of it is our choice.
        metrics: what the protocol reports.
        panorama_size: (height, width) of generated panoramas.
        input_hfov_deg: (lowest, highest) field of view of the inputs; ``None``: whatever the data set has.
        input_pitch_deg: (lowest, highest), likewise.
        input_roll_deg: (lowest, highest), likewise.
        views: perspective views a panorama.
        view_hfov_deg: their field of view.
        view_elevation_deg: above the horizon.
        view_size: pixels a side.
        azimuths: ``random``, the same for the i-th real and the i-th generated panorama; or ``even``, starting at 0.
        azimuth_seed: of the random azimuths.
        cube_size: side of the cubemap faces of OmniFID.
        faed_size: (height, width) that panoramas are resized to (bicubic, anti-aliased) for FAED.
        kernel_subsets: subsets of the kernel distance.
        kernel_subset_size: samples in each, or as many as there are.
        interior_columns: columns of the baseline of the discontinuity score.
        num_frames: frames a clip.
        fps: frames a second.
        auc_thresholds_deg: of camera errors.
        auc_min_error_deg: errors below count as none (GeoCalib: 1).
    """

    name: str
    media: Literal["image", "video", "camera"]
    source: str
    metrics: tuple[str, ...]
    panorama_size: tuple[int, int] = (1024, 2048)
    input_hfov_deg: tuple[float, float] | None = None
    input_pitch_deg: tuple[float, float] | None = None
    input_roll_deg: tuple[float, float] | None = None
    views: int = 8
    view_hfov_deg: float = 90.0
    view_elevation_deg: float = 0.0
    view_size: int = 512
    azimuths: Literal["random", "even"] = "random"
    azimuth_seed: int = 0
    cube_size: int = 512
    faed_size: tuple[int, int] = (512, 1024)
    kernel_subsets: int = 100
    kernel_subset_size: int = 1000
    interior_columns: int = 6
    num_frames: int | None = None
    fps: float | None = None
    auc_thresholds_deg: tuple[float, ...] = (1.0, 5.0, 10.0)
    auc_min_error_deg: float = 1.0

    def __post_init__(self) -> None:
        check_hfov_deg(self.view_hfov_deg)
        if self.views < 1 or self.view_size < 1:
            raise ValueError(f"A protocol needs at least 1 view of at least 1 pixel; got {self.views} of {self.view_size}.")


_SEAM = ("discontinuity", "seam_ratio")
_IMAGE = ("frechet", "kernel", "omni_frechet", "faed", "clip_score", *_SEAM)
_VIDEO = ("masked_psnr", "masked_lpips", "fvd", "vbench", *_SEAM)

_LAVAL = EvaluationProtocol(
    name="laval",
    media="image",
    source="360Anything, Laval Indoor: 8 views at random azimuth as in CubeDiff; seed and view size are our choice",
    metrics=_IMAGE,
    input_hfov_deg=(90.0, 90.0),
    input_pitch_deg=(0.0, 0.0),
    input_roll_deg=(0.0, 0.0),
)

PROTOCOLS: dict[str, EvaluationProtocol] = {
    p.name: p
    for p in (
        _LAVAL,
        replace(
            _LAVAL,
            name="sun360",
            source="360Anything, SUN360: 8 views at random azimuth as in CubeDiff; seed and view size are our choice",
        ),
        EvaluationProtocol(
            name="argus-real",
            media="video",
            source="360Anything, 101 clips of Argus with trajectories of real cameras; size of the views is our choice",
            metrics=_VIDEO,
            panorama_size=(512, 1024),
            views=4,
            azimuths="even",
            num_frames=81,
            fps=16.0,
        ),
        EvaluationProtocol(
            name="argus-simulated",
            media="video",
            source="360Anything, 101 clips of Argus with simulated trajectories; cameras (ranges of training) and view size our choice",
            metrics=_VIDEO,
            panorama_size=(512, 1024),
            input_hfov_deg=(30.0, 120.0),
            input_pitch_deg=(-60.0, 60.0),
            input_roll_deg=(-15.0, 15.0),
            views=4,
            azimuths="even",
            num_frames=81,
            fps=16.0,
        ),
        EvaluationProtocol(
            name="camera",
            media="camera",
            source="360Anything, zero-shot cameras on NYUv2, ETH3D, iBims-1 and MegaDepth; horizontal field of view; areas as in GeoCalib",
            metrics=("hfov_deg", "pitch_deg", "roll_deg"),
        ),
        EvaluationProtocol(
            name="small",
            media="image",
            source="ours, for the small panoramas of the bundled weights, offline",
            metrics=("frechet", "kernel", "omni_frechet", "masked_psnr", *_SEAM),
            panorama_size=(64, 128),
            input_hfov_deg=(40.0, 110.0),
            input_pitch_deg=(-45.0, 45.0),
            input_roll_deg=(-15.0, 15.0),
            views=4,
            view_size=32,
            azimuths="even",
            cube_size=32,
            faed_size=(64, 128),
        ),
    )
}


def find_protocol(name: str) -> EvaluationProtocol:
    """A preset by its name.

    Raises:
        ValueError: no such preset.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"There is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
