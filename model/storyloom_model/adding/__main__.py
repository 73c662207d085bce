"""``storyloom models add``, ``add-adapter``, ``add-controlnet`` and ``add-finder``, which run
``python -m storyloom_model.adding``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from storyloom_model.adding.record import Record
from storyloom_model.manifest import ControlKind
from storyloom_model.package import ModelPackage, PackageError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)

_AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin, .pt and .ckpt files too, and nothing but tensors from them.")
]
_Checksums = Annotated[
    list[str] | None,
    typer.Option("--sha256", metavar="FILE=HEX", help="The checksum that a file must have; may be given again."),
]


@app.callback()
def _main() -> None:
    """Make model packages of what others have published."""


@app.command()
def add(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A diffusers folder, a single file, or a hub's id, as OWNER/NAME.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="The package's folder; must not exist.")],
    name: Annotated[str | None, typer.Option(help="The model's name; the folder's, if not given.")] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", metavar="FILE", help="An identity adapter or a LoRA; may be given again."),
    ] = None,
    controlnet: Annotated[
        list[Path] | None,
        typer.Option("--controlnet", metavar="FOLDER", help="A ControlNet that is shown poses; may be given again."),
    ] = None,
    identity_net: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="InstantID's ControlNet; needs its adapter, too.")
    ] = None,
    faces: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A pack of insightface, such as antelopev2.")
    ] = None,
    image_encoder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A CLIP image encoder of transformers.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Grounding DINO of transformers; finds characters by words.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Segment Anything of transformers; goes with --detector.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For a single file: a diffusers folder of its base, weights not needed."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="For a hub's id: branch, tag or commit.")] = None,
    sha256: _Checksums = None,
    allow_pickle: _AllowPickle = False,
) -> None:
    """Make a model package of SOURCE."""
    from storyloom_model.adding.package import Wish, add_model

    record = Record(_checksums(sha256 or ()))
    wish = Wish(
        source, name, revision, config, tuple(adapter or ()), tuple(controlnet or ()), identity_net, faces,
        image_encoder, detector, masks, allow_pickle,
    )  # fmt: skip
    try:
        _show(add_model(wish, to, record), record)
    except PackageError as error:
        _fail(error)


@app.command("add-adapter")
def add_adapter_command(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder of a model package.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An identity adapter or a LoRA.")],
    name: Annotated[
        str | None, typer.Option(help="What stories call it; made of the file's name, if not given.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Of an identity adapter, where its weights and its name do not tell.")
    ] = None,
    start: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of PhotoMaker: the part of the steps before it acts; 0.2, if not given."),
    ] = None,
    sha256: _Checksums = None,
    allow_pickle: _AllowPickle = False,
) -> None:
    """Add an adapter to PACKAGE."""
    from storyloom_model.adding.package import add_adapter

    record = Record(_checksums(sha256 or ()))
    try:
        made = add_adapter(package, file, record, name=name, method=method, start=start, allow_pickle=allow_pickle)
        _show(made, record)
    except PackageError as error:
        _fail(error)


@app.command("add-controlnet")
def add_controlnet_command(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder of a model package.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A ControlNet in diffusers' form.")],
    name: Annotated[
        str | None, typer.Option(help="What stories call it; made of the folder's name, if not given.")
    ] = None,
    identity_net: Annotated[
        bool, typer.Option("--identity-net", help="It is InstantID's, which reads what its adapter makes of a face.")
    ] = False,
    sha256: _Checksums = None,
    allow_pickle: _AllowPickle = False,
) -> None:
    """Add a ControlNet to PACKAGE."""
    from storyloom_model.adding.package import add_controlnet

    record = Record(_checksums(sha256 or ()))
    kind: ControlKind = "identitynet" if identity_net else "pose"
    try:
        _show(add_controlnet(package, folder, record, name=name, kind=kind, allow_pickle=allow_pickle), record)
    except PackageError as error:
        _fail(error)


@app.command("add-finder")
def add_finder_command(
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Folder of a model package.")],
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder of a Grounding DINO of transformers.")],
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="Folder of a Segment Anything of transformers.")],
    sha256: _Checksums = None,
    allow_pickle: _AllowPickle = False,
) -> None:
    """Add what finds characters by their words, between the passes of re-denoising, to PACKAGE."""
    from storyloom_model.adding.package import add_finder

    record = Record(_checksums(sha256 or ()))
    try:
        _show(add_finder(package, detector, masks, record, allow_pickle=allow_pickle), record)
    except PackageError as error:
        _fail(error)


def _checksums(given: list[str] | tuple[str, ...]) -> dict[str, str]:
    pairs = [one.rpartition("=") for one in given]
    if any(not file or len(checksum) != 64 for file, _, checksum in pairs):
        raise typer.BadParameter("give FILE=HEX, with the file's name and 64 digits", param_hint="--sha256")
    return {Path(file).name: checksum for file, _, checksum in pairs}


def _show(package: ModelPackage, record: Record) -> None:
    table = Table("part", "file", "MiB", "SHA-256", "")
    for one in record.taken:
        table.add_row(one.part, one.source, f"{one.bytes / 2**20:.1f}", one.checksum, one.note)
    Console(width=None if Console().is_terminal else 200).print(table)
    sizes = ", ".join(f"{width}x{height}" for width, height in package.manifest.sizes)
    typer.echo(f"{package.manifest.name} ({package.manifest.description}), {sizes}: {package.folder}")


def _fail(error: PackageError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="storyloom models")
