"""A vision tower under Gaussian smoothing: same call, same output class, tokens averaged over fresh pixel noise."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.methods.feature_smoothing.encoders import dtype_of, require_deterministic
from visiongraft.methods.feature_smoothing.normalisation import check_normalisation, denormalise, normalise
from visiongraft.methods.feature_smoothing.smoothing import SmoothingConfig, draw_noise
from visiongraft.methods.feature_smoothing.towers import (
    IMAGE_LEVEL_HINT,
    images_to_rows,
    pair,
    pooling_of,
    rows_to_images,
)

_RANGE_TOLERANCE = 0.05  # bfloat16 pixel values come back about 0.01 off


@dataclass(frozen=True)
class FeatureSpec:
    """The tokens a mapper was trained on, and is applied to.

    Args:
        layer: -1 is ``last_hidden_state``, any other value indexes ``hidden_states``.
        drop_cls: the class token bypasses the mapper.
    """

    layer: int = -1
    drop_cls: bool = False


class SmoothedVisionTower(nn.Module):
    """A vision tower that averages its outputs over fresh pixel noise, and otherwise looks like the tower it wraps.

    Every token tensor becomes the mean of the unit noisy tokens, scaled back to their mean norm (``restore_norm``);
    pooled vectors likewise. Attention maps are averaged as they are. Unknown attributes are the base tower's.

    Args:
        base: the tower; unchanged.
        config: noise level and number of samples.
        mean: per-channel mean of the tower's normalised pixels.
        std: their per-channel standard deviation.
        purifier: maps (noisy images, sigma) to images.
        mapper: maps (tokens, sigma, grid size) to a residual on the tokens of ``feature``.
        feature: the tokens that the mapper acts on; pooled outputs follow it when they are pooled from these tokens.
        projection: linear map applied to ``pooler_output`` by the model around the tower. The average is weighted so
            that the direction *after* it is the mean of unit embeddings, which is what a pooled certificate is about.
        whole_images: every entry of a batch is a whole image, not one of several overlapping crops.
        generator: source of the noise, for tests only: fixed noise voids the certificate.

    Source: arXiv 2601.16200, Sec. 3; derivation in docs/methods/feature_smoothing.md.
    """

    def __init__(
        self,
        base: nn.Module,
        config: SmoothingConfig,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        purifier: nn.Module | None = None,
        mapper: nn.Module | None = None,
        feature: FeatureSpec = FeatureSpec(),
        projection: nn.Linear | None = None,
        whole_images: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        require_deterministic(base)
        self.base: Any = base
        self.purifier: Any = purifier
        self.mapper: Any = mapper
        self.smoothing, self.feature, self.whole_images, self.generator = config, feature, whole_images, generator
        self.mean, self.std = tuple(mean), tuple(std)
        self.__dict__["projection"] = projection  # stays a module of the model around, not registered a second time
        self.run_base: Callable[..., Any] | None = None  # the base's own forward, where `forward` itself is replaced
        self.eval()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(self.base, name)

    def forward(self, pixel_values: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the base returns, smoothed; arguments are the base's own.

        Args:
            pixel_values: normalised images (B C H W), or SigLIP 2's patch rows with their ``spatial_shapes``.

        Raises:
            ValueError: pixels that do not come back to [0, 1], a model in training mode, or NaN features.
            NotImplementedError: several crops of one image.
        """
        names = list(inspect.signature(type(self.base).forward).parameters)[2:]
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
        self._check_input(pixel_values, is_rows="spatial_shapes" in kwargs)
        require_deterministic(self)
        as_tuple = not kwargs.get("return_dict", getattr(getattr(self.base, "config", None), "return_dict", True))
        if as_tuple:
            kwargs["return_dict"] = True
        smooth = self._smooth_rows if pixel_values.dim() == 3 else self._smooth_images
        output = smooth(pixel_values, kwargs)
        return output.to_tuple() if as_tuple else output

    def _smooth_images(self, pixel_values: Tensor, kwargs: dict[str, Any]) -> Any:
        patch = getattr(getattr(self.base, "config", None), "patch_size", None)
        grid = None
        if patch is not None:
            grid = pixel_values.shape[2] // pair(patch)[0], pixel_values.shape[3] // pair(patch)[1]
        return self._smooth(denormalise(pixel_values, self.mean, self.std), kwargs, grid)

    def _smooth_rows(self, rows: Tensor, kwargs: dict[str, Any]) -> Any:
        shapes = [tuple(shape) for shape in kwargs["spatial_shapes"].tolist()]
        if len(set(shapes)) > 1:  # one at a time, since the purifier needs the image itself
            outputs = [self._smooth_rows(rows[i : i + 1], _select(kwargs, i, len(rows))) for i in range(len(rows))]
            parts = [dict(_named_tensors(output)) for output in outputs]
            return _rebuild(outputs[0], {name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        patch = pair(self.base.config.patch_size)[0]
        images = denormalise(rows_to_images(rows, shapes[0], patch), self.mean, self.std)
        return self._smooth(images, kwargs, shapes[0], patch_rows=(patch, rows.shape[1]))

    def _smooth(
        self,
        images: Float[Tensor, "batch channels height width"],
        kwargs: dict[str, Any],
        grid: tuple[int, int] | None,
        patch_rows: tuple[int, int] | None = None,
    ) -> Any:
        self._check_range(images)
        batch, samples = images.shape[0], self.smoothing.n0
        step = max(1, self.smoothing.chunk_size // batch)
        means: dict[str, _RunningMean] = {}
        output: Any = None
        for start in range(0, samples, step):
            count = min(step, samples - start)
            noisy = self._purify(draw_noise(images, self.smoothing.sigma, count, self.generator))
            inputs = normalise(noisy, self.mean, self.std).to(dtype_of(self.base))
            if patch_rows is not None:
                inputs = images_to_rows(inputs, patch_rows[0])
                inputs = nn.functional.pad(inputs, (0, 0, 0, patch_rows[1] - inputs.shape[1]))
            expanded = {name: _repeat(value, batch, count) for name, value in kwargs.items()}
            output = (self.run_base or self.base)(inputs, **expanded)
            if self.mapper is not None:
                output = self._map(output, grid, expanded, padded=patch_rows is not None)
            for name, tensor in _named_tensors(output):
                means.setdefault(name, _RunningMean(self._gauge(name))).add(_by_image(tensor, batch, count, name))
        return _rebuild(output, {name: mean.result(self.smoothing.restore_norm) for name, mean in means.items()})

    def _purify(self, noisy: Tensor) -> Tensor:
        if self.purifier is None:
            return noisy
        level = torch.full((noisy.shape[0],), self.smoothing.sigma, device=noisy.device)
        clean = self.purifier(noisy.to(dtype_of(self.purifier)), level).float()
        return clean.clamp(0, 1) if self.smoothing.clamp_after_purifier else clean

    def _map(self, output: Any, grid: tuple[int, int] | None, kwargs: dict[str, Any], padded: bool) -> Any:
        if isinstance(output, Tensor):
            return self._add_residual(output, grid, padded)
        layer = self.feature.layer
        if layer != -1:
            states: list[Any] = list(output.get("hidden_states") or ())
            if not -len(states) <= layer < len(states) or states[layer] is None:
                raise ValueError(f"The mapper acts on hidden_states[{layer}], but the tower was not asked for it.")
            states[layer] = self._add_residual(states[layer], grid, padded)
            output["hidden_states"] = tuple(states)
            return output
        output["last_hidden_state"] = self._add_residual(output["last_hidden_state"], grid, padded)
        pooled = next((name for name in ("image_embeds", "pooler_output") if output.get(name) is not None), None)
        if pooled is not None:
            pool = pooling_of(self.base)
            if pool is None:
                raise ValueError(f"How {type(self.base).__name__} pools tokens is unknown: {pooled} cannot be mapped.")
            mask = [kwargs["pixel_attention_mask"]] if padded else []
            output[pooled] = pool(output["last_hidden_state"], *mask)
        return output

    def _add_residual(self, tokens: Tensor, grid: tuple[int, int] | None, padded: bool) -> Tensor:
        first, last = 0, tokens.shape[1]
        if grid is None and self.feature.drop_cls:
            raise ValueError(f"{type(self.base).__name__} has no patch_size: which tokens are patches is unknown.")
        if grid is not None and padded:
            last = grid[0] * grid[1]
        elif grid is not None and self.feature.drop_cls:
            first = last - grid[0] * grid[1]
        part = tokens[:, first:last]
        level = torch.full((len(tokens),), self.smoothing.sigma, device=tokens.device)
        residual = self.mapper(part.to(dtype_of(self.mapper)), level, grid_size=grid).to(tokens.dtype)
        return torch.cat([tokens[:, :first], part + residual, tokens[:, last:]], dim=1)

    def _gauge(self, name: str) -> Callable[[Tensor], Tensor] | None:
        if name.startswith("attentions"):
            return None
        projection = self.__dict__["projection"]
        if name == "pooler_output" and projection is not None:
            return lambda vectors: _norm(nn.functional.linear(vectors, projection.weight.float()))
        return _norm

    def _check_input(self, pixel_values: Tensor, is_rows: bool) -> None:
        shape = tuple(pixel_values.shape)
        if len(shape) == 5 or (not self.whole_images and shape[0] > 1):
            raise NotImplementedError(
                f"{type(self.base).__name__} got pixel_values of {shape}: these may be crops of one image in which a "
                "pixel occurs more than once: independent noise on each is not Gaussian noise on the image. If every "
                "entry is a whole image (splitting switched off in the processor), attach with whole_images=True. "
                f"{IMAGE_LEVEL_HINT}"
            )
        if len(shape) != 4 and not is_rows:
            raise ValueError(f"pixel_values must be batch x channels x height x width; got {shape}.")

    def _check_range(self, images: Tensor) -> None:
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
            raise ValueError(
                f"pixel_values * std + mean must be an image in [0, 1]; it spans {low:.3g} to {high:.3g} with "
                f"mean={self.mean}, std={self.std}. Give the image processor's mean and std, and its pixel_values."
            )


class _RunningMean:
    """Mean over noise samples of one output tensor, in float32: of unit vectors under a gauge, or plain without one."""

    def __init__(self, gauge: Callable[[Tensor], Tensor] | None) -> None:
        self.gauge, self.count = gauge, 0
        self.total = self.size = torch.zeros(())
        self.dtype = torch.float32

    def add(self, samples: Float[Tensor, "batch chunk *rest"]) -> None:
        self.dtype, self.count = samples.dtype, self.count + samples.shape[1]
        samples = samples.float()
        if self.gauge is not None:
            size = self.gauge(samples)
            self.size = self.size + size.sum(1)
            samples = _divide(samples, size)
        self.total = self.total + samples.sum(1)

    def result(self, restore_norm: bool) -> Float[Tensor, "batch *rest"]:
        mean = self.total / self.count
        if self.gauge is not None and restore_norm:
            mean = _divide(mean, self.gauge(mean)) * (self.size / self.count)
        return mean.to(self.dtype)


def _norm(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


def _divide(vectors: Tensor, size: Tensor) -> Tensor:
    return vectors / torch.where(size > 0, size, torch.ones_like(size))  # a zero feature stays zero


def _by_image(tensor: Tensor, batch: int, count: int, name: str) -> Tensor:
    if tensor.shape[0] != batch * count:
        raise ValueError(f"The tower's {name} has {tensor.shape[0]} entries for {batch * count} images; give one each.")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"The tower's {name} is NaN or infinite on a noisy image; use float32 or bfloat16.")
    return tensor.unflatten(0, (batch, count))


def _is_per_image(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch


def _repeat(value: Any, batch: int, count: int) -> Any:
    """A per-image argument (mask, shape) once for each noisy copy; anything else unchanged."""
    return value.repeat_interleave(count, dim=0) if _is_per_image(value, batch) else value


def _select(kwargs: dict[str, Any], index: int, batch: int) -> dict[str, Any]:
    """The arguments of one image."""
    return {k: v[index : index + 1] if _is_per_image(v, batch) else v for k, v in kwargs.items()}


def _named_tensors(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a tower's output with their path, such as ``hidden_states.2``; None entries are skipped."""
    if isinstance(output, Tensor):
        yield name, output
    elif output is not None:
        items = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, value in items:
            yield from _named_tensors(value, f"{name}.{key}" if name else str(key))


def _rebuild(output: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """The same output class with other tensors; None entries stay."""
    if isinstance(output, Tensor):
        return tensors[name]
    if output is None:
        return None
    prefix = f"{name}." if name else ""
    if isinstance(output, Mapping):
        return type(output)(**{key: _rebuild(value, tensors, f"{prefix}{key}") for key, value in output.items()})
    return type(output)(_rebuild(value, tensors, f"{prefix}{i}") for i, value in enumerate(output))
