"""Whether two sets of weights are the same ones, told without reading gigabytes."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_VALUES = 1024


@torch.no_grad()
def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Fingerprint of named tensors: their names, shapes, dtypes, and up to 1024 evenly spread values of each.

    Any training changes nearly all values of a tensor, so that this tells models apart as surely as a hash of everything, in
    a moment and on any device.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        stride = max(1, tensor.numel() // _VALUES)
        values = tensor.detach().flatten()[::stride][:_VALUES].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
