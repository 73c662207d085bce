"""A UNet's forward pass with two openings that diffusers' own has not: FreeU by rows, and features of an up block.

It runs the UNet's modules in diffusers' order, and without the two computes the same to the bit. Calls in which nobody
wants either go through the UNet itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storyloom_model.freeu import BLOCKS, apply_freeu

FEATURE_BLOCK = 0
"""The up block whose features say which positions of two pictures show the same (DIFT; Tang et al. 2023)."""


@dataclass(frozen=True, slots=True, eq=False)
class UNetInputs:
    """What a UNet is given, of R rows; see ``batch.unet_pass``.

    ``options`` go to its attention layers, ``added`` are the conditions beside the text and ``residuals`` those of
    ControlNets, as diffusers calls both.
    """

    latents: Tensor
    times: Tensor
    text: Tensor
    options: Mapping[str, Any]
    added: Mapping[str, Tensor] | None
    residuals: Mapping[str, Any]


def finest_attention(unet: Any) -> int:
    """How often latents are halved before the largest of the UNet's self-attention layers."""
    with_attention = (bool(getattr(block, "has_cross_attention", False)) for block in unet.down_blocks)
    return next((halvings for halvings, has in enumerate(with_attention) if has), 0)


def run_unet(unet: Any, given: UNetInputs, freeu: Tensor | None, wants_features: bool) -> tuple[Tensor, Tensor | None]:
    """One forward pass.

    Args:
        unet: a UNet2DConditionModel with ``install_story_attention``.
        given: its inputs.
        freeu: float32 [R, 4], b1, b2, s1 and s2 of each row; None: nobody has FreeU.
        wants_features: whether those of ``FEATURE_BLOCK`` are wanted.

    Returns:
        What it predicts, [R, C, h, w], and the features, [R, D, h', w'], or None.
    """
    if freeu is None and not wants_features:
        values: Tensor = unet(
            given.latents,
            given.times,
            encoder_hidden_states=given.text,
            cross_attention_kwargs=given.options,
            added_cond_kwargs=given.added,
            return_dict=False,
            **given.residuals,
        )[0]
        return values, None
    time, text = _conditions(unet, given)
    own = {"encoder_hidden_states": text, "cross_attention_kwargs": given.options}
    hidden, skips = _down_and_middle(unet, given, time, own)
    features = None
    for place, block in enumerate(unet.up_blocks):
        taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        # The size of what comes next, which doubling alone may miss.
        size = tuple(skips[-1].shape[2:]) if skips and _is_uneven(unet, given.latents) else None
        if freeu is not None and place < BLOCKS:
            hidden = _up_with_freeu(block, hidden, taken, time, own, size, freeu[:, place::BLOCKS])
        else:
            known = own if _crosses(block) else {}
            hidden = block(
                hidden_states=hidden, temb=time, res_hidden_states_tuple=tuple(taken), upsample_size=size, **known
            )
        if wants_features and place == FEATURE_BLOCK:
            features = hidden
    if unet.conv_norm_out:
        hidden = unet.conv_act(unet.conv_norm_out(hidden))
    return unet.conv_out(hidden), features


def _conditions(unet: Any, given: UNetInputs) -> tuple[Tensor, Tensor]:
    """The time with all that is added to it, and the text."""
    time = unet.time_embedding(unet.get_time_embed(sample=given.latents, timestep=given.times), None)
    more = unet.get_aug_embed(emb=time, encoder_hidden_states=given.text, added_cond_kwargs=given.added)
    time = time if more is None else time + more
    return time if unet.time_embed_act is None else unet.time_embed_act(time), given.text


def _down_and_middle(
    unet: Any, given: UNetInputs, time: Tensor, own: Mapping[str, Any]
) -> tuple[Tensor, Sequence[Tensor]]:
    """What comes out of the middle, and what the skip connections take to the up blocks, in order."""
    hidden = unet.conv_in(2 * given.latents - 1.0 if unet.config.center_input_sample else given.latents)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, left = block(hidden_states=hidden, temb=time, **(own if _crosses(block) else {}))
        skips += left
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, time, **(own if _crosses(unet.mid_block) else {}))
    if not given.residuals:
        return hidden, skips
    added = given.residuals["down_block_additional_residuals"]
    return hidden + given.residuals["mid_block_additional_residual"], [
        skip + one for skip, one in zip(skips, added, strict=True)
    ]


def _up_with_freeu(
    block: Any,
    hidden: Tensor,
    skips: Sequence[Tensor],
    time: Tensor,
    own: Mapping[str, Any],
    size: tuple[int, ...] | None,
    scales: Tensor,
) -> Tensor:
    """An up block; ``scales`` as ``apply_freeu`` has them."""
    attentions = block.attentions if _crosses(block) else [None] * len(block.resnets)
    for resnet, attention, skip in zip(block.resnets, attentions, reversed(skips), strict=True):
        hidden = resnet(torch.cat(apply_freeu(hidden, skip, scales), dim=1), time)
        if attention is not None:
            hidden = attention(hidden, **own, return_dict=False)[0]
    for upsampler in block.upsamplers or ():
        hidden = upsampler(hidden, size)
    return hidden


def _crosses(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _is_uneven(unet: Any, latents: Tensor) -> bool:
    """Whether a side of the latents cannot be halved as often as the UNet does."""
    return any(side % 2**unet.num_upsamplers for side in latents.shape[-2:])
