"""ControlNets in a UNet call that stories share: the rows that have a control go through them, the others cost nothing.

Inputs of a call are named ``control/NET/TOKENS/WHAT``, TOKENS being how many tokens a row has in place of the text, or
"text". Each NET and TOKENS is one call of a ControlNet over n rows. WHAT is ``source`` int64 [R]: for each row of the
call its place among the n, counted from 1, 0 for none; or has n rows: ``rows`` int64, the places of these among the R,
``embedding``, ``scale`` and, where there are such, ``tokens``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from storyloom_model.controlnets.nets import ControlNet
from storyloom_model.controlnets.story import StoryControl

if TYPE_CHECKING:
    from storyloom_model.state import StoryState

_CONTROL, _SOURCE, _TEXT = "control/", "/source", "text"


@dataclass(slots=True)
class _Rows:
    """The rows of one call of a ControlNet."""

    rows: list[int] = field(default_factory=list)
    scale: list[float] = field(default_factory=list)
    embedding: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)

    def add(self, control: StoryControl, first: int, group: int, branches: int) -> None:
        """Takes a story's control: its rows begin at ``first``, a branch has ``group`` of them."""
        for branch in range(branches):
            self.rows += [first + branch * group + frame for frame in control.frames]
            self.scale += control.scale
            self.embedding.append(control.embedding)
        if control.tokens is not None:
            self.tokens.append(control.tokens)


def collate_controls(states: Sequence[StoryState]) -> dict[str, Tensor]:
    """The inputs for all rows of some stories; nothing where none has a control."""
    calls: dict[str, _Rows] = {}
    first = 0
    for state in states:
        for control in state.controls:
            call = calls.setdefault(_call_of(control), _Rows())
            call.add(control, first, state.job.group, state.branches)
        first += state.rows
    inputs: dict[str, Tensor] = {}
    for name, call in calls.items():
        embedding = torch.cat(call.embedding)
        rows = torch.tensor(call.rows, device=embedding.device)
        source = torch.zeros(first, dtype=torch.long, device=embedding.device)
        source[rows] = torch.arange(1, len(call.rows) + 1, device=embedding.device)
        scale = torch.tensor(call.scale, device=embedding.device)
        inputs |= {f"{name}{_SOURCE}": source, f"{name}/rows": rows, f"{name}/scale": scale}
        inputs[f"{name}/embedding"] = embedding
        if call.tokens:
            inputs[f"{name}/tokens"] = torch.cat(call.tokens)
    return inputs


def controlled_rows(states: Sequence[StoryState]) -> int:
    """The most rows that a call of a ControlNet has for these stories."""
    rows: Counter[str] = Counter()
    for state in states:
        for control in state.controls:
            rows[_call_of(control)] += len(control.frames) * state.branches
    return max(rows.values(), default=0)


def is_of_controlled_rows(name: str) -> bool:
    """Whether an input has a row for each row of a ControlNet's call, and not of the UNet's."""
    return name.startswith(_CONTROL) and not name.endswith(_SOURCE)


def control_residuals(nets: Mapping[str, ControlNet], inputs: Mapping[str, Tensor], added: Any) -> dict[str, Any]:
    """What the UNet takes of ControlNets, as its keyword arguments; nothing where no row has a control.

    Args:
        nets: by name.
        inputs: of the UNet's call.
        added: conditions beside the text of all rows, or None.
    """
    total: list[Tensor] | None = None
    for name in sorted(name.removesuffix(_SOURCE) for name in inputs if name.endswith(_SOURCE)):
        rows = inputs[f"{name}/rows"]
        tokens = inputs.get(f"{name}/tokens")
        found = nets[name.split("/")[1]].residuals(
            inputs["latents"][rows],
            inputs["times"][rows],
            inputs["text"][rows] if tokens is None else tokens,
            inputs[f"{name}/embedding"],
            inputs[f"{name}/scale"],
            None if added is None else {key: value[rows] for key, value in added.items()},
        )
        spread = [_spread(one, inputs[f"{name}{_SOURCE}"]) for one in found]
        total = spread if total is None else [one + other for one, other in zip(total, spread, strict=True)]
    if total is None:
        return {}
    return {"down_block_additional_residuals": tuple(total[:-1]), "mid_block_additional_residual": total[-1]}


def _call_of(control: StoryControl) -> str:
    return f"{_CONTROL}{control.net}/{_TEXT if control.tokens is None else control.tokens.shape[1]}"


def _spread(values: Tensor, source: Tensor) -> Tensor:
    """[n, ...] to all rows; those without are 0."""
    return torch.cat([torch.zeros_like(values[:1]), values])[source]
