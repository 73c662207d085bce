"""Puts the rows of several stories into one UNet call, and takes them apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention
from storyloom_model.maps import ForegroundRule
from storyloom_model.state import StoryState


def predict(unet: Any, states: Sequence[StoryState], rule: ForegroundRule) -> list[Tensor]:
    """One UNet call over all rows of all stories.

    Each story's rows are contiguous: the negative prompt's group, if the story is guided, then the prompts' group; each
    is the frames, then the anchors. Leaves the new ``previous_maps`` in the states.

    Args:
        unet: with ``install_story_attention``.
        states: stories of one compatibility key; steps, solvers, frame counts and guidance may differ.
        rule: how maps become masks.

    Returns:
        For each story the prediction [F, C, h, w] float32, guidance applied.
    """
    inputs = [_branches(state, _model_input(state)) for state in states]
    device, dtype = states[0].text.device, states[0].text.dtype
    times = [state.solver.timestep for state in states for _ in range(state.rows)]
    story = _story_attention(states, rule)
    outputs: Tensor = unet(
        torch.cat(inputs).to(dtype),
        torch.tensor(times, device=device),
        encoder_hidden_states=torch.cat([state.text for state in states]),
        cross_attention_kwargs=None if story is None else {"story": story},
        return_dict=False,
    )[0]
    if story is not None:
        _keep_maps(states, story.average_maps())
    by_story = torch.split(outputs.float(), [state.rows for state in states])
    return [_guide(state, rows) for state, rows in zip(states, by_story, strict=True)]


def _model_input(state: StoryState) -> Tensor:
    """[G, C, h, w]: the frames as far as they are, and the anchors at the same level of noise."""
    frames = state.solver.model_input(state.latents)
    if not state.job.anchors:
        return frames
    return torch.cat([frames, state.solver.noised(state.anchors, state.anchor_noise)])


def _branches(state: StoryState, group: Tensor) -> Tensor:
    """One row per frame and anchor -> one row per frame or anchor, and guidance branch."""
    return torch.cat([group, group]) if state.job.guided else group


def _guide(state: StoryState, rows: Tensor) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): all rows of a story -> one row per frame.

    What the UNet says about anchors is left out: they are finished.
    """
    frames = len(state.job.frames)
    if not state.job.guided:
        return rows[:frames]
    negative, positive = (branch[:frames] for branch in rows.chunk(2))
    return negative + state.job.guidance_scale * (positive - negative)


def _story_attention(states: Sequence[StoryState], rule: ForegroundRule) -> StoryAttention | None:
    """The attention context of the batch, or None when no story needs one."""
    if not any(state.crosses_frames for state in states):
        return None
    groups: list[int] = []
    switches: list[bool] = []
    mask_rows: list[int] = []
    for state in states:
        rows, branches = state.job.group, 2 if state.job.guided else 1
        first_prompt_row = len(mask_rows) + (branches - 1) * rows
        groups += [rows] * branches
        switches += [state.crosses_frames] * branches
        # Both branches take the masks of the prompt's branch.
        mask_rows += list(range(first_prompt_row, first_prompt_row + rows)) * branches
    latent_height, latent_width = states[0].latents.shape[-2:]
    return StoryAttention(
        GroupLayout(tuple(groups)),
        (latent_height, latent_width),
        _token_mask(states),
        previous_maps=_previous_maps(states),
        cross_frame=switches,
        mask_rows=mask_rows,
        rule=rule,
    )


def _token_mask(states: Sequence[StoryState]) -> Tensor:
    """bool [rows, K, T], K being the largest cast; characters that a story lacks have no tokens."""
    cast = max(state.token_mask.shape[1] for state in states)
    return torch.cat([_branches(state, _pad_cast(state.token_mask, cast)) for state in states])


def _previous_maps(states: Sequence[StoryState]) -> Tensor | None:
    """[prompt rows, K, h, w], or None when no story has any; 0 for stories that have none."""
    cast = max(state.token_mask.shape[1] for state in states)
    if all(state.previous_maps is None for state in states):
        return None
    return torch.cat([_pad_cast(_maps_or_zero(state), cast) for state in states])


def _maps_or_zero(state: StoryState) -> Tensor:
    if state.previous_maps is not None:
        return state.previous_maps
    rows, cast = state.token_mask.shape[:2]
    return state.latents.new_zeros(rows, cast, *state.latents.shape[-2:])


def _pad_cast(values: Tensor, cast: int) -> Tensor:
    """[G, k, ...] -> [G, cast, ...], filled with 0 or False."""
    missing = values.new_zeros(values.shape[0], cast - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _keep_maps(states: Sequence[StoryState], maps: Tensor) -> None:
    """Gives each story its own characters' maps, [G, K, h, w] each."""
    by_story = torch.split(maps, [state.job.group for state in states])
    for state, own in zip(states, by_story, strict=True):
        if state.crosses_frames:
            state.previous_maps = own[:, : state.token_mask.shape[1]].clone()
