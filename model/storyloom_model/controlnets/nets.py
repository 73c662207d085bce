"""A ControlNet as the engine runs it: what is the same at every step apart from what is not."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storyloom_model.manifest import ControlNetFolder


class ControlNet:
    """A loaded ControlNet.

    Args:
        name: of the ControlNet.
        net: a ControlNetModel of diffusers; it is left alone.
        part: what the manifest says of it.
    """

    def __init__(self, name: str, net: Any, part: ControlNetFolder) -> None:
        self.name = name
        self.part = part
        self._embedding = net.controlnet_cond_embedding
        self._reversed = net.config.controlnet_conditioning_channel_order == "bgr"
        # The same weights; what diffusers would make of the pictures at each step is made before the first.
        self._steps = copy.copy(net)
        self._steps._modules = net._modules | {"controlnet_cond_embedding": nn.Identity()}
        self._steps.register_to_config(controlnet_conditioning_channel_order="rgb")

    def embed(self, pictures: NDArray[np.uint8]) -> Tensor:
        """What it makes of pictures [n, H, W, 3]: [n, C, h, w], the same at every step."""
        weight = self._embedding.conv_in.weight
        pixels = torch.from_numpy(pictures).to(weight.device).permute(0, 3, 1, 2).to(weight.dtype) / 255
        embedded: Tensor = self._embedding(pixels.flip(1) if self._reversed else pixels)
        return embedded

    def residuals(
        self, latents: Tensor, times: Tensor, text: Tensor, embedding: Tensor, scale: Tensor, added: Any
    ) -> list[Tensor]:
        """What is added to the UNet's skip connections, then to its middle, for n rows.

        Args:
            latents: [n, C, h, w], as the UNet gets them.
            times: [n].
            text: [n, T, D], or what takes its place.
            embedding: of ``embed``.
            scale: [n].
            added: conditions beside the text, as diffusers calls them, or None.
        """
        down, middle = self._steps(
            latents,
            times,
            encoder_hidden_states=text,
            controlnet_cond=embedding,
            conditioning_scale=scale.to(latents.dtype).view(-1, 1, 1, 1),
            added_cond_kwargs=added,
            return_dict=False,
        )
        return [*down, middle]
