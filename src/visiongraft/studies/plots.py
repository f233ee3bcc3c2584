"""One look for all plots: a white card that is readable on light and dark pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visiongraft.media.files import atomic_write

_PALETTE = ("#3b6fb6", "#c8553d", "#4f8f57", "#8a5fa8", "#d29922", "#4a9aa5", "#8c6d5a", "#6b7280")


@contextmanager
def plot_style() -> Iterator[None]:
    """Matplotlib's backend without windows and the common style, inside the block only.

    The style starts from Matplotlib's own defaults, so that pictures do not depend on the user's settings. A backend that was
    chosen before is chosen again after the block.
    """
    import matplotlib

    before = matplotlib.get_backend(auto_select=False)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.use("agg")
        matplotlib.rcParams.update(
            {
                "font.size": 10,
                "axes.prop_cycle": matplotlib.cycler(color=_PALETTE),  # pyright: ignore[reportAttributeAccessIssue]
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.edgecolor": "#9aa3ad",
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#e6e9ed",
                "lines.linewidth": 1.8,
                "legend.frameon": False,
            }
        )
        try:
            yield
        finally:
            if before is not None:
                matplotlib.use(before, force=False)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Writes a Matplotlib figure as PNG (160 dpi), atomically."""
    path = Path(path)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=160, bbox_inches="tight")
    return path
