"""Instructions as vectors of 384 numbers: a sentence encoder of Transformers, or a hashed bag of words that needs no weights."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

DIM = 384
HASHED = "hashed"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@runtime_checkable
class TextEncoder(Protocol):
    """Gives every text a unit vector.

    Attributes:
        name: what :func:`load_text_encoder` takes to make it again; saved beside a policy.
        dim: length of the vectors.
    """

    name: str
    dim: int

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Vectors of texts."""
        ...


class HashedWords:
    """Bag of words without weights: the sum of a seeded Gaussian vector for each lower-case word, scaled to length 1.

    Instructions that share words have similar vectors; it knows no synonyms and no order. For tests, offline use and small studies.

    Args:
        dim: length of the vectors.

    Source: brief, 3 (offline fallbacks).
    """

    name = HASHED

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self._words: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Vectors of texts.

        Raises:
            ValueError: a text without a word.
        """
        return np.stack([self._encode(text) for text in texts])

    def _encode(self, text: str) -> Float[np.ndarray, " dim"]:
        words = re.findall(r"\w+", text.lower())
        if not words:
            raise ValueError(f"An instruction must have at least one word; got {text!r}.")
        total = np.sum([self._word(word) for word in words], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)

    def _word(self, word: str) -> Float[np.ndarray, " dim"]:
        if word not in self._words:
            seed = int.from_bytes(hashlib.blake2b(word.encode()).digest()[:8], "big")
            self._words[word] = np.random.default_rng(seed).standard_normal(self.dim)
        return self._words[word]


class SentenceEncoder:
    """A BERT-like model of Transformers with mean pooling over the words and unit length, as sentence-transformers encodes.

    Texts are remembered: a task's instruction is encoded once.

    Args:
        model: gives ``last_hidden_state``.
        tokenizer: of the model.
        name: where they came from.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval().requires_grad_(False), tokenizer, name
        self.dim = int(model.config.hidden_size)
        self._known: dict[str, np.ndarray] = {}

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path = MINILM, **options: Any) -> "SentenceEncoder":
        """From a folder, the local cache or the hub.

        Args:
            path_or_hub_id: with safetensors weights.
            options: further arguments of Transformers' ``from_pretrained``, such as ``revision``.

        Raises:
            FileNotFoundError: not here, and the hub cannot be reached.
        """
        from transformers import AutoModel, AutoTokenizer

        name = str(path_or_hub_id)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
            model = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"The sentence encoder {name} is not here and cannot be downloaded ({str(error).splitlines()[0]}); give a folder, or use "
                f"{HASHED!r}, which needs no weights but must then be used in training too."
            ) from error
        return cls(model, tokenizer, name)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Vectors of texts; long ones are cut at 256 tokens."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            inputs = self.tokenizer(new, padding=True, truncation=True, max_length=256, return_tensors="pt").to(self.model.device)
            hidden = self.model(**inputs).last_hidden_state
            vectors = mean_pool(hidden, inputs["attention_mask"]).float().cpu().numpy()
            self._known.update(zip(new, vectors, strict=True))
        return np.stack([self._known[text] for text in texts])


def mean_pool(hidden: Float[Tensor, "batch length dim"], mask: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
    """Mean of the tokens that are there, scaled to length 1."""
    weights = mask[..., None].to(hidden.dtype)
    return F.normalize((hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9), dim=-1)


def load_text_encoder(name: str = HASHED) -> TextEncoder:
    """An encoder by its name: ``hashed``, or a folder or hub id of a sentence encoder (the authors': ``MINILM``)."""
    return HashedWords() if name == HASHED else SentenceEncoder.from_pretrained(name)
