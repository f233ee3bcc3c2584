"""Stage II: where every vertex of the anchor's mesh is at every time. One topology, many vertex sets."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visiongraft.geometry.meshes import vertex_normals
from visiongraft.methods.action_mesh.latent_bank import TimeBank
from visiongraft.methods.action_mesh.sampler import check_cancel
from visiongraft.methods.action_mesh.stage_one import Callback
from visiongraft.methods.action_mesh.windows import target_times

QUERY_CHUNK = 50_000
_NEARLY_CLIPPED, _MAX_CLIPPED = 0.99, 0.01


@torch.no_grad()
def deform_mesh(
    autoencoder: Any,
    latents: TimeBank,
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    windows: Sequence[Sequence[int]],
    *,
    known: TimeBank | None = None,
    subsampling_level: int = 1,
    query_chunk: int = QUERY_CHUNK,
    targets_at_once: int = 1,
    force: bool = False,
    callback: Callback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> TimeBank:
    """Vertices at all times of the windows, from those at the first frame of the first window.

    A window's source is the mesh at its first frame, with its own vertices and new normals; the windows of
    :func:`visiongraft.methods.action_mesh.windows.plan_windows` have it in the bank by then. The context is computed anew for every
    target, as the pair of times takes part in its self-attention. Memory does not grow with the mesh but by its vertices: queries go
    in chunks, which changes nothing.

    Args:
        autoencoder: the temporal autoencoder.
        latents: (tokens x channels) by frame number.
        vertices: of the anchor in the box [-1, 1]^3.
        faces: of all times.
        windows: frames of each window.
        known: vertices at further times, such as those of a shorter clip; they stay.
        subsampling_level: 1: one mesh a frame; 2 adds one between each two, 3 three.
        query_chunk: vertices at once.
        targets_at_once: target times in one batch; more is faster on small models and takes more memory.
        force: let the autoencoder run on a CPU whatever the window's size.
        callback: told after each target as (targets done, targets of the window, windows before this one, windows).
        cancel: asked before each target.

    Returns:
        A new bank with float32 vertices by time.

    Raises:
        KeyError: a frame without latents, or a source without vertices.
        ValueError: no windows, options below 1, or a window with fewer than two distinct times.
        Cancelled: when ``cancel`` says so.

    Source: ActionMesh brief, 2.6 and 2.8.
    """
    if not windows or not windows[0]:
        raise ValueError("There are no windows; plan_windows makes them.")
    if query_chunk < 1 or targets_at_once < 1:
        raise ValueError(f"query_chunk and targets_at_once must be at least 1; got {query_chunk} and {targets_at_once}.")
    bank = TimeBank() if known is None else TimeBank({time: known[time].to(vertices.device, torch.float32) for time in known.times})
    bank.add(windows[0][0], vertices.float())
    for index, frames in enumerate(windows):
        targets = [time for time in target_times([float(k) for k in frames], subsampling_level) if time not in bank]
        if not targets:
            continue
        codes = latents.stack(frames).to(vertices.device, torch.float32)
        source = bank[frames[0]]
        normals = vertex_normals(source, faces)
        for start in range(0, len(targets), targets_at_once):
            check_cancel(cancel, f"before target {start + 1} of {len(targets)} of stage II")
            some = targets[start : start + targets_at_once]
            positions = _positions(autoencoder, codes, frames, some, source, normals, query_chunk, {"force": True} if force else {})
            for time, moved in zip(some, positions, strict=True):
                bank.add(time, moved)
            if callback is not None:
                callback(start + len(some), len(targets), index, len(windows))
    _warn_of_clipping(bank)
    return bank


def _positions(
    autoencoder: Any,
    codes: Float[Tensor, "frames tokens channels"],
    frames: Sequence[int],
    targets: list[float],
    source: Float[Tensor, "v 3"],
    normals: Float[Tensor, "v 3"],
    chunk: int,
    options: dict[str, Any],
) -> Float[Tensor, "targets v 3"]:
    """Vertices of one source at several target times."""
    count, device = len(targets), source.device
    framestep = torch.tensor(frames, dtype=torch.float32, device=device)
    context = autoencoder.decode_context(
        codes.expand(count, -1, -1, -1),
        framestep.expand(count, -1),
        framestep[:1].expand(count),
        torch.tensor(targets, dtype=torch.float32, device=device),
        **options,
    )
    points = [cloud.expand(count, -1, -1) for cloud in (source, normals)]
    return autoencoder.query(context, *points, chunk=chunk).float()


def _warn_of_clipping(bank: TimeBank) -> None:
    """The output's sigmoid cannot leave the box: motion out of it is cut off.

    Source: ActionMesh brief, pitfall 9.
    """
    share = float((bank.stack().abs() > _NEARLY_CLIPPED).float().mean())
    if share > _MAX_CLIPPED:
        warnings.warn(
            f"{share:.0%} of the coordinates are at the sides of the models' box, where motion outward is cut off; "
            "encode the mesh smaller, e.g. with fit_scale 0.8.",
            stacklevel=3,
        )
