"""Auto-mask self-attention (AMSA) of Storynizor and identity streams, as attention processors of a diffusers UNet.

The processors hold no state. All that a pass needs and leaves behind is in an ``AttentionPass``, handed to the UNet as
``cross_attention_kwargs={"story": story}``; without one the processors do what diffusers does. ``"text"`` beside it
hands in the text's keys and values, which else are computed from the text; ``"unseen"``, bool [R, T], the tokens that
are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

from storyloom_kernels import (
    GroupLayout,
    cross_attention_with_maps,
    cross_frame_attention,
    identity_cross_attention,
    identity_maps,
)
from storyloom_model.identity.regions import part_shares, shares, stream_regions
from storyloom_model.identity.streams import IdentityStreams
from storyloom_model.maps import ForegroundRule, LayerMap, MapStack, Size, layer_size, resize, united_mask
from storyloom_model.methods.sharing import Sharing
from storyloom_model.partial_text import attend_partly, attend_partly_with_identity

TextKeysValues: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of a text, [R, T, C] each, of every cross-attention layer in the UNet's order."""
Place: TypeAlias = Literal["down", "mid", "up"]
"""The part of a UNet that a layer is in."""


class AttentionPass:
    """One UNet pass over R rows in groups, as tensors alone. Make a new one for every pass.

    A self-attention layer takes its masks from the mean map of all cross-attention layers before it in the pass. A
    layer that has none before it takes them from ``first_mask`` if given, else from ``previous_maps`` if given, else
    its frames see only themselves.

    Identity streams act in the regions of the characters that they belong to. A cross-attention layer takes these from
    the same maps; where there are none, the characters of a row share it alike.

    Args:
        layout: the groups of the R rows, also as ``GroupLayout.bounds``: a captured graph then serves other groups.
        latent_size: height and width of the latents.
        token_mask: [R, K, T], non-zero where a token belongs to a character. Rows that nobody takes maps from are
            ignored.
        source_of_row: int64 [R], for each row the place among the source rows of the one whose maps give its masks.
        on: bool [R, 1], False for rows that show nothing to others; None: there is no attention across frames.
        sources: int64 [S], the rows that ``source_of_row`` counts; None: all R.
        previous_maps: [S, K, h, w], ``average_maps()`` of the step before; 0 for rows that have none.
        first_mask: [S, h, w], the true foreground, to train with.
        rule: how maps become masks.
        identity: streams of the R rows; None: the text alone says what is seen.
        region_masks: [S, K, h, w], where the characters truly are, in place of all maps, to train streams with.
        sharing: what the story methods of the rows make of the masks; None: all are as described above.
        part_of: int64 [S, K], the place of the character of which one of the K is a part that has maps and streams of
            its own; -1 for characters. None: there are only characters.
    """

    def __init__(
        self,
        layout: GroupLayout | Tensor,
        latent_size: Size,
        token_mask: Tensor,
        source_of_row: Tensor,
        on: Tensor | None,
        *,
        sources: Tensor | None = None,
        previous_maps: Tensor | None = None,
        first_mask: Tensor | None = None,
        rule: ForegroundRule | None = None,
        identity: IdentityStreams | None = None,
        region_masks: Tensor | None = None,
        sharing: Sharing | None = None,
        part_of: Tensor | None = None,
    ) -> None:
        self.layout = layout
        self.latent_size = latent_size
        self.token_mask = token_mask
        self.identity = identity
        self.sharing = sharing
        self.identity_maps: list[LayerMap] = []
        """Where the streams have blocks, of every cross-attention layer that has run: [R, B, N], with gradient."""
        self._source_of_row = source_of_row
        self._on = on
        self._sources = sources
        self._previous_maps = previous_maps
        self._first_mask = first_mask
        self._rule = rule or ForegroundRule()
        self._region_masks = region_masks
        self._part_of = part_of
        self._stack = MapStack()

    @property
    def layer_maps(self) -> list[LayerMap]:
        """Maps of every cross-attention layer that has run, in order, [S, K, N] each, with gradient."""
        return self._stack.layers

    def average_maps(self) -> Tensor:
        """Mean over all layers at the latents' size, [S, K, h, w], without gradient: ``previous_maps`` of the next
        step.
        """
        return self._stack.average(self.latent_size)

    def record(self, maps: Tensor) -> None:
        """Takes the maps [R, K, N] of a cross-attention layer."""
        values = maps if self._sources is None else maps[self._sources]
        self._stack.add(values, layer_size(self.latent_size, maps.shape[-1]))

    @torch.no_grad()
    def mask(self, positions: int) -> Tensor | None:
        """The foreground that a self-attention layer shows to other frames: bool [R, N], or None where there is
        none.
        """
        size = layer_size(self.latent_size, positions)
        if self._on is None:
            return None
        if self._stack.layers:
            masks = united_mask(self._of_characters(self._stack.average(size)), self._rule)
        elif self._first_mask is not None:
            pooled = F.adaptive_avg_pool2d(self._first_mask.float()[:, None], size)
            masks = pooled.flatten(1) > 0.5
        elif self._previous_maps is not None:
            masks = united_mask(resize(self._of_characters(self._previous_maps), size), self._rule)
        else:
            return None
        return masks[self._source_of_row] & self._on

    @torch.no_grad()
    def visible(self, layer: int, positions: int) -> Tensor | None:
        """What a self-attention layer shows to other frames: bool [R, N], or None where there is nothing.

        Args:
            layer: its place among the self-attention layers.
            positions: N.
        """
        foreground = self.mask(positions)
        if self.sharing is None or self._on is None:
            return foreground
        rows = len(self._source_of_row)
        if foreground is None:
            foreground = torch.zeros(rows, positions, dtype=torch.bool, device=self._on.device)
        if self.sharing.earlier_masks is not None and self._previous_maps is not None:
            size = layer_size(self.latent_size, positions)
            earlier = united_mask(resize(self._previous_maps, size), self._rule)[self._source_of_row]
            foreground = torch.where(self.sharing.earlier_masks, earlier, foreground)
        return self.sharing.visible(layer, foreground) & self._on

    @torch.no_grad()
    def regions(self, positions: int) -> Tensor | None:
        """Where each identity stream acts in a cross-attention layer: [R, C, N]; None where there is none."""
        if self.identity is None:
            return None
        size = layer_size(self.latent_size, positions)
        present = (self.token_mask if self._sources is None else self.token_mask[self._sources]).ne(0).any(dim=-1)
        if self._region_masks is not None:
            maps = F.adaptive_avg_pool2d(self._region_masks.float(), size)
        elif self._stack.layers:
            maps = self._stack.average(size)
        elif self._previous_maps is not None:
            maps = resize(self._previous_maps, size)
        else:
            maps = torch.zeros(*present.shape, *size, device=present.device)
        positions_of = (
            shares(maps.flatten(2), present)
            if self._part_of is None
            else part_shares(maps.flatten(2), present, self._part_of)
        )
        return stream_regions(positions_of[self._source_of_row], self.identity.owner)

    def _of_characters(self, maps: Tensor) -> Tensor:
        """[S, K, h, w] with 0 for parts: what shows of a character is said by the character's own map."""
        return maps if self._part_of is None else torch.where((self._part_of < 0)[..., None, None], maps, 0.0)

    def record_identity(self, maps: Tensor) -> None:
        """Takes how much attention each block of identity tokens gets in a cross-attention layer, [R, B, N]."""
        self.identity_maps.append(LayerMap(maps, layer_size(self.latent_size, maps.shape[-1])))


