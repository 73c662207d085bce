"""Puts the rows of several stories into the tensors of one UNet call, and takes what comes out apart again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.attention import AttentionPass
from storyloom_model.controlnets.batch import (
    collate_controls,
    control_residuals,
    controlled_rows,
    is_of_controlled_rows,
)
from storyloom_model.controlnets.nets import ControlNet
from storyloom_model.identity.parts import PARTS
from storyloom_model.identity.streams import IdentityStreams, join_streams
from storyloom_model.jobs import FreeU
from storyloom_model.manifest import Limits
from storyloom_model.maps import ForegroundRule
from storyloom_model.methods.rows import sharing_inputs, with_plain_rows
from storyloom_model.methods.sharing import Sharing
from storyloom_model.state import StoryState
from storyloom_model.unet import UNetInputs, run_unet

Tensors: TypeAlias = Mapping[str, Tensor]
UNetCall: TypeAlias = Callable[[Tensors], Tensors]

_ADDED = ("text_embeds", "time_ids")
"""What diffusers calls the conditions beside the text."""
_PER_SOURCE = ("attention.sources", "attention.previous_maps", "attention.part_of")
"""Inputs that have a row for each source row; all others but those of ControlNets have one for each row."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a call is padded to, so that calls of different stories have the same shapes.

    ``identity_tokens`` and ``streams`` are those of a row; they count only where some story has identities.
    ``controlled_rows`` are those that go through each ControlNet of the call.
    """

    rows: int
    cast: int
    identity_tokens: int = 0
    streams: int = 0
    controlled_rows: int = 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a step found for one story: values [F, C, h, w] float32, guidance applied, the group's new maps, and where
    the story wants them features of an up block, [G, D, h', w'] of the prompt's branch.
    """

    values: Tensor
    maps: Tensor | None
    features: Tensor | None = None


def predict(call: UNetCall, states: Sequence[StoryState], capacity: Capacity | None = None) -> list[Prediction]:
    """One UNet call over all rows of all stories. The states are only read.

    Each story's rows are contiguous: the negative prompt's group, if the story is guided, then the prompts' group; each
    is the frames, then the anchors.

    Args:
        call: ``unet_pass`` of a UNet, in whatever way it is run.
        states: stories of one compatibility key; steps, solvers, frame counts and guidance may differ.
        capacity: what to pad to; None: the call is as large as the stories.
    """
    inputs = collate(states)
    outputs = call(inputs if capacity is None else pad(inputs, capacity))
    rows = sum(state.rows for state in states)
    values = torch.split(outputs["values"][:rows].float(), [state.rows for state in states])
    maps = _maps_by_story(states, outputs.get("maps"))
    features = _features_by_story(states, outputs.get("features"))
    return [
        Prediction(_guide(state, own), *new) for state, own, *new in zip(states, values, maps, features, strict=True)
    ]


def unet_pass(
    unet: Any, rule: ForegroundRule, inputs: Tensors, *, controlnets: Mapping[str, ControlNet] | None = None
) -> Tensors:
    """The UNet on what ``collate`` made: tensors in, tensors out, and nothing read on the host between.

    Args:
        unet: with ``install_story_attention``.
        rule: how maps become masks.
        inputs: of R rows; those whose names begin with "attention.", "identity.", "method." or "control/", and
            "unseen", "freeu" and "features" are there if any story needs them, those with "added." if the UNet takes
            them.
        controlnets: by name.

    Returns:
        "values" [R, C, h, w]; with attention, the "maps" of the source rows [S, K, h, w]; where they are wanted, the
        "features" of an up block [R, D, h', w'].
    """
    latents = inputs["latents"]
    options: dict[str, Any] = {"text": _keys_values(inputs), "unseen": inputs.get("unseen")}
    if "attention.bounds" in inputs:
        options["story"] = AttentionPass(
            inputs["attention.bounds"],
            (latents.shape[-2], latents.shape[-1]),
            inputs["attention.token_mask"],
            inputs["attention.source_of_row"],
            inputs["attention.on"],
            sources=inputs.get("attention.sources"),
            previous_maps=inputs.get("attention.previous_maps"),
            rule=rule,
            identity=_streams(inputs),
            sharing=Sharing.of(inputs),
            part_of=inputs.get("attention.part_of"),
        )
    added = {name: inputs[f"added.{name}"] for name in _ADDED if f"added.{name}" in inputs} or None
    residuals = control_residuals(controlnets or {}, inputs, added)
    given = UNetInputs(latents, inputs["times"], inputs["text"], options, added, residuals)
    values, features = run_unet(unet, given, inputs.get("freeu"), "features" in inputs)
    outputs = {"values": values} | ({"maps": options["story"].average_maps()} if "story" in options else {})
    return outputs if features is None else outputs | {"features": features}


