"""PhotoMaker's two versions (Li et al. 2024): stacked embeddings of a person, fused with the class word.

Parameter names are those of the published files. They hold an image encoder of their own, a fine-tuned CLIP ViT-L/14,
so that they are given pixels, the portraits of references, and not what the package's image encoder says of these.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from storyloom_model.identity.adapter import CharacterIdentity, IdentityAdapter, NoStreams, WordMaker
from storyloom_model.identity.encoders.open_clip import CLIP_MEAN, CLIP_STD
from storyloom_model.identity.features import FeaturesError, IdentityFeatures
from storyloom_model.identity.perceiver import Perceiver, PerceiverSizes
from storyloom_model.identity.published.instantid import FACE_LENGTH
from storyloom_model.identity.published.layers import attention_layers, base_name, context_width
from storyloom_model.identity.published.lora import UNET, read_lora
from storyloom_model.identity.published.parts import loaded, split
from storyloom_model.package import PackageError

START = 0.2
"""The part of the steps that reads plain text: 10 of 50 with the authors."""
_HEAD_WIDTH, _QFORMER_HEAD_WIDTH = 64, 128
_QFORMER = "qformer_perceiver."
_POSITIONS = "vision_model.embeddings.position_ids"
"""Not a weight; older versions of transformers kept it in files."""


class Mlp(nn.Module):
    """A layer norm and two linear layers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, outputs)
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] -> [n, outputs]."""
        made: Tensor = self.fc2(F.gelu(self.fc1(self.layernorm(x))))
        return made


class FuseModule(nn.Module):
    """A word and an embedding of a person become one token of the text."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp1 = Mlp(2 * width, width)
        self.mlp2 = Mlp(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, words: Tensor, identities: Tensor) -> Tensor:
        """[n, width] twice -> [n, width]."""
        both = words + self.mlp1(torch.cat([words, identities], dim=-1))
        fused: Tensor = self.layer_norm(both + self.mlp2(both))
        return fused


class QFormer(nn.Module):
    """Tokens of a face's embedding ask the states of its picture."""

    def __init__(self, face: int, hidden: int, tokens: int, sizes: PerceiverSizes) -> None:
        super().__init__()
        self._tokens = tokens
        self.token_proj = nn.Sequential(nn.Linear(face, hidden), nn.GELU(), nn.Linear(hidden, tokens * sizes.width))
        self.token_norm = nn.LayerNorm(sizes.width)
        self.perceiver_resampler = Perceiver(sizes)

    def forward(self, face: Tensor, states: Tensor) -> Tensor:
        """Embeddings [B, face] and states [B, S, inputs] -> [B, tokens, width]."""
        coarse = self.token_norm(self.token_proj(face).unflatten(-1, (self._tokens, -1)))
        asked: Tensor = coarse + self.perceiver_resampler(coarse, states)
        return asked


