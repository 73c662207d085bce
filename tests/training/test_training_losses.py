"""The losses: what each is at its ends, and that the mask loss moves maps towards masks."""

from __future__ import annotations

import pytest
import torch

from storyloom_training.losses import dice_loss, mask_perceptual_loss, people_weights, weighted_mse


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


def test_a_weighted_error_counts_where_the_weight_is() -> None:
    made, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    made[..., 0, 0] = 1
    weight = torch.ones(1, 4, 4)
    even = weighted_mse(made, target, weight).item()
    assert even == pytest.approx(1 / 16)
    assert weighted_mse(made, target, 5 * weight).item() == pytest.approx(even)
    weight[0, 0, 0] = 17
    assert weighted_mse(made, target, weight).item() == pytest.approx(17 / 32)


def test_people_and_their_heads_weigh_more() -> None:
    masks, heads = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    masks[0, 0, 2:, :4] = 1
    masks[0, 1, 2:, 2:6] = 1
    heads[0, 0, 2:4, :2] = 1
    weight = people_weights(masks, heads, (4, 4), people=2.0, head=6.0)
    assert weight[0].tolist() == [[1, 1, 1, 1], [9, 3, 3, 1], [3, 3, 3, 1], [3, 3, 3, 1]]