def collate(states: Sequence[StoryState]) -> dict[str, Tensor]:
    """The inputs of ``unet_pass`` for all rows of some stories."""
    device, dtype = states[0].text.device, states[0].text.dtype
    times = [float(state.solver.timestep) for state in states for _ in range(state.rows)]
    inputs = {
        "latents": torch.cat([_branches(state, _model_input(state)) for state in states]).to(dtype),
        "times": torch.tensor(times, device=device),
        "text": _joined([state.text for state in states]),
    }
    for layer, of_stories in enumerate(zip(*(state.text_keys_values for state in states), strict=True)):
        inputs[f"key.{layer}"] = _joined([keys for keys, _ in of_stories])
        inputs[f"value.{layer}"] = _joined([values for _, values in of_stories])
    if states[0].pooled_text is not None:
        inputs |= _added(states)
    if states[0].unseen_text is not None:
        inputs["unseen"] = _joined([state.unseen_text for state in states if state.unseen_text is not None])
    if any(state.uses_maps for state in states):
        inputs |= {f"attention.{name}": value for name, value in _attention(states, device).items()}
    if any(state.identity is not None for state in states):
        inputs |= _identity(states)
    inputs |= sharing_inputs(states, [state.plan for state in states])
    inputs |= _beside_attention(states, device)
    inputs |= collate_controls(states)
    return with_plain_rows(inputs, states, [name for name in inputs if _has_other_rows(name)])


def pad(inputs: Tensors, capacity: Capacity) -> dict[str, Tensor]:
    """Grows what ``collate`` made to a capacity. The rows added are groups of their own and show nothing.

    Shapes then depend only on the capacity, on whether any story has attention across frames, on whether any has
    identities, and on which ControlNets act: there are as many source rows as rows, and maps of a step before even
    where there was none, which are 0. What a ControlNet says of rows that are added to its call is not looked at.
    """
    latents = inputs["latents"]
    rows, controlled = len(latents), capacity.controlled_rows
    grown = {
        name: _grow(value, max(len(value), controlled) if is_of_controlled_rows(name) else capacity.rows)
        for name, value in inputs.items()
        if name not in _PER_SOURCE
    }
    if "attention.bounds" not in inputs:
        return grown
    sources = inputs.get("attention.sources", torch.arange(rows, device=latents.device))
    cast = inputs["attention.token_mask"].shape[1]
    no_maps = torch.zeros(0, cast, *latents.shape[-2:], device=latents.device)
    maps = inputs.get("attention.previous_maps", no_maps)
    own = torch.arange(rows, capacity.rows, device=latents.device)
    grown["attention.bounds"][rows:] = torch.stack([own, own + 1], dim=1)
    grown["attention.token_mask"] = _wider(grown["attention.token_mask"], capacity.cast)
    grown["attention.sources"] = _grow(sources, capacity.rows)
    grown["attention.previous_maps"] = _wider(_grow(maps, capacity.rows), capacity.cast)
    if "attention.part_of" in inputs:
        grown["attention.part_of"] = _grow(_wider(inputs["attention.part_of"] + 1, capacity.cast), capacity.rows) - 1
    streams = _streams(grown)
    return grown if streams is None else grown | _flat(streams.padded(capacity.identity_tokens, capacity.streams))


