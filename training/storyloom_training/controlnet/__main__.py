"""`python -m storyloom_training.controlnet`: trains a pose ControlNet for a model package, and puts it in.

What an earlier run left in the folder is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from storyloom_model.components import load_components
from storyloom_model.manifest import ControlNetFolder
from storyloom_model.package import ModelPackage, write_manifest
from storyloom_training.config import RECIPES, Recipe
from storyloom_training.controlnet.control import PoseControl, new_controlnet
from storyloom_training.controlnet.keypoints import people_keypoints
from storyloom_training.controlnet.stage import PoseBench, train_controlnet
from storyloom_training.frozen import frozen_model, latents_of, rendered_set
from storyloom_training.storydb.groups import Split

VALIDATION_GROUPS = 48
NAME = "pose"


def add_pose_controlnet(recipe: Recipe, package: ModelPackage, rendered: Path, folder: Path) -> ModelPackage:
    """Trains the recipe's ControlNet and adds it to the package, as float16.

    Args:
        recipe: of the package.
        package: gets `controlnets/pose`, and a line in its manifest.
        rendered: `data/` and `latents.pt` of the package's own training; what is missing is made.
        folder: gets joints, the held-out set and the training.
    """
    components = load_components(package)
    model = frozen_model(package, components)
    torch.manual_seed(recipe.seed)
    net = new_controlnet(model.unet, recipe.controlnet)

    def bench(place: Path, split: Split, groups: int) -> PoseBench:
        data = rendered_set(place / "data", split, recipe.data, groups)
        latents = latents_of(place / "latents.pt", data, components.vae)
        keypoints = people_keypoints(folder / "keypoints" / f"{split.value}.npy", data)
        return PoseBench(recipe, model, components.tokenizer, data, latents, PoseControl(net, keypoints, data.size))

    held_out = bench(folder / "validation", Split.VALIDATION, min(VALIDATION_GROUPS, recipe.data.groups))
    train_controlnet(bench(rendered, Split.TRAIN, recipe.data.groups), folder / NAME, held_out, components.vae)
    added = ControlNetFolder(folder=f"controlnets/{NAME}")
    net.half().save_pretrained(package.folder / added.folder, safe_serialization=True)
    controlnets = {**package.manifest.controlnets, NAME: added}
    write_manifest(package.folder, package.manifest.model_copy(update={"controlnets": controlnets}))
    return ModelPackage.load(package.folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_training.controlnet", description=__doc__)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="mini-128")
    parser.add_argument("--package", type=Path, default=Path("weights/storyloom-mini"), help="the model to train for")
    parser.add_argument("--rendered", type=Path, help="folder of the package's training, for its pictures and latents")
    parser.add_argument("--folder", type=Path, default=Path("runs/controlnet"), help="joints, checkpoints, samples")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    if options.steps:
        recipe = replace(recipe, controlnet=replace(recipe.controlnet, steps=options.steps))
    rendered = options.rendered or Path("runs") / recipe.name
    package = add_pose_controlnet(recipe, ModelPackage.load(options.package), rendered, options.folder)
    print(f"wrote {package.folder / package.manifest.controlnets[NAME].folder}")


if __name__ == "__main__":
    main()
