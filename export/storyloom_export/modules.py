"""Sessions that stand where torch modules stand in ``storyloom_model.components.Components``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from storyloom_export.artefact import Artefact
from storyloom_export.session import OpenSession
from storyloom_export.stored import stored_unet
from storyloom_export.streams import no_streams
from storyloom_model.batch import Tensors

_TAKEN = ("latents", "times", "text", "key.", "value.", "attention.", "added.", "identity.")
"""What the names of ``collate``'s inputs begin with that the graph has a place for, or of the text makes itself."""
_ADDED = {"added.text_embeds": "pooled_text", "added.time_ids": "time_ids"}
"""What ``collate`` calls SDXL's conditions beside the text, and what the graph does."""


class _Component(nn.Module):
    """What every stand-in has: the device and dtype of its session."""

    def __init__(
        self,
        artefact: Artefact,
        component: str,
        open_session: OpenSession,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.artefact = artefact
        self.record = artefact.record.components[component]
        self.session = open_session(component, weights)
        self.device = self.session.device
        self.dtype = self.record.dtype


class ExportedUNet(_Component):
    """A UNet2DConditionModel with story attention; called as ``storyloom_model.batch`` calls ``unet_pass`` of one.

    Args:
        artefact: the export.
        package_folder: of the package that it is of.
        open_session: how components are opened.
        adapter: whose weights it has; None: the base weights.
        weights: that take the place of those of the same names.
    """

    def __init__(
        self,
        artefact: Artefact,
        package_folder: Path,
        open_session: OpenSession,
        adapter: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        component = "unet" if adapter is None else f"unet.{adapter}"
        super().__init__(artefact, component, open_session, weights)
        self._component = component
        self._open_session = open_session
        self._package_folder = package_folder
        self._adapter = adapter

    def with_adapter(self, name: str) -> ExportedUNet:
        """The UNet with an adapter's weights, which are in the export already."""
        return ExportedUNet(self.artefact, self._package_folder, self._open_session, name)

    def with_weights(self, weights: Mapping[str, Tensor]) -> ExportedUNet:
        """The UNet with other weights for some."""
        return ExportedUNet(self.artefact, self._package_folder, self._open_session, self._adapter, weights)

    def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        """Those of the UNet that was exported, hence its parameters too: whoever brings weights holds them against it.

        Its parameters are the weights on disk.
        """
        return self._stored.named_modules(*args, **options)  # type: ignore[no-any-return]

    @cached_property
    def _stored(self) -> Any:
        return stored_unet(self._package_folder / "unet", self.artefact.component(self._component))

    def forward(self, inputs: Tensors) -> Tensors:
        """What ``unet_pass`` returns for what ``collate`` made. The text's keys and values are made inside.

        Raises:
            ValueError: the export does not take latents of this size, or has no place for some input.
        """
        if strangers := [name for name in inputs if not name.startswith(_TAKEN)]:
            raise ValueError(f"exported UNets take no {', '.join(strangers)}; serve such stories with torch")
        latents, multiple = inputs["latents"], self.artefact.record.latent_multiple
        if any(size % multiple for size in latents.shape[-2:]):
            raise ValueError(f"exported UNets take latents in multiples of {multiple}; got {list(latents.shape[-2:])}")
        attends = "attention.bounds" in inputs
        given = {"sample": latents, "timestep": inputs["times"].float(), "text": inputs["text"]}
        given |= _attention(inputs) if attends else _alone(inputs)
        given |= {ours: inputs[theirs] for theirs, ours in _ADDED.items() if theirs in inputs}
        given |= self._streams(inputs)
        outputs = {"prediction": (latents.shape, self.dtype), "maps": (given["previous_maps"].shape, torch.float32)}
        values, maps = self.session.run(given, outputs)
        return {"values": values} | ({"maps": maps} if attends else {})

    def _streams(self, inputs: Tensors) -> dict[str, Tensor]:
        """The streams of ``collate``, or none, if the graph takes any."""
        given = {name.replace(".", "_"): value for name, value in inputs.items() if name.startswith("identity.")}
        return given or no_streams(self.record.inputs, len(inputs["latents"]), self.device)


def _attention(inputs: Tensors) -> dict[str, Tensor]:
    """The graph's story inputs. Without maps of a step before they are 0, which gives the same masks."""
    latents, token_mask = inputs["latents"], inputs["attention.token_mask"]
    sources = inputs.get("attention.sources")
    if sources is None:
        sources = torch.arange(len(latents), device=latents.device)
    maps = inputs.get("attention.previous_maps")
    if maps is None:
        maps = torch.zeros(len(sources), token_mask.shape[1], *latents.shape[-2:], device=latents.device)
    return {
        "token_mask": token_mask,
        "bounds": inputs["attention.bounds"],
        "sources": sources,
        "source_of_row": inputs["attention.source_of_row"],
        "crosses_frames": inputs["attention.on"][:, 0],
        "previous_maps": maps,
    }


def _alone(inputs: Tensors) -> dict[str, Tensor]:
    """The story inputs of rows that see only themselves: one character without tokens, whose maps nobody reads."""
    latents, tokens = inputs["latents"], inputs["text"].shape[1]
    rows, device = len(latents), latents.device
    places = torch.arange(rows, dtype=torch.int32, device=device)
    return {
        "token_mask": torch.zeros(rows, 1, tokens, dtype=torch.bool, device=device),
        "bounds": torch.stack([places, places + 1], dim=1),
        "sources": torch.zeros(1, dtype=torch.int64, device=device),
        "source_of_row": torch.zeros(rows, dtype=torch.int64, device=device),
        "crosses_frames": torch.zeros(rows, dtype=torch.bool, device=device),
        "previous_maps": torch.zeros(1, 1, *latents.shape[-2:], device=device),
    }


class ExportedTextEncoder(_Component):
    """A text encoder of CLIP."""

    def forward(self, ids: Tensor, output_hidden_states: bool = False) -> Any:
        """Token ids [n, T] -> what ``storyloom_model.encoder`` reads of a transformers model's answer.

        That is the last hidden states [n, T, D] as the first part, or in the form of SDXL ``hidden_states[-2]``, and of
        the second text encoder ``text_embeds`` [n, P].
        """
        outputs = {one.name: ((len(ids), *map(int, one.shape[1:])), self.dtype) for one in self.record.outputs}
        hidden, *pooled = self.session.run({"ids": ids}, outputs)
        if not output_hidden_states:
            return (hidden,)
        # Nobody asks for the last ones, and they are not made.
        return SimpleNamespace(hidden_states=(hidden, None), text_embeds=pooled[0] if pooled else None)


class ExportedVae(_Component):
    """The decoder of an AutoencoderKL; ``config`` is its configuration."""

    def __init__(self, artefact: Artefact, package_folder: Path, open_session: OpenSession) -> None:
        super().__init__(artefact, "vae_decoder", open_session)
        content = json.loads((package_folder / "vae" / "config.json").read_text(encoding="utf-8"))
        self.config = SimpleNamespace(**({"shift_factor": None} | content))
        self._factor = 2 ** (len(self.config.block_out_channels) - 1)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Raw latents [n, C, h, w] -> pictures from -1 to 1, [n, 3, H, W].

        One at a time, so that engines need not be built for more, nor keep memory for them.
        """
        return (torch.cat([self._decode(one) for one in torch.split(latents, 1)]),)

    def _decode(self, latents: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        shape = (1, self.config.out_channels, height * self._factor, width * self._factor)
        return self.session.run({"latents": latents}, {"picture": (shape, self.dtype)})[0]