def capacity_of(
    states: Sequence[StoryState], rows: int, limits: Limits, bucket: Callable[[int], int | None]
) -> Capacity:
    """What the limits allow, so that all calls of as many rows have the same shapes; more where a story has it.

    Args:
        states: stories of one call.
        rows: of the call, padded.
        limits: of the package.
        bucket: what a number of rows is padded to; None: it is not.
    """
    controlled, identity_tokens = controlled_rows(states), limits.max_identity_tokens
    while identity_tokens < max((state.identity.tokens for state in states if state.identity is not None), default=0):
        identity_tokens *= 2  # The pictures of a round may be many; few sizes make few shapes.
    # A character, its parts; and a stream for each.
    each = 1 + len(PARTS) if any(state.part_of is not None for state in states) else 1
    return Capacity(
        rows,
        cast=max(limits.max_characters * each, *(state.token_mask.shape[1] for state in states)),
        identity_tokens=identity_tokens,
        streams=limits.max_characters * each,
        controlled_rows=bucket(controlled) or controlled,
    )


def _beside_attention(states: Sequence[StoryState], device: torch.device) -> dict[str, Tensor]:
    """What ``run_unet`` is to do beside; nothing where no story wants anything."""
    inputs: dict[str, Tensor] = {}
    if any(state.job.freeu is not None for state in states):
        off = FreeU(1.0, 1.0, 1.0, 1.0)
        scales = [astuple(state.job.freeu or off) for state in states for _ in range(state.rows)]
        inputs["freeu"] = torch.tensor(scales, device=device)
    if any(state.wants_features for state in states):
        wanting = [state.wants_features for state in states for _ in range(state.rows)]
        inputs["features"] = torch.tensor(wanting, device=device)
    return inputs


def _has_other_rows(name: str) -> bool:
    """Whether an input has an entry for each of other rows than those of the call."""
    return name in _PER_SOURCE or is_of_controlled_rows(name)


def _added(states: Sequence[StoryState]) -> dict[str, Tensor]:
    """SDXL's conditions beside the text: its pooled embedding, and that a picture is of its size and not a part of one.

    The six numbers are height and width before cropping, the crop's top and left, and height and width after it.
    """
    pooled = [state.pooled_text for state in states if state.pooled_text is not None]
    sizes = [[state.job.height, state.job.width, 0, 0, state.job.height, state.job.width] for state in states]
    rows = torch.tensor([state.rows for state in states], device=pooled[0].device)
    times = torch.tensor(sizes, dtype=torch.float32, device=pooled[0].device)
    return {"added.text_embeds": _joined(pooled), "added.time_ids": times.repeat_interleave(rows, dim=0)}


def _attention(states: Sequence[StoryState], device: torch.device) -> dict[str, Tensor]:
    """What ``AttentionPass`` wants, for stories of which some need it."""
    cast = max(state.token_mask.shape[1] for state in states)
    groups: list[int] = []
    on: list[bool] = []
    sources: list[int] = []
    source_of_row: list[int] = []
    for state in states:
        rows, branches = state.job.group, 2 if state.job.guided else 1
        groups += [rows] * branches
        # Both branches take the masks of the prompt's branch.
        source_of_row += list(range(len(sources), len(sources) + rows)) * branches
        sources += range(len(on) + (branches - 1) * rows, len(on) + branches * rows)
        on += [state.crosses_frames] * (rows * branches)
    inputs = {
        "bounds": GroupLayout(tuple(groups)).bounds(device),
        "token_mask": torch.cat([_branches(state, _wider(state.token_mask, cast)) for state in states]),
        "source_of_row": torch.tensor(source_of_row, device=device),
        "on": torch.tensor(on, device=device)[:, None],
    }
    if len(sources) < len(on):
        inputs["sources"] = torch.tensor(sources, device=device)
    if any(state.previous_maps is not None for state in states):
        inputs["previous_maps"] = torch.cat([_wider(_maps_or_zero(state), cast) for state in states])
    if any(state.part_of is not None for state in states):
        inputs["part_of"] = torch.cat([_part_of(state, cast) for state in states])
    return inputs


