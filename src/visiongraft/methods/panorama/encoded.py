"""Training samples as the transformer sees them: latents of a panorama and of its input, and the caption's embeddings, from a cache."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from visiongraft.methods.panorama.cache import Key, TensorCache, file_digest, model_identity
from visiongraft.methods.panorama.circular import encode_latents, roll_latents
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.data import PanoramaFolder
from visiongraft.methods.panorama.grafted import MAX_WORDS
from visiongraft.methods.panorama.latents import encodes_videos, spatial_stride

Embeddings = dict[str, Tensor]
"""``prompt_embeds`` (words, width); for images also ``pooled_prompt_embeds`` (width)."""


class EncodedSamples(Dataset):
    """Samples in memory: named tensors with one row a sample.

    Args:
        tensors: ``panorama`` (count, channels, *grid), ``condition`` (count, channels, *grid), ``prompt_embeds`` (count, words,
            width), and for images ``pooled_prompt_embeds`` (count, width).
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["panorama"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.tensors.items()}


class PairEncoder:
    """Pixels to latents and captions to embeddings with the parts of a pipeline, remembered on disk.

    Args:
        pipeline: an image or video pipeline of this package; its VAE and text encoders are used where they are.
        config: mode, sizes and circular padding.
        cache: where the results are kept.
        dtype: of what is kept; bfloat16 takes half the space.
    """

    def __init__(self, pipeline: Any, config: GraftConfig, cache: TensorCache, dtype: torch.dtype = torch.float32) -> None:
        self.pipeline: Any = pipeline
        self.config, self.cache, self.dtype = config, cache, dtype
        padding = {"fraction": config.pad_fraction, "min": config.min_pad, "multiple": config.pad_multiple}
        self._vae_key = {"vae": model_identity(pipeline.vae), "cle": padding, "dtype": str(dtype), "format": 1}
        encoders = [model for name in ("text_encoder", "text_encoder_2") if (model := getattr(pipeline, name, None)) is not None]
        self._text_key = {"encoders": [model_identity(model) for model in encoders], "words": self._max_words(), "dtype": str(dtype)}
        self._text_key["tokenizers"] = [_vocabulary(getattr(pipeline, name, None)) for name in ("tokenizer", "tokenizer_2")]

    def release(self) -> None:
        """Lets go of the pipeline, whose text encoders may take most of the memory; what is cached can still be read."""
        self.pipeline = None

    def panorama_key(self, file: str, draw: dict[str, Any], yaw: int) -> Key:
        """Key of a panorama's latents: the file's digest, its yaw, and for videos where the clip begins."""
        config = self.config
        size = {"height": config.height, "frames": config.num_frames}
        return {"kind": "panorama", "file": file, "yaw": yaw, "start": draw.get("start"), **size, **self._vae_key}

    def condition_key(self, file: str, draw: dict[str, Any]) -> Key:
        """Key of the input's latents: also its camera."""
        config = self.config
        size = {"height": config.height, "frames": config.num_frames, "size": config.condition_size}
        return {"kind": "condition", "file": file, "draw": draw, **size, **self._vae_key}

    def caption_key(self, caption: str) -> Key:
        """Key of a caption's embeddings."""
        return {"kind": "caption", "caption": caption, **self._text_key}

    @torch.no_grad()
    def panorama(self, pixels: Float[Tensor, "*frames 3 height width"]) -> Float[Tensor, "channels *grid"]:
        """Circular latents of pixels in [0, 1]."""
        return self._encode(pixels, circular=True)

    @torch.no_grad()
    def condition(self, pixels: Float[Tensor, "*frames 3 height width"]) -> Float[Tensor, "channels *grid"]:
        """Ordinary latents of the input in [0, 1]."""
        return self._encode(pixels, circular=False)

    @torch.no_grad()
    def caption(self, caption: str) -> Embeddings:
        """Embeddings of a caption, from the cache or else by the text encoders."""
        return self.cache.get(self.caption_key(caption), lambda: self._embed(caption))

    def _encode(self, pixels: Tensor, circular: bool) -> Tensor:
        vae = self.pipeline.vae
        values = (2 * pixels - 1).to(vae.device, vae.dtype)[None]
        if encodes_videos(vae):
            values = values.transpose(1, 2)
        return encode_latents(vae, values, circular=circular, padding=self.config.padding, warn=False)[0].to("cpu", self.dtype)

    def _embed(self, caption: str) -> Embeddings:
        device, words = self.pipeline.text_encoder.device, self._max_words()
        length = len(self._tokenizer()(caption, truncation=False, verbose=False).input_ids)
        if length > words:
            warnings.warn(f"A caption has {length} tokens; what is beyond {words} is cut off: {caption[:60]}...", stacklevel=2)
        if self.config.mode == "video":
            embeds = self.pipeline.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=words, device=device)[0]
            named = {"prompt_embeds": embeds}
        else:
            embeds, pooled, _ = self.pipeline.encode_prompt(caption, None, max_sequence_length=words, device=device)
            named = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
        return {name: values[0].to("cpu", self.dtype) for name, values in named.items()}

    def _max_words(self) -> int:
        """Tokens of a caption: 512, or what a smaller tokenizer takes."""
        return min(MAX_WORDS, self._tokenizer().model_max_length)

    def _tokenizer(self) -> Any:
        return self.pipeline.tokenizer if self.config.mode == "video" else self.pipeline.tokenizer_2


