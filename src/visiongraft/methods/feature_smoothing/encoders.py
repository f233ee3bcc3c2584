"""Any vision model as an encoder of [0, 1] images into tokens, with the model's own pooled embedding as read-out."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from visiongraft.methods.feature_smoothing.normalisation import check_normalisation, normalise, read_normalisation
from visiongraft.methods.feature_smoothing.towers import (
    PatchRowTower,
    count_prefix_tokens,
    find_tower,
    pair,
    pooling_of,
)

SMALL_ENCODER = Path(__file__).parent / "weights" / "clip"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Encoder(nn.Module):
    """A frozen vision model seen as a function from images to tokens.

    Wraps a Transformers tower (:meth:`from_transformers`) or any callable that maps normalised images to vectors
    (B D, one token an image), tokens (B N D) or a Transformers output.

    Args:
        tower: the model; called with images normalised by ``mean`` and ``std`` in the dtype of its weights.
        mean: per-channel mean of the normalisation; the default with ``std`` hands over [0, 1] images as they are.
        std: per-channel standard deviation of the normalisation.
        image_size: accepted size, one number or (height, width); ``None`` accepts any.
        layer: -1 reads ``last_hidden_state`` (what the model's own pooling reads), any other ``hidden_states[layer]``.
        drop_cls: drop the first ``num_prefix_tokens`` tokens, as LLaVA does: certify what the language model sees.
        num_prefix_tokens: class and register tokens in front of the patch tokens.
        patch_size: pixels a patch token covers, for ``grid_size``.
        readout: maps tokens to the pooled embedding; without one it is the mean of the patch tokens.

    Raises:
        ValueError: ``mean`` and ``std`` of different lengths, or a ``std`` that is not positive.

    Source: arXiv 2601.16200, Sec. 3.1 (the frozen feature encoder).
    """

    def __init__(
        self,
        tower: Callable[..., Any],
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        image_size: int | Sequence[int] | None = None,
        layer: int = -1,
        drop_cls: bool = False,
        num_prefix_tokens: int = 0,
        patch_size: int | None = None,
        readout: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.tower: Any = tower
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size: tuple[int, int] | None = None if image_size is None else pair(image_size)
        self.layer, self.drop_cls, self.patch_size = layer, drop_cls, patch_size
        self._prefix = num_prefix_tokens
        self._pool = readout if layer == -1 and not drop_cls else None
        if isinstance(tower, nn.Module):
            require_deterministic(tower)
        self.training = False

    @classmethod
    def from_transformers(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        layer: int | None = None,
        drop_cls: bool | None = None,
        image_size: int | Sequence[int] | None = None,
        path: str | None = None,
    ) -> "Encoder":
        """The vision tower of a Transformers model as an encoder.

        Args:
            model: CLIP, SigLIP, SigLIP 2, DINOv2, or a language model with such a tower; in eval mode.
            mean, std: normalisation; ``None`` reads the image processor's configuration beside the model's weights.
            layer, drop_cls: see :class:`Encoder`; ``None`` takes what the model reads (LLaVA: -2, class token dropped).
            image_size: ``None`` takes the configuration's (DINOv2 also accepts any multiple of its patch size).
            path: dotted path of the tower, for models that are not known.

        Returns:
            An encoder with ``readout(encoder(images))`` equal to the model's own image embedding, when ``layer`` is -1.

        Raises:
            ValueError: unknown model, training mode, or no normalisation found.
            NotImplementedError: towers that cannot be smoothed.
        """
        tower = find_tower(model, path)
        if mean is None or std is None:
            mean, std = read_normalisation(getattr(getattr(model, "config", None), "_name_or_path", ""))
        config = tower.module.config
        patch = pair(config.patch_size)[0]
        rows = type(tower.module).__name__ == "Siglip2VisionModel"
        size = image_size or (round(config.num_patches**0.5) * patch if rows else config.image_size)
        read_layer = tower.layer if layer is None else layer
        if read_layer is None:
            raise ValueError("This model reads several layers of its vision tower; choose one to encode with layer=….")
        return cls(
            PatchRowTower(tower.module) if rows else tower.module,
            mean,
            std,
            size,
            layer=read_layer,
            drop_cls=tower.drop_cls if drop_cls is None else drop_cls,
            num_prefix_tokens=count_prefix_tokens(tower.module),
            patch_size=patch,
            readout=pooling_of(tower.module, tower.projection),
        )

    @property
    def num_prefix_tokens(self) -> int:
        """Class and register tokens in front of the patch tokens that the encoder returns."""
        return 0 if self.drop_cls else self._prefix

    @property
    def grid_size(self) -> tuple[int, int] | None:
        """Patches (down, across); ``None`` when the encoder knows no patch size or image size."""
        if self.image_size is None or self.patch_size is None:
            return None
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    def forward(self, images: Shaped[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Tokens of images.

        Args:
            images: floating-point pixels; [0, 1], or beyond it by added noise.

        Returns:
            Tokens in the tower's dtype; a vector becomes one token.

        Raises:
            ValueError: integer pixels, a wrong size, or a model in training mode.
        """
        self._check(images)
        if isinstance(self.tower, nn.Module):
            require_deterministic(self.tower)
        normalised = normalise(images.float(), self.mean, self.std).to(dtype_of(self.tower))
        if self.layer == -1:
            output = self.tower(normalised)
            tokens = output if isinstance(output, Tensor) else output.last_hidden_state
        else:
            tokens = self.tower(normalised, output_hidden_states=[self.layer]).hidden_states[self.layer]
        tokens = tokens.unsqueeze(1) if tokens.dim() == 2 else tokens
        return tokens[:, self._prefix :] if self.drop_cls else tokens

    def readout(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch embedding"]:
        """The pooled embedding, not normalised: the model's own, or the mean patch token where that does not apply."""
        return self._pool(tokens) if self._pool is not None else tokens[:, self.num_prefix_tokens :].mean(1)

    def train(self, mode: bool = True) -> "Encoder":
        """Refuses training mode: with dropout or batch statistics the model is no function of its image."""
        if mode:
            raise ValueError("An encoder stays in eval mode; fine-tune the model itself, then wrap it again.")
        return super().train(False)

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point():
            raise ValueError(f"Images must be floating point in [0, 1]; got {images.dtype}. Divide 8-bit images by 255.")
        if len(self.mean) not in (1, images.shape[1]):
            raise ValueError(f"The encoder expects images with {len(self.mean)} channels; got {images.shape[1]}.")
        size = tuple(images.shape[2:])
        if self.image_size is not None and size != self.image_size:
            raise ValueError(
                f"The encoder expects images of {self.image_size[0]}x{self.image_size[1]} pixels (height x width); got "
                f"{size[0]}x{size[1]}. Resize or crop them first."
            )


def load_encoder(
    name: str,
    *,
    layer: int | None = None,
    drop_cls: bool | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> Encoder:
    """An encoder by name, from safetensors only and without running code that comes with the weights.

    Args:
        name: ``small`` (bundled), a folder with ``config.json`` and safetensors, or a hub id such as
            ``openai/clip-vit-base-patch32``.
        layer, drop_cls, image_size: see :meth:`Encoder.from_transformers`.
        mean, std: normalisation, where the folder has no ``preprocessor_config.json``.
        dtype: of the weights; ``None`` keeps the stored one.
        device: where the encoder runs.

    Raises:
        FileNotFoundError: no such folder or hub model.
        ValueError: pickled weights only, damaged weights, or a model without a known vision tower.
    """
    name = str(SMALL_ENCODER) if name == "small" else name
    folder = Path(name)
    if folder.is_dir():
        _check_folder(folder)
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise FileNotFoundError(
            f"Unknown encoder {name!r}: give 'small', a folder with config.json and *.safetensors, or a hub id such as "
            "openai/clip-vit-base-patch32."
        )
    model = _load_transformers(name)
    model = model.to(device=device, dtype=dtype) if dtype is not None else model.to(device)
    return Encoder.from_transformers(model.eval(), mean, std, layer=layer, drop_cls=drop_cls, image_size=image_size)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; an encoder folder needs config.json and *.safetensors.")
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"{folder} has only pickled weights ({', '.join(pickles)}); they are refused because loading a pickle can "
            "run any code. Convert them to safetensors first."
        )
    raise FileNotFoundError(f"{folder} has no *.safetensors weights beside its config.json.")


def _load_transformers(name: str) -> nn.Module:
    import transformers
    from safetensors import SafetensorError

    is_folder = Path(name).is_dir()
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        architecture = (getattr(config, "architectures", None) or [""])[0]
        kind = getattr(transformers, architecture, transformers.AutoModel)
        model, report = kind.from_pretrained(name, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"The weights or config of {name} cannot be loaded: {_first_line(error)}") from error
    except OSError as error:
        if is_folder:
            raise ValueError(f"The weights or config of {name} cannot be loaded: {_first_line(error)}") from error
        raise FileNotFoundError(
            f"Encoder {name!r} is neither a folder nor a hub model with safetensors (pickled weights are refused): {_first_line(error)}"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{name} lacks {len(report['missing_keys'])} weights of a {kind.__name__}, such as {missing}.")
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check_batch_independent(
    encoder: Callable[[Tensor], Tensor], images: Float[Tensor, "batch channels height width"], tolerance: float = 1e-3
) -> float:
    """Checks that an image's features do not depend on the images beside it, without which no certificate holds.

    Args:
        encoder: maps images to tokens or vectors.
        images: at least two different images in [0, 1].
        tolerance: largest difference allowed, relative to the largest feature; kernels differ a little with batch size.

    Returns:
        The largest relative difference found.

    Raises:
        ValueError: fewer than two images, or features that change with the batch.
    """
    if images.shape[0] < 2:
        raise ValueError(f"Batch independence needs at least two images to compare; got {images.shape[0]}.")
    with torch.no_grad():
        together = encoder(images).float()
        alone = torch.cat([encoder(image.unsqueeze(0)).float() for image in images])
    difference = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-12))
    if not difference <= tolerance:
        raise ValueError(
            f"Features of an image change by {difference:.2g} (relative) with the images beside it, allowed is "
            f"{tolerance:.2g}; switch off batch statistics or per-batch quantisation before anything is certified."
        )
    return difference


def require_deterministic(model: nn.Module) -> None:
    """Raises ValueError if dropout or batch statistics are active: the output would be no function of the one image."""
    for name, module in model.named_modules():
        batch_statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
        if not module.training and not batch_statistics:
            continue
        where = f"{type(model).__name__}.{name}".rstrip(".")
        if module.training:
            raise ValueError(f"{where} is in training mode, where dropout may be active; call model.eval() first.")
        raise ValueError(f"{where} uses batch statistics even in eval mode; give it track_running_stats=True.")


def dtype_of(tower: object) -> torch.dtype:
    """Dtype of a model's floating-point weights; float32 for a callable without weights."""
    parameters = tower.parameters() if isinstance(tower, nn.Module) else iter(())
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), torch.float32)