def _part_of(state: StoryState, cast: int) -> Tensor:
    """Of which character each of the cast is a part, [G, cast]; -1 for characters and for nobody."""
    rows = state.job.group
    if state.part_of is None:
        return torch.full((rows, cast), -1, device=state.token_mask.device)
    return _wider(state.part_of.expand(rows, -1) + 1, cast) - 1


def _identity(states: Sequence[StoryState]) -> dict[str, Tensor]:
    """The streams of all rows, for stories of which some have any; those of the others are empty."""
    like = next(state.identity for state in states if state.identity is not None)
    return _flat(join_streams([state.acting_identity or like.none(state.rows) for state in states]))


def _flat(streams: IdentityStreams) -> dict[str, Tensor]:
    """As inputs of ``unet_pass``."""
    flat = {"identity.ends": streams.ends, "identity.scale": streams.scale, "identity.owner": streams.owner}
    for layer, (keys, values) in enumerate(streams.keys_values):
        flat |= {f"identity.key.{layer}": keys, f"identity.value.{layer}": values}
    return flat


def _streams(inputs: Tensors) -> IdentityStreams | None:
    """The inverse of ``_flat``; None where nobody has identities."""
    if "identity.ends" not in inputs:
        return None
    ends, scale, owner = (inputs[f"identity.{name}"] for name in ("ends", "scale", "owner"))
    return IdentityStreams(_keys_values(inputs, "identity."), ends, scale, owner)


def _keys_values(inputs: Tensors, prefix: str = "") -> list[tuple[Tensor, Tensor]]:
    layers = sum(name.startswith(f"{prefix}key.") for name in inputs)
    return [(inputs[f"{prefix}key.{layer}"], inputs[f"{prefix}value.{layer}"]) for layer in range(layers)]


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


def _maps_by_story(states: Sequence[StoryState], maps: Tensor | None) -> list[Tensor | None]:
    """Each story's own characters' maps, [G, K, h, w] each; None for those that need none."""
    if maps is None:
        return [None] * len(states)
    groups = [state.job.group for state in states]
    by_story = torch.split(maps[: sum(groups)], groups)
    return [
        own[:, : state.token_mask.shape[1]].clone() if state.uses_maps else None
        for state, own in zip(states, by_story, strict=True)
    ]


def _features_by_story(states: Sequence[StoryState], features: Tensor | None) -> list[Tensor | None]:
    """Those of the prompt's branch of each story that wants them."""
    found: list[Tensor | None] = []
    end = 0
    for state in states:
        end += state.rows
        wanted = features is not None and state.wants_features
        found.append(features[end - state.job.group : end] if features is not None and wanted else None)
    return found


def _maps_or_zero(state: StoryState) -> Tensor:
    if state.previous_maps is not None:
        return state.previous_maps
    rows, cast = state.token_mask.shape[:2]
    return state.latents.new_zeros(rows, cast, *state.latents.shape[-2:])


def _wider(values: Tensor, size: int) -> Tensor:
    """[n, k, ...] -> [n, size, ...], filled with 0 or False; what has more stays as it is."""
    missing = values.new_zeros(values.shape[0], max(size - values.shape[1], 0), *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _grow(values: Tensor, rows: int) -> Tensor:
    """[n, ...] -> a copy [rows, ...], filled with 0 or False."""
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts in one tensor; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
