"""A model package made of a base model, adapters and encoders that others have published."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from storyloom_model.adding.adapters import take_adapter
from storyloom_model.adding.bases import Base, base_of
from storyloom_model.adding.components import take_components
from storyloom_model.adding.controlnets import take_controlnet
from storyloom_model.adding.encoders import take_encoders
from storyloom_model.adding.finder import take_finder
from storyloom_model.adding.record import Record
from storyloom_model.adding.single_file import convert_single_file
from storyloom_model.adding.sources import find_source
from storyloom_model.manifest import ControlKind, Defaults, Encoders, Manifest
from storyloom_model.package import ModelPackage, PackageError, write_manifest


@dataclass(frozen=True, slots=True)
class Wish:
    """What a package is to be made of. ``faces`` and ``image_encoder`` go together, ``detector`` and ``masks``, too.

    ``controlnets`` are shown poses; ``identity_net`` is InstantID's.
    """

    source: str
    name: str | None = None
    revision: str | None = None
    configuration: Path | None = None
    adapters: Sequence[Path] = ()
    controlnets: Sequence[Path] = ()
    identity_net: Path | None = None
    faces: Path | None = None
    image_encoder: Path | None = None
    detector: Path | None = None
    masks: Path | None = None
    allow_pickle: bool = False


def add_model(wish: Wish, target: Path, record: Record) -> ModelPackage:
    """Makes a package; nothing is left behind where that fails.

    Args:
        wish: what it is made of.
        target: its folder, which must not exist.
        record: gets the files that are taken.

    Raises:
        PackageError: something is missing, damaged or does not fit; the message says what to do.
    """
    if target.exists():
        raise PackageError(
            f"{target} exists; give a new folder, or add adapters to it with: storyloom models add-adapter"
        )
    if (wish.faces is None) != (wish.image_encoder is None):
        raise PackageError("references need both encoders: give --faces and --image-encoder, or neither")
    if (wish.detector is None) != (wish.masks is None):
        raise PackageError("finding characters needs both models: give --detector and --masks, or neither")
    source = find_source(wish.source, wish.revision)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that it becomes the target by a change of its name.
    folder = Path(mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        manifest = _fill(folder, source, wish, record, _name(wish.name or target.name))
        record.check_all_seen()
        write_manifest(folder, manifest)
        ModelPackage.load(folder)
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ModelPackage.load(target)


def add_adapter(
    package: Path,
    file: Path,
    record: Record,
    *,
    name: str | None = None,
    method: str | None = None,
    start: float | None = None,
    allow_pickle: bool = False,
) -> ModelPackage:
    """Adds an identity adapter or a LoRA to a package that exists; see ``take_adapter``."""
    manifest = ModelPackage.load(package).manifest
    changed = take_adapter(
        package, manifest, file, record, name=name, method=method, start=start, allow_pickle=allow_pickle
    )  # fmt: skip
    record.check_all_seen()
    write_manifest(package, changed)
    return ModelPackage.load(package)


def add_controlnet(
    package: Path, source: Path, record: Record, *, name: str | None, kind: ControlKind, allow_pickle: bool
) -> ModelPackage:
    """Adds a ControlNet to a package that exists; see ``take_controlnet``."""
    manifest = ModelPackage.load(package).manifest
    changed = take_controlnet(package, manifest, source, record, kind=kind, name=name, allow_pickle=allow_pickle)
    record.check_all_seen()
    write_manifest(package, changed)
    return ModelPackage.load(package)


def add_finder(package: Path, detector: Path, masks: Path, record: Record, *, allow_pickle: bool) -> ModelPackage:
    """Adds what finds characters by words to a package that exists; see ``take_finder``."""
    manifest = ModelPackage.load(package).manifest
    changed = take_finder(package, manifest, detector, masks, record, allow_pickle=allow_pickle)
    record.check_all_seen()
    write_manifest(package, changed)
    return ModelPackage.load(package)


def _fill(folder: Path, source: Path, wish: Wish, record: Record, name: str) -> Manifest:
    if source.is_file():
        record.add("model", source, "converted")
        parts = folder / "parts"
        convert_single_file(source, wish.configuration, parts, allow_pickle=wish.allow_pickle)
        take_components(parts, folder, Record(), allow_pickle=False)
        shutil.rmtree(parts)
    else:
        take_components(source, folder, record, allow_pickle=wish.allow_pickle)
    base = base_of(json.loads((folder / "unet" / "config.json").read_text()))
    encoders = None
    if wish.faces is not None and wish.image_encoder is not None:
        encoders = take_encoders(folder, wish.faces, wish.image_encoder, record)
    manifest = _manifest(name, base, encoders)
    for file in wish.adapters:
        manifest = take_adapter(folder, manifest, file, record, allow_pickle=wish.allow_pickle)
    for net in wish.controlnets:
        manifest = take_controlnet(folder, manifest, net, record, allow_pickle=wish.allow_pickle)
    if wish.identity_net is not None:
        net = wish.identity_net
        manifest = take_controlnet(folder, manifest, net, record, kind="identitynet", allow_pickle=wish.allow_pickle)
    if wish.detector is not None and wish.masks is not None:
        manifest = take_finder(
            folder, manifest, wish.detector, wish.masks, record, allow_pickle=wish.allow_pickle
        )  # fmt: skip
    return _with_default_adapter(manifest)


def _manifest(name: str, base: Base, encoders: Encoders | None) -> Manifest:
    width, height = base.sizes[0]
    defaults = Defaults(
        steps=base.steps, guidance_scale=base.guidance_scale, solver=base.solver, width=width, height=height
    )
    return Manifest(name=name, description=base.title, sizes=base.sizes, defaults=defaults, encoders=encoders)


def _with_default_adapter(manifest: Manifest) -> Manifest:
    """The first identity adapter is used where a story names none; without encoders there is nothing to use it on."""
    if not manifest.identity_adapters or manifest.encoders is None:
        return manifest
    first = next(iter(manifest.identity_adapters))
    return manifest.model_copy(update={"defaults": manifest.defaults.model_copy(update={"identity_adapter": first})})


def _name(wanted: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).strip("-._")[:64] or "model"
