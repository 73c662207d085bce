"""PhotoMaker's first version in training: persons fused into the text at their class words, and low-rank changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from storyloom_model.encoder import TextEncoder
from storyloom_model.identity.adapter import LowRank, NoStreams
from storyloom_model.identity.class_words import WordedPrompt, worded
from storyloom_model.identity.encoders.image import load_image_network
from storyloom_model.identity.encoders.open_clip import CLIP_MEAN, CLIP_STD
from storyloom_model.identity.published.photomaker import FuseModule, PhotoMakerWords
from storyloom_model.identity.wording import mentions_of, repeated, with_persons
from storyloom_model.prompts import ComposedPrompt
from storyloom_training.base import TextToImage
from storyloom_training.config import PhotoMakerRecipe
from storyloom_training.device import mixed_precision
from storyloom_training.identity.adapters.batches import IdentityBatch, References
from storyloom_training.identity.adapters.features import PORTRAIT, PeopleFeatures
from storyloom_training.identity.adapters.low_rank import LowRankChanges
from storyloom_training.identity.adapters.references import NOBODY
from storyloom_training.identity.adapters.said import Said, said_plainly
from storyloom_training.identity.adapters.trainee import Trainee

_EMBEDDINGS = "vision_model.embeddings."


def first_words(image_encoder: Path, width: int) -> PhotoMakerWords:
    """What trains: an image encoder that begins as the package's, and all else anew.

    The form has heads of 64 channels and pictures as CLIP takes them, whatever the package's encoder has. Heads that
    are joined have to learn anew what they look at; how pictures are taken is brought into the weights.

    Args:
        image_encoder: folder of the package's.
        width: of the text.
    """
    network, mean, std = load_image_network(image_encoder)
    weights: dict[str, Tensor] = {
        name: value.float() for name, value in network.state_dict().items() if name.startswith("vision_model.")
    }
    clip_mean, clip_std, own_mean, own_std = (torch.tensor(one) for one in (CLIP_MEAN, CLIP_STD, mean, std))
    patches = weights[f"{_EMBEDDINGS}patch_embedding.weight"]
    constant = (patches * ((clip_mean - own_mean) / own_std).view(1, 3, 1, 1)).sum((1, 2, 3))
    positions = weights[f"{_EMBEDDINGS}position_embedding.weight"].clone()
    positions[1:] += constant
    weights[f"{_EMBEDDINGS}position_embedding.weight"] = positions
    weights[f"{_EMBEDDINGS}patch_embedding.weight"] = patches * (clip_std / own_std).view(1, 3, 1, 1)
    states = patches.shape[0]
    weights["visual_projection.weight"] = torch.randn(width // 2, states) / states**0.5
    weights["visual_projection_2.weight"] = torch.randn(width - width // 2, states) / states**0.5
    weights |= {f"fuse_module.{name}": value for name, value in FuseModule(width).state_dict().items()}
    words = PhotoMakerWords(weights)
    words.load_state_dict(weights)
    return words


class PhotoMakerTrainee(Trainee):
    """Embeddings of several references of a person stand side by side in the text."""

    def __init__(self, words: PhotoMakerWords, plan: PhotoMakerRecipe, unet: Any) -> None:
        super().__init__(NoStreams(), unet)
        self.layers = nn.ModuleList()
        self.words = words
        self.changes = LowRankChanges(unet, plan.rank)

    @property
    def low_rank(self) -> dict[str, LowRank]:
        return self.changes.by_parameter()

    def embeddings_of(self, features: PeopleFeatures, entries: Tensor) -> Tensor:
        """Entries int64 [n] -> embeddings [n, width]."""
        pixels = self.words.pixels(features.take(PORTRAIT, entries))
        return self.words.embeddings(pixels, features.take("face", entries))[:, 0]

    def said(
        self,
        model: TextToImage,
        tokenizer: CLIPTokenizer,
        batch: IdentityBatch,
        features: PeopleFeatures,
        references: References,
    ) -> Said:
        encoder = TextEncoder(tokenizer, model.text_encoder)
        prompts = [_prompt(batch, row) for row in range(len(batch.pictures))]
        composed = [one.prompt for one in prompts]
        lengths = encoder.lengths([one.text for one in composed])
        plain = said_plainly(model, tokenizer, batch)
        length = plain.text.shape[1]
        entries = {
            _name(row, place): found[found != NOBODY]
            for row, people in enumerate(references.entries)
            for place, found in enumerate(people)
            if not references.zeroed[row] and (found != NOBODY).any()
        }
        mentions = [_read(mentions_of(one, entries, encoder), length) for one in prompts]
        named = [name for found in mentions for name in found.values()]
        if not named:
            return plain
        for found, used in zip(mentions, lengths, strict=True):
            room = (length - used) // max(len(found), 1)
            entries |= {name: entries[name][: 1 + room] for name in found.values()}
        persons = self._persons(features, {name: entries[name] for name in named})
        order = [
            repeated({token: len(persons[name]) for token, name in found.items()}, used, length)
            for found, used in zip(mentions, lengths, strict=True)
        ]
        source = torch.tensor(order)
        with mixed_precision(model.text_encoder.device):
            text = with_persons(
                composed, mentions, source, encoder, lambda name, words: self._fused(words, persons[name])
            )
        return Said(text.hidden, plain.masks.gather(2, source[:, None].expand_as(plain.masks)))

    def _fused(self, words: Tensor, person: Tensor) -> Tensor:
        return self.words.fuse(words, person).to(words.dtype)

    def _persons(self, features: PeopleFeatures, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The embeddings of each person's references; the same entry is looked at once."""
        every, inverse = torch.unique(torch.cat(list(entries.values())), return_inverse=True)
        with mixed_precision(every.device):
            made = self.embeddings_of(features, every).float()
        parts = inverse.split([len(one) for one in entries.values()])
        return {name: made[part] for name, part in zip(entries, parts, strict=True)}


def _name(row: int, place: int) -> str:
    return f"{row}.{place}"


def _prompt(batch: IdentityBatch, row: int) -> WordedPrompt:
    caption = batch.captions[row]
    if caption is None:
        return worded(ComposedPrompt("", {}))
    return worded(
        ComposedPrompt(caption.text, {_name(row, place): (span,) for place, span in enumerate(caption.spans)})
    )


def _read(mentions: Mapping[int, str], length: int) -> dict[int, str]:
    """Those that the text encoder reads."""
    return {token: name for token, name in mentions.items() if token < length - 1}
