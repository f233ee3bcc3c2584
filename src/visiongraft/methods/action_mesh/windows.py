"""Which frames are generated together, in which order, when a clip is longer than a window.

Every window begins with a frame that is known by then (the anchor, or one of an earlier window): stage II takes it as its source.
Four defects of the released code are not repeated: a clip of any length from 2 frames has windows, none reaches below frame 0, the
source is made before it is asked for, and only the source is left out of the targets.
"""

import torch

WINDOW = 16
SLIDE = 15


def plan_windows(anchor: int, total: int, size: int = WINDOW, slide: int = SLIDE) -> list[list[int]]:
    """Frames of each window, in the order in which windows are made.

    A clip that fits is one window: the anchor, then the others. Otherwise windows go from the anchor to the longer side first, and
    then to the other; falling windows run backwards in time. Neighbours share ``size - slide`` frames, more where a side ends.

    Args:
        anchor: the known frame.
        total: frames of the clip, at least 2.
        size: frames of a window.
        slide: new frames of a window.

    Raises:
        IndexError: an anchor outside the clip.
        ValueError: fewer than 2 frames, or a slide that is not in [1, size - 1].

    Source: ActionMesh brief, 2.8.
    """
    if total < 2:
        raise ValueError(f"need at least 2 frames, got {total}; animate a longer clip.")
    if not 0 <= anchor < total:
        raise IndexError(f"The anchor must be a frame of the clip, 0 to {total - 1}; got {anchor}.")
    if not 1 <= slide < size:
        raise ValueError(f"slide must be at least 1 and less than the window of {size} frames; got {slide}.")
    shared = size - slide
    if total <= size:
        return [[anchor, *(k for k in range(total) if k != anchor)]]
    if anchor == 0:
        planned = _rising(0, total, size, slide)
    elif anchor == total - 1:
        planned = _falling(total, size, slide)
    elif anchor > total - anchor:
        planned = _falling(anchor + 1, size, slide)
        planned += _rising(min(max(0, anchor - shared + 1), total - size), total, size, slide)
    else:
        planned = _rising(anchor, total, size, slide)
        planned += _falling(max(min(anchor + shared, total), size), size, slide)
    return _without_repetition(planned, anchor)


def target_times(window_times: list[float], subsampling_level: int = 1) -> list[float]:
    """Times that stage II makes from a window: all of them, doubled between at each level above 1, without the source (the first).

    ``linspace(lowest, highest, n)`` with n frames, then 2n - 1 for each further level.

    Args:
        window_times: of the window's frames, at least two different ones; the first is the source.
        subsampling_level: 1 gives the frames alone, 2 one time between each two, 3 three.

    Raises:
        ValueError: fewer than two distinct times, or a level below 1.

    Source: ActionMesh brief, 2.8 (temporal super-resolution; defect (a): the source is left out, not the smallest time).
    """
    if subsampling_level < 1:
        raise ValueError(f"subsampling_level must be at least 1; got {subsampling_level}.")
    if len(set(window_times)) < 2:
        raise ValueError(f"stage II needs at least two distinct timesteps; got {window_times}.")
    count = len(window_times)
    for _ in range(subsampling_level - 1):
        count = 2 * count - 1
    times = torch.linspace(min(window_times), max(window_times), count, dtype=torch.float64).tolist()
    return [time for time in times if abs(time - window_times[0]) > 1e-6]


def _rising(start: int, end: int, size: int, slide: int) -> list[list[int]]:
    edge = min(start + size, end)
    windows = [list(range(start, edge))]
    while edge < end:
        edge = min(edge + slide, end)
        windows.append(list(range(max(start, edge - size), edge)))
    return windows


def _falling(end: int, size: int, slide: int) -> list[list[int]]:
    return [window[::-1] for window in reversed(_rising(0, end, size, slide))]


def _without_repetition(planned: list[list[int]], anchor: int) -> list[list[int]]:
    """Leaves out windows that bring no new frame, which stage I would refuse."""
    done, kept = {anchor}, []
    for window in planned:
        if not done.issuperset(window):
            kept.append(window)
            done.update(window)
    return kept
