"""What identity training starts from: a model package, the rendered set, and features of the people in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from storyloom_model.adapters import load_adapter, with_adapter
from storyloom_model.attention import install_story_attention
from storyloom_model.components import Components, load_components
from storyloom_model.package import ModelPackage
from storyloom_training.base import TextToImage
from storyloom_training.config import AdapterRecipe, Recipe
from storyloom_training.identity.adapters.batches import BatchSource
from storyloom_training.identity.adapters.crops import people_crops
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.identity.adapters.face_loss import FaceLoss
from storyloom_training.identity.adapters.features import ARRAYS, people_features
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.identity.recognition import OnnxRecogniser
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split
from storyloom_training.vae import encode_pictures

VALIDATION_GROUPS = 48


@dataclass(frozen=True)
class Workshop:
    """One recipe in one folder, on top of a package whose default ID-Synchronizer is fused in.

    `features` are the arrays that the method reads. `rendered` holds `data/` and `latents.pt` of the package's own
    training; what is missing is made. `folder` gets features, the held-out set and the trainings.
    """

    recipe: Recipe
    package: ModelPackage
    rendered: Path
    folder: Path
    encoder: PackageEncoder
    features: Sequence[str] = ARRAYS

    @cached_property
    def components(self) -> Components:
        return load_components(self.package)

    @cached_property
    def vae(self) -> AutoencoderKL:
        vae: AutoencoderKL = self.components.vae
        return vae

    @cached_property
    def scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @cached_property
    def model(self) -> TextToImage:
        unet, adapter = self.components.unet, self.package.manifest.defaults.adapter
        if adapter is not None:
            weights = load_adapter(self.package.folder / self.package.manifest.adapters[adapter])
            unet = with_adapter(unet, weights, adapter)
        unet = unet.to(memory_format=torch.channels_last)
        install_story_attention(unet)
        return TextToImage(unet, self.components.text_encoder).requires_grad_(False).eval()

    def bench(self, plan: AdapterRecipe) -> Bench:
        """To train on."""
        data = self._data(self.rendered / "data", Split.TRAIN, self.recipe.data.groups)
        bench = self._bench(plan, data, self.rendered / "latents.pt", plan.feature_groups)
        return bench if plan.face_loss == 0 else replace(bench, face_loss=self._face_loss(bench))

    def _face_loss(self, bench: Bench) -> FaceLoss:
        return FaceLoss(
            vae=self.vae.requires_grad_(False),
            scale=self.scale,
            recognise=OnnxRecogniser(self.encoder.recogniser),
            data=bench.source.data,
            features=bench.source.features,
            rows=bench.plan.face_loss_rows,
            below=bench.plan.face_loss_below,
        )

    def held_out(self, plan: AdapterRecipe) -> Bench:
        """To validate on: people who never occur in training."""
        place = self.folder / "validation"
        groups = min(VALIDATION_GROUPS, 2 * plan.feature_groups)
        data = self._data(place / "data", Split.VALIDATION, groups)
        return self._bench(plan, data, place / "latents.pt", groups)

    def _data(self, folder: Path, split: Split, groups: int) -> StoryDB:
        plan = self.recipe.data
        data = StoryDB(folder, split, groups, plan.frames, plan.size, plan.mask_size)
        data.prepare()
        return data

    def _bench(self, plan: AdapterRecipe, data: StoryDB, latents: Path, groups: int) -> Bench:
        if not latents.exists():
            values = (encode_pictures(self.vae, data.pictures) * self.scale).half()
            torch.save({"values": values, "scale": self.scale}, latents)
        crops = people_crops(self.folder / "crops" / data.split.value, data, min(groups, data.groups))
        known = people_features(self.folder / "features" / data.split.value, crops, self.encoder, self.features)
        values = torch.load(latents, weights_only=True, mmap=True)["values"]
        tokenizer = self.components.tokenizer
        return Bench(self.recipe, plan, self.model, tokenizer, BatchSource(data, known, plan), values)
