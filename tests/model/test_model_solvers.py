"""The three solvers on a problem whose answer is known, at zero terminal signal-to-noise ratio."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from storyloom_model.solvers import SOLVERS, Solver, check_schedule
from tests.model.tiny import tiny_scheduler

MEAN, SPREAD = 0.7, 0.5


def ideal_velocity(noisy: Tensor, timestep: float) -> Tensor:
    """What a perfect network says when the data are normal with MEAN and SPREAD."""
    alpha_squared = float(tiny_scheduler().alphas_cumprod[round(timestep)])
    alpha, sigma = alpha_squared**0.5, (1 - alpha_squared) ** 0.5
    variance = alpha_squared * SPREAD**2 + sigma**2
    off = noisy.double() - alpha * MEAN
    clean, noise = MEAN + alpha * SPREAD**2 / variance * off, sigma / variance * off
    velocity: Tensor = (alpha * noise - sigma * clean).float()
    return velocity


def solve(name: str, steps: int, noise: Tensor) -> Tensor:
    solver = Solver(name, tiny_scheduler(), steps)
    latents = solver.start(noise)
    for _ in range(solver.steps):
        latents, _ = solver.advance(latents, ideal_velocity(solver.model_input(latents), solver.timestep))
    return latents


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_reach_the_known_answer(name: str) -> None:
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = MEAN + SPREAD * noise  # The probability-flow map from pure noise to normal data.
    errors = [float((solve(name, steps, noise) - exact).abs().mean()) for steps in (10, 25, 100)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_unipc_needs_fewer_steps_than_ddim() -> None:
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = MEAN + SPREAD * noise
    ddim, unipc = (float((solve(name, 20, noise) - exact).abs().mean()) for name in ("ddim", "unipc"))
    assert unipc < 0.8 * ddim


@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_count_is_kept_and_every_time_is_valid(name: str) -> None:
    for steps in range(1, 101):
        solver = Solver(name, tiny_scheduler(), steps)
        assert solver.steps == steps
        assert solver.timestep == 999
        assert solver._timesteps == sorted(solver._timesteps, reverse=True)
        assert solver._timesteps[-1] >= 0


@pytest.mark.parametrize("name", SOLVERS)
def test_a_count_that_diffusers_rounds_up_is_solved_as_well(name: str) -> None:
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float((solve(name, 61, noise) - MEAN - SPREAD * noise).abs().mean()) < 0.03


@pytest.mark.parametrize("name", SOLVERS)
def test_the_network_sees_unit_variance_and_the_end_is_foreseen(name: str) -> None:
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    solver = Solver(name, tiny_scheduler(), 10)
    latents = solver.start(noise)
    torch.testing.assert_close(solver.model_input(latents), noise, atol=1e-3, rtol=1e-3)
    for _ in range(10):
        latents, predicted = solver.advance(latents, ideal_velocity(solver.model_input(latents), solver.timestep))
    torch.testing.assert_close(predicted, latents, atol=0.06, rtol=0)


@pytest.mark.parametrize(("prediction", "word"), [("epsilon", "zero terminal SNR"), ("sample", "not supported")])
def test_schedules_without_a_solution_are_refused(prediction: str, word: str) -> None:
    schedule = type(tiny_scheduler()).from_config(tiny_scheduler().config, prediction_type=prediction)
    with pytest.raises(ValueError, match=word):
        check_schedule(schedule)


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of ddim, euler, unipc"):
        Solver("heun", tiny_scheduler(), 4)


@pytest.mark.parametrize("name", SOLVERS)
def test_epsilon_models_are_solved_too(name: str) -> None:
    """As Stable Diffusion 1.5 has it: epsilon, leading spacing, terminal noise that is not quite all."""
    schedule = type(tiny_scheduler()).from_config(
        tiny_scheduler().config,
        prediction_type="epsilon", rescale_betas_zero_snr=False, timestep_spacing="leading", steps_offset=1,
        set_alpha_to_one=False,
    )  # fmt: skip
    solver = Solver(name, schedule, 50)
    latents = solver.start(torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    for _ in range(50):
        alpha_squared = float(schedule.alphas_cumprod[round(solver.timestep)])
        alpha, sigma = alpha_squared**0.5, (1 - alpha_squared) ** 0.5
        noisy = solver.model_input(latents)
        latents, _ = solver.advance(latents, sigma / (alpha_squared * SPREAD**2 + sigma**2) * (noisy - alpha * MEAN))
    assert float(latents.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(latents.std()) == pytest.approx(SPREAD, abs=0.05)
