"""Training of the graft: flow matching on the panorama's tokens beside the clean tokens of the perspective input."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from visiongraft.flow.guidance import condition_dropout
from visiongraft.flow.losses import flow_matching_loss
from visiongraft.flow.paths import interpolate
from visiongraft.flow.sampling import sample
from visiongraft.flow.times import TimeDistribution, resolution_shift, sample_times, shift_times, time_grid
from visiongraft.methods.panorama.circular import decode_latents
from visiongraft.methods.panorama.config import GraftConfig
from visiongraft.methods.panorama.encoded import Embeddings
from visiongraft.methods.panorama.released import save_graft
from visiongraft.methods.panorama.sequence_flux import flux_velocity
from visiongraft.methods.panorama.sequence_wan import wan_velocity
from visiongraft.training import Optimizer, Recipe

VALIDATION_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    """Which samples learn without their conditions, so that guidance has a null to compare with. The three exclude each other.

    Args:
        both: probability that text and input are left out together; independent dropping would hardly ever do that.
        text: that the text alone is.
        condition: that the perspective input alone is.

    Raises:
        ValueError: not probabilities, or more than 1 together.

    Source: arXiv 2601.16192, dropping of text and input.
    """

    both: float = 0.1
    text: float = 0.05
    condition: float = 0.05

    def __post_init__(self) -> None:
        values = (self.both, self.text, self.condition)
        if min(values) < 0 or sum(values) > 1:
            raise ValueError(f"Dropout probabilities are at least 0 and at most 1 together; got {', '.join(map(str, values))}.")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Bool[Tensor, " count"], Bool[Tensor, " count"]]:
        """(keep the condition, keep the text) of each sample."""
        return condition_dropout(count, generator, both=self.both, text=self.text, condition=self.condition)


class GraftModel(nn.Module):
    """The transformer with the graft's call as its forward, so that whatever wraps it in training wraps the whole.

    Saved with :meth:`save_pretrained` it is a graft's folder: the transformer, or its LoRA alone, beside ``graft_config.json``.

    Args:
        transformer: ``FluxTransformer2DModel`` or ``WanTransformer3DModel``, as the mode of the graft says; with a LoRA or without.
        config: of the graft.
    """

    def __init__(self, transformer: nn.Module, config: GraftConfig) -> None:
        super().__init__()
        self.transformer, self.graft = transformer, config
        self._no_split_modules = getattr(transformer, "_no_split_modules", None)  # what FSDP shards

    def forward(
        self,
        panorama: Float[Tensor, "batch channels *grid"],
        condition: Float[Tensor, "batch channels *condition_grid"] | None,
        timestep: Float[Tensor, " batch"],
        text: Embeddings,
        keep_condition: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels *grid"]:
        """Velocity of noisy panorama latents at ``timestep`` in [0, 1]; see ``flux_velocity`` and ``wan_velocity``."""
        options: dict[str, Any] = {
            "time_offset": self.graft.time_offset,
            "cond_timestep": self.graft.cond_timestep,
            "keep_condition": keep_condition,
        }
        with self._precision(panorama.device):
            if self.graft.mode == "video":
                return wan_velocity(self.transformer, panorama, condition, timestep, text["prompt_embeds"], **options)
            guidance = 1.0 if self.transformer.config.guidance_embeds else None
            pooled = text["pooled_prompt_embeds"]
            return flux_velocity(
                self.transformer, panorama, condition, timestep, text["prompt_embeds"], pooled, guidance=guidance, **options
            )

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """A LoRA in float32 above a base in bfloat16 runs in mixed precision wherever it runs; else as the caller says."""
        dtypes = {p.dtype for p in self.transformer.parameters() if p.is_floating_point()}
        if len(dtypes) == 1:
            return nullcontext()
        return torch.autocast(device.type, dtype=next(iter(dtypes - {torch.float32})))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a graft's folder, which ``released.load`` reads: the transformer, or its LoRA alone, and the config."""
        save_graft(folder, self.transformer, self.graft)


