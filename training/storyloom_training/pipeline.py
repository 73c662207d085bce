"""The stages in order, each resumable and each skipped when its result is on disk.

A run folder holds: data/, vae/, tokenizer/, latents.pt, text/, base/, synchronizer/<adapter>/, decoder/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import track
from torch import Tensor
from transformers import CLIPTokenizer

from storyloom_model.adapters import load_adapter
from storyloom_model.components import Components, load_components
from storyloom_model.package import ModelPackage
from storyloom_training.base import TextToImage, build_model, carry_over, same_build, train_base
from storyloom_training.config import Recipe
from storyloom_training.device import choose_device
from storyloom_training.prompts import Captioner
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.synchronizer import train_synchronizer
from storyloom_training.text import train_caption_reader
from storyloom_training.tokenizer import corpus, train_tokenizer
from storyloom_training.vae import encode_pictures, latent_statistics, train_decoder, train_vae


@dataclass(frozen=True)
class Latents:
    """`values` float16 [pictures, c, h, w], multiplied by `scale`."""

    values: Tensor
    scale: float


@dataclass(frozen=True)
class Pipeline:
    """One recipe in one folder. Reading a property runs the stages it needs.

    With `start`, a model package, the text-to-image stage goes on from its weights, and its autoencoder and tokenizer
    are kept; only the optimizer's state is new. Its synchronizers are trained on likewise, and its encoders of
    references are taken over; its identity adapters are not, for they were made for the UNet as it was.

    Where the recipe's UNet is built otherwise, it takes over what fits (`base.carry_over`), the text encoder is trained
    anew, and the autoencoder trains on, since nothing depends on its latents yet.
    """

    recipe: Recipe
    folder: Path
    start: ModelPackage | None = None
    device: torch.device = field(default_factory=choose_device)

    @cached_property
    def data(self) -> StoryDB:
        plan = self.recipe.data
        data = StoryDB(self.folder / "data", Split.TRAIN, plan.groups, plan.frames, plan.size, plan.mask_size)
        data.prepare()
        return data

    @cached_property
    def vae(self) -> AutoencoderKL:
        if self._keeps_latents:
            return self._published.vae
        start = self._published.vae if self.start is not None else None
        return train_vae(self.recipe, self.data, self.folder / "vae", self.device, start)

    @cached_property
    def _keeps_latents(self) -> bool:
        """Whether the start package's UNet is the one that trains on."""
        if self.start is None:
            return False
        return same_build(build_model(self.recipe, self.tokenizer).unet, self._published.unet)

    @cached_property
    def _published(self) -> Components:
        if self.start is None:
            raise ValueError("this pipeline starts from nothing")
        components = load_components(self.start, str(self.device))
        for module in (components.unet, components.text_encoder, components.vae):
            module.train().requires_grad_(True)
        return components

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        if self.start is not None:
            return self._published.tokenizer
        folder = self.folder / "tokenizer"
        if not (folder / "tokenizer_config.json").exists():
            base = self.recipe.base
            train_tokenizer(
                corpus(min(3000, 50 * self.recipe.data.groups)), base.vocabulary, base.tokens
            ).save_pretrained(folder)
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
        return tokenizer

    @cached_property
    def latents(self) -> Latents:
        path = self.folder / "latents.pt"
        if not path.exists():
            kept = self._keeps_latents
            scale = self.vae.config.scaling_factor if kept else latent_statistics(self.vae, self.data)
            parts = []
            for start in track(range(0, len(self.data.pictures), 256), "encoding"):
                chunk: np.ndarray = self.data.pictures[start : start + 256]
                parts.append((encode_pictures(self.vae, chunk) * scale).half())
            torch.save({"values": torch.cat(parts), "scale": scale}, path)
        stored = torch.load(path, weights_only=True)
        return Latents(stored["values"], stored["scale"])

    @cached_property
    def base(self) -> TextToImage:
        if self._keeps_latents:
            model = TextToImage(self._published.unet, self._published.text_encoder)
        else:
            torch.manual_seed(self.recipe.seed)
            model = build_model(self.recipe, self.tokenizer).to(self.device)
            train_caption_reader(
                self.recipe, Captioner(self.data), self.folder / "text", model.text_encoder, self.tokenizer
            )
            if self.start is not None:
                carry_over(model.unet, self._published.unet)
        return train_base(
            self.recipe, self.data, self.folder / "base", model, self.tokenizer, self.vae, self.latents.values,
            self.latents.scale, self._keeps_latents,
        )  # fmt: skip

    @cached_property
    def final_vae(self) -> AutoencoderKL:
        """The autoencoder with its decoder trained on."""
        return train_decoder(self.recipe, self.data, self.folder / "decoder", self.vae)

    def synchronizer(self, adapter: str) -> dict[str, Tensor]:
        """Weights of one ID-Synchronizer: "amsa-mask" with the Mask Perceptual Loss, "amsa" without."""
        weight = {"amsa": 0.0, "amsa-mask": self.recipe.synchronizer.mask_loss}[adapter]
        return train_synchronizer(
            self.recipe, self.data, self.folder / "synchronizer" / adapter, self.tokenizer, self.base,
            self.latents.values, weight, self._synchronizer_start(adapter),
        )  # fmt: skip

    def _synchronizer_start(self, adapter: str) -> dict[str, Tensor] | None:
        """What the start package's synchronizer adds to its own UNet; None where there is none that fits."""
        if self.start is None or not self._keeps_latents or adapter not in self.start.manifest.adapters:
            return None
        weights = load_adapter(self.start.adapter_file(adapter))
        # Read anew: the modules at hand have been trained on.
        before = load_components(self.start, str(self.device)).unet.state_dict()
        return {name: weight.to(before[name]) - before[name] for name, weight in weights.items()}
