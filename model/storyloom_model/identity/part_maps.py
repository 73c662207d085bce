"""Where the parts of a character are in a picture of it, by the model's own maps of the words for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storyloom_kernels import GroupLayout
from storyloom_model.attention import StoryAttention
from storyloom_model.decoder import Decoder
from storyloom_model.encoder import TextEncoder
from storyloom_model.identity.encoders.crops import Mask, Pixels
from storyloom_model.identity.parts import PARTS, first_word
from storyloom_model.maps import ForegroundRule, Size, character_masks
from storyloom_model.noise import initial_noise

NOISE_TIME = 0.3
"""Of the schedule: enough noise that the UNet has to look for what the words say, little enough that it is there."""


class MapPartFinder:
    """Runs the UNet once on the picture under some noise, with a prompt that names all parts (as DAAM does; Tang et al.
    2023), and makes masks of the words' maps.

    Args:
        unet: with ``install_story_attention``.
        decoder: of the model, for its latents.
        encoder: of the text.
        schedule: the noise that the UNet knows.
        rule: how maps become masks.
        size: width and height in pixels that the model makes pictures of.
    """

    def __init__(
        self, unet: Any, decoder: Decoder, encoder: TextEncoder, schedule: Any, rule: ForegroundRule, size: Size
    ) -> None:
        self._unet = unet
        self._decoder = decoder
        self._encoder = encoder
        self._schedule = schedule
        self._rule = rule
        self._size = size

    @torch.inference_mode()
    def find(self, picture: Pixels) -> dict[str, Mask]:
        """Masks bool [h, w] of a picture uint8 [h, w, 3], by the names of ``PARTS``. They do not overlap."""
        canvas, (left, top, width, height) = _fitted(picture, self._size)
        masks = character_masks(self.maps(canvas), canvas.shape[:2], self._rule)
        masks &= masks.cumsum(axis=0) == 1  # Of those that are as strong to the bit, the first.
        cut = masks[:, top : top + height, left : left + width]
        return {part: _resized(mask, picture) for part, mask in zip(PARTS, cut, strict=True)}

    def maps(self, canvas: Pixels) -> Tensor:
        """[len(PARTS), h, w] at the latents' size, of a picture of the model's size."""
        text = "a person, "
        spans = []
        for word in map(first_word, PARTS):
            spans.append([(len(text), len(text) + len(word))])
            text += word + ", "
        embedded = self._encoder.embed([text])
        latents = self._decoder.latents(canvas)
        noise = initial_noise([0], tuple(latents.shape[1:])).to(latents.device)
        time = round(NOISE_TIME * (self._schedule.config.num_train_timesteps - 1))
        alpha = float(self._schedule.alphas_cumprod[time])
        noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        height, width = canvas.shape[:2]
        seen = StoryAttention(
            GroupLayout((1,)), (latents.shape[2], latents.shape[3]), self._encoder.span_mask([text], [spans]),
            cross_frame=False,
        )  # fmt: skip
        added = None
        if embedded.pooled is not None:
            sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=noisy.device)
            added = {"text_embeds": embedded.pooled, "time_ids": sizes}
        self._unet(
            noisy.to(embedded.hidden.dtype),
            torch.tensor([float(time)], device=noisy.device),
            encoder_hidden_states=embedded.hidden,
            cross_attention_kwargs={"story": seen},
            added_cond_kwargs=added,
        )
        return seen.average_maps()[0]


def _fitted(picture: Pixels, size: Size) -> tuple[Pixels, tuple[int, int, int, int]]:
    """The picture in the middle of a white one of a size (width, height), and its left, top, width and height in it."""
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    small = (max(round(width * scale), 1), max(round(height * scale), 1))
    left, top = (size[0] - small[0]) // 2, (size[1] - small[1]) // 2
    canvas = Image.new("RGB", size, "white")
    canvas.paste(Image.fromarray(np.ascontiguousarray(picture)).resize(small, Image.Resampling.BICUBIC), (left, top))
    return np.asarray(canvas), (left, top, *small)


def _resized(mask: Mask, picture: Pixels) -> Mask:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
