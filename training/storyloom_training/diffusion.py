"""The diffusion process of training: noise schedule, targets, and a plain sampler for sample grids."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from storyloom_training.device import mixed_precision


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule with v-prediction and zero terminal SNR (Lin et al., arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def add_noise(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (noisy latents, v target); v = sqrt(a) noise - sqrt(1 - a) clean (Salimans and Ho, 2022)."""
    return scheduler.add_noise(clean, noise, timesteps), scheduler.get_velocity(clean, noise, timesteps)


@torch.inference_mode()
def sample_latents(
    unet: UNet2DConditionModel,
    states: Tensor,
    empty: Tensor,
    shape: tuple[int, ...],
    *,
    guidance: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """DDIM with classifier-free guidance; `states` [n, t, d], `empty` [1, t, d]; returns latents of `shape`."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    latents = torch.randn(shape, generator=generator).to(states.device)
    context = torch.cat((empty.expand_as(states), states))
    for t in scheduler.timesteps:
        with mixed_precision(states.device):
            rows = unet(
                torch.cat((latents, latents)), t.expand(2 * len(latents)).to(states.device), context
            ).sample.float()
        plain, conditioned = rows.chunk(2)
        latents = scheduler.step(plain + guidance * (conditioned - plain), t, latents).prev_sample
    return latents