class EncodedFolder(Dataset):
    """Samples of a folder of panoramas, computed once and then read from disk.

    Call :meth:`prepare` first. With ``roll`` each panorama is encoded once and its latents follow every yaw (which must then be
    whole latent columns): draws cost only their input. That is exact for the convolutions of a VAE and near for one whose
    normalisation or attention sees the whole picture.

    Args:
        pairs: panoramas and their draws.
        encoder: with its cache.
        roll: roll latents instead of encoding every yaw; images only.

    Raises:
        ValueError: rolling videos, or by yaws that are not whole latent columns.
    """

    def __init__(self, pairs: PanoramaFolder, encoder: PairEncoder, roll: bool = False) -> None:
        self.pairs, self.encoder, self.roll = pairs, encoder, roll
        self.indices: Sequence[int] = range(len(pairs))
        self._stride = spatial_stride(encoder.pipeline.vae)
        self._digests: dict[Path, str] = {}
        if roll and (pairs.config.mode == "video" or pairs.yaw_multiple % self._stride):
            raise ValueError(
                f"Latents can be rolled for images whose yaws are multiples of the VAE's stride {self._stride}; got mode "
                f"{pairs.config.mode} and yaw_multiple {pairs.yaw_multiple}."
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``panorama``, ``condition`` and the caption's embeddings.

        Raises:
            ValueError: an entry that is missing or damaged.
        """
        panorama, condition, caption = (self.encoder.cache.read(key) for key in self._keys(self.indices[index]))
        if panorama is None or condition is None or caption is None:
            file = self.pairs.file(self.indices[index])
            raise ValueError(f"The cache {self.encoder.cache.folder} has no whole entries for {file}; start the training again to fill it.")
        return {"panorama": self._turned(panorama["latents"], self.indices[index]), "condition": condition["latents"], **caption}

    def prepare(self, *, skip_bad: bool = False, part: tuple[int, int] = (0, 1), progress: bool = True) -> None:
        """Computes what the cache lacks. May be interrupted at any time; what is done stays.

        Args:
            skip_bad: leave out panoramas that cannot be used, with a warning for each.
            part: (number, count) of the process, where several share the work on a cache.
            progress: show a progress bar.

        Raises:
            ValueError: a panorama that cannot be used, or none that can; the message says why.
        """
        bad = set()
        numbers = range(part[0], len(self.pairs), part[1])
        for index in tqdm(numbers, desc="encoding", unit="pair", disable=not progress):
            file = self.pairs.file(index)
            if file in bad:
                continue
            try:
                self._fill(index)
            except ValueError as error:
                if not skip_bad:
                    raise
                bad.add(file)
                warnings.warn(f"Left out: {error}", stacklevel=2)
        self.indices = [index for index in range(len(self.pairs)) if self.pairs.file(index) not in bad]
        if not self.indices:
            raise ValueError(f"None of the {len(self.pairs.files)} panoramas can be used; the warnings above say why.")

    def _fill(self, index: int) -> None:
        """Both pictures are rendered together, only where one of them is missing."""
        cache, encoder = self.encoder.cache, self.encoder
        panorama_key, condition_key, _ = self._keys(index)
        missing = [key for key in (panorama_key, condition_key) if cache.read(key) is None]
        if missing:
            pair, drawn = self.pairs[index], self.pairs.draw(index)
            if panorama_key in missing:
                pixels = pair.panorama.roll(drawn.view.yaw_pixels, -1) if self.roll else pair.panorama
                cache.write(panorama_key, {"latents": encoder.panorama(pixels)})
            if condition_key in missing:
                cache.write(condition_key, {"latents": encoder.condition(pair.condition)})
        encoder.caption(self.pairs.caption(index))

    def _keys(self, index: int) -> tuple[Key, Key, Key]:
        file, drawn = self.pairs.file(index), self.pairs.draw(index)
        if file not in self._digests:
            self._digests[file] = file_digest(file)
        digest, values = self._digests[file], drawn.describe()
        yaw = 0 if self.roll else drawn.view.yaw_pixels
        encoder = self.encoder
        caption = encoder.caption_key(self.pairs.caption(index))
        return encoder.panorama_key(digest, values, yaw), encoder.condition_key(digest, values), caption

    def _turned(self, latents: Tensor, index: int) -> Tensor:
        if not self.roll:
            return latents
        return roll_latents(latents[None], -self.pairs.draw(index).view.yaw_pixels, self._stride)[0]


def _vocabulary(tokenizer: Any) -> str | None:
    """Tells tokenizers apart."""
    if tokenizer is None:
        return None
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
