"""Ask a vision-language model a question about an image: OpenAI-compatible endpoints, Gemini, or a Transformers model.

A *chat* is any callable ``(prompt, image or None) -> reply``. Keys come from environment variables when a question is asked, and
appear in no error, representation or log. Replies are text from outside: they are parsed strictly, never evaluated.
"""

import base64
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from visiongraft.media.images import encode_image, to_image_tensor

_MAX_REPLY = 8 * 2**20  # bytes; a reply is a few hundred
_TRANSIENT = (408, 429, 500, 502, 503, 504)


@runtime_checkable
class Chat(Protocol):
    """Answers a prompt about an image."""

    def __call__(self, prompt: str, image: UInt8[np.ndarray, "height width 3"] | None = None) -> str:
        """The reply."""
        ...


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How to ask an endpoint.

    Args:
        temperature, top_p: sampling.
        max_tokens: longest reply.
        timeout: seconds for one attempt.
        attempts: how often a question is sent, where the endpoint is busy, unreachable or too slow.
        pause: seconds before the second attempt; doubled for every further one.

    Source: Point Bridge's released code (temperature 0, top_p 0.95).
    """

    temperature: float = 0.0
    top_p: float = 0.95
    max_tokens: int = 512
    timeout: float = 30.0
    attempts: int = 3
    pause: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.timeout <= 0 or self.pause < 0:
            raise ValueError("Asking an endpoint takes at least one attempt, a time-out above 0 s and a pause of at least 0 s.")


@dataclass(frozen=True, kw_only=True)
class OpenAiChat:
    """Any endpoint of the OpenAI chat-completions kind (OpenAI, vLLM, Ollama, llama.cpp …).

    Args:
        url: base address, such as ``http://localhost:8000/v1``.
        model: name that the endpoint knows.
        key_variable: environment variable that holds the key; ``None`` where the endpoint wants none.
        asking: sampling, time-outs and repetition.
    """

    url: str
    model: str
    key_variable: str | None = None
    asking: Asking = field(default_factory=Asking)

    def __call__(self, prompt: str, image: UInt8[np.ndarray, "height width 3"] | None = None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_png(image)}"}})
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": self.asking.temperature,
            "top_p": self.asking.top_p,
            "max_tokens": self.asking.max_tokens,
        }
        headers = {} if self.key_variable is None else {"Authorization": f"Bearer {_key(self.key_variable)}"}
        reply = _post(f"{self.url.rstrip('/')}/chat/completions", body, headers, self.asking)
        return _text(reply, lambda parsed: parsed["choices"][0]["message"]["content"], self.url)


@dataclass(frozen=True, kw_only=True)
class GeminiChat:
    """Google's Gemini over its HTTP API.

    Args:
        model: such as ``gemini-2.5-flash`` (the paper's) or ``gemini-2.0-flash`` (its released code's).
        key_variable: environment variable that holds the key.
        url: base address.
        asking: sampling, time-outs and repetition.
    """

    model: str = "gemini-2.5-flash"
    key_variable: str = "GEMINI_API_KEY"
    url: str = "https://generativelanguage.googleapis.com/v1beta"
    asking: Asking = field(default_factory=Asking)

    def __call__(self, prompt: str, image: UInt8[np.ndarray, "height width 3"] | None = None) -> str:
        parts: list[dict[str, Any]] = [{"text": prompt}]
        if image is not None:
            parts.insert(0, {"inline_data": {"mime_type": "image/png", "data": _png(image)}})
        # no limit on tokens: Gemini counts its thoughts into it and would stop before the answer
        sampling = {"temperature": self.asking.temperature, "topP": self.asking.top_p}
        body = {"contents": [{"role": "user", "parts": parts}], "generationConfig": sampling}
        # the key goes into a header: an address ends in logs
        headers = {"x-goog-api-key": _key(self.key_variable)}
        reply = _post(f"{self.url.rstrip('/')}/models/{self.model}:generateContent", body, headers, self.asking)
        return _text(reply, lambda parsed: "".join(part.get("text", "") for part in parsed["candidates"][0]["content"]["parts"]), self.url)


class TransformersChat:
    """A Transformers model with image and text in, text out, and its processor with a chat template; greedy.

    Args:
        model: such as an ``AutoModelForImageTextToText`` or ``Molmo2ForConditionalGeneration``, on its device.
        processor: its ``AutoProcessor``.
        max_new_tokens: longest reply.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 200) -> None:
        self.model, self.processor, self.max_new_tokens = model.eval(), processor, max_new_tokens

    @classmethod
    def from_pretrained(cls, name: str, *, max_new_tokens: int = 200, **options: Any) -> "TransformersChat":
        """Loads model and processor from a hub id or folder; ``options`` go to the model (dtype, device_map …)."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True, trust_remote_code=False, **options)
        return cls(model, AutoProcessor.from_pretrained(name, trust_remote_code=False), max_new_tokens)

    @torch.no_grad()
    def __call__(self, prompt: str, image: UInt8[np.ndarray, "height width 3"] | None = None) -> str:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image", "image": Image.fromarray(image)})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        device, dtype = self.model.device, self.model.dtype
        inputs = {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}
        output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return self.processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def _png(image: UInt8[np.ndarray, "height width 3"]) -> str:
    return base64.b64encode(encode_image(to_image_tensor(image), "PNG")).decode()


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"The environment variable {variable} holds no key; set it to the endpoint's key, which is read from nowhere else."
        )
    if not key.isprintable() or not key.isascii():
        raise ValueError(f"The environment variable {variable} holds characters that no key has; set it again.")
    return key


class _NoRedirects(HTTPRedirectHandler):
    """A redirected request would carry the key to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _post(url: str, body: dict[str, Any], headers: dict[str, str], asking: Asking) -> Any:
    parts = urlsplit(url)
    host = parts.hostname or "?"
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("An endpoint's address starts with http:// or https:// and has a host, and no user name or key in it.")
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}, method="POST")
    opener = build_opener(_NoRedirects)
    for attempt in range(asking.attempts):
        if attempt:
            time.sleep(asking.pause * 2 ** (attempt - 1))
        try:
            with opener.open(request, timeout=asking.timeout) as answer:
                content = answer.read(_MAX_REPLY + 1)
        except HTTPError as error:
            status = error.code  # its body and address may repeat what was sent: left out
            reason = f"answered with status {status}"
            error.close()
            if status not in _TRANSIENT:
                hint = "; check the key" if status in (401, 403) else "; check address and model" if status in (400, 404) else ""
                raise ConnectionError(f"The endpoint at {host} {reason}{hint}.") from None
        except TimeoutError:
            reason = f"did not answer within {asking.timeout:g} s"
        except (URLError, OSError) as error:
            cause = getattr(error, "reason", error)
            slow = isinstance(cause, TimeoutError)
            reason = f"did not answer within {asking.timeout:g} s" if slow else f"cannot be reached ({type(cause).__name__})"
        else:
            if len(content) > _MAX_REPLY:
                raise ConnectionError(f"The endpoint at {host} sent more than {_MAX_REPLY} bytes; it is no chat endpoint.")
            try:
                return json.loads(content)
            except ValueError:
                raise ConnectionError(f"The endpoint at {host} answered with something that is not JSON; check the address.") from None
    times = "once" if asking.attempts == 1 else f"{asking.attempts} times"
    raise ConnectionError(
        f"The endpoint at {host} {reason}; it was asked {times}. Check that it runs, or give the objects' names yourself."
    )


def _text(reply: Any, read: Callable[[Any], Any], url: str) -> str:
    try:
        text = read(reply)
    except (KeyError, IndexError, TypeError, AttributeError):
        text = None
    if not isinstance(text, str):
        raise ConnectionError(
            f"The reply of {urlsplit(url).hostname} holds no text; the model may have refused, or the API is another one."
        )
    return text
