"""Baselines that share trunk, heads, recipe and policy with Point Bridge and differ in what they see.

Each is a configuration of ``PointBridgeModel``, compared at the same ``SIZES``:

    image = create_model("small", **BASELINES["image"], num_cameras=2, image_size=64)
"""

from typing import Any

BASELINES: dict[str, dict[str, Any]] = {
    "image": {"observed": "image"},
    "scene": {"observed": "scene"},
    "merged": {"observed": "points", "tokens": "shared"},
}
"""Arguments of ``PointBridgeModel``:

- ``image``: a residual network with FiLM on each camera's image (BAKU).
- ``scene``: one token of the unfiltered cloud (BAKU-PCD); :class:`visiongraft.robots.scene_clouds.SceneCloud` adds it.
- ``merged``: all objects in one cloud, without identity, against ``tokens="per_object"``; the released code does this.

Source: brief, 7 and 9.
"""
