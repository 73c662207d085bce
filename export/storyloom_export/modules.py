"""Sessions that stand where torch modules stand in ``storyloom_model.components.Components``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from storyloom_export.artefact import Artefact
from storyloom_export.session import Session
from storyloom_model.attention import StoryAttention

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class _Component(nn.Module):
    """What every stand-in has: the device and dtype of its session."""

    def __init__(self, artefact: Artefact, component: str, device: torch.device) -> None:
        super().__init__()
        self.artefact = artefact
        self.device = device
        self.dtype = _DTYPES[artefact.record.dtype]
        self.session = Session(artefact.component(component), device)


class OnnxUNet(_Component):
    """A UNet2DConditionModel with story attention. Called as ``storyloom_model.batch`` calls the torch one."""

    def __init__(self, artefact: Artefact, device: torch.device, adapter: str | None = None) -> None:
        super().__init__(artefact, "unet" if adapter is None else f"unet.{adapter}", device)

    def with_adapter(self, weights: Mapping[str, Tensor], name: str) -> OnnxUNet:
        """The session of an adapter, whose weights are in the export already."""
        return OnnxUNet(self.artefact, self.device, name)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The prediction, [R, C, h, w]; the maps go into the ``StoryAttention`` that was given.

        Raises:
            ValueError: the latents' size is not one that the export takes.
        """
        multiple = self.artefact.record.latent_multiple
        if any(size % multiple for size in sample.shape[-2:]):
            raise ValueError(f"exported UNets take latents in multiples of {multiple}; got {list(sample.shape[-2:])}")
        story: StoryAttention | None = (cross_attention_kwargs or {}).get("story")
        inputs = {"sample": sample, "timestep": timestep.float(), "text": encoder_hidden_states}
        inputs |= self._alone(sample, encoder_hidden_states) if story is None else story.as_tensors()
        outputs = {
            "prediction": (sample.shape, self.dtype),
            "maps": (inputs["previous_maps"].shape, torch.float32),
        }
        prediction, maps = self.session.run(inputs, outputs)
        if story is not None:
            story.take_average(maps)
        return (prediction,)

    def _alone(self, sample: Tensor, text: Tensor) -> dict[str, Tensor]:
        """The story inputs of rows that see only themselves: one character without tokens, whose maps nobody reads."""
        rows, device = sample.shape[0], self.device
        places = torch.arange(rows, dtype=torch.int32, device=device)
        return {
            "token_mask": torch.zeros(rows, 1, text.shape[1], dtype=torch.bool, device=device),
            "bounds": torch.stack([places, places + 1], dim=1),
            "sources": torch.zeros(1, dtype=torch.int64, device=device),
            "source_of_row": torch.zeros(rows, dtype=torch.int64, device=device),
            "crosses_frames": torch.zeros(rows, dtype=torch.bool, device=device),
            "previous_maps": torch.zeros(1, 1, *sample.shape[-2:], device=device),
        }


class OnnxTextEncoder(_Component):
    """A CLIPTextModel."""

    def __init__(self, artefact: Artefact, device: torch.device) -> None:
        super().__init__(artefact, "text_encoder", device)
        self._width = artefact.record.components["text_encoder"].outputs[0].shape[-1]

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        """Token ids [n, T] -> the last hidden states, [n, T, D]."""
        shape = (*ids.shape, int(self._width))
        return (self.session.run({"ids": ids}, {"hidden": (shape, self.dtype)})[0],)


class OnnxVae(_Component):
    """The decoder of an AutoencoderKL; ``config`` is its configuration."""

    def __init__(self, artefact: Artefact, package_folder: Path, device: torch.device) -> None:
        super().__init__(artefact, "vae_decoder", device)
        content = json.loads((package_folder / "vae" / "config.json").read_text(encoding="utf-8"))
        self.config = SimpleNamespace(**({"shift_factor": None} | content))
        self._factor = 2 ** (len(self.config.block_out_channels) - 1)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Raw latents [n, C, h, w] -> pictures from -1 to 1, [n, 3, H, W]."""
        count, _, height, width = latents.shape
        shape = (count, self.config.out_channels, height * self._factor, width * self._factor)
        return (self.session.run({"latents": latents}, {"picture": (shape, self.dtype)})[0],)
