"""The adapters that can be trained, by the name of their file."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from storyloom_training.config import (
    AdapterRecipe,
    InjectorRecipe,
    InstantIdRecipe,
    IpAdapterRecipe,
    PhotoMakerRecipe,
    Recipe,
    StoryMakerRecipe,
)
from storyloom_training.identity.adapters.export import save_adapter, save_photomaker, save_published
from storyloom_training.identity.adapters.features import PORTRAIT
from storyloom_training.identity.adapters.injector import InjectorTrainee, injector_sizes
from storyloom_training.identity.adapters.instantid import READS as FACE
from storyloom_training.identity.adapters.instantid import InstantIdTrainee
from storyloom_training.identity.adapters.ip_adapter import READS, IpAdapterTrainee
from storyloom_training.identity.adapters.photomaker import PhotoMakerTrainee, first_words
from storyloom_training.identity.adapters.saying import learn_to_say
from storyloom_training.identity.adapters.sayings import Sayings
from storyloom_training.identity.adapters.stage import Bench
from storyloom_training.identity.adapters.storymaker import StoryMakerTrainee, storymaker_sizes
from storyloom_training.identity.adapters.trainee import Trainee


@dataclass(frozen=True)
class Method(ABC):
    """`name` is what the engine calls the method, `features` what it reads of a reference."""

    name: ClassVar[str]
    features: ClassVar[tuple[str, ...]]

    @abstractmethod
    def plan(self, recipe: Recipe) -> AdapterRecipe:
        """What of the recipe is for this method."""

    @abstractmethod
    def prepare(self, bench: Bench, folder: Path) -> Trainee:
        """What trains, with all but the diffusion stage done."""

    def save(self, file: Path, trainee: Trainee, bench: Bench) -> None:
        """Writes the file that the engine loads."""
        save_adapter(file, trainee, method=self.name, encoders=bench.source.features.encoders)


@dataclass(frozen=True)
class Storynizor(Method):
    """The ID-Injector, or with `stacked` the paper's ablation of it."""

    name = "storynizor"
    features = ("face", "face_states")
    stacked: bool = False

    def plan(self, recipe: Recipe) -> InjectorRecipe:
        return replace(recipe.injector, references="stacked") if self.stacked else recipe.injector

    def prepare(self, bench: Bench, folder: Path) -> Trainee:
        torch.manual_seed(bench.recipe.seed)
        features, unet, plan = bench.source.features, bench.model.unet, self.plan(bench.recipe)
        trainee = InjectorTrainee(injector_sizes(plan, features, unet), unet)
        sayings = Sayings.of(bench, plan.tokens, clothes=False)
        learn_to_say(bench, folder / "say", trainee.maker, sayings, partial(trainee.tokens_of, features))
        return trainee


@dataclass(frozen=True)
class StoryMaker(Method):
    """StoryMaker, or one of its ablations."""

    name = "storymaker"
    features = ("face", "face_states", "character_states")
    background: bool = True
    attention_loss: bool = True

    def plan(self, recipe: Recipe) -> StoryMakerRecipe:
        plan = replace(recipe.storymaker, background=self.background)
        return plan if self.attention_loss else replace(plan, attention_loss=0.0)

    def prepare(self, bench: Bench, folder: Path) -> Trainee:
        torch.manual_seed(bench.recipe.seed)
        features, unet, plan = bench.source.features, bench.model.unet, self.plan(bench.recipe)
        trainee = StoryMakerTrainee(storymaker_sizes(plan, features, unet), plan, unet)
        face = Sayings.of(bench, plan.face_tokens, clothes=False)
        sayings = face.beside(Sayings.of(bench, plan.character_tokens, clothes=True))
        learn_to_say(bench, folder / "say", trainee.maker, sayings, partial(trainee.tokens_of, features))
        return trainee


@dataclass(frozen=True)
class IpAdapter(Method):
    """IP-Adapter's plus form, in a file as published ones are."""

    name = "ip-adapter-plus"
    features = READS

    def plan(self, recipe: Recipe) -> IpAdapterRecipe:
        return recipe.ip_adapter

    def prepare(self, bench: Bench, folder: Path) -> Trainee:
        torch.manual_seed(bench.recipe.seed)
        features, plan = bench.source.features, self.plan(bench.recipe)
        trainee = IpAdapterTrainee(plan, features, bench.model.unet)
        sayings = Sayings.of(bench, plan.tokens, clothes=True)
        learn_to_say(bench, folder / "say", trainee.maker, sayings, partial(trainee.tokens_of, features))
        return trainee

    def save(self, file: Path, trainee: Trainee, bench: Bench) -> None:
        save_published(file, trainee, bench.model.unet, bench.source.features.encoders)


@dataclass(frozen=True)
class PhotoMaker(Method):
    """PhotoMaker's first version, in a file as published ones are."""

    name = "photomaker"
    features = ("face", PORTRAIT)

    def plan(self, recipe: Recipe) -> PhotoMakerRecipe:
        return recipe.photomaker

    def prepare(self, bench: Bench, folder: Path) -> PhotoMakerTrainee:
        if bench.image_encoder is None:
            raise ValueError("PhotoMaker begins with the package's image encoder, and there is none")
        torch.manual_seed(bench.recipe.seed)
        features, unet = bench.source.features, bench.model.unet
        words = first_words(bench.image_encoder, unet.config.cross_attention_dim)
        trainee = PhotoMakerTrainee(words, self.plan(bench.recipe), unet)
        nouns = Sayings.of_nouns(bench)

        def speak(entries: Tensor) -> Tensor:
            return words.fuse(nouns(entries)[:, 0], trainee.embeddings_of(features, entries))[:, None]

        learn_to_say(bench, folder / "say", words, Sayings.of(bench, 1, clothes=False), speak)
        return trainee

    def save(self, file: Path, trainee: Trainee, bench: Bench) -> None:
        if not isinstance(trainee, PhotoMakerTrainee):
            raise TypeError("only what this method trains has its form")
        save_photomaker(file, trainee, bench.source.features.encoders)


@dataclass(frozen=True)
class InstantId(Method):
    """InstantID: a file as published ones are, and beside it the folder of its IdentityNet."""

    name = "instantid"
    features = FACE

    def plan(self, recipe: Recipe) -> InstantIdRecipe:
        return recipe.instantid

    def prepare(self, bench: Bench, folder: Path) -> InstantIdTrainee:
        torch.manual_seed(bench.recipe.seed)
        features, plan = bench.source.features, self.plan(bench.recipe)
        trainee = InstantIdTrainee(plan, bench.recipe.controlnet, features, bench.model.unet)
        sayings = Sayings.of(bench, plan.tokens, clothes=False)
        learn_to_say(bench, folder / "say", trainee.maker, sayings, partial(trainee.tokens_of, features))
        return trainee

    def save(self, file: Path, trainee: Trainee, bench: Bench) -> None:
        if not isinstance(trainee, InstantIdTrainee):
            raise TypeError("only what this method trains has its form")
        save_published(file, trainee, bench.model.unet, bench.source.features.encoders)
        net: Any = copy.deepcopy(trainee.net).half()
        net.save_pretrained(file.with_name(f"{file.stem}-identitynet"), safe_serialization=True)


METHODS: dict[str, Method] = {
    "ip-adapter": IpAdapter(),
    "photomaker": PhotoMaker(),
    "instantid": InstantId(),
    "storynizor": Storynizor(),
    "storynizor-stacked": Storynizor(stacked=True),
    "storymaker": StoryMaker(),
    "storymaker-no-background": StoryMaker(background=False),
    "storymaker-no-attention-loss": StoryMaker(attention_loss=False),
}
