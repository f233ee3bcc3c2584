"""TripoSG's scheduler for stage 0. Stage I has its own schedule, with the shift applied twice; do not swap them."""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from jaxtyping import Float
from torch import Tensor


@dataclass
class RectifiedFlowOutput(BaseOutput):
    """What a step gives: ``prev_sample``, the sample at the next time."""

    prev_sample: Tensor


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):
    """Euler steps along straight paths, for velocities that point to the data (``x0 - noise``).

    Sigma falls from 1 (noise) to exactly 0; model time is ``num_train_timesteps * sigma``. Diffusers' ``FlowMatchEulerDiscreteScheduler``
    has the opposite sign and another grid.

    Args:
        num_train_timesteps: model time of pure noise.
        shift: above 1 spends more steps on noise.
        use_dynamic_shifting: a key of the released configuration; only False.

    Raises:
        ValueError: a shift that is not positive, or dynamic shifting.

    Source: ActionMesh brief, 2.3.
    """

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float | int = 1.0, use_dynamic_shifting: bool = False) -> None:
        if use_dynamic_shifting:
            raise ValueError("This scheduler has a fixed shift, as TripoSG's released configuration; set use_dynamic_shifting to false.")
        if not shift > 0:
            raise ValueError(f"shift must be positive; got {shift}.")
        self.init_noise_sigma = 1.0
        self.step_index: int | None = None
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Makes ``timesteps`` (one a step) and ``sigmas`` (one more, ending in 0), and starts from the first.

        Raises:
            ValueError: no steps.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {num_inference_steps}.")
        unshifted = 1 - torch.arange(num_inference_steps + 1, dtype=torch.float64) / num_inference_steps
        shift = self.config.shift
        sigmas = shift * unshifted / (1 + (shift - 1) * unshifted)
        self.num_inference_steps = num_inference_steps
        self.sigmas = sigmas.to(device=device, dtype=torch.float32)
        self.timesteps = (self.config.num_train_timesteps * sigmas[:-1]).to(device=device, dtype=torch.float32)
        self.step_index = None

    def step(
        self, model_output: Float[Tensor, "*shape"], timestep: float | Tensor, sample: Float[Tensor, "*shape"], return_dict: bool = True
    ) -> RectifiedFlowOutput | tuple[Tensor]:
        """The sample at the next time: ``sample + (sigma - next sigma) * velocity``, computed in float32.

        Args:
            model_output: velocity towards the data.
            timestep: one of ``timesteps``; only the first step since :meth:`set_timesteps` looks it up, the others follow it.
            sample: at this time.
            return_dict: False gives a tuple.

        Raises:
            ValueError: a time that is none of the schedule, or a step after the last.
        """
        if self.step_index is None:
            self.step_index = self._index(float(timestep))
        if self.step_index >= self.num_inference_steps:
            raise ValueError(f"All {self.num_inference_steps} steps are done; call set_timesteps to start again.")
        sigmas = self.sigmas
        wide = torch.promote_types(sample.dtype, torch.float32)
        step = sigmas[self.step_index] - sigmas[self.step_index + 1]
        after = (sample.to(wide) + step.to(sample.device) * model_output.to(wide)).to(model_output.dtype)
        self.step_index += 1
        return RectifiedFlowOutput(prev_sample=after) if return_dict else (after,)

    def scale_noise(
        self, sample: Float[Tensor, "batch *shape"], timestep: Float[Tensor, "batch"], noise: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """Clean samples at model times in [0, num_train_timesteps]: ``(1 - sigma) sample + sigma noise``; the forward process."""
        sigma = (timestep / self.config.num_train_timesteps).to(sample).reshape(-1, *[1] * (sample.ndim - 1))
        return (1 - sigma) * sample + sigma * noise

    def _index(self, timestep: float) -> int:
        distance = (self.timesteps - timestep).abs()
        nearest = int(distance.argmin())
        if float(distance[nearest]) > 1e-3 * self.config.num_train_timesteps / self.num_inference_steps:
            raise ValueError(f"{timestep} is not a time of this schedule; take the times from its timesteps, in order.")
        return nearest

    def __len__(self) -> int:
        return self.config.num_train_timesteps
