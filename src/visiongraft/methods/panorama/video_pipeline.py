"""A 360 degree video from an ordinary one: Wan's pipeline with the perspective clip's tokens in the sequence and a circular decoder."""

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, WanPipeline, WanTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from diffusers.utils.torch_utils import get_module_execution_device
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from visiongraft.flow.guidance import Guidance, guided
from visiongraft.flow.sampling import Known, Velocity
from visiongraft.media.images import Alpha
from visiongraft.methods.panorama.circular import check_panorama_size, decode_latents, encode_latents
from visiongraft.methods.panorama.clips import Fit, fit_clips, to_clips
from visiongraft.methods.panorama.config import GraftConfig, with_prefix
from visiongraft.methods.panorama.grafted import MAX_WORDS, Grafted
from visiongraft.methods.panorama.latents import check_frames
from visiongraft.methods.panorama.sequence_wan import TRAIN_TIMESTEPS, wan_velocity


class PanoramaVideoPipeline(WanPipeline, Grafted):
    """Lifts perspective clips of unknown cameras to upright panorama videos whose middle is the first frame's direction.

    Loads from any Wan2.1 text-to-video folder; offloading, LoRA, ``torch_dtype``, callbacks and the progress bar are the base's.

        pipeline = PanoramaVideoPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-14B-Diffusers", torch_dtype=torch.bfloat16)
        frames = pipeline(clip, "a street at noon", generator=torch.Generator().manual_seed(0)).frames[0]

    Args:
        graft: sizes, padding and conditioning of the weights, or its values as a dict; None: the paper's.
        tokenizer, text_encoder, vae, scheduler, transformer: of the base.
        transformer_2, boundary_ratio, expand_timesteps: of Wan 2.2, refused.

    Raises:
        NotImplementedError: a Wan 2.2 pipeline.
        ValueError: a graft for images.

    Source: arXiv 2601.16192, the video model.
    """

    graft_mode = "video"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel | None,
        vae: AutoencoderKLWan,
        scheduler: SchedulerMixin,
        transformer: WanTransformer3DModel | None = None,
        transformer_2: WanTransformer3DModel | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
        graft: GraftConfig | dict[str, Any] | None = None,
    ) -> None:
        if transformer_2 is not None or boundary_ratio is not None or expand_timesteps:
            raise NotImplementedError(
                "Wan 2.2 (transformer_2, boundary_ratio, expand_timesteps) is not supported; use a Wan 2.1 text-to-video pipeline."
            )
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer)  # pyright: ignore[reportArgumentType]
        self.graft = GraftConfig.video() if graft is None else graft

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a pass without text is needed."""
        guidance = self._guidance
        return guidance.mode != "none" and (guidance.scale != 1 or (guidance.mode == "two" and guidance.condition_scale != 1))

    @property
    def token_stride(self) -> int:
        """Pixels a token covers in height and width."""
        return self.vae_scale_factor_spatial * self.transformer.config.patch_size[-1]

    @torch.no_grad()
    def __call__(
        self,
        video: Any,
        prompt: str | list[str] | None = "",
        negative_prompt: str | list[str] | None = None,
        *,
        height: int | None = None,
        condition_size: int | None = None,
        fit: Fit = "crop",
        alpha: Alpha = "refuse",
        num_inference_steps: int = 50,
        cfg: Literal["joint", "text", "two"] = "joint",
        guidance_scale: float = 5.0,
        condition_scale: float = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        known_latents: Tensor | None = None,
        known_mask: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
        max_sequence_length: int | None = None,
    ) -> WanPipelineOutput | tuple[Any]:
        """Generates one panorama clip for each perspective clip.

        Args:
            video: one clip or a batch, see :data:`visiongraft.methods.panorama.clips.Video`; 4k+1 frames. The panorama has as many.
            prompt: what the scene is; may be empty. The graft's phrase is put in front. One for all clips or one for each; several
                prompts for one clip give one panorama each.
            negative_prompt: text of the null passes of guidance.
            height: of the panorama in pixels, which is twice as wide; None: the graft's.
            condition_size: side of the square input after resizing; None: the graft's.
            fit: ``crop`` the middle square, or ``keep`` the aspect ratio (out of the training distribution).
            alpha: what lies behind transparent pixels, or ``refuse`` to raise where there are any.
            num_inference_steps: sampling steps.
            cfg: what the null pass of guidance lacks: ``joint`` text and clip, ``text`` the text, ``two`` one after the other, each
                with its own scale. Passes run one after another.
            guidance_scale: 1 is no guidance.
            condition_scale: of the clip, with ``two``.
            guidance_interval: (lowest, highest) time with guidance; 0 data, 1 noise.
            num_videos_per_prompt: panoramas for each clip.
            generator: of the noise; one, or one for each panorama.
            latents: noise to start from, in place of the generator.
            known_latents: normalised circular latents (see :meth:`encode_panorama`) of panorama frames that are given already.
            known_mask: True where ``known_latents`` hold; broadcasts to the latents. There, every step starts from
                ``(1 - t) known + t noise``, and the result is ``known_latents``.
            prompt_embeds, negative_prompt_embeds: in place of the prompts.
            output_type: frames as NumPy array, tensor in [0, 1], PIL images, or normalised latents.
            return_dict: False gives a tuple.
            attention_kwargs: ``{"scale": ...}`` scales LoRA.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in Diffusers.
            max_sequence_length: of the text in tokens; a longer prompt is cut with a warning, a shorter one padded with zeros. None:
                512 as the base does, or what the tokenizer says where it is less.

        Returns:
            ``frames``: batch x frames x height x width x 3 (``np``), batch x frames x 3 x height x width (``pt``), a list of lists
            (``pil``), or batch x channels x frames x height x width (``latent``).

        Raises:
            ValueError: sizes, frames, batch sizes or options that do not fit; the message says which do.
        """
        graft = self.graft
        height = height or graft.height
        self._guidance = Guidance(mode=cfg, scale=guidance_scale, condition_scale=condition_scale, interval=guidance_interval)
        self._guidance_scale, self._attention_kwargs = guidance_scale, attention_kwargs
        self._current_timestep, self._interrupt = None, False
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        tensor_inputs = callback_on_step_end_tensor_inputs or ["latents"]
        prompt = prompt or ("" if prompt_embeds is None else None)
        self.check_inputs(prompt, negative_prompt, height, 2 * height, prompt_embeds, negative_prompt_embeds, tensor_inputs)
        _check_options(output_type, num_inference_steps=num_inference_steps, num_videos_per_prompt=num_videos_per_prompt)
        clips = fit_clips(to_clips(video, alpha), condition_size or graft.condition_size, fit, self.token_stride)
        check_frames(self.vae, clips.shape[1])

        texts = [with_prefix(text, graft.caption_prefix) for text in _as_list(prompt or "")]
        text = texts if prompt_embeds is None else prompt_embeds
        batch = _common_count(len(clips), len(text)) * num_videos_per_prompt
        words = max_sequence_length or min(MAX_WORDS, getattr(self.tokenizer, "model_max_length", MAX_WORDS))
        tensors = {"prompt_embeds": self._embed(text, batch, words)}
        if self.do_classifier_free_guidance:
            null = _as_list(negative_prompt or "") if negative_prompt_embeds is None else negative_prompt_embeds
            tensors["negative_prompt_embeds"] = self._embed(null, batch, words)
        device, channels = self._execution_device, self.transformer.config.in_channels
        condition = self._encode(clips, circular=False).to(device, self.transformer.dtype).repeat_interleave(batch // len(clips), 0)
        noise = self.prepare_latents(batch, channels, height, 2 * height, clips.shape[1], torch.float32, device, generator, latents)
        known = _known(known_latents, known_mask, noise)

        def after_step(step: int, timestep: Tensor, y: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return y
            values = {"latents": y, "negative_prompt_embeds": None, **tensors}
            changed = callback_on_step_end(self, step, timestep, {name: values[name] for name in tensor_inputs}) or {}
            tensors.update((name, changed[name]) for name in tensors if name in changed)
            return changed.get("latents", y)

        y = self._denoise(noise, known, guided(self._predict(condition, tensors), self._guidance), num_inference_steps, after_step)
        frames = y if output_type == "latent" else self.decode(y, output_type)
        self.maybe_free_model_hooks()
        return WanPipelineOutput(frames=frames) if return_dict else (frames,)

    def check_inputs(self, prompt: Any, negative_prompt: Any, height: int, width: int, *others: Any, **named: Any) -> None:
        """The base's checks, and a panorama's size.

        Raises:
            ValueError: unless the size is (H, 2H) in whole tokens; both prompts and embeddings; unknown tensors for callbacks.
        """
        check_panorama_size(height, width, self.vae_scale_factor_spatial, self.transformer.config.patch_size[-1])
        # the base asks for multiples of 16, whatever the stride of its VAE
        super().check_inputs(prompt, negative_prompt, 0, 0, *others, **named)

    def _predict(self, condition: Tensor, tensors: dict[str, Tensor]) -> Callable[..., Tensor]:
        """The velocity with or without each of the two conditions, for :func:`visiongraft.flow.guidance.guided`."""
        graft, dtype = self.graft, self.transformer.dtype

        def predict(y: Tensor, t: Tensor, keep_condition: bool, keep_text: bool) -> Tensor:
            return wan_velocity(
                self.transformer,
                y.to(dtype),
                condition,
                t,
                tensors["prompt_embeds" if keep_text else "negative_prompt_embeds"],
                time_offset=graft.time_offset,
                cond_timestep=graft.cond_timestep,
                keep_condition=None if keep_condition else torch.zeros(len(y), dtype=torch.bool, device=y.device),
                attention_kwargs=self._attention_kwargs,
            ).float()

        return predict

    def _denoise(
        self, y: Tensor, known: Known | None, velocity: Velocity, steps: int, after_step: Callable[[int, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Data from noise along the scheduler's times; ``after_step`` sees each state and may replace it."""
        _set_times(self.scheduler, steps, y.device, self.graft.flow_shift)
        self.scheduler.set_begin_index(0)
        _check_flow(self.scheduler)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=steps) as progress:  # pyright: ignore[reportCallIssue]
            for step, timestep in enumerate(timesteps):
                if self.interrupt:
                    continue
                self._current_timestep = timestep
                if known is not None:
                    y = known.impose(y, float(self.scheduler.sigmas[step]))
                t = (timestep.float() / TRAIN_TIMESTEPS).expand(len(y))
                y = after_step(step, timestep, self.scheduler.step(velocity(y, t), timestep, y, return_dict=False)[0])
                if (step + 1) % self.scheduler.order == 0 or step + 1 == len(timesteps):
                    progress.update()
        self._current_timestep = None
        return y if known is None else known.impose(y, 0.0)

    @torch.no_grad()
    def encode_panorama(
        self, panorama: Float[Tensor, "batch frames 3 height width"]
    ) -> Float[Tensor, "batch channels latent_frames latent_height latent_width"]:
        """Normalised circular latents of panorama clips in [0, 1], as :meth:`__call__` takes them for ``known_latents``.

        Raises:
            ValueError: frames other than 4k+1, sizes that do not fit.
        """
        return self._encode(panorama, circular=True)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels latent_frames latent_height latent_width"], output_type: str = "np") -> Any:
        """Panorama clips of normalised latents, decoded around the circle; also for previews in a callback.

        Raises:
            ValueError: see :func:`visiongraft.methods.panorama.circular.decode_latents`.
        """
        pixels = decode_latents(self.vae, latents.to(get_module_execution_device(self.vae)), padding=self.graft.padding)
        return self.video_processor.postprocess_video(pixels.float(), output_type=output_type)

    def _encode(self, clips: Tensor, *, circular: bool) -> Tensor:
        pixels = clips.to(get_module_execution_device(self.vae), torch.float32).transpose(1, 2) * 2 - 1
        return encode_latents(self.vae, pixels, circular=circular, padding=self.graft.padding, warn=False)

    def _embed(self, text: list[str] | Tensor, batch: int, max_length: int) -> Tensor:
        """Embeddings of each panorama's text, in the transformer's dtype."""
        if not isinstance(text, Tensor):
            if self.text_encoder is None:
                raise ValueError("Without a text encoder prompt_embeds must be given (and negative ones for guidance); encode them first.")
            longest = max(len(ids) for ids in self.tokenizer([prompt_clean(one) for one in text], verbose=False).input_ids)
            if longest > max_length:
                warnings.warn(f"A prompt of {longest} tokens is cut to the {max_length} that the text encoder takes.", stacklevel=3)
            text, _ = self.encode_prompt(text, do_classifier_free_guidance=False, max_sequence_length=max_length)
        if batch % len(text):
            raise ValueError(f"{len(text)} (negative) prompts do not fit {batch} panoramas; give one, or one for each clip.")
        return text.to(self._execution_device, self.transformer.dtype).repeat_interleave(batch // len(text), 0)


def _as_list(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else text


def _common_count(clips: int, texts: int) -> int:
    """Panoramas to make: as many as clips or prompts, one of which may be 1."""
    if len({clips, texts} - {1}) > 1:
        raise ValueError(f"{clips} clips and {texts} prompts do not fit; give one prompt, or one for each clip.")
    return max(clips, texts)


def _check_options(output_type: str, **counts: int) -> None:
    if output_type not in ("np", "pt", "pil", "latent"):
        raise ValueError(f"output_type must be np, pt, pil or latent; got {output_type!r}.")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")


def _known(values: Tensor | None, mask: Tensor | None, noise: Tensor) -> Known | None:
    if values is None and mask is None:
        return None
    if values is None or mask is None or mask.dtype != torch.bool:
        raise ValueError("known_latents and known_mask (of bool, True where they hold) must be given together.")
    values, mask = values.to(noise), mask.to(noise.device)
    for name, given in (("known_latents", values), ("known_mask", mask)):
        if given.dim() != noise.dim() or any(have not in (1, want) for have, want in zip(given.shape, noise.shape, strict=True)):
            raise ValueError(f"{name} must broadcast to the latents {tuple(noise.shape)}; got shape {tuple(given.shape)}.")
    return Known(values, mask, noise)


def _set_times(scheduler: Any, steps: int, device: torch.device, shift: float | None) -> None:
    """The scheduler's times; with a ``shift`` in place of its own, which it has again afterwards."""
    if shift is None:
        scheduler.set_timesteps(steps, device=device)
        return
    options: dict[str, Any] = {}
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = shift if scheduler.config.get("time_shift_type") == "linear" else math.log(shift)
    if hasattr(scheduler, "set_shift"):
        own, change = scheduler.shift, scheduler.set_shift
        # left to itself, this one starts from a lowest time that was shifted when it was built, and shifts it again
        options["sigmas"] = np.linspace(1.0, 1 / scheduler.config.num_train_timesteps, steps)
    elif "flow_shift" in inspect.signature(type(scheduler).__init__).parameters:
        own, change = scheduler.config.flow_shift, lambda value: scheduler.register_to_config(flow_shift=value)
    else:
        raise ValueError(
            f"The graft's flow_shift of {shift:g} cannot be given to a {type(scheduler).__name__}; use FlowMatchEulerDiscreteScheduler or "
            "UniPCMultistepScheduler, or pipeline.graft.changed(flow_shift=None) for the scheduler's own times."
        )
    change(shift)
    try:
        scheduler.set_timesteps(steps, device=device, **options)
    finally:
        change(own)


def _check_flow(scheduler: Any) -> None:
    highest = float(scheduler.sigmas.max())
    if not 0 < highest <= 1:
        raise ValueError(
            f"The scheduler must follow a flow with times in [0, 1] (FlowMatchEulerDiscreteScheduler, or UniPCMultistepScheduler with "
            f"use_flow_sigmas=True and prediction_type='flow_prediction'); this {type(scheduler).__name__} starts at {highest:g}."
        )
