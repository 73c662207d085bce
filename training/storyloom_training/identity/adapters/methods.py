"""The adapters that can be trained, by the name of their file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from storyloom_training.config import InjectorRecipe, Recipe
from storyloom_training.identity.adapters.injector import InjectorTrainee, injector_sizes
from storyloom_training.identity.adapters.saying import Sayings, learn_to_say
from storyloom_training.identity.adapters.stage import Bench, train_adapter
from storyloom_training.identity.adapters.trainee import Trainee


@dataclass(frozen=True)
class Method:
    """`name` is what the engine calls the method, `features` what it reads of a reference.

    `prepare` makes what trains, with all but the diffusion stage done.
    """

    name: str
    features: tuple[str, ...]
    plan: Callable[[Recipe], InjectorRecipe]
    prepare: Callable[[Bench, Path], Trainee]


def _injector(bench: Bench, folder: Path) -> InjectorTrainee:
    torch.manual_seed(bench.recipe.seed)
    plan = bench.plan
    trainee = InjectorTrainee(injector_sizes(plan, bench.source.features, bench.model.unet), bench.model.unet)
    trainee.sayings = sayings = Sayings.of(bench, plan.tokens)
    train_adapter(replace(bench, plan=replace(plan, steps=plan.layer_steps)), folder / "layers", trainee)
    trainee.sayings = None
    learn_to_say(bench, folder / "say", trainee.maker, sayings)
    return trainee


FACE = ("face", "face_states")

METHODS = {
    "storynizor": Method("storynizor", FACE, lambda recipe: recipe.injector, _injector),
    "storynizor-stacked": Method("storynizor", FACE, lambda recipe: replace(recipe.injector, stacked=True), _injector),
}
