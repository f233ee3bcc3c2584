"""Files in the layout of the authors' code: components by tensor names, whole checkpoints, and their data pickles.

The authors publish no weights; these are for checkpoints that people trained with the official code. Such files are pickles, so
that loading is a conversion asked for by name: :func:`convert_checkpoint`, then :func:`load`.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visiongraft.methods.point_bridge.encoders import PointNet
from visiongraft.methods.point_bridge.episodes import Episode, write_episodes
from visiongraft.methods.point_bridge.language import MINILM
from visiongraft.methods.point_bridge.model import PointBridgeModel
from visiongraft.methods.point_bridge.pickles import read_checkpoint, read_pickle
from visiongraft.methods.point_bridge.policy import PointBridgePolicy
from visiongraft.methods.point_bridge.policy_files import PolicyCard, write_policy
from visiongraft.robots.normalisation import MinMax
from visiongraft.robots.poses import rotation_6d, rotation_from_quaternion

COMPONENTS = ("encoder", "proprio_projector", "language_projector", "actor", "policy")
CONFIG: dict[str, Any] = {"num_queries": 40, "num_heads": 4, "history_len": 1, "dropout": 0.1}
"""The authors' settings that shapes do not tell, with their values; :func:`build` takes these keys."""

_TOLD_BY_SHAPES = ("hidden_dim", "repr_dim", "act_dim", "proprio_dim", "lang_dim", "use_proprio", "use_language")
_NO_EFFECT = ("max_episode_len", "num_points_per_obj")
_PARTS = COMPONENTS[:4]
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_MASK_BUFFER = re.compile(r"_policy\.transformer\.h\.\d+\.attn\.bias")
_NAMES = (
    (r"_policy\.transformer\.wte\.", "trunk.input_projection."),
    (r"_policy\.transformer\.wpe\.", "trunk.positions."),
    (r"_policy\.transformer\.ln_f\.", "trunk.norm."),
    (r"_policy\.lm_head\.", "trunk.output_projection."),
    (r"_policy\.transformer\.h\.(\d+)\.ln_(\d)\.", r"trunk.blocks.\1.norm\2."),
    (r"_policy\.transformer\.h\.(\d+)\.attn\.c_attn\.", r"trunk.blocks.\1.attention.qkv."),
    (r"_policy\.transformer\.h\.(\d+)\.attn\.c_proj\.", r"trunk.blocks.\1.attention.out."),
    (r"_policy\.transformer\.h\.(\d+)\.mlp\.c_fc\.", r"trunk.blocks.\1.mlp.0."),
    (r"_policy\.transformer\.h\.(\d+)\.mlp\.c_proj\.", r"trunk.blocks.\1.mlp.2."),
    (r"_action_head\.pos_embed\.", "head.queries."),
    (r"_action_head\.action_encoder\.0\.", "head.action_encoder."),
    (r"_action_head\.transformer_decoder\.", "head.decoder."),
    (r"_action_head\.output_proj\.0\.", "head.output_projection."),
    (r"_action_token$", "action_token"),
)


def load(path: str | Path, *, tasks: Sequence[str] | None = None, **options: Any) -> PointBridgePolicy:
    """A ready policy from a folder of ``PointBridgePolicy.save_pretrained`` or :func:`convert_checkpoint`.

    Args:
        path: the folder.
        tasks: that it will be asked to do; refused where it was not trained on them.
        options: of ``PointBridgePolicy.from_pretrained``, such as ``device`` and ``dtype``.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a pickle, damaged files, or a policy of other tasks.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which can run any code when it is loaded, and is refused. Convert it once and load the folder: "
                f"visiongraft.methods.point_bridge.released.convert_checkpoint({str(path)!r}, 'policy')."
            )
        raise ValueError(f"{path} is a file; give the folder of a policy (policy.json, statistics.json, model/).")
    return PointBridgePolicy.from_pretrained(path, tasks=tasks, **options)


def build(component: str, config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> nn.Module:
    """Our module from the authors' tensor names, loaded strictly; sizes are read off the shapes.

    Args:
        component: ``encoder``, ``proprio_projector``, ``language_projector``, ``actor``, or ``policy`` for all of them.
        config: the authors' keys ``num_queries``, ``num_heads``, ``history_len`` and ``dropout``, which shapes do not tell (``CONFIG``
            has the defaults). Keys that shapes do tell are compared with them; ``max_episode_len`` and ``num_points_per_obj`` have no
            effect.
        state_dict: the component's tensors. For ``policy`` a dictionary of state dicts by component, or one with ``encoder.`` and so on
            in front of the names; the projectors may be absent. Attention masks (``attn.bias``) are rebuilt and not read. Meta tensors
            build a module without memory.

    Returns:
        ``PointNet``, a projector, ``Actor`` or ``PointBridgeModel``, in training mode as PyTorch makes modules.

    Raises:
        ValueError: an unknown component or key, sizes that contradict the configuration, or missing, unexpected or misshaped tensors.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component must be one of {', '.join(COMPONENTS)}; got {component!r}.")
    accepted = [*CONFIG, *_TOLD_BY_SHAPES, *_NO_EFFECT]
    unknown = sorted(set(config) - set(accepted))
    if unknown:
        raise ValueError(f"Unknown configuration keys {', '.join(unknown)}; accepted: {', '.join(accepted)}.")
    parts = _parts(state_dict) if component == "policy" else {component: dict(state_dict)}
    tensors = [tensor for part in parts.values() for tensor in part.values()]
    with torch.device("meta") if any(tensor.is_meta for tensor in tensors) else nullcontext():
        if component == "encoder":
            widths, token_dim = _point_widths(parts["encoder"])
            return _filled(PointNet(token_dim, widths), parts["encoder"])
        if component in _PARTS[1:3]:
            dims = _shape(parts[component], "0.weight", 2)
            _compare({"repr_dim": dims[0]}, config)
            layers = nn.Sequential(nn.Linear(dims[1], dims[0]), nn.ReLU(), nn.Dropout(0.0), nn.Linear(dims[0], dims[0]))
            return _filled(layers, parts[component])
        if component == "actor":
            sizes = _actor_sizes(parts["actor"], config)
            model = PointBridgeModel(use_proprio=False, use_language=False, **sizes)
            return _filled(model.actor, _actor_names(parts["actor"]))
        return _policy(parts, config)


