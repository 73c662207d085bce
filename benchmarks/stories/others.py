"""The built-in model with an adapter for every method that is compared: `python -m benchmarks.stories.others PACKAGE`.

PACKAGE becomes a copy of `weights/storyloom-mini` with what is in `weights/storyloom-mini-others`. What it held
before is gone.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from storyloom_model.adding.package import add_adapter, add_controlnet
from storyloom_model.adding.record import Record
from storyloom_model.package import ModelPackage

_WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
BUILT_IN, OTHERS = _WEIGHTS / "storyloom-mini", _WEIGHTS / "storyloom-mini-others"


def fit_out(package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder to make.")]) -> None:
    """Makes the package, all of it or nothing."""
    partial = package.with_name(f"{package.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(BUILT_IN, partial)
    add_adapter(partial, OTHERS / "ip-adapter.safetensors", Record())
    # The first steps, which read plain words with the authors, decide the colours of pictures as small as these.
    add_adapter(partial, OTHERS / "photomaker.safetensors", Record(), start=0.0)
    add_adapter(partial, OTHERS / "instantid.safetensors", Record())
    parts = "character-adapter"  # Reads an IP-Adapter's file part by part.
    add_adapter(partial, OTHERS / "ip-adapter.safetensors", Record(), name=parts, method=parts)
    net = OTHERS / "instantid-identitynet"
    add_controlnet(partial, net, Record(), name="identitynet", kind="identitynet", allow_pickle=False)
    shutil.rmtree(package, ignore_errors=True)
    partial.rename(package)
    print(f"{package}: {', '.join(ModelPackage.load(package).manifest.identity_adapters)}")


if __name__ == "__main__":
    typer.run(fit_out)
