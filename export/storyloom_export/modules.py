"""Sessions that stand where torch modules stand in ``storyloom_model.components.Components``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from storyloom_export.artefact import Artefact
from storyloom_export.session import OpenSession
from storyloom_model.batch import Tensors

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Component(nn.Module):
    """What every stand-in has: the device and dtype of its session."""

    def __init__(self, artefact: Artefact, component: str, open_session: OpenSession) -> None:
        super().__init__()
        self.artefact = artefact
        self.session = open_session(component)
        self.device = self.session.device
        self.dtype = DTYPES[artefact.record.dtype]


class ExportedUNet(_Component):
    """A UNet2DConditionModel with story attention; called as ``storyloom_model.batch`` calls ``unet_pass`` of one."""

    def __init__(self, artefact: Artefact, open_session: OpenSession, adapter: str | None = None) -> None:
        super().__init__(artefact, "unet" if adapter is None else f"unet.{adapter}", open_session)
        self._open_session = open_session

    def with_adapter(self, name: str) -> ExportedUNet:
        """The UNet with an adapter's weights, which are in the export already."""
        return ExportedUNet(self.artefact, self._open_session, name)

    def forward(self, inputs: Tensors) -> Tensors:
        """What ``unet_pass`` returns for what ``collate`` made. The text's keys and values are made inside.

        Raises:
            ValueError: the latents' size is not one that the export takes.
        """
        latents, multiple = inputs["latents"], self.artefact.record.latent_multiple
        if any(size % multiple for size in latents.shape[-2:]):
            raise ValueError(f"exported UNets take latents in multiples of {multiple}; got {list(latents.shape[-2:])}")
        attends = "attention.bounds" in inputs
        given = {"sample": latents, "timestep": inputs["times"].float(), "text": inputs["text"]}
        given |= _attention(inputs) if attends else _alone(inputs)
        outputs = {"prediction": (latents.shape, self.dtype), "maps": (given["previous_maps"].shape, torch.float32)}
        values, maps = self.session.run(given, outputs)
        return {"values": values} | ({"maps": maps} if attends else {})


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
    """A CLIPTextModel."""

    def __init__(self, artefact: Artefact, open_session: OpenSession) -> None:
        super().__init__(artefact, "text_encoder", open_session)
        self._width = artefact.record.components["text_encoder"].outputs[0].shape[-1]

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        """Token ids [n, T] -> the last hidden states, [n, T, D]."""
        shape = (*ids.shape, int(self._width))
        return (self.session.run({"ids": ids}, {"hidden": (shape, self.dtype)})[0],)


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
