"""Independent pieces of work on all threads that PyTorch may use."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def share(work: Callable[[Piece], None], pieces: Sequence[Piece], device: torch.device) -> None:
    """Calls ``work`` for each piece, without gradients, on as many threads as ``torch.get_num_threads()`` on a processor.

    PyTorch itself would share each single operation among the threads and wait for all of them after each: with thousands of short
    operations that is slower, and a hundred times slower where another process uses the processor too.

    Args:
        work: must write its results to places of their own.
        pieces: what to call it with.
        device: where the tensors are; on another device than a processor everything happens on one thread.
    """
    without_gradients = torch.no_grad()(work)  # a thread of its own has its own mode
    threads = min(torch.get_num_threads(), len(pieces)) if device.type == "cpu" else 1
    if threads <= 1:
        for piece in pieces:
            without_gradients(piece)
        return
    # a pool for each call: one that lives longer would hang in a forked process
    available = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(without_gradients, pieces))
    finally:
        torch.set_num_threads(available)  # the initialiser also set the default for threads to come
