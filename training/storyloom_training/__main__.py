"""`python -m storyloom_training RECIPE`: trains a model package, or continues where an earlier run stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from storyloom_model.package import ModelPackage
from storyloom_training.config import RECIPES
from storyloom_training.device import choose_device
from storyloom_training.package import ADAPTERS, write_package
from storyloom_training.pipeline import Pipeline

STAGES = ("data", "vae", "base", *ADAPTERS, "decoder", "package")


def main() -> None:
    parser = argparse.ArgumentParser(prog="storyloom_training", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, help="checkpoints, losses and samples; default runs/RECIPE")
    parser.add_argument("--out", type=Path, help="where the package goes; default FOLDER/package")
    parser.add_argument("--start", type=Path, help="train on from this model package instead of from nothing")
    parser.add_argument("--device", help="such as cpu or cuda:0; default the first GPU, else the CPU")
    parser.add_argument("--until", choices=STAGES, default="package", help="stop after this stage")
    options = parser.parse_args()
    folder: Path = options.folder or Path("runs") / options.recipe
    start = ModelPackage.load(options.start) if options.start else None
    pipeline = Pipeline(RECIPES[options.recipe], folder, start, choose_device(options.device))
    match options.until:
        case "data":
            pipeline.data.prepare()
        case "vae":
            _ = pipeline.vae
        case "base":
            _ = pipeline.base
        case "amsa" | "amsa-mask" as adapter:
            pipeline.synchronizer(adapter)
        case "decoder":
            _ = pipeline.final_vae
        case _:
            package = write_package(pipeline, options.out or folder / "package")
            print(f"wrote {package.folder}")


if __name__ == "__main__":
    main()
