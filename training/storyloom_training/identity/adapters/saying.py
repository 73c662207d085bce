"""A start for adapters: their tokens first say what the text says of people, before pictures teach them more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from storyloom_training.device import mixed_precision
from storyloom_training.identity.adapters.sayings import Sayings
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.loop import Losses, Stage, run


def learn_to_say(
    bench: Bench, folder: Path, maker: nn.Module, sayings: Sayings, speak: Callable[[Tensor], Tensor]
) -> None:
    """Trains the maker alone; a loss of 1 is that of saying the same of everyone.

    `speak` makes the tokens [n, tokens, width] of entries int64 [n].
    """
    plan = bench.plan
    spread = sayings.states.var(0).mean()
    stage = Stage(
        name="say",
        folder=folder,
        model=maker,
        optimizer=torch.optim.AdamW(maker.parameters(), lr=plan.say_learning_rate, weight_decay=0.01, fused=True),
        steps=plan.say_steps,
        warmup=plan.warmup,
        learning_rate=plan.say_learning_rate,
        generator=torch.Generator().manual_seed(bench.recipe.seed + 5),
    )

    def compute(stage: Stage) -> Losses:
        entries = torch.randint(len(sayings.person), (plan.say_batch,), generator=stage.generator)
        with mixed_precision(sayings.states.device):
            made = speak(entries).float()
        return {"loss": F.mse_loss(made, sayings(entries)) / spread}

    run(stage, compute)
