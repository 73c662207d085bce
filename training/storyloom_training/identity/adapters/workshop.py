"""What identity training starts from: a model package, the rendered set, and features of the people in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from diffusers import AutoencoderKL

from storyloom_model.components import Components, load_components
from storyloom_model.package import ModelPackage
from storyloom_training.base import TextToImage
from storyloom_training.config import AdapterRecipe, Recipe
from storyloom_training.controlnet.control import PoseControl
from storyloom_training.frozen import frozen_model, latents_of, rendered_set
from storyloom_training.identity.adapters.batches import BatchSource
from storyloom_training.identity.adapters.crops import people_crops
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.identity.adapters.face_loss import FaceLoss
from storyloom_training.identity.adapters.faces import people_faces
from storyloom_training.identity.adapters.features import ARRAYS, PORTRAIT, people_features
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.identity.recognition import OnnxRecogniser
from storyloom_training.storydb.dataset import StoryDB
from storyloom_training.storydb.groups import Split

VALIDATION_GROUPS = 48


@dataclass(frozen=True)
class Workshop:
    """One recipe in one folder, on top of a package whose default ID-Synchronizer is fused in.

    `features` are the arrays that the method reads. `rendered` holds `data/` and `latents.pt` of the package's own
    training; what is missing is made. `folder` gets features, the held-out set and the trainings. `controlnet` is the
    folder of a pose ControlNet, which shows the model how the people of each picture stand.
    """

    recipe: Recipe
    package: ModelPackage
    rendered: Path
    folder: Path
    encoder: PackageEncoder
    features: Sequence[str] = ARRAYS
    controlnet: Path | None = None

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
        return frozen_model(self.package, self.components)

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
        return rendered_set(folder, split, self.recipe.data, groups)

    def _bench(self, plan: AdapterRecipe, data: StoryDB, latents: Path, groups: int) -> Bench:
        values = latents_of(latents, data, self.vae)
        crops = people_crops(self.folder / "crops" / data.split.value, data, min(groups, data.groups))
        place = self.folder / "features" / data.split.value
        known = people_features(place, crops, self.encoder, [name for name in self.features if name in ARRAYS])
        faces = people_faces(self.folder / "faces" / f"{data.split.value}.npy", data, known.groups)
        if PORTRAIT in self.features:
            faces.portraits(place / f"{PORTRAIT}.npy", known.table, self.encoder.size)
        tokenizer, source = self.components.tokenizer, BatchSource(data, known, plan)
        return Bench(
            self.recipe, plan, self.model, tokenizer, source, values, poses=self._poses(data), faces=faces,
            image_encoder=self.encoder.image,
        )  # fmt: skip

    def _poses(self, data: StoryDB) -> PoseControl | None:
        if self.controlnet is None:
            return None
        return PoseControl.load(self.controlnet, self.folder / "keypoints" / f"{data.split.value}.npy", data)
