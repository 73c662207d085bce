"""The command ``storyloom-export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exports model packages to ONNX and TensorRT.")
_console = Console(stderr=True)

PackageFolder = Annotated[Path, typer.Argument(help="Folder of a model package.")]


class DtypeChoice(StrEnum):
    """The number type of weights and activations."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


@app.callback()
def main() -> None:
    """Exports model packages to ONNX and TensorRT."""


@app.command("onnx")
def onnx_command(
    package: PackageFolder,
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write; PACKAGE/onnx, where the server looks, if not given.")
    ] = None,
    dtype: Annotated[DtypeChoice, typer.Option(help="Number type of weights and activations.")] = DtypeChoice.float32,
) -> None:
    """Exports every component of PACKAGE to ONNX files in OUT."""
    from storyloom_export.artefact import default_folder
    from storyloom_export.onnx_files import export_package
    from storyloom_model.package import ModelPackage, PackageError

    try:
        artefact = export_package(
            ModelPackage.load(package), out or default_folder(package), dtype.value, _console.print
        )  # fmt: skip
    except PackageError as error:
        fail(error)
    size = sum(record.bytes for record in artefact.record.files.values())
    print(f"{len(artefact.record.components)} graphs, {size / 2**20:.1f} MiB in {artefact.folder}")


def fail(error: Exception) -> NoReturn:
    """Ends the command with an error that the user can act on."""
    _console.print(f"storyloom-export: {error}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
