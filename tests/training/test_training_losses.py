"""The mask loss: what it is at its ends, and that it moves maps towards masks."""

from __future__ import annotations

import pytest
import torch

from storyloom_training.losses import dice_loss, mask_perceptual_loss


def test_dice_is_zero_for_a_match_and_near_one_for_none() -> None:
    mask = torch.zeros(2, 64)
    mask[:, :32] = 1
    assert dice_loss(mask, mask).max() < 1e-6
    assert dice_loss(1 - mask, mask).min() > 0.95


def test_dice_equals_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(3, 50, generator=generator), (torch.rand(3, 50, generator=generator) > 0.5).float()
    for row in range(3):
        top = 2 * sum(float(p * g) for p, g in zip(maps[row], masks[row], strict=True)) + 1
        bottom = sum(float(p * p + g * g) for p, g in zip(maps[row], masks[row], strict=True)) + 1
        assert dice_loss(maps, masks)[row].item() == pytest.approx(1 - top / bottom, abs=1e-5)


def test_no_character_in_sight_costs_nothing() -> None:
    maps = torch.rand(2, 1, 16, requires_grad=True)
    assert mask_perceptual_loss([(maps, (4, 4))], torch.zeros(2, 1, 8, 8)).item() == 0


def test_training_on_the_loss_moves_every_layer_towards_the_mask() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:6, 1:5] = 1
    layers = [torch.rand(2, 1, 64, requires_grad=True), torch.rand(2, 1, 16, requires_grad=True)]
    optimizer = torch.optim.Adam(layers, lr=0.05)
    first = mask_perceptual_loss([(layers[0], (8, 8)), (layers[1], (4, 4))], masks).item()
    for _ in range(60):
        loss = mask_perceptual_loss([(layers[0], (8, 8)), (layers[1], (4, 4))], masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    inside = masks[:, 0].flatten(1) > 0
    assert layers[0].detach()[:, 0][inside].mean() > layers[0].detach()[:, 0][~inside].mean() + 0.3