def _policy(parts: dict[str, dict[str, Tensor]], config: Mapping[str, Any]) -> PointBridgeModel:
    widths, _ = _point_widths(parts["encoder"])
    sizes = _actor_sizes(parts["actor"], config)
    dims = {name: _shape(parts[name], "0.weight", 2)[1] for name in _PARTS[1:3] if name in parts}
    told = {"use_proprio": "proprio_projector" in dims, "use_language": "language_projector" in dims}
    _compare(told, config)
    model = PointBridgeModel(
        point_widths=widths,
        proprio_dim=dims.get("proprio_projector", 10),
        language_dim=dims.get("language_projector", 384),
        **told,
        **sizes,
    )
    _compare({"proprio_dim": model.config.proprio_dim, "lang_dim": model.config.language_dim}, config)
    named = {f"{part}.{key}": v for part, tensors in parts.items() if part != "actor" for key, v in tensors.items()}
    _filled(model, named | {f"actor.{key}": v for key, v in _actor_names(parts["actor"]).items()})
    return model


def _parts(state_dict: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Tensors by component, from a nested dictionary or from prefixed names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        part, _, rest = key.partition(".")
        if part not in _PARTS:
            raise ValueError(f"A policy consists of {', '.join(_PARTS)}; got {key!r}.")
        parts.setdefault(part, {}).update({rest: value} if isinstance(value, Tensor) else value)
    absent = [part for part in ("encoder", "actor") if part not in parts]
    if absent:
        raise ValueError(f"The policy lacks its {' and '.join(absent)}; it has {', '.join(parts) or 'nothing'}.")
    return parts


def _point_widths(tensors: dict[str, Tensor]) -> tuple[tuple[int, ...], int]:
    """Widths of the layers (each a linear layer, a norm and a ReLU) and of the token."""
    layers = sorted(int(key.split(".")[1]) for key, v in tensors.items() if re.fullmatch(r"mlp\.\d+\.weight", key) and v.dim() == 2)
    if not layers:
        raise ValueError("The encoder has no mlp.0.weight; its tensors are mlp.* and final_projection.*.")
    return tuple(tensors[f"mlp.{layer}.weight"].shape[0] for layer in layers), _shape(tensors, "final_projection.weight", 2)[0]


def _actor_sizes(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our model that the actor's shapes and the configuration give."""
    settings = {**CONFIG, **{key: value for key, value in config.items() if key in CONFIG}}
    length, hidden = _shape(tensors, "_policy.transformer.wpe.weight", 2)
    token_dim = _shape(tensors, "_policy.transformer.wte.weight", 2)[1]
    action_dim = _shape(tensors, "_action_head.output_proj.0.weight", 2)[0]
    modes = {10: "pose", 27: "points"}
    if action_dim not in modes:
        raise ValueError(f"Actions have 10 numbers (pose) or 27 (points); output_proj gives {action_dim}.")
    _compare({"hidden_dim": hidden, "repr_dim": token_dim, "act_dim": action_dim}, config)
    return {
        "token_dim": token_dim,
        "hidden_size": hidden,
        "num_layers": _count(tensors, r"_policy\.transformer\.h\.(\d+)\."),
        "num_heads": settings["num_heads"],
        "max_length": length,
        "dropout": settings["dropout"],
        "history": settings["history_len"],
        "chunk": settings["num_queries"],
        "head_layers": _count(tensors, r"_action_head\.transformer_decoder\.layers\.(\d+)\."),
        "head_feedforward": _shape(tensors, "_action_head.transformer_decoder.layers.0.linear1.weight", 2)[0],
        "action_mode": modes[action_dim],
    }


def _actor_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The actor's tensors under our names; masks of the attention are left out."""
    renamed = {}
    for key, value in tensors.items():
        if _MASK_BUFFER.fullmatch(key):
            continue
        name = key
        for pattern, ours in _NAMES:
            name = re.sub(f"^{pattern}", ours, name)
        renamed[name] = value
    return renamed


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    found = {int(match.group(1)) for key in tensors if (match := re.match(pattern, key))}
    if not found:
        raise ValueError(f"The actor has no layers under {pattern.replace(chr(92), '')}.")
    return max(found) + 1


def _shape(tensors: dict[str, Tensor], key: str, rank: int) -> tuple[int, ...]:
    if key not in tensors or tensors[key].dim() != rank:
        raise ValueError(f"The checkpoint does not fit: it lacks {key}, or that has not {rank} axes.")
    return tuple(tensors[key].shape)


def _compare(shapes: dict[str, Any], config: Mapping[str, Any]) -> None:
    for key, value in shapes.items():
        if config.get(key, value) != value:
            raise ValueError(f"The configuration says {key} {config[key]}, but the tensors say {value}.")


def _filled(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Strict loading with the offending names in the error; keeps meta tensors meta."""
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in expected]
    problems += [
        f"{key} has shape {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"The checkpoint does not fit {type(module).__name__}: {'; '.join(problems[:4])}{more}.")
    module.load_state_dict(weights, strict=True, assign=any(value.is_meta for value in weights.values()))
    return module


def convert_checkpoint(
    pickle_path: str | Path,
    output_folder: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    tasks: Sequence[str] = (),
    object_counts: Sequence[int] = (),
    text_encoder: str = MINILM,
    range_floor: float = 0.0,
) -> Path:
    """A policy's folder from a checkpoint that the official code wrote; see :mod:`visiongraft.methods.point_bridge.pickles` on safety.

    Args:
        pickle_path: made by ``torch.save``: ``encoder``, ``actor``, the projectors where used, and ``stats``. Optimisers are left out.
        output_folder: new, or of an earlier policy, which is replaced.
        config: the authors' keys that shapes do not tell, see :func:`build`.
        tasks, object_counts: what it was trained on; the checkpoint does not say.
        text_encoder: that the instructions were encoded with.
        range_floor: for statistics with a dimension that never changed; 0 refuses those.

    Returns:
        The folder, for :func:`load`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is damaged, asks for functions that are refused, or does not fit.
        FileExistsError: a folder with something else in it.
    """
    contents = read_checkpoint(pickle_path)
    model: Any = build("policy", config or {}, {part: contents[part] for part in _PARTS if part in contents})
    names = {"points": "past_tracks", "proprioception": "proprioceptive", "actions": "actions"}
    stats: Any = contents.get("stats")
    missing = [key for key in names.values() if not isinstance(stats, dict) or key not in stats]
    if missing:
        raise ValueError(f"{pickle_path} has no statistics of {', '.join(missing)}; without them its actions cannot be read.")
    limits = {ours: MinMax(np.asarray(stats[key]["min"]), np.asarray(stats[key]["max"]), range_floor) for ours, key in names.items()}
    card = PolicyCard(tasks=tuple(tasks), object_counts=tuple(object_counts), text_encoder=text_encoder)
    return write_policy(output_folder, model, limits, card)


def convert_demonstrations(pickle_path: str | Path, output: str | Path) -> Path:
    """Episodes from one of the authors' data pickles, written as ``write_episodes`` does. Their raw actions are not used, as there.

    Args:
        pickle_path: of one task file.
        output: a ``.safetensors`` file.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a damaged file, one that asks for functions, or episodes without states or points.

    Source: brief, 2.7; quaternions there are xyzw.
    """
    contents = read_pickle(pickle_path)
    observations, instruction = contents.get("observations"), contents.get("task_desc")
    if not isinstance(observations, list) or not isinstance(instruction, str):
        raise ValueError(f"{pickle_path} must have a list of observations and a text task_desc; it has {', '.join(map(str, contents))}.")
    episodes = (_episode(values, instruction, number) for number, values in enumerate(observations))
    write_episodes(output, episodes)
    return Path(output)


def _episode(values: dict[str, Any], instruction: str, number: int) -> Episode:
    tracks = {int(match.group(1)): key for key in values if (match := re.fullmatch(r"object_tracks_(\d+)_3d", key))}
    needed = ("eef_states", "gripper_states", "robot_tracks_3d")
    if not tracks or any(key not in values for key in needed):
        raise ValueError(f"Episode {number} needs {', '.join(needed)} and object_tracks_128_3d; it has {', '.join(values)}.")
    states = np.asarray(values["eef_states"], np.float64)
    rotation = rotation_from_quaternion(states[:, [6, 3, 4, 5]])
    gripper = np.asarray(values["gripper_states"], np.float64).reshape(-1, 1)
    images = {key.removeprefix("pixels_"): value for key, value in values.items() if key.startswith("pixels") and np.ndim(value) == 4}
    return Episode(
        instruction=instruction,
        proprioception=np.concatenate([states[:, :3], rotation_6d(rotation), gripper], axis=1).astype(np.float32),
        robot_points=np.asarray(values["robot_tracks_3d"], np.float32),
        object_points=np.asarray(values[tracks[max(tracks)]], np.float32),
        images=images or None,
    )
