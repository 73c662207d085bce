"""Model packages on disk: a folder in diffusers layout with a ``storyloom.yaml``. Loads without torch.

storyloom.yaml  unet/  vae/  text_encoder/  tokenizer/  scheduler/  and the adapters' files, perhaps encoders;
in the form of SDXL text_encoder_2/ and tokenizer_2/, too
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError

from storyloom_model.manifest import Manifest

MANIFEST_FILE = "storyloom.yaml"
COMPONENTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
"""Folders of a package, and the file that must be in each."""
SECOND_TEXT_ENCODER = {"text_encoder_2": "config.json", "tokenizer_2": "tokenizer_config.json"}
"""Those that are in packages in the form of SDXL beside them."""


class PackageError(Exception):
    """A folder is not a usable model package. The message names the file and says what to change."""


@dataclass(frozen=True, slots=True)
class ModelPackage:
    """A checked package: its folder and its manifest. Weights are not read until something asks for them."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads and checks a package.

        Raises:
            PackageError: a file is missing, or the manifest is not valid.
        """
        package = cls(folder, read_manifest(folder))
        files = [Path(part, file) for part, file in components_in(folder).items()]
        files += map(Path, package.weights_files)
        missing = [str(file) for file in files if not (folder / file).is_file()]
        missing += [str(path) for path in package.encoder_paths if not (folder / path).exists()]
        missing += [
            f"{path}/config.json" for path in package.finder_paths if not (folder / path / "config.json").is_file()
        ]
        controlnets = (Path(one.folder, "config.json") for one in package.manifest.controlnets.values())
        missing += [str(file) for file in controlnets if not (folder / file).is_file()]
        if missing:
            raise PackageError(
                f"{folder} lacks {', '.join(missing)}; copy the complete package, or fix {MANIFEST_FILE}"
            )
        return package

    @property
    def weights_files(self) -> tuple[str, ...]:
        """Paths in the package of all files of adapters, LoRA and identity adapters."""
        manifest = self.manifest
        identity = (adapter.file for adapter in manifest.identity_adapters.values())
        return (*manifest.adapters.values(), *manifest.loras.values(), *identity)

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """Paths in the package of what looks at references, files or folders."""
        encoders = self.manifest.encoders
        paths = () if encoders is None else (encoders.faces, encoders.image, encoders.segmenter, encoders.parser)
        return tuple(path for path in paths if path is not None)

    @property
    def finder_paths(self) -> tuple[str, ...]:
        """Folders in the package of what finds characters in pictures."""
        finder = self.manifest.character_finder
        return () if finder is None else (finder.detector, finder.masks)

    def adapter_file(self, name: str) -> Path:
        """The file of an adapter.

        Raises:
            PackageError: the package has no adapter of this name.
        """
        if name not in self.manifest.adapters:
            known = ", ".join((*self.manifest.adapters, "none"))
            raise PackageError(f"{self.manifest.name} has no adapter called {name}; use one of {known}")
        return self.folder / self.manifest.adapters[name]

    def load_tokenizer(self, part: str = "tokenizer") -> Any:
        """Loads a fast CLIP tokenizer of the package from its own files, never from a hub."""
        from transformers import CLIPTokenizer  # Takes a second: only for those who tokenize.

        return CLIPTokenizer.from_pretrained(self.folder / part, local_files_only=True)


def components_in(folder: Path) -> dict[str, str]:
    """The components that a model's folder has to have: two text encoders if it has a second one."""
    return COMPONENTS | (SECOND_TEXT_ENCODER if any((folder / part).is_dir() for part in SECOND_TEXT_ENCODER) else {})


def read_manifest(folder: Path) -> Manifest:
    """Reads ``storyloom.yaml`` of a package.

    Raises:
        PackageError: the file is missing, is not YAML, or breaks the schema; every violation is listed.
    """
    file = folder / MANIFEST_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PackageError(f"{file} cannot be read ({error.strerror}); give the folder of a model package") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PackageError(f"{file} is not valid YAML: {error}") from error
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"  {_place(detail['loc'])}: {detail['msg']}" for detail in error.errors()]
        raise PackageError("\n".join((f"{file} is not a valid manifest:", *lines))) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes ``storyloom.yaml`` into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    content = manifest.model_dump(mode="json", exclude_none=True)
    (folder / MANIFEST_FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "storyloom.yaml"