class PanoramaRecipe(Recipe):
    """Flow matching on latents: ``E |(eps - y) - G([x, y_t], t, c)|^2``, over the panorama's tokens only.

    The transformer's parameters that require a gradient are trained: all, or a LoRA's after
    :func:`visiongraft.methods.panorama.lora.add_lora`.

    Args:
        transformer: FLUX's or Wan's, as the mode of ``config`` says.
        config: of the graft; saved beside the weights.
        samples: map-style data set of encoded samples (dicts of ``panorama``, ``condition``, ``prompt_embeds`` and for images
            ``pooled_prompt_embeds``); see :class:`visiongraft.methods.panorama.encoded.EncodedFolder`.
        null_text: embeddings of the empty caption, for samples that learn without their text.
        shift: of the training times towards noise; see :func:`training_shift`.
        held_out: samples that are not trained on, for validation and the preview; None: the first training sample is previewed.
        vae: decodes the preview; None: no preview.
        times: before the shift.
        dropout: of the conditions.
        learning_rate: of AdamW; None: 1e-4 for a LoRA, 5e-5 for images, 1e-5 for videos.
        warmup_steps: then the rate is constant.
        preview_steps: of the sampler.

    Raises:
        ValueError: a shift that is not positive.

    Source: arXiv 2601.16192, flow matching and training.
    """

    def __init__(
        self,
        transformer: nn.Module,
        config: GraftConfig,
        samples: Dataset,
        *,
        null_text: Embeddings,
        shift: float = 1.0,
        held_out: Dataset | None = None,
        vae: Any = None,
        times: TimeDistribution = TimeDistribution(),  # noqa: B008 (frozen)
        dropout: ConditionDropout = ConditionDropout(),
        learning_rate: float | None = None,
        warmup_steps: int = 1000,
        preview_steps: int = 20,
    ) -> None:
        shift_times(torch.zeros(1), shift)  # refuses a shift that is none
        self.config, self.samples, self.null_text, self.shift = config, samples, null_text, shift
        self.held_out, self.vae, self.times, self.dropout, self.preview_steps = held_out, vae, times, dropout, preview_steps
        if learning_rate is None:
            learning_rate = 1e-4 if getattr(transformer, "peft_config", None) else 1e-5 if config.mode == "video" else 5e-5
        schedule = "constant_with_warmup" if warmup_steps else "constant"
        self.modules: dict[str, nn.Module] = {"graft": GraftModel(transformer, config)}
        self.optimizers = {"main": Optimizer(modules=("graft",), learning_rate=learning_rate, schedule=schedule, warmup_steps=warmup_steps)}

    def data(self) -> Dataset:
        """The encoded samples."""
        return self.samples

    def to(self, device: torch.device) -> None:
        """Moves the null text and the VAE."""
        self.null_text = {name: value.to(device) for name, value in self.null_text.items()}
        if self.vae is not None:
            self.vae.to(device)

    def losses(
        self, modules: dict[str, nn.Module], batch: dict[str, Tensor], generator: torch.Generator, optimizer: str
    ) -> dict[str, Tensor]:
        """``flow``: mean squared error of the velocity."""
        count = len(batch["panorama"])
        t = shift_times(sample_times(count, self.times, generator, batch["panorama"].device), self.shift)
        keep_condition, keep_text = (keep.to(t.device) for keep in self.dropout.draw(count, generator))
        noise = _noise(batch["panorama"], generator)
        return {"flow": self._loss(modules["graft"], batch, noise, t, keep_condition, keep_text)}

    @torch.no_grad()
    def preview(self, modules: dict[str, nn.Module]) -> dict[str, Tensor]:
        """The panorama generated for a fixed input above the true one; of a video the first and the last frame."""
        if self.vae is None:
            return {}
        module = modules["graft"].eval()
        batch = self._batch(module, 0)
        text = self._text(batch, torch.ones(1, dtype=torch.bool, device=batch["panorama"].device))

        def velocity(y: Tensor, t: Tensor) -> Tensor:
            return module(y, batch["condition"], t, text)

        generator = torch.Generator(batch["panorama"].device).manual_seed(0)
        made = sample(velocity, _noise(batch["panorama"], generator), time_grid(self.preview_steps, self.shift))
        return {"generated-true": torch.cat([self._picture(made), self._picture(batch["panorama"].float())], dim=1)}

    @torch.no_grad()
    def validate(self, modules: dict[str, nn.Module]) -> dict[str, float]:
        """``flow``: the loss on held-out samples with all conditions, averaged over five fixed times."""
        if self.held_out is None:
            return {}
        module, losses = modules["graft"].eval(), []
        for index in range(len(self.held_out)):  # pyright: ignore[reportArgumentType]
            batch = self._batch(module, index)
            device = batch["panorama"].device
            keep = torch.ones(1, dtype=torch.bool, device=device)
            for time in VALIDATION_TIMES:
                noise = _noise(batch["panorama"], torch.Generator(device).manual_seed(index))
                losses.append(self._loss(module, batch, noise, torch.full((1,), time, device=device), keep, keep))
        return {"flow": float(torch.stack(losses).mean())}

    def _loss(
        self, module: nn.Module, batch: dict[str, Tensor], noise: Tensor, t: Tensor, keep_condition: Tensor, keep_text: Tensor
    ) -> Tensor:
        panorama = batch["panorama"].float()
        predicted = module(interpolate(panorama, noise, t), batch["condition"].float(), t, self._text(batch, keep_text), keep_condition)
        return flow_matching_loss(predicted, panorama, noise)

    def _text(self, batch: dict[str, Tensor], keep: Tensor) -> Embeddings:
        """Each sample's embeddings, or those of the empty caption."""
        kept = {}
        for name, null in self.null_text.items():
            chosen = keep.view(-1, *[1] * null.dim())
            kept[name] = torch.where(chosen, batch[name].float(), null.to(chosen.device, torch.float32))
        return kept

    def _batch(self, module: nn.Module, index: int) -> dict[str, Tensor]:
        """One held-out sample (or training sample, where there are none) as a batch beside the module."""
        chosen = self.samples if self.held_out is None else self.held_out
        device = next(module.parameters()).device
        return {name: values.to(device) for name, values in default_collate([chosen[index]]).items()}

    def _picture(self, latents: Tensor) -> Tensor:
        pixels = decode_latents(self.vae, latents, padding=self.config.padding).float() / 2 + 0.5
        if pixels.dim() == 5:
            pixels = torch.cat([pixels[:, :, 0], pixels[:, :, -1]], dim=2)
        return pixels[0].clamp(0, 1)


def training_shift(config: GraftConfig, scheduler: Any, tokens: int) -> float:
    """The shift of training times that the base is sampled with.

    Args:
        config: its ``flow_shift`` wins.
        scheduler: of the base pipeline: dynamic by the number of tokens (FLUX) or constant.
        tokens: of the panorama; those of the condition do not count.

    Source: arXiv 2601.16192, training.
    """
    if config.flow_shift is not None:
        return config.flow_shift
    values = scheduler.config
    if not values.get("use_dynamic_shifting"):
        return float(values.get("flow_shift") or values.get("shift") or 1.0)
    return resolution_shift(tokens, values.base_image_seq_len, values.max_image_seq_len, values.base_shift, values.max_shift)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)
