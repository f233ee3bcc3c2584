"""A trained policy that acts: observations in, chunks of absolute actions out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from visiongraft.geometry.point_sets import align_points
from visiongraft.methods.point_bridge.dataset import pad_objects
from visiongraft.methods.point_bridge.episodes import require_finite
from visiongraft.methods.point_bridge.language import TextEncoder, load_text_encoder
from visiongraft.methods.point_bridge.model import PointBridgeModel, action_dim
from visiongraft.methods.point_bridge.policy_files import PolicyCard, read_policy, write_policy
from visiongraft.methods.point_bridge.slots import Slots
from visiongraft.robots.actions import absolute_action
from visiongraft.robots.normalisation import MinMax
from visiongraft.robots.policy import Observation, Policy
from visiongraft.robots.poses import rotation_from_6d


class PointBridgePolicy(Policy):
    """Acts in the ``absolute`` convention: target poses in the base frame and gripper commands, de-normalised.

    Args:
        model: trained; it is put into evaluation mode.
        statistics: of ``points``, ``proprioception`` and ``actions``, as in training.
        card: what it was trained on.
        text_encoder: of models with language; None: the one the card names.
        seed: of the noise a diffusion head acts from.

    Raises:
        ValueError: statistics that do not fit the model.
    """

    convention = "absolute"

    def __init__(
        self,
        model: PointBridgeModel,
        statistics: dict[str, MinMax],
        card: PolicyCard = PolicyCard(),  # noqa: B008 (frozen)
        *,
        text_encoder: TextEncoder | None = None,
        seed: int = 0,
    ) -> None:
        _check_statistics(model, statistics)
        self.model, self.statistics, self.card = model.eval(), statistics, card
        if model.config.use_language and text_encoder is None:
            text_encoder = load_text_encoder(card.text_encoder)
        self.text_encoder = text_encoder
        self.slots = Slots(model.config.history, seed)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "PointBridgePolicy":
        """Moves the model; normalisation and actions stay in NumPy."""
        for target in (device, dtype):  # one at a time: Diffusers warns of a dtype that is None
            if target is not None:
                self.model.to(target)  # pyright: ignore[reportArgumentType, reportCallIssue]
        return self

    @property
    def fingerprint(self) -> str:
        """A short name of weights and statistics, which tells this policy from others."""
        content = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
        content.update(json.dumps({name: limits.to_dict() for name, limits in self.statistics.items()}, sort_keys=True).encode())
        return content.hexdigest()[:16]

    @property
    def observation_keys(self) -> tuple[str, ...]:
        """What it needs of an observation; nothing else has to be sent to it."""
        start = ["robot_points", "proprioception"] if self.model.config.action_mode == "points" else []
        return tuple(dict.fromkeys([*self._model_keys(), *start]))

    def _model_keys(self) -> list[str]:
        config = self.model.config
        keys = {"points": ["robot_points", "object_points"], "scene": ["scene_points"], "image": ["images"]}[config.observed]
        return keys + (["proprioception"] if config.use_proprio else []) + (["instruction"] if config.use_language else [])

    def reset(self, slot: int = 0) -> None:
        """Forgets the slot's history and where its robot began."""
        self.slots.reset(slot)

    def act_batch(self, observations: Sequence[Observation], slots: Sequence[int]) -> Float[np.ndarray, "batch chunk action"]:
        """Chunks of absolute actions (10) from now on; see :class:`visiongraft.robots.policy.Policy`.

        Raises:
            ValueError: an observation that lacks what the model sees, has another number of objects or points than the model or the
                rest of the batch, or holds numbers that are not finite; as many slots as observations are not given.
        """
        if len(observations) != len(slots) or not len(slots) or len(set(slots)) != len(slots):
            raise ValueError(
                f"Give one slot for each observation, none twice; got {len(observations)} observations and slots {list(slots)}."
            )
        seen = [self._seen(observation) for observation in observations]
        windows = [self.slots.push(slot, values) for slot, values in zip(slots, seen, strict=True)]
        batch = {name: _stacked(name, [window[name] for window in windows]) for name in windows[0]}
        if "object_mask" in batch:
            batch["object_mask"] = batch["object_mask"][:, -1]  # the same at every step
        if self.model.config.use_language:
            assert self.text_encoder is not None  # made at the start
            batch["language"] = self.text_encoder([observation["instruction"] for observation in observations])
        actions = self._forward({name: torch.from_numpy(values) for name, values in batch.items()}, slots)
        actions = self.statistics["actions"].denormalise(actions)
        return actions if self.model.config.action_mode == "pose" else self._from_points(actions, slots)

    @torch.inference_mode()
    def _forward(self, batch: dict[str, Tensor], slots: Sequence[int]) -> np.ndarray:
        """Normalised actions of the present step."""
        config, device, dtype = self.model.config, self.model.device, self.model.dtype
        inputs = {name: values.to(device, torch.bool if values.dtype == torch.bool else dtype) for name, values in batch.items()}
        noise = None
        if config.head == "diffusion":
            shape = (config.history, config.chunk, action_dim(config))
            noise = torch.stack([torch.randn(shape, generator=self.slots.generator(slot)) for slot in slots]).to(device, dtype)
        return self.model(inputs, noise=noise)[:, -1].double().cpu().numpy()

    def _seen(self, observation: Observation) -> dict[str, np.ndarray]:
        """What the model looks at in one observation, normalised."""
        config, wanted = self.model.config, self._model_keys()
        missing = [name for name in wanted if name not in observation]
        if missing:
            raise ValueError(
                f"The policy needs {', '.join(missing)}, and the observation has {', '.join(observation) or 'nothing'}; "
                "evaluate it with an observer that adds them."
            )
        values: dict[str, np.ndarray] = {}
        for name in wanted:
            if name == "images":
                values["images"] = self._images(observation["images"])
            elif name != "instruction":
                values[name] = self._normalised(name, np.asarray(observation[name], np.float32))
        if "object_points" in values:
            values |= self._padded(values["object_points"])
        if config.action_mode == "points":  # where the robot began; not for the model
            if "robot_points" not in observation or "proprioception" not in observation:
                raise ValueError("A policy that predicts points needs robot_points and proprioception; add them with an observer.")
            if len(observation["robot_points"]) != config.num_key_points:
                raise ValueError(
                    f"The policy predicts {config.num_key_points} points of the robot; the observation has "
                    f"{len(observation['robot_points'])}. Give the observer the key points of training."
                )
            values["start"] = np.concatenate([np.ravel(observation["robot_points"]), np.ravel(observation["proprioception"])])
        return values

    def _normalised(self, name: str, values: np.ndarray) -> np.ndarray:
        rank = {"robot_points": 2, "object_points": 3, "scene_points": 2, "proprioception": 1}[name]
        last = self.model.config.proprio_dim if name == "proprioception" else 3
        if values.ndim != rank or values.shape[-1] != last or not values.size:
            shape = {1: f"({last},)", 2: "(points, 3)", 3: "(objects, points, 3)"}[rank]
            raise ValueError(f"{name} of an observation must have the shape {shape}; got {values.shape}.")
        require_finite(values, name)
        return self.statistics["proprioception" if name == "proprioception" else "points"].normalise(values)

    def _padded(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Points of as many objects as the model was trained with, and which are there where tasks differ in their number."""
        counts = self.card.object_counts
        if counts and len(points) not in counts:
            raise ValueError(
                f"The policy was trained with {' or '.join(map(str, sorted(set(counts))))} objects; the observation has {len(points)}. "
                "Name the objects of its task, or use the policy of this one."
            )
        padded, there = pad_objects(points[None], max(counts, default=len(points)))
        return {"object_points": padded[0]} | ({"object_mask": there} if len(set(counts)) > 1 else {})

    def _images(self, images: dict[str, np.ndarray]) -> np.ndarray:
        missing = [camera for camera in self.card.cameras if camera not in images]
        if missing or not self.card.cameras:
            needed = ", ".join(missing) or "cameras that its card does not name"
            raise ValueError(f"The policy sees images of {needed}; the observation has {', '.join(images) or 'none'}.")
        chosen = [np.asarray(images[camera]) for camera in self.card.cameras]
        if any(image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 for image in chosen):
            raise ValueError("Images of an observation must be (height, width, 3) uint8.")
        return _stacked("images", chosen).transpose(0, 3, 1, 2).astype(np.float32) / 255

    def _from_points(self, actions: np.ndarray, slots: Sequence[int]) -> np.ndarray:
        """Poses from predicted robot points: turned as the points have turned since the slot began, at the middle of the first two."""
        starts = np.stack([self.slots.first(slot)["start"] for slot in slots]).astype(np.float64)
        numbers = 3 * self.model.config.num_key_points
        began, poses = starts[:, :numbers].reshape(-1, 1, numbers // 3, 3), rotation_from_6d(starts[:, numbers + 3 : numbers + 9])
        points = actions[..., :numbers].reshape(*actions.shape[:2], numbers // 3, 3)
        turned = align_points(torch.from_numpy(np.broadcast_to(began, points.shape).copy()), torch.from_numpy(points)).numpy()
        made = np.zeros((*actions.shape[:2], 4, 4))
        made[..., :3, :3], made[..., :3, 3] = turned[..., :3, :3] @ poses[:, None], points[..., :2, :].mean(axis=-2)
        return absolute_action(made, actions[..., numbers:].mean(axis=-1))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the policy's folder, see :func:`visiongraft.methods.point_bridge.policy_files.write_policy`."""
        return write_policy(folder, self.model, self.statistics, self.card)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        tasks: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        text_encoder: TextEncoder | None = None,
        seed: int = 0,
    ) -> "PointBridgePolicy":
        """A policy from the folder of :meth:`save_pretrained`.

        Args:
            folder: local.
            tasks: that it will be asked to do; refused where it was not trained on them. None: no check.
            device, dtype: of the model.
            text_encoder: None: the one it was trained with.
            seed: see the class.

        Raises:
            FileNotFoundError: no such folder, or no policy in it.
            ValueError: damaged files, or a policy of other tasks.
        """
        model, statistics, card = read_policy(folder, tasks)
        return cls(model, statistics, card, text_encoder=text_encoder, seed=seed).to(device, dtype)


def _check_statistics(model: PointBridgeModel, statistics: dict[str, MinMax]) -> None:
    wanted = {"proprioception": model.config.proprio_dim, "actions": action_dim(model.config)}
    if model.config.observed != "image":
        wanted["points"] = 3
    for name, dims in wanted.items():
        got = len(statistics[name].minimum) if name in statistics else 0
        if got != dims:
            raise ValueError(f"The policy needs statistics of {dims} dimensions for {name}; got {got or 'none'}.")


def _stacked(name: str, values: list[np.ndarray]) -> np.ndarray:
    shapes = sorted({value.shape for value in values})
    if len(shapes) > 1:
        raise ValueError(f"{name} of one batch must have one shape; got {' and '.join(map(str, shapes))}. Act in two batches.")
    return np.stack(values)
