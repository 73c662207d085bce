"""A story between two steps as bytes: safetensors, with what is not a tensor in the metadata. Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from storyloom_model.methods import injection
from storyloom_model.redenoising import second_pass
from storyloom_model.solvers import SolverHistory
from storyloom_model.state import StoryState

FORMAT = "1"
_SOLVER, _KEPT, _SECOND, _INJECTION = "solver.", "kept.", "second.", "injection."


class CheckpointError(ValueError):
    """A checkpoint cannot be used: start the story anew. The message says why."""


def pack(state: StoryState, fingerprint: str) -> bytes:
    """Writes down all that the steps have left behind in a story; what ``encode`` makes is not in it.

    Args:
        state: a story that has not failed.
        fingerprint: of whatever the checkpoint may be used with.

    Raises:
        ValueError: the story has failed.
    """
    if state.error is not None:
        raise ValueError(f"a story that has failed has nothing to keep: {state.error}")
    history = state.solver.history()
    tensors = {"latents": state.latents, "predicted": state.predicted}
    if state.previous_maps is not None:
        tensors["previous_maps"] = state.previous_maps
    tensors |= {_SOLVER + name: value for name, value in history.tensors.items()}
    tensors |= {_KEPT + name: value for name, value in state.kept.items()}
    if state.second is not None:
        tensors |= {_SECOND + name: value for name, value in second_pass.tensors(state.second).items()}
    if state.injection is not None:
        tensors |= {_INJECTION + name: value for name, value in injection.tensors(state.injection).items()}
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "steps_done": str(history.index),
        "solver": json.dumps([history.lower_order_steps, history.last_order]),
    }
    return save(kept, metadata | {"digest": _digest(kept, metadata)})


def unpack(state: StoryState, data: bytes, fingerprint: str) -> None:
    """Takes a story that has just been encoded to where ``pack`` saw it, to the bit.

    Args:
        state: of the same job and model; it is changed only when the checkpoint is good.
        data: what ``pack`` returned.
        fingerprint: what ``pack`` was given.

    Raises:
        CheckpointError: the data are damaged, of another format, or of another job or model.
    """
    tensors, metadata = _read(data)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"it has format {metadata.get('format')}; this version reads format {FORMAT}")
    if metadata.pop("digest", None) != _digest(tensors, metadata):
        raise CheckpointError("it is damaged: its contents do not match its digest")
    if metadata["fingerprint"] != fingerprint:
        raise CheckpointError("it is of another job, or of another model, version of the model or number format")
    device = state.latents.device
    on_device = {name: value.to(device, copy=True) for name, value in tensors.items()}
    solver, second = (second_pass.named(on_device, prefix) for prefix in (_SOLVER, _SECOND))
    lower_order_steps, last_order = json.loads(metadata["solver"])
    try:
        state.solver.resume(SolverHistory(int(metadata["steps_done"]), lower_order_steps, last_order, solver))
        if state.second is not None:
            second_pass.restore(state.second, second)
        if state.injection is not None:
            injection.restore(state.injection, second_pass.named(on_device, _INJECTION))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"it does not fit its story: {error}") from error
    state.latents, state.predicted = on_device["latents"], on_device["predicted"]
    state.previous_maps = on_device.get("previous_maps")
    state.kept = {name.removeprefix(_KEPT): value for name, value in on_device.items() if name.startswith(_KEPT)}


def _read(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, as far as safetensors finds them sound."""
    try:
        header_bytes = int.from_bytes(data[:8], "little")
        tensors = load(data)
        header: Any = json.loads(data[8 : 8 + header_bytes])
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise CheckpointError(f"it is damaged: {error}") from error
    return tensors, dict(header.get("__metadata__") or {})


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    digest.update(json.dumps(sorted(metadata.items())).encode())
    return digest.hexdigest()
