"""What is exported of a model package: for each component a module of plain tensors, example inputs and free sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim

from storyloom_export.story import GraphStory, levels_of, prepare_group_norms, prepare_unet
from storyloom_export.streams import example_streams, free_sizes, streams_of
from storyloom_model.maps import ForegroundRule

FreeSizes: TypeAlias = Mapping[str, dict[int, Any]]
"""Input name -> axis -> the size that is free there. Axes of one size share a ``Dim``."""

# diffusers' upsampling treats 64 rows and more apart, by an order in memory that ONNX does not know: the graph that is
# traced below that takes any number.
_MOST_ROWS = 63
_MOST_LATENT = 1024


@dataclass(frozen=True)
class Exportable:
    """A component, ready for ``torch.export``: ``inputs`` are examples by name, whose every free size is above 1."""

    module: nn.Module
    inputs: dict[str, Tensor]
    free: FreeSizes
    outputs: tuple[str, ...]
    prefix: str = ""
    """What the module puts before the names of the component's parameters."""
    notes: dict[str, str] = field(default_factory=dict)


class _UNet(nn.Module):
    def __init__(self, unet: Any, rule: ForegroundRule) -> None:
        super().__init__()
        self.unet = unet
        self._rule = rule

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        text: Tensor,
        token_mask: Tensor,
        bounds: Tensor,
        sources: Tensor,
        source_of_row: Tensor,
        crosses_frames: Tensor,
        previous_maps: Tensor,
        pooled_text: Tensor | None = None,
        time_ids: Tensor | None = None,
        **identity: Tensor,
    ) -> tuple[Tensor, Tensor]:
        streams = streams_of(identity) if identity else None
        story = GraphStory(
            token_mask, bounds, sources, source_of_row, crosses_frames, previous_maps, self._rule, streams
        )  # fmt: skip
        prediction: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=text,
            cross_attention_kwargs={"story": story},
            # In float32, as the embedded times are that it is concatenated with.
            added_cond_kwargs=None
            if pooled_text is None
            else {"text_embeds": pooled_text.float(), "time_ids": time_ids},
            return_dict=False,
        )[0]
        return prediction, story.average(0)


def unet(model: Any, rule: ForegroundRule, tokens: int = 77, *, identities: bool = False) -> Exportable:
    """A UNet2DConditionModel with story attention. Changes ``model``, which no longer runs in torch.

    Args:
        model: the UNet.
        rule: how maps become masks.
        tokens: of a text.
        identities: whether the graph takes identity streams.

    Raises:
        ValueError: the UNet has a part that this export does not know.
    """
    widths = prepare_unet(model)
    multiple = 2 ** (levels_of(model) - 1)
    dtype, device = model.dtype, model.device
    rows, sources, cast, height, width = 5, 3, 2, 3 * multiple, 2 * multiple
    inputs = {
        "sample": torch.randn(rows, model.config.in_channels, height, width, dtype=dtype, device=device),
        "timestep": torch.rand(rows, device=device),
        "text": torch.randn(rows, tokens, model.config.cross_attention_dim, dtype=dtype, device=device),
        "token_mask": torch.zeros(rows, cast, tokens, dtype=torch.bool, device=device),
        "bounds": torch.tensor([[0, 2], [0, 2], [2, 5], [2, 5], [2, 5]], dtype=torch.int32, device=device),
        "sources": torch.tensor([0, 1, 3], device=device),
        "source_of_row": torch.tensor([0, 1, 2, 2, 2], device=device),
        "crosses_frames": torch.ones(rows, dtype=torch.bool, device=device),
        "previous_maps": torch.rand(sources, cast, height, width, device=device),
    }
    row, source, character = Dim("rows", max=_MOST_ROWS), Dim("sources", max=_MOST_ROWS), Dim("characters", max=256)
    token = Dim("tokens", min=2, max=4096)
    spatial = {axis: _multiple(name, multiple) for axis, name in ((2, "latent_height"), (3, "latent_width"))}
    free: dict[str, dict[int, Any]] = {
        "sample": {0: row, **spatial},
        "timestep": {0: row},
        "text": {0: row, 1: token},
        "token_mask": {0: row, 1: character, 2: token},
        "bounds": {0: row},
        "sources": {0: source},
        "source_of_row": {0: row},
        "crosses_frames": {0: row},
        "previous_maps": {0: source, 1: character, **spatial},
    }
    kind = model.config.addition_embed_type
    if kind == "text_time":  # Stable Diffusion XL
        ids = 6
        pooled = model.config.projection_class_embeddings_input_dim - ids * model.config.addition_time_embed_dim
        inputs["pooled_text"] = torch.randn(rows, pooled, dtype=dtype, device=device)
        inputs["time_ids"] = torch.rand(rows, ids, device=device)
        free |= {"pooled_text": {0: row}, "time_ids": {0: row}}
    elif kind not in (None, "text"):
        raise ValueError(f"a UNet with addition_embed_type {kind} cannot be exported; use text, text_time or none")
    if identities:
        streams = example_streams(widths, rows, inputs["sample"])
        inputs |= streams
        free |= free_sizes(streams, row)
    return Exportable(_UNet(model, rule), inputs, free, ("prediction", "maps"), "unet.")


