"""From one photograph of an unknown camera to an upright panorama: FLUX with the clean tokens of the photograph in its sequence."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    T5EncoderModel,
    T5TokenizerFast,
)

from visiongraft.flow.guidance import Guidance, guided
from visiongraft.media.images import Alpha, center_square, resize, to_image_tensor
from visiongraft.methods.panorama.circular import check_panorama_size, decode_latents, encode_latents
from visiongraft.methods.panorama.clips import Fit, kept_size, warn_of_kept_size
from visiongraft.methods.panorama.config import GraftConfig, with_prefix
from visiongraft.methods.panorama.grafted import MAX_WORDS, Grafted
from visiongraft.methods.panorama.latents import spatial_stride
from visiongraft.methods.panorama.sequence_flux import flux_velocity, patch_size

Picture = Image.Image | np.ndarray | Tensor


class PanoramaImagePipeline(FluxPipeline, Grafted):
    """Lifts photographs to panoramas. Components are FLUX's (or FLUX.1-Kontext's): ``PanoramaImagePipeline(**flux.components)`` works.

    The panorama is upright, and the photograph lies at its horizontal centre, whatever its field of view, pitch and roll.

    Args:
        scheduler, vae, transformer: of the base.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2: of the base; None where only embeddings are given.
        image_encoder, feature_extractor: of the base, unused.
        graft: sizes, positions and padding; default: the paper's.

    Source: arXiv 2601.16192, the image model.
    """

    graft_mode = "image"
    _callback_tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        text_encoder_2: T5EncoderModel | None,
        tokenizer_2: T5TokenizerFast | None,
        transformer: FluxTransformer2DModel,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        graft: GraftConfig | dict[str, Any] | None = None,
    ) -> None:
        parts: list[Any] = [text_encoder, tokenizer, text_encoder_2, tokenizer_2, transformer, image_encoder, feature_extractor]
        super().__init__(scheduler, vae, *parts)
        self.graft = GraftConfig.image() if graft is None else graft

    @torch.no_grad()
    def __call__(
        self,
        image: Picture | list[Picture],
        prompt: str | list[str] | None = "",
        negative_prompt: str | list[str] = "",
        *,
        height: int | None = None,
        condition_size: int | None = None,
        fit: Fit = "crop",
        alpha: Alpha = "refuse",
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        true_cfg_scale: float = 1.0,
        cfg: Literal["joint", "text", "two"] = "joint",
        condition_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | int | list[int] | None = None,
        latents: Float[Tensor, "batch channels latent_height latent_width"] | None = None,
        prompt_embeds: Float[Tensor, "prompts words embedding"] | None = None,
        pooled_prompt_embeds: Float[Tensor, "prompts pooled"] | None = None,
        negative_prompt_embeds: Float[Tensor, "prompts words embedding"] | None = None,
        negative_pooled_prompt_embeds: Float[Tensor, "prompts pooled"] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 - read only
        max_sequence_length: int | None = None,
    ) -> FluxPipelineOutput | tuple[Any]:
        """Generates panoramas.

        Args:
            image: one or several: PIL, array (height x width x channels) or tensor (channels x height x width), values in [0, 1] or
                8-bit; a 4-D tensor is a batch.
            prompt: what the scene is, one for all images or one each; may be empty. The graft's phrase is put in front.
            negative_prompt: text of the null passes of true guidance.
            height: of the panorama in pixels, twice as wide; default: the graft's.
            condition_size: side of the square input after resizing; default: the graft's.
            fit: ``crop`` takes the middle square; ``keep`` keeps the sides at about the same number of tokens, which the weights
                were not trained for.
            alpha: colour behind transparent pixels: ``white`` or ``black``; refused without it.
            num_inference_steps: steps of the scheduler.
            guidance_scale: input of a guidance-distilled base; others ignore it.
            true_cfg_scale: classifier-free guidance by further passes; 1 is off.
            cfg: what the null of true guidance leaves out: text and photograph (``joint``), the text, or each with its own scale (``two``).
            condition_scale: of the photograph, with ``two``.
            guidance_interval: (lowest, highest) time in [0, 1] with true guidance.
            num_images_per_prompt: panoramas for each photograph.
            generator: randomness: generators or seeds, one or one for each panorama.
            latents: noise to start from, in place of random noise.
            prompt_embeds: of T5, in place of ``prompt``; with ``pooled_prompt_embeds`` of CLIP. The negative ones likewise.
            output_type: ``latent`` gives the panorama's normalised latents; :meth:`decode` makes pictures of them.
            return_dict: give a ``FluxPipelineOutput``, else a tuple.
            attention_kwargs: ``{"scale": ...}`` scales LoRA.
            callback_on_step_end: called with (pipeline, step, timestep, tensors); may return tensors that take the place of these.
                Latents are batch x channels x height x width; :meth:`decode` previews them.
            callback_on_step_end_tensor_inputs: of ``latents`` and ``prompt_embeds``.
            max_sequence_length: tokens of T5; default: what its tokenizer takes, at most 512.

        Returns:
            Upright panoramas with values in [0, 1], input at longitude 0, all panoramas of the first image first.

        Raises:
            ValueError: sizes, images, prompts or options that do not fit; the message says what is accepted.
        """
        height = height or self.graft.height
        stride, patch = self._stride_and_patch()
        check_panorama_size(height, 2 * height, stride, patch)
        if unknown := sorted(set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)):
            raise ValueError(f"callback_on_step_end_tensor_inputs has {', '.join(unknown)}; it may name latents and prompt_embeds.")
        if num_inference_steps < 1 or num_images_per_prompt < 1:
            raise ValueError(
                f"num_inference_steps and num_images_per_prompt must be at least 1; got {num_inference_steps} and {num_images_per_prompt}."
            )
        guidance = Guidance(mode=cfg, scale=true_cfg_scale, condition_scale=condition_scale, interval=guidance_interval)
        self._guidance_scale, self._joint_attention_kwargs = guidance_scale, attention_kwargs
        self._current_timestep, self._interrupt = None, False

        pictures = self.prepare_images(image, fit, condition_size, alpha)
        device, batch = self._execution_device, len(pictures) * num_images_per_prompt
        text = self._embed(prompt, prompt_embeds, pooled_prompt_embeds, len(pictures), num_images_per_prompt, max_sequence_length)
        null_text = text
        if true_cfg_scale != 1 or (cfg == "two" and condition_scale != 1):
            null_text = self._embed(
                negative_prompt if negative_prompt_embeds is None else None,
                negative_prompt_embeds,
                negative_pooled_prompt_embeds,
                len(pictures),
                num_images_per_prompt,
                max_sequence_length,
                prefix=False,
            )
        condition = encode_latents(self.vae, (pictures * 2 - 1).to(device), circular=False, warn=False).float()
        condition = condition.repeat_interleave(num_images_per_prompt, dim=0)
        noise = self._start(latents, (batch, condition.shape[1], height // stride, 2 * height // stride), generator, device)
        timesteps = self._set_timesteps(num_inference_steps, noise[0, 0].numel() // patch**2, device)
        callback = (callback_on_step_end, callback_on_step_end_tensor_inputs)
        result = self._denoise(noise, timesteps, condition, text, null_text, guidance, *callback)
        images: Any = result if output_type == "latent" else self.decode(result, output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=images) if return_dict else (images,)

    def prepare_images(
        self, image: Picture | list[Picture], fit: Fit = "crop", condition_size: int | None = None, alpha: Alpha = "refuse"
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images as the transformer is given them: cropped or resized, in [0, 1]. Arguments as in the call.

        Raises:
            ValueError: ``fit="pad"`` and other ways, images that end up with different sizes, NaN, another layout.
        """
        unit, size = math.prod(self._stride_and_patch()), condition_size or self.graft.condition_size
        if size % unit:
            raise ValueError(f"condition_size must be a multiple of {unit}, the pixels of a token; got {size}.")
        if fit not in ("crop", "keep"):
            reason = ", since padding would change the apparent field of view" if fit == "pad" else ""
            raise ValueError(f"fit must be 'crop' or 'keep'{reason}; got {fit!r}.")
        several = isinstance(image, list | tuple) or (isinstance(image, np.ndarray | Tensor) and image.ndim == 4)
        pictures = [to_image_tensor(one, alpha) for one in (image if several else [image])]  # pyright: ignore[reportGeneralTypeIssues]
        if not pictures:
            raise ValueError("There is no image in the list; give at least one.")
        sizes = [(size, size) if fit == "crop" else kept_size(picture.shape[1], picture.shape[2], size, unit) for picture in pictures]
        if len(set(sizes)) > 1:
            raise ValueError(
                "Images of different proportions cannot share a batch with fit='keep'; lift them one by one, or use fit='crop'."
            )
        warn_of_kept_size(sizes[0], size)
        fitted = [resize(center_square(picture) if fit == "crop" else picture, sizes[0]) for picture in pictures]
        return torch.stack([picture.cpu() for picture in fitted])

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels latent_height latent_width"], output_type: str = "pil") -> Any:
        """Panoramas of normalised latents, decoded around the circle; also for previews in a callback.

        Raises:
            ValueError: see :func:`visiongraft.methods.panorama.circular.decode_latents`.
        """
        pixels = decode_latents(self.vae, latents.to(self._execution_device), padding=self.graft.padding)
        return self.image_processor.postprocess(pixels, output_type=output_type)

    def _stride_and_patch(self) -> tuple[int, int]:
        """Pixels of a latent, and latents of a token, along one side."""
        return spatial_stride(self.vae), patch_size(self.transformer, self.vae.config.latent_channels)

    def _embed(
        self,
        prompt: str | list[str] | None,
        embeds: Any,
        pooled: Any,
        count: int,
        repeats: int,
        max_words: int | None,
        prefix: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """T5 and CLIP embeddings, one row for each panorama."""
        device = self._execution_device
        if embeds is None:
            if self.text_encoder is None or self.text_encoder_2 is None:
                raise ValueError("Without text encoders prompt_embeds must be given (and negative ones for guidance); encode them first.")
            prompts = [prompt] if isinstance(prompt, str) or prompt is None else prompt
            prompts = [with_prefix(one or "", self.graft.caption_prefix if prefix else "") for one in prompts]
            words = max_words or min(MAX_WORDS, self.tokenizer_2.model_max_length)
            self._warn_of_truncation(prompts, words)
            scale = (self._joint_attention_kwargs or {}).get("scale")
            encoded: Any = self.encode_prompt(prompts, device=device, max_sequence_length=words, lora_scale=scale)
            embeds, pooled = encoded[:2]
        elif prompt:
            raise ValueError("Give prompt or prompt_embeds, not both.")
        elif pooled is None:
            raise ValueError("prompt_embeds needs pooled_prompt_embeds beside it, of the same prompts.")
        if len(embeds) not in (1, count) or len(embeds) != len(pooled):
            raise ValueError(f"There must be one prompt, or one for each of the {count} images; got {len(embeds)} (pooled: {len(pooled)}).")
        embeds, pooled = embeds.to(device).expand(count, -1, -1), pooled.to(device).expand(count, -1)
        return embeds.repeat_interleave(repeats, dim=0), pooled.repeat_interleave(repeats, dim=0)

    def _warn_of_truncation(self, prompts: list[str], words: int) -> None:
        longest = max(len(ids) for ids in self.tokenizer_2(prompts, truncation=False, verbose=False).input_ids)
        if longest > words:
            warnings.warn(f"The prompt has {longest} tokens; what is beyond {words} is cut off. Shorten it.", stacklevel=4)

    def _start(self, latents: Tensor | None, shape: tuple[int, ...], generator: Any, device: torch.device) -> Tensor:
        """Standard normal noise in float32, whatever the weights' dtype, so that a seed gives one noise."""
        if latents is not None:
            if latents.shape != shape:
                raise ValueError(f"latents must have shape {shape} for this panorama; got {tuple(latents.shape)}.")
            return latents.to(device, torch.float32)
        generators = generator if isinstance(generator, list) else [generator]
        generators = [torch.Generator().manual_seed(one) if isinstance(one, int) else one for one in generators]
        if len(generators) not in (1, shape[0]):
            raise ValueError(f"There must be one generator, or one for each of the {shape[0]} panoramas; got {len(generators)}.")
        source = generators if isinstance(generator, list) and len(generators) > 1 else generators[0]
        return randn_tensor(shape, generator=source, device=device, dtype=torch.float32)

    def _set_timesteps(self, steps: int, tokens: int, device: torch.device) -> Tensor:
        """The base scheduler's times; its shift depends on the panorama's tokens alone, as those of the input are not denoised."""
        config, shift = self.scheduler.config, self.graft.flow_shift
        if not config.get("use_dynamic_shifting"):
            mu = None
            if shift is not None:
                self.scheduler.set_shift(shift)
        elif shift is None:
            anchors = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
            mu = calculate_shift(tokens, *(config.get(name, value) for name, value in anchors.items()))
        else:
            mu = math.log(shift) if config.time_shift_type == "exponential" else shift
        sigmas: Any = np.linspace(1.0, 1 / steps, steps)
        timesteps, self._num_timesteps = retrieve_timesteps(self.scheduler, device=device, sigmas=sigmas, mu=mu)
        self.scheduler.set_begin_index(0)
        return timesteps  # pyright: ignore[reportReturnType]

    def _denoise(
        self,
        latents: Tensor,
        timesteps: Tensor,
        condition: Tensor,
        text: tuple[Tensor, Tensor],
        null_text: tuple[Tensor, Tensor],
        guidance: Guidance,
        callback: Callable[..., dict[str, Any] | None] | None,
        callback_inputs: list[str],
    ) -> Tensor:
        """From noise to a panorama's latents, kept in float32 between the steps."""
        bar: Any = self.progress_bar
        with bar(total=len(timesteps)) as progress:
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                t = (timestep / self.scheduler.config.num_train_timesteps).expand(len(latents)).to(latents)
                velocity = guided(self._predict(condition, text, null_text), guidance)(latents, t)
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback is not None:
                    tensors = {"latents": latents, "prompt_embeds": text[0]}
                    tensors |= callback(self, step, timestep, {name: tensors[name] for name in callback_inputs}) or {}
                    latents, text = tensors["latents"], (tensors["prompt_embeds"], text[1])
                progress.update()
        self._current_timestep = None
        return latents

    def _predict(self, condition: Tensor, text: tuple[Tensor, Tensor], null_text: tuple[Tensor, Tensor]) -> Callable[..., Tensor]:
        """The velocity with or without each of the two conditions, for :func:`visiongraft.flow.guidance.guided`."""
        graft = self.graft

        def predict(y: Tensor, t: Tensor, keep_condition: bool, keep_text: bool) -> Tensor:
            with self.transformer.cache_context(f"{keep_condition} {keep_text}"):
                return flux_velocity(
                    self.transformer,
                    y,
                    condition,
                    t,
                    *(text if keep_text else null_text),
                    guidance=self._guidance_scale if self.transformer.config.guidance_embeds else None,
                    time_offset=graft.time_offset,
                    cond_timestep=graft.cond_timestep,
                    keep_condition=None if keep_condition else torch.zeros(len(y), dtype=torch.bool, device=y.device),
                    attention_kwargs=self._joint_attention_kwargs,
                )

        return predict
