"""From latents to pictures: the VAE for finals, a linear projection for previews."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_FIT_SAMPLES = 8
_FIT_SIZE = 8


class Decoder:
    """Turns latents of unit variance into uint8 RGB. ``factor`` is pixels per latent position.

    The preview projection is a least-squares fit of the VAE's decoder, each latent position against the mean colour of
    its pixels, over smooth random latents from a fixed seed. It takes a few small decodes, once.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self._projection = self._fit_projection()

    @property
    def channels(self) -> int:
        """Latent channels."""
        channels: int = self._vae.config.latent_channels
        return channels

    def pictures(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [n, C, h, w] -> uint8 [n, h * factor, w * factor, 3].

        Decodes one frame at a time, so that a frame's pixels do not depend on which others are asked for with it.
        """
        return np.concatenate([_to_uint8(self._decode(latent[None])) for latent in latents])

    def previews(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [n, C, h, w] -> rough colours, uint8 [n, h, w, 3], without the VAE."""
        return _to_uint8(torch.einsum("nchw,cr->nrhw", _with_one(latents), self._projection))

    def latents(self, picture: NDArray[np.uint8]) -> Tensor:
        """uint8 [h * factor, w * factor, 3] -> latents of unit variance, float32 [1, C, h, w]: the inverse, nearly."""
        config = self._vae.config
        colours = torch.tensor(picture, device=self._vae.device).movedim(-1, 0)[None].to(self._vae.dtype) / 127.5 - 1
        raw: Tensor = self._vae.encode(colours).latent_dist.mode()
        return torch.mul(raw.float() - (config.shift_factor or 0), config.scaling_factor)

    def _decode(self, latents: Tensor) -> Tensor:
        """[n, C, h, w] -> float32 [n, 3, H, W], black -1 to white 1."""
        config = self._vae.config
        raw = latents / config.scaling_factor + (config.shift_factor or 0)
        picture: Tensor = self._vae.decode(raw.to(self._vae.dtype), return_dict=False)[0]
        return picture.float()

    @torch.no_grad()
    def _fit_projection(self) -> Tensor:
        """float32 [C + 1, 3]; the last row is the constant."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn(_FIT_SAMPLES, self.channels, 2, 2, generator=generator)
        fine = torch.randn(_FIT_SAMPLES, self.channels, _FIT_SIZE, _FIT_SIZE, generator=generator)
        smooth = F.interpolate(coarse, size=(_FIT_SIZE, _FIT_SIZE), mode="bilinear", align_corners=False)
        latents = (smooth + 0.3 * fine).to(self._vae.device)
        colours = F.avg_pool2d(self._decode(latents), self.factor)
        inputs, targets = _with_one(latents).movedim(1, -1).flatten(0, 2), colours.movedim(1, -1).flatten(0, 2)
        fit: Tensor = torch.linalg.lstsq(inputs, targets).solution
        return fit


def _with_one(latents: Tensor) -> Tensor:
    """[n, C, h, w] -> [n, C + 1, h, w] with ones as the last channel."""
    return torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1)


def _to_uint8(colours: Tensor) -> NDArray[np.uint8]:
    """[n, 3, H, W] in [-1, 1] -> [n, H, W, 3]; what lies outside is clipped."""
    levels = ((colours + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(1, -1).cpu().numpy()