class _TextEncoder(nn.Module):
    def __init__(self, model: Any, penultimate: bool, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self._penultimate = penultimate
        self._pooled = pooled

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        found = self.model(ids, output_hidden_states=self._penultimate)
        hidden = found.hidden_states[-2] if self._penultimate else found.last_hidden_state
        return (hidden, found.text_embeds) if self._pooled else (hidden,)


def text_encoder(model: Any, *, penultimate: bool = False) -> Exportable:
    """A CLIPTextModel: token ids -> the last hidden states, or those before them, as in the form of SDXL."""
    return _text_encoder(_TextEncoder(model, penultimate, pooled=False), model, ("hidden",))


def second_text_encoder(model: Any) -> Exportable:
    """A CLIPTextModelWithProjection of the form of SDXL: token ids -> the hidden states before the last, and what it
    makes of the text as a whole.
    """
    return _text_encoder(_TextEncoder(model, penultimate=True, pooled=True), model, ("hidden", "pooled"))


def _text_encoder(module: nn.Module, model: Any, outputs: tuple[str, ...]) -> Exportable:
    draw = torch.Generator().manual_seed(0)
    shape = (3, model.config.max_position_embeddings)
    ids = torch.randint(model.config.vocab_size, shape, generator=draw).to(model.device)
    return Exportable(module, {"ids": ids}, {"ids": {0: Dim("texts", max=_MOST_ROWS)}}, outputs, "model.")


class _VaeDecoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        picture: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return picture


class _VaeEncoder(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        distribution = self.vae.encode(picture, return_dict=False)[0]
        return distribution.mean, distribution.logvar


def vae_decoder(model: Any) -> Exportable:
    """An AutoencoderKL's decoder: raw latents -> pictures from -1 to 1."""
    prepare_group_norms(model)
    latents = torch.randn(2, model.config.latent_channels, 6, 4, dtype=model.dtype, device=model.device)
    free = {"latents": _picture_sizes("latent_", 1)}
    return Exportable(_VaeDecoder(model), {"latents": latents}, free, ("picture",), "vae.")


def vae_encoder(model: Any) -> Exportable:
    """An AutoencoderKL's encoder: pictures from -1 to 1 -> mean and logarithm of the variance of the raw latents."""
    prepare_group_norms(model)
    factor = 2 ** (len(model.config.block_out_channels) - 1)
    picture = torch.randn(
        2, model.config.in_channels, 3 * factor, 2 * factor, dtype=model.dtype, device=model.device
    )  # fmt: skip
    return Exportable(
        _VaeEncoder(model), {"picture": picture}, {"picture": _picture_sizes("", factor)}, ("mean", "logvar"), "vae."
    )


class _ImageEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(pixel_values=pixels, output_hidden_states=True)
        return found.image_embeds, found.hidden_states[-2]


def image_encoder(model: Any) -> Exportable:
    """A CLIPVisionModelWithProjection: prepared pictures -> the embedding, and the hidden states before the last."""
    side = model.config.image_size
    pixels = torch.randn(2, model.config.num_channels, side, side, dtype=model.dtype, device=model.device)
    free = {"pixels": {0: Dim("pictures", max=_MOST_ROWS)}}
    return Exportable(_ImageEncoder(model), {"pixels": pixels}, free, ("embedding", "hidden"), "model.")


def _picture_sizes(prefix: str, multiple: int) -> dict[int, Any]:
    names = ((2, f"{prefix}height"), (3, f"{prefix}width"))
    return {0: Dim("pictures", max=_MOST_ROWS), **{axis: _multiple(name, multiple) for axis, name in names}}


def _multiple(name: str, factor: int) -> Any:
    """A size that is a multiple of ``factor``."""
    return Dim(name, max=_MOST_LATENT) if factor == 1 else factor * Dim(f"{name}_by_{factor}", max=_MOST_LATENT)
