"""From names on a command line to a smoothed encoder: load the parts, prepare images, classify with text prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visiongraft.media.images import center_square, read_image, resize
from visiongraft.methods.feature_smoothing.encoders import Encoder, check_batch_independent, load_encoder
from visiongraft.methods.feature_smoothing.smoothing import SmoothedEncoder, SmoothingConfig, unit

WEIGHTS = Path(__file__).parent / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(kw_only=True)
class EncoderConfig:
    """Which encoder is protected, and by what.

    Args:
        encoder: ``small`` (bundled), a folder with config.json and safetensors, or a hub id such as openai/clip-vit-base-patch32.
        purifier: folder or file of a purifier, ``bundled`` (for the small encoder), or ``none``. Default: bundled for small.
        mapper: folder of a mapper, ``bundled`` or ``none``. Default: bundled for small.
        dtype: of encoder and purifier weights; deploy with the dtype that was certified.
        device: torch device.
    """

    encoder: str = "small"
    purifier: str | None = None
    mapper: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


def load_smoothed(choice: EncoderConfig, smoothing: SmoothingConfig) -> SmoothedEncoder:
    """The chosen encoder under smoothing, checked to treat every image of a batch alone.

    Raises:
        FileNotFoundError: an encoder, purifier or mapper that does not exist.
        ValueError: pickled weights, a mapper of another width, features that depend on the rest of the batch.
    """
    device, dtype = torch.device(choice.device), DTYPES[choice.dtype]
    encoder = load_encoder(choice.encoder, dtype=dtype, device=device)
    small = choice.encoder == "small"
    purifier = load_part(choice.purifier, "purifier", small)
    mapper = load_part(choice.mapper, "mapper", small)
    for part in (purifier, mapper):
        if part is not None:
            part.to(device)
            if dtype != torch.float32:  # Diffusers warns at every cast
                part.to(dtype)
    size = encoder.image_size or (224, 224)
    probe = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    check_batch_independent(encoder, probe, tolerance=1e-3 if dtype == torch.float32 else 5e-2)
    return SmoothedEncoder(encoder, smoothing, purifier, mapper)


def load_part(choice: str | None, kind: Literal["purifier", "mapper"], small: bool) -> nn.Module | None:
    """A purifier or mapper by choice: ``none``, ``bundled``, a folder or file; ``None`` is bundled for the small encoder, else none.

    Raises:
        ValueError: the bundled part for another encoder, or weights that are refused; FileNotFoundError: no such file.
    """
    from visiongraft.methods.feature_smoothing.released import load

    choice = choice or ("bundled" if small else "none")
    if choice == "none":
        return None
    if choice == "bundled" and not small:
        raise ValueError(f"The bundled {kind} fits the small encoder only; train one with train-{kind} and give its folder.")
    return load(WEIGHTS / kind if choice == "bundled" else choice, component=kind)


def prepare_image(path: Path, encoder: Encoder) -> Float[Tensor, "3 height width"]:
    """Reads an image as the encoder receives it: the middle square, resized with anti-aliasing. Noise is added after this.

    Raises:
        FileNotFoundError, ValueError: see :func:`visiongraft.media.images.read_image`.
    """
    image = read_image(path)
    height, width = encoder.image_size or image.shape[1:]
    return resize(center_square(image) if height == width else image, (height, width))


class ZeroShot:
    """Zero-shot classes of a CLIP or SigLIP model: unit text embeddings beside the same model's image encoder.

    Args:
        name: ``small``, a folder or a hub id; the same as the encoder's.
        prompts: one text a class.

    Raises:
        ValueError: fewer than two prompts, or a model without a text tower.
    """

    def __init__(self, name: str, prompts: list[str], device: str | torch.device = "cpu") -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        if len(prompts) < 2:
            raise ValueError(f"Zero-shot classification needs at least two prompts; got {len(prompts)}.")
        source = str(WEIGHTS / "clip") if name == "small" else name
        if not hasattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "text_config"):
            raise ValueError(f"{name} has no text tower, so text prompts cannot name classes for it; leave the prompts out.")
        model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False).eval().to(device)
        tokens = AutoTokenizer.from_pretrained(source)(prompts, padding=True, return_tensors="pt").to(device)
        with torch.inference_mode():
            self.classes: Float[Tensor, "classes embedding"] = unit(model.get_text_features(**tokens).pooler_output)
        self.prompts = prompts

    def predict(self, embedding: Float[Tensor, "batch embedding"]) -> list[str]:
        """The best prompt for each embedding."""
        return [self.prompts[i] for i in (unit(embedding) @ self.classes.T).argmax(1).tolist()]
