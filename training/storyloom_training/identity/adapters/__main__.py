"""`python -m storyloom_training.identity.adapters METHOD`: trains an identity adapter for a model package.

The package needs its encoders of references. What an earlier run left in the folder is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from storyloom_model.package import ModelPackage
from storyloom_training.config import RECIPES
from storyloom_training.identity.adapters.encoder import PackageEncoder
from storyloom_training.identity.adapters.methods import METHODS
from storyloom_training.identity.adapters.sampling import contact_sheet
from storyloom_training.identity.adapters.stage import train_adapter
from storyloom_training.identity.adapters.workshop import Workshop


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_training.identity.adapters", description=__doc__)
    parser.add_argument("method", choices=sorted(METHODS))
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="mini-128")
    parser.add_argument("--package", type=Path, default=Path("weights/storyloom-mini"), help="the model to train for")
    parser.add_argument("--rendered", type=Path, help="folder of the package's training, for its pictures and latents")
    parser.add_argument("--folder", type=Path, default=Path("runs/adapters"), help="features, checkpoints, samples")
    parser.add_argument(
        "--controlnet", type=Path, help="folder of a pose ControlNet, so that references need not carry the pose"
    )
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--say-steps", type=int, help="of the stage before it, likewise")
    parser.add_argument("--groups", type=int, help="how many groups of the data are looked at, instead of the recipe's")
    parser.add_argument("--out", type=Path, help="the adapter's file; default PACKAGE/identity/METHOD.safetensors")
    options = parser.parse_args()
    recipe, method = RECIPES[options.recipe], METHODS[options.method]
    package: Path = options.package
    workshop = Workshop(
        recipe=recipe,
        package=ModelPackage.load(package),
        rendered=options.rendered or Path("runs") / recipe.name,
        folder=options.folder,
        encoder=PackageEncoder(package / "faces", package / "image_encoder"),
        features=method.features,
        controlnet=options.controlnet,
    )
    plan = method.plan(recipe)
    if options.steps:
        plan = replace(plan, steps=options.steps)
    if options.say_steps:
        plan = replace(plan, say_steps=options.say_steps)
    if options.groups:
        plan = replace(plan, feature_groups=options.groups)
    bench, held_out = workshop.bench(plan), workshop.held_out(plan)
    folder = options.folder / options.method
    trainee = method.prepare(bench, folder)
    alone, crowds = held_out.source.pools
    shown = [*alone[:1].tolist(), *crowds[:2].tolist()]
    sheet = partial(contact_sheet, held_out, workshop.vae, workshop.scale, shown)
    train_adapter(bench, folder, trainee, held_out, sheet)
    out = options.out or package / "identity" / f"{options.method}.safetensors"
    method.save(out, trainee, bench)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