class StoryAttention(AttentionPass):
    """One UNet pass over R rows, said in groups and numbers.

    Args:
        layout: the groups of the R rows.
        latent_size: height and width of the latents.
        token_mask: [R, K, T], non-zero where a token belongs to a character.
        previous_maps: [S, K, h, w], see ``AttentionPass``.
        first_mask: [S, h, w], see ``AttentionPass``.
        cross_frame: False switches attention across frames off, for all groups or for each.
        mask_rows: for each row, the row whose maps give its masks; None: each row its own. The S rows that are named
            here, in ascending order, are the source rows.
        rule, identity, region_masks: see ``AttentionPass``.

    Raises:
        ValueError: something does not fit the layout.
    """

    def __init__(
        self,
        layout: GroupLayout,
        latent_size: Size,
        token_mask: Tensor,
        *,
        previous_maps: Tensor | None = None,
        first_mask: Tensor | None = None,
        cross_frame: bool | Sequence[bool] = True,
        mask_rows: Sequence[int] | None = None,
        rule: ForegroundRule | None = None,
        identity: IdentityStreams | None = None,
        region_masks: Tensor | None = None,
    ) -> None:
        switches = [cross_frame] * len(layout.frames) if isinstance(cross_frame, bool) else list(cross_frame)
        rows = list(range(layout.rows)) if mask_rows is None else list(mask_rows)
        if token_mask.shape[0] != layout.rows or len(rows) != layout.rows or len(switches) != len(layout.frames):
            raise ValueError(
                f"the layout has {layout.rows} rows in {len(layout.frames)} groups; got {token_mask.shape[0]} rows of "
                f"token_mask, {len(rows)} mask_rows and {len(switches)} switches"
            )
        sources = sorted(set(rows))
        if identity is not None and len(identity.ends) != layout.rows:
            raise ValueError(f"the layout has {layout.rows} rows; got identity streams of {len(identity.ends)}")
        per_source = {"previous_maps": previous_maps, "first_mask": first_mask, "region_masks": region_masks}
        for name, given in per_source.items():
            if given is not None and (given.shape[0], *given.shape[-2:]) != (len(sources), *latent_size):
                raise ValueError(f"{name} must have {len(sources)} rows of {latent_size}; got {list(given.shape)}")
        device = token_mask.device
        on = [switch for switch, frames in zip(switches, layout.frames, strict=True) for _ in range(frames)]
        super().__init__(
            layout,
            latent_size,
            token_mask,
            torch.tensor([sources.index(row) for row in rows], device=device),
            torch.tensor(on, device=device)[:, None] if any(on) else None,
            sources=None if len(sources) == layout.rows else torch.tensor(sources, device=device),
            previous_maps=previous_maps,
            first_mask=first_mask,
            rule=rule,
            identity=identity,
            region_masks=region_masks,
        )


