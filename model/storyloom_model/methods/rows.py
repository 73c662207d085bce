"""The plans of stories for a step, as inputs of a UNet call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from storyloom_model.methods.method import StepPlan
from storyloom_model.methods.sharing import ALL, PREFIX

if TYPE_CHECKING:
    from storyloom_model.state import StoryState


def sharing_inputs(states: Sequence[StoryState], plans: Sequence[StepPlan | None]) -> dict[str, Tensor]:
    """What ``Sharing`` is made of, for the rows of stories of which some have a plan; nothing where none has.

    Rows of other stories show their foreground in all layers, as they do without.
    """
    if not any(plans):
        return {}
    device, layers = states[0].text.device, len(states[0].layers)
    shown: list[list[int]] = []
    keys: list[int] = []
    switches: list[tuple[bool, bool, bool]] = []
    weights: list[list[float]] = []
    for state, plan in zip(states, plans, strict=True):
        for row in range(state.rows):
            place = row % state.job.group
            if plan is None:
                shown.append([ALL] * layers)
                keys.append(0)
                switches.append((True, False, True))
                weights.append([0.0] * layers)
            else:
                shown.append([int(plan.shows[place] * ALL) if on else 0 for on in plan.layers])
                keys.append(plan.keys[place])
                switches.append((plan.masked, plan.earlier_masks, plan.sees[place]))
                weights.append([plan.plain_queries if on else 0.0 for on in plan.layers])
    masked, earlier, sees = (torch.tensor(one, device=device)[:, None] for one in zip(*switches, strict=True))
    inputs = {"shown": torch.tensor(shown, device=device), "key": torch.tensor(keys, device=device), "masked": masked}
    if any(plan is not None and plan.earlier_masks for plan in plans):
        inputs["earlier_masks"] = earlier
    if not all(one for _, _, one in switches):
        inputs["sees"] = sees
    if any(plan is not None and plan.plain_queries for plan in plans):
        inputs["query_weight"] = torch.tensor(weights, device=device)
    if any(plan is not None and plan.injection is not None for plan in plans):
        inputs |= _injection(states, plans)
    return {PREFIX + name: value for name, value in inputs.items()}


def _injection(states: Sequence[StoryState], plans: Sequence[StepPlan | None]) -> dict[str, Tensor]:
    """What rows take from each other's outputs: those of the prompt's branch, of stories that inject."""
    like = next(plan.injection.sources for plan in plans if plan is not None and plan.injection is not None)
    positions, layers = like.shape[1], len(states[0].layers)
    rows = sum(state.rows for state in states)
    source = torch.arange(rows * positions, device=like.device).view(rows, positions)
    weight = torch.zeros(rows, layers, device=like.device)
    turn = torch.zeros(rows, dtype=torch.long, device=like.device)
    end = 0
    for state, plan in zip(states, plans, strict=True):
        end += state.rows
        if plan is not None and plan.injection is not None:
            first = end - state.job.group
            source[first:end] = plan.injection.sources + first * positions
            on = torch.tensor(plan.injection.layers, device=like.device)
            weight[first:end] = torch.where(on, plan.injection.weight, 0.0)
            turn[first:end] = torch.tensor(plan.injection.turns, device=like.device)
    return {"inject_weight": weight, "inject_source": source, "inject_turn": turn}


def with_plain_rows(
    inputs: Mapping[str, Tensor], states: Sequence[StoryState], others: Collection[str]
) -> dict[str, Tensor]:
    """Adds, at the end, the rows once more of stories that take queries of a plain pass, each a group of its own.

    Args:
        inputs: of the call, with all rows of all stories.
        states: the stories.
        others: inputs that have no entry for each row.
    """
    if PREFIX + "query_weight" not in inputs:
        return dict(inputs)
    again = _rows_of_plain_passes(states)
    rows, device = len(inputs["latents"]), inputs["latents"].device
    index, added = torch.tensor(again, device=device), torch.arange(rows, rows + len(again), device=device)
    grown = {name: value if name in others else torch.cat([value, value[index]]) for name, value in inputs.items()}
    grown["attention.sources"] = inputs.get("attention.sources", torch.arange(rows, device=device))
    grown["attention.bounds"][rows:] = torch.stack([added, added + 1], dim=1)
    grown[PREFIX + "shown"][rows:] = 0
    grown[PREFIX + "query_weight"][rows:] = 0
    if PREFIX + "inject_weight" in grown:
        grown[PREFIX + "inject_weight"][rows:] = 0
    partner = torch.arange(rows + len(again), device=device)
    partner[index] = added
    grown[PREFIX + "query_row"] = partner
    return grown


def _rows_of_plain_passes(states: Sequence[StoryState]) -> list[int]:
    first, found = 0, list[int]()
    for state in states:
        if state.step_rows > state.rows:
            found += range(first, first + state.rows)
        first += state.rows
    return found
