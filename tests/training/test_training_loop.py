"""The loop: a resumed run is the run it would have been; a diverging one stops with a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from storyloom_training.loop import Ema, Losses, Stage, run


def _stage(folder: Path, steps: int) -> Stage:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    return Stage(
        name="toy", folder=folder, model=model, optimizer=torch.optim.AdamW(model.parameters()), steps=steps, warmup=2,
        learning_rate=1e-2, generator=torch.Generator().manual_seed(1), ema=Ema(model, 0.9), log_every=2, save_every=3,
    )  # fmt: skip


def _loss(stage: Stage) -> Losses:
    x = torch.randn(8, 4, generator=stage.generator)
    return {"loss": (stage.model(x) - x).square().mean()}


def _stopping_at(step: int) -> object:
    def loss(stage: Stage) -> Losses:
        if stage.step == step:
            raise KeyboardInterrupt
        return _loss(stage)

    return loss


def test_a_resumed_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    whole = _stage(tmp_path / "whole", 8)
    run(whole, _loss)
    broken = _stage(tmp_path / "broken", 8)
    with pytest.raises(KeyboardInterrupt):
        run(broken, _stopping_at(5))  # type: ignore[arg-type]
    resumed = _stage(tmp_path / "broken", 8)
    run(resumed, _loss)
    assert resumed.step == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name])
    assert whole.ema is not None
    assert resumed.ema is not None
    for name, value in whole.ema.shadow.items():
        assert torch.equal(value, resumed.ema.shadow[name])


def test_losses_are_logged_up_to_the_last_step(tmp_path: Path) -> None:
    run(_stage(tmp_path, 7), _loss)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert all(line["loss"] > 0 for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    def diverging(stage: Stage) -> Losses:
        return {"loss": _loss(stage)["loss"] * (float("nan") if stage.step == 4 else 1)}

    with pytest.raises(FloatingPointError, match="at step 4"):
        run(_stage(tmp_path, 8), diverging)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
