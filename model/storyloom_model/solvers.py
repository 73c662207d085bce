"""Solvers: one object per story, built on diffusers' schedulers from the package's noise schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

SOLVERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "unipc": UniPCMultistepScheduler,
}


@dataclass(frozen=True, slots=True)
class SolverHistory:
    """What a solver carries from step to step. Only UniPC has more than the number of steps done."""

    index: int
    lower_order_steps: int = 0
    last_order: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Solver:
    """Takes a story from noise to its latents. All three solvers are deterministic; DDIM runs with eta 0.

    Args:
        name: a key of ``SOLVERS``.
        schedule: the package's scheduler, which is only read.
        steps: denoising steps.

    Raises:
        ValueError: the name is unknown, or the schedule cannot be solved.
    """

    def __init__(self, name: str, schedule: Any, steps: int) -> None:
        if name not in SOLVERS:
            raise ValueError(f"unknown solver {name}; use one of {', '.join(SOLVERS)}")
        check_schedule(schedule)
        self._scheduler = SOLVERS[name].from_config(schedule.config)
        self._scheduler.set_timesteps(steps)
        _drop_surplus_step(self._scheduler, steps)
        self._timesteps: list[float] = self._scheduler.timesteps.tolist()
        self.index = 0

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self._timesteps)

    @property
    def timestep(self) -> float:
        """Time of the next step, as the UNet takes it."""
        return self._timesteps[self.index]

    def nearest_step(self, time: float) -> int:
        """The step whose timestep is nearest to a share of the schedule's, the earlier one of two."""
        wanted = time * self._scheduler.config.num_train_timesteps
        return min(range(self.steps), key=lambda step: abs(self._timesteps[step] - wanted))

    def start(self, noise: Tensor) -> Tensor:
        """Standard normal noise -> the first latents, scaled as this solver wants them."""
        return torch.mul(noise, float(self._scheduler.init_noise_sigma))

    def model_input(self, latents: Tensor) -> Tensor:
        """The latents with unit variance, as the UNet takes them."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._now())
        return scaled

    def noised(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Final latents at the level of the next step, as the UNet takes them: with unit variance."""
        alpha, sigma = self._level()
        return alpha * clean + sigma * noise

    def advance(self, latents: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a step.

        Args:
            latents: [F, C, h, w], float32.
            prediction: what the UNet said for ``model_input(latents)``, same shape, guidance applied.

        Returns:
            The next latents, and the final latents as this step predicts them; both [F, C, h, w].
        """
        clean = self._clean(self.model_input(latents), prediction)
        stepped: Tensor = self._scheduler.step(prediction, self._now(), latents, return_dict=False)[0]
        self.index += 1
        return stepped, clean

    def history(self) -> SolverHistory:
        """All that the steps so far have left behind for those to come."""
        if not isinstance(self._scheduler, UniPCMultistepScheduler) or self.index == 0:
            return SolverHistory(self.index)
        outputs = self._scheduler.model_outputs
        tensors = {f"model_output.{place}": output for place, output in enumerate(outputs) if output is not None}
        tensors["last_sample"] = self._scheduler.last_sample
        return SolverHistory(self.index, self._scheduler.lower_order_nums, self._scheduler.this_order, tensors)

    def resume(self, history: SolverHistory) -> None:
        """Puts a new solver where another of the same name, schedule and steps was, to the bit.

        Raises:
            ValueError: the history is not of such a solver.
        """
        if not 0 <= history.index <= self.steps:
            raise ValueError(f"step {history.index} of {self.steps} does not exist")
        self.index = history.index
        if history.index == 0 or isinstance(self._scheduler, DDIMScheduler):
            return
        self._scheduler._step_index = history.index
        self._scheduler.is_scale_input_called = True
        if isinstance(self._scheduler, UniPCMultistepScheduler):
            self._resume_multistep(history)

    def _resume_multistep(self, history: SolverHistory) -> None:
        scheduler, order = self._scheduler, self._scheduler.config.solver_order
        kept = min(history.index, order)
        names = [f"model_output.{place}" for place in range(order - kept, order)]
        if not {*names, "last_sample"} <= history.tensors.keys():
            raise ValueError("what the solver keeps of earlier steps is not there")
        scheduler.model_outputs = [None] * (order - kept) + [history.tensors[name] for name in names]
        past = list(scheduler.timesteps[history.index - kept : history.index])
        scheduler.timestep_list = [None] * (order - kept) + past
        scheduler.last_sample = history.tensors["last_sample"]
        scheduler.lower_order_nums = history.lower_order_steps
        scheduler.this_order = history.last_order

    def _now(self) -> Any:
        return self._scheduler.timesteps[self.index]

    def _level(self) -> tuple[float, float]:
        """Factors of the clean latents and of the noise in the next model input."""
        if isinstance(self._scheduler, DDIMScheduler):
            alpha_squared = float(self._scheduler.alphas_cumprod[round(self.timestep)])
        else:  # Their own table, which rounds zero terminal SNR and fractional times in its own way.
            alpha_squared = 1 / (1 + float(self._scheduler.sigmas[self.index]) ** 2)
        return math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared)

    def _clean(self, noisy: Tensor, prediction: Tensor) -> Tensor:
        kind = self._scheduler.config.prediction_type
        alpha_squared = float(self._scheduler.alphas_cumprod[round(self.timestep)])
        alpha, sigma = math.sqrt(alpha_squared), math.sqrt(1 - alpha_squared)
        clean = alpha * noisy - sigma * prediction if kind == "v_prediction" else (noisy - sigma * prediction) / alpha
        return clean


def _drop_surplus_step(scheduler: Any, steps: int) -> None:
    """Takes back the step that diffusers' trailing spacing adds for some counts (61 for one) by rounding in ``arange``.

    That step's time is -1, which is no time: DDIM would read it as the noisiest one.
    """
    if len(scheduler.timesteps) == steps:
        return
    scheduler.timesteps = scheduler.timesteps[:steps]
    scheduler.num_inference_steps = steps
    if isinstance(scheduler, DDIMScheduler):
        return
    scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])


def check_schedule(schedule: Any) -> None:
    """Refuses a noise schedule that no solver here can run.

    Raises:
        ValueError: the prediction type is neither v_prediction nor epsilon; or it is epsilon at zero terminal
            signal-to-noise ratio, where the first step would divide by zero.
    """
    config = schedule.config
    if config.prediction_type not in ("v_prediction", "epsilon"):
        raise ValueError(f"prediction type {config.prediction_type} is not supported; use v_prediction or epsilon")
    if config.prediction_type == "epsilon" and config.rescale_betas_zero_snr:
        raise ValueError("epsilon prediction has no solution at zero terminal SNR; train with v_prediction")
