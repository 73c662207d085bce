"""The training loop that every stage shares: progress bar, loss log, checkpoints, resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn


class Ema:
    """Exponential moving average of a module's floating-point parameters and buffers, bias-corrected by warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)


@dataclass
class Stage:
    """One stage of a run, and all that a checkpoint holds.

    `folder` gets `checkpoint.pt`, `losses.jsonl` and `samples/`. `generator` is the only source of randomness, so
    that a resumed run draws what an unbroken one would have drawn.
    """

    name: str
    folder: Path
    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    warmup: int
    learning_rate: float
    generator: torch.Generator
    ema: Ema | None = None
    step: int = 0
    seconds: float = 0.0
    log_every: int = 20
    save_every: int = 200
    parameters: list[nn.Parameter] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def rate(self) -> float:
        """Linear warm-up, then cosine decay to 5 % at the last step."""
        if self.step < self.warmup:
            return self.learning_rate * (self.step + 1) / self.warmup
        done = (self.step - self.warmup) / max(1, self.steps - self.warmup)
        cosine = 0.5 * (1 + float(torch.cos(torch.tensor(min(done, 1.0) * torch.pi))))
        return self.learning_rate * (0.05 + 0.95 * cosine)

    def save(self) -> None:
        state: dict[str, Any] = {
            "step": self.step, "seconds": self.seconds, "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(),
            "ema": self.ema.shadow if self.ema else None,
        }  # fmt: skip
        temporary = self.checkpoint.with_suffix(".partial")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def resume(self) -> bool:
        """Loads the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]
        if self.ema and state["ema"]:
            for name, value in state["ema"].items():
                self.ema.shadow[name].copy_(value)
        return True


Losses = dict[str, torch.Tensor]


def run(stage: Stage, compute: Callable[[Stage], Losses], sample: Callable[[Stage], None] | None = None) -> None:
    """Trains a stage to its last step. `compute` returns named losses; the one called "loss" is minimised."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    stage.resume()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, (stage.folder / "losses.jsonl").open("a") as log:
        task = progress.add_task(stage.name, total=stage.steps, completed=stage.step)
        sums: dict[str, float] = {}
        since_log = 0
        while stage.step < stage.steps:
            started = time.monotonic()
            rate = stage.rate()
            for group in stage.optimizer.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)
            losses = compute(stage)
            if not torch.isfinite(losses["loss"]):
                raise FloatingPointError(f"{stage.name}: the loss is {losses['loss'].item()} at step {stage.step}")
            stage.optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(stage.parameters or list(stage.model.parameters()), 1.0)
            stage.optimizer.step()
            stage.step += 1
            if stage.ema:
                stage.ema.update(stage.model, stage.step)
            stage.seconds += time.monotonic() - started
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.item()
            since_log += 1
            if stage.step % stage.log_every == 0 or stage.step == stage.steps:
                means = {name: value / since_log for name, value in sums.items()}
                record = {"step": stage.step, "seconds": round(stage.seconds, 1), "rate": rate, **means}
                log.write(json.dumps(record) + "\n")
                log.flush()
                text = " ".join(f"{name} {value:.4f}" for name, value in means.items())
                progress.update(task, description=f"{stage.name} {text}")
                sums, since_log = {}, 0
            if stage.step % stage.save_every == 0 or stage.step == stage.steps:
                stage.save()
                if sample:
                    sample(stage)
            progress.update(task, completed=stage.step)