_PLAIN: Any = AttnProcessor2_0()


class StorySelfAttention:
    """Self-attention that sees the foreground of the other frames of its story, or what its story method shows.

    Args:
        layer: its place among the UNet's self-attention layers.
    """

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        story: AttentionPass | None = None,
        text: TextKeysValues | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        mask = None if story is None else story.visible(self._layer, hidden_states.shape[1])
        if story is None or mask is None:
            plain: Tensor = _PLAIN(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        q, k, v = (_heads(attn, project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
        if story.sharing is None:
            return _output(attn, cross_frame_attention(q, k, v, mask, story.layout))
        q = story.sharing.queries(self._layer, q)
        seen = story.sharing.seen(cross_frame_attention(q, k, v, mask, story.layout), q, k, v)
        return story.sharing.outputs(self._layer, _output(attn, seen))


class StoryCrossAttention:
    """Text cross-attention, unchanged, that leaves the characters' maps behind; identity streams add what they say.

    Args:
        layer: its place among the UNet's cross-attention layers.
    """

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        story: AttentionPass | None = None,
        text: TextKeysValues | None = None,
        unseen: Tensor | None = None,
    ) -> Tensor:
        if encoder_hidden_states is None or (story is None and text is None):
            plain: Tensor = _PLAIN(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        q = _heads(attn, attn.to_q(hidden_states))
        projected = keys_values(attn, encoder_hidden_states) if text is None else text[self._layer]
        k, v = (_heads(attn, one) for one in projected)
        if story is None:
            seen = None if unseen is None else ~unseen[:, None, None]
            return _output(attn, F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
        if story.identity is not None:
            out, maps = self._with_identity(attn, q, k, v, story, story.identity, unseen)
        elif unseen is not None:
            out, maps = attend_partly(q, k, v, unseen, story.token_mask)
        else:
            out, maps = cross_attention_with_maps(q, k, v, story.token_mask)
        story.record(maps)
        return _output(attn, out)

    def _with_identity(
        self,
        attn: Attention,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        story: AttentionPass,
        identity: IdentityStreams,
        unseen: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        id_k, id_v = (_heads(attn, one) for one in identity.keys_values[self._layer])
        if identity.blocks is not None:
            story.record_identity(identity_maps(q, id_k, identity.ends, identity.blocks))
        streams = (id_k, id_v, identity.ends, identity.scale, story.regions(q.shape[2]))
        if unseen is None:
            return identity_cross_attention(q, k, v, *streams, story.token_mask)
        return attend_partly_with_identity(q, k, v, unseen, *streams, story.token_mask)


def install_story_attention(unet: Any) -> tuple[Place, ...]:
    """Puts the processors into a UNet2DConditionModel, once. Weights and plain calls stay what they were.

    Returns:
        Where its self-attention layers are, in the order of their processors.

    Raises:
        ValueError: the UNet has attention layers of a kind that AMSA is not defined for.
    """
    if unet.config.get("encoder_hid_dim_type") is not None:
        raise ValueError("the UNet projects its text once more; use a UNet in the form of Stable Diffusion's")
    layer, places = 0, list[Place]()
    for name, module in unet.named_modules():
        if not isinstance(module, Attention):
            continue
        extras = (module.group_norm, module.spatial_norm, module.norm_q, module.norm_k, module.norm_cross)
        if any(extra is not None for extra in extras) or module.residual_connection or module.added_kv_proj_dim:
            raise ValueError(
                f"{name} is not a plain transformer attention; use a UNet in the form of Stable Diffusion's"
            )
        crosses = module.is_cross_attention
        processor: Any = StoryCrossAttention(layer) if crosses else StorySelfAttention(len(places))
        module.set_processor(processor)
        layer += crosses
        if not crosses:
            places.append(cast(Place, name.split("_")[0]))
    return tuple(places)


def text_keys_values(unet: Any, text: Tensor) -> TextKeysValues:
    """What every cross-attention layer makes of a text [R, T, D]; it is the same at every step.

    Args:
        unet: with ``install_story_attention``.
        text: embeddings.
    """
    layers = (module for module in unet.modules() if isinstance(module, Attention) and module.is_cross_attention)
    return tuple(keys_values(layer, text) for layer in layers)


def keys_values(attn: Attention, text: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer, [R, T, C] each."""
    return attn.to_k(text), attn.to_v(text)


def _heads(attn: Attention, projected: Tensor) -> Tensor:
    """[R, N, H * d] -> [R, H, N, d]."""
    rows, positions, _ = projected.shape
    return projected.view(rows, positions, attn.heads, -1).transpose(1, 2)


def _output(attn: Attention, attended: Tensor) -> Tensor:
    """[R, H, N, d] -> [R, N, C], through the layer's output projection and dropout."""
    out: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
    return torch.div(out, attn.rescale_output_factor)
