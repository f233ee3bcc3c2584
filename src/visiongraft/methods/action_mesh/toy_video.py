"""What the small models see in place of DINOv2 features: 16x16 silhouettes cut into 16 patches, each with its place.

Source: ActionMesh brief, 9 (video).
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SIZE = 16
PATCH = 4
PLACE_FEATURES = 8
CONTEXT_TOKENS = (SIZE // PATCH) ** 2
CONTEXT_DIM = PATCH**2 + PLACE_FEATURES


def coverage(frames: Float[Tensor, "*batch channels height width"], gain: float = 8.0) -> Float[Tensor, "*batch height width"]:
    """How much of each pixel the object covers, in [0, 1].

    Args:
        frames: 1 channel: coverage itself; 3: RGB on white, where whatever is darker than white counts as the object; 4: RGBA, of
            which alpha is taken.
        gain: of RGB: a pixel whose darkest channel is ``1 / gain`` below white is covered, a lighter one in proportion.

    Raises:
        ValueError: another number of channels.
    """
    channels = frames.shape[-3]
    if channels not in (1, 3, 4):
        raise ValueError(f"Frames have 1 (coverage), 3 (RGB on white) or 4 (RGBA) channels; got {channels}.")
    if channels == 3:
        # the darkest channel: a saturated colour is as far from white as a grey one
        return ((1 - frames.amin(-3)) * gain).clamp(0, 1)
    return frames[..., -1, :, :]


def toy_context(frames: Float[Tensor, "*batch channels height width"]) -> Float[Tensor, "*batch tokens dim"]:
    """Context tokens of frames: 16 patches of 4x4 pixels of the silhouette at 16x16 pixels, with 8 features of their place.

    Args:
        frames: see :func:`coverage`; of any size, averaged to 16x16.

    Returns:
        ``CONTEXT_TOKENS`` tokens of ``CONTEXT_DIM`` channels, row by row from the top left; pixels run from -1 (nothing) to 1.

    Raises:
        ValueError: frames of another number of channels or of fewer pixels than 16x16.
    """
    if min(frames.shape[-2:]) < SIZE:
        raise ValueError(
            f"The small models see {SIZE}x{SIZE} pixels; got frames of {frames.shape[-1]}x{frames.shape[-2]}, give larger ones."
        )
    # the pixels of large frames are object or not, those of small ones shares of it: middle grey on white gives its alpha back
    small = frames.shape[-2:] == (SIZE, SIZE)
    seen = coverage(frames, gain=2.0 if small else 8.0)
    leading = seen.shape[:-2]
    seen = seen if small else F.adaptive_avg_pool2d(seen.reshape(-1, 1, *seen.shape[-2:]), SIZE)
    side = SIZE // PATCH
    patches = seen.reshape(-1, side, PATCH, side, PATCH).transpose(2, 3).reshape(-1, CONTEXT_TOKENS, PATCH**2)
    places = place_features().to(patches).expand(len(patches), -1, -1)
    return torch.cat([2 * patches - 1, places], -1).reshape(*leading, CONTEXT_TOKENS, CONTEXT_DIM)


def place_features() -> Float[Tensor, "tokens features"]:
    """Sines and cosines of a patch's row and column, at one and at half a turn over the picture; all tokens differ."""
    side = SIZE // PATCH
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    place = (torch.stack([row, column], -1).reshape(-1, 2) + 0.5) / side
    angles = torch.cat([torch.pi * place, 2 * torch.pi * place], -1)
    return torch.cat([angles.sin(), angles.cos()], -1)
