"""Story attention as it goes into the graph: tensors in, tensors out, and any number of stories.

``storyloom_model.attention`` defines what happens; here layouts, switches and row choices are inputs of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from storyloom_export import nodes
from storyloom_model.fusion import GroupNormSiLU, fuse_group_norms
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.maps import ForegroundRule, Size, resize


class GraphStory:
    """``StoryAttention`` of one pass. R rows, S rows that maps come from, K characters, T tokens, h x w latents.

    Args:
        token_mask: bool [R, K, T].
        bounds: int32 [R, 2], first and one past the last row of each row's group.
        sources: int64 [S], the rows whose maps are kept.
        source_of_row: int64 [R], for each row the place in ``sources`` of the row that its masks come from.
        crosses_frames: bool [R], False for rows that see only themselves.
        previous_maps: float32 [S, K, h, w]; 0 in the first step.
        rule: how maps become masks.
        identity: streams of the R rows; None: the graph takes none.
    """

    def __init__(
        self,
        token_mask: Tensor,
        bounds: Tensor,
        sources: Tensor,
        source_of_row: Tensor,
        crosses_frames: Tensor,
        previous_maps: Tensor,
        rule: ForegroundRule,
        identity: IdentityStreams | None = None,
    ) -> None:
        self.token_mask = token_mask
        self.bounds = bounds
        self._sources = sources
        self._source_of_row = source_of_row
        self._crosses_frames = crosses_frames
        self._previous = previous_maps
        self._rule = rule
        self._identity = identity
        self._layers: list[Tensor] = []
        self._sums: dict[int, tuple[Tensor, int]] = {}

    def record(self, maps: Tensor, level: int) -> None:
        """Takes the maps [R, K, N] of a cross-attention layer."""
        kept = maps.index_select(0, self._sources)
        self._layers.append(kept.reshape(*kept.shape[:2], *self._size(level)))

    def average(self, level: int) -> Tensor:
        """Mean over all layers so far at the size of a level, [S, K, h, w]; before the first, the previous maps."""
        size = self._size(level)
        if not self._layers:
            return self._previous if level == 0 else resize(self._previous, size)
        total, count = self._sums.get(level, (torch.zeros(()), 0))
        for layer in self._layers[count:]:
            total = resize(layer, size) if count == 0 else total + resize(layer, size)
            count += 1
        self._sums[level] = (total, count)
        return total / count

    def mask(self, level: int) -> Tensor:
        """The foreground that a self-attention layer shows to other frames, bool [R, N]."""
        maps = self.average(level).flatten(2)
        masks = nodes.foreground(maps, self._rule.method, self._rule.value).any(dim=1)
        return masks.index_select(0, self._source_of_row) & self._crosses_frames[:, None]

    def add_identities(self, attended: Tensor, q: Tensor, layer: int, level: int) -> Tensor:
        """What a cross-attention layer sees of the text [R, N, H, d], and of the characters' identities."""
        if self._identity is None:
            return attended
        heads = [q.shape[2], -1]
        keys, values = (torch.unflatten(one, 2, heads) for one in self._identity.keys_values[layer])
        streams = (self._identity.ends, self._identity.scale, self._identity.owner)
        present = self.token_mask.index_select(0, self._sources).any(dim=-1)
        return nodes.identity_attention(
            attended, q, (keys, values), streams, self.average(level).flatten(2), present, self._source_of_row
        )

    def _size(self, level: int) -> Size:
        height, width = self._previous.shape[-2:]
        return height // 2**level, width // 2**level


class _Processor:
    """Attention of one layer, whose level of the UNet is known before any size is.

    Args:
        level: 0 at the latents' size, 1 at half of it, and so on.
        layer: of a cross-attention layer, its place among them.
    """

    def __init__(self, level: int, layer: int) -> None:
        self._level = level
        self._layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        story: GraphStory,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1))
        k, v = (project(context).unflatten(2, (attn.heads, -1)) for project in (attn.to_k, attn.to_v))
        if attn.is_cross_attention:
            attended, maps = nodes.cross_attention_with_maps(q, k, v, story.token_mask)
            # Its own maps come too late to say where the characters are.
            attended = story.add_identities(attended, q, self._layer, self._level)
            story.record(maps, self._level)
        else:
            attended = nodes.cross_frame_attention(q, k, v, story.mask(self._level), story.bounds)
        out: Tensor = attn.to_out[0](attended.flatten(2))
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


class _GraphGroupNormSiLU(GroupNormSiLU):
    """K4 as a node."""

    def forward(self, input: Tensor) -> Tensor:
        return nodes.group_norm_silu(input, self.num_groups, self.weight, self.bias, self.eps)


def levels_of(unet: Any) -> int:
    """Resolutions that a UNet works at; the latents' height and width are multiples of 2 ** (levels - 1)."""
    return len(unet.config.block_out_channels)


def prepare_unet(unet: Any) -> list[int]:
    """Puts the nodes' processors into a UNet2DConditionModel, in place. Only for export: it no longer runs in torch.

    Returns:
        The width of the keys of every cross-attention layer, in the UNet's order.

    Raises:
        ValueError: a layer lies where the level cannot be told.
    """
    last = levels_of(unet) - 1
    widths: list[int] = []
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            match name.split("."):
                case ["down_blocks", number, *_]:
                    level = int(number)
                case ["mid_block", *_]:
                    level = last
                case ["up_blocks", number, *_]:
                    level = last - int(number)
                case _:
                    raise ValueError(f"{name} is in no block of a UNet2DConditionModel; it cannot be exported")
            processor: Any = _Processor(level, len(widths))
            module.set_processor(processor)
            if module.is_cross_attention:
                widths.append(module.to_k.out_features)
    prepare_group_norms(unet)
    return widths


def prepare_group_norms(model: nn.Module) -> None:
    """Makes every GroupNorm that a SiLU follows a node, in place. Only for export."""
    fuse_group_norms(model)
    for module in model.modules():
        if isinstance(module, GroupNormSiLU):
            module.__class__ = _GraphGroupNormSiLU