class PhotoMakerWords(WordMaker):
    """The first version: an embedding of each reference, from its portrait. With a blend the references of each person
    are averaged before they are mixed.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        clip = CLIPVisionModelWithProjection(_clip_config(weights))
        self.vision_model = clip.vision_model
        self.visual_projection = clip.visual_projection
        width, states = weights["visual_projection_2.weight"].shape
        self.visual_projection_2 = nn.Linear(states, width, bias=False)
        self.fuse_module = FuseModule(len(weights["fuse_module.layer_norm.weight"]))
        self._side: int = clip.config.image_size

    def identities(self, name: str, character: CharacterIdentity) -> Tensor:
        """See ``WordMaker``."""
        own = self._of(name, character.features)
        if character.blend is None:
            return own.flatten(0, 1)
        return torch.lerp(own.mean(0), self._of(name, character.blend).mean(0), character.blend_weight)

    def fuse(self, words: Tensor, identities: Tensor) -> Tensor:
        """See ``WordMaker``."""
        fused: Tensor = self.fuse_module(words, identities)
        return fused

    def embeddings(self, pixels: Tensor, faces: Tensor) -> Tensor:
        """Of B references: pixels [B, 3, side, side] as CLIP takes them and the recogniser's embeddings [B, 512] ->
        [B, tokens, D].
        """
        pooled = self.vision_model(pixels).pooler_output
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], dim=-1)[:, None]

    @property
    def tokens_width(self) -> int:
        """Channels of an embedding of a person."""
        return int(self.visual_projection.out_features + self.visual_projection_2.out_features)

    def _of(self, name: str, features: IdentityFeatures) -> Tensor:
        shown = [
            (reference.portrait, reference.face)
            for reference in features.references
            if reference.portrait is not None and reference.face is not None
        ]
        if not shown:
            raise FeaturesError(
                f"no reference of {name} has a portrait, which this adapter needs; add one that shows the face, or "
                "encode again those that were encoded before the package had this adapter"
            )
        like = self.visual_projection.weight
        portraits, faces = (torch.from_numpy(np.stack(column)).to(like.device) for column in zip(*shown, strict=True))
        return self.embeddings(self.pixels(portraits).to(like.dtype), faces.to(like.dtype))

    def pixels(self, portraits: Tensor) -> Tensor:
        """[B, side, side, 3] from 0 to 255 -> float32 [B, 3, side, side] at the encoder's size, as CLIP takes them."""
        pixels = portraits.permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != self._side:
            pixels = F.interpolate(pixels, size=(self._side, self._side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(one, device=pixels.device).view(1, 3, 1, 1) for one in (CLIP_MEAN, CLIP_STD))
        return (pixels - mean) / std


class PhotoMakerV2Words(PhotoMakerWords):
    """The second version: two embeddings of each reference, from its face and the states of its portrait."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__(weights)
        hidden, face = weights[f"{_QFORMER}token_proj.0.weight"].shape
        sizes = PerceiverSizes.of(weights, f"{_QFORMER}perceiver_resampler.", _QFORMER_HEAD_WIDTH)
        tokens = len(weights[f"{_QFORMER}token_proj.2.weight"]) // sizes.width
        self.qformer_perceiver = QFormer(face, hidden, tokens, sizes)

    def embeddings(self, pixels: Tensor, faces: Tensor) -> Tensor:
        """See ``PhotoMakerWords``."""
        states = self.vision_model(pixels).last_hidden_state
        made: Tensor = self.qformer_perceiver(FACE_LENGTH * faces, states)
        return made


METHODS: dict[str, type[PhotoMakerWords]] = {"photomaker": PhotoMakerWords, "photomaker-v2": PhotoMakerV2Words}


def read_photomaker(method: str, name: str, weights: Mapping[str, Tensor], unet: nn.Module) -> IdentityAdapter:
    """Makes an adapter of the weights of a file.

    Args:
        method: of ``METHODS``; the file must have its form.
        name: of the adapter.
        weights: with names that begin with "id_encoder." and "lora_weights.".
        unet: that it is for.

    Raises:
        PackageError: the file is for another base model, or its weights are not PhotoMaker's.
    """
    encoder, low_rank = split(name, weights, "id_encoder.", "lora_weights.")
    encoder.pop(_POSITIONS, None)
    words = loaded(name, METHODS[method], encoder)
    embeddings = words.vision_model.embeddings
    # Not a weight, so that it is still without data.
    embeddings.position_ids = torch.arange(embeddings.num_positions).unsqueeze(0)
    width, expected = len(words.fuse_module.layer_norm.weight), context_width(attention_layers(unet))
    if width != expected:
        raise PackageError(
            f"adapter {name} is for {base_name(width)}, the package is {base_name(expected)}: take the file for it"
        )
    stacked = words.tokens_width
    if stacked != width:
        raise PackageError(
            f"adapter {name} makes embeddings of width {stacked} for a text of {width}; its file is damaged"
        )
    changes = read_lora(name, low_rank, {UNET: unet})[UNET]
    return IdentityAdapter(name, NoStreams(), (), low_rank=changes, words=words, words_start=START)


def _clip_config(weights: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """What the weights tell, and that heads have 64 channels."""
    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    positions = len(weights["vision_model.embeddings.position_embedding.weight"])
    layers = 0
    while f"vision_model.encoder.layers.{layers}.mlp.fc1.weight" in weights:
        layers += 1
    if not layers:
        raise KeyError("vision_model.encoder.layers.0.mlp.fc1.weight")
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=layers,
        num_attention_heads=max(width // _HEAD_WIDTH, 1),
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        projection_dim=len(weights["visual_projection.weight"]),
        hidden_act="quick_gelu",
    )
