"""Tells what made a picture: the files of a model package that a request makes use of, and no others.

So pictures that took hours stay good where an identity adapter is added that they have nothing to do with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from storyloom import Settings
from storyloom_model.methods.rounds import ROUNDS
from storyloom_model.package import MANIFEST_FILE

KnownBy = Callable[[Settings], str]
"""Settings of a request -> a text that is another one where the model that serves it is."""

_ADAPTERS, _CONTROLNETS = "identity_adapters", "controlnets"


def known_by_name(name: str) -> KnownBy:
    """For a model of which no more is at hand."""
    return lambda _: name


def known_by_files(package: Path) -> KnownBy:
    """By a digest of what a request makes use of in a package: all but other identity adapters and what reads them."""
    manifest = yaml.safe_load((package / MANIFEST_FILE).read_text(encoding="utf-8"))
    adapters, nets = manifest.pop(_ADAPTERS, {}), manifest.pop(_CONTROLNETS, {})
    parts = {name: [adapter, *_readers(nets, name)] for name, adapter in adapters.items()}
    own = {name: set(_files(package, part)) for name, part in parts.items()}
    poses = [net for net in nets.values() if net.get("kind") != "identitynet"]
    aside = set().union(*own.values())
    files = [
        path for path in package.rglob("*") if path.is_file() and path.suffix != ".md" and path.name != MANIFEST_FILE
    ]
    common = _digest(package, [manifest, poses], [path for path in files if path not in aside])
    digests = {name: _digest(package, parts[name], own[name]) for name in parts}
    every = "".join(digests.values())
    default = manifest.get("defaults", {}).get("identity_adapter") or ""

    def known_by(settings: Settings) -> str:
        name = settings.identity_adapter
        if not name and settings.consistency.method == ROUNDS:
            # The server chooses one that sees whole pictures.
            return f"{common} {every}"
        return f"{common} {digests.get(name or default, '')}".strip()

    return known_by


def _readers(nets: dict[str, Any], adapter: str) -> list[Any]:
    return [net for net in nets.values() if net.get("adapter") == adapter]


def _files(package: Path, part: Any) -> Iterator[Path]:
    """The files that a part of a manifest names, those within folders too."""
    if isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _files(package, value)
    elif isinstance(part, str) and (package / part).exists() and (package / part) != package:
        place = package / part
        yield from (path for path in place.rglob("*") if path.is_file()) if place.is_dir() else (place,)


def _digest(package: Path, told: Any, files: Iterable[Path]) -> str:
    digest = hashlib.sha256(yaml.safe_dump(told, sort_keys=True).encode())
    for file in sorted(files):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
        with file.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()
