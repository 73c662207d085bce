"""What looks at references, taken into a package: a pack of insightface and an image encoder of transformers."""

from __future__ import annotations

from pathlib import Path

from storyloom_model.adding.components import link_or_copy, take_small_files
from storyloom_model.adding.record import Record
from storyloom_model.manifest import Encoders
from storyloom_model.package import PackageError

_FACES, _IMAGE = "faces", "image_encoder"


def take_encoders(folder: Path, faces: Path, image: Path, record: Record) -> Encoders:
    """Links or copies both.

    Args:
        folder: of the package.
        faces: a pack's own folder with its .onnx files, or one with models/PACK/*.onnx below it.
        image: the folder of a CLIPVisionModelWithProjection in safetensors, with its preprocessor_config.json.
        record: gets the files.

    Raises:
        PackageError: a file is missing.
    """
    pack = _pack(faces)
    for file in sorted(pack.glob("*.onnx")):
        record.add(f"faces {pack.name}", file)
        link_or_copy(file, folder / _FACES / "models" / pack.name / file.name)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (image / name).is_file():
            raise PackageError(f"{image} is no image encoder of transformers: it lacks {name}")
    take_small_files(image, folder / _IMAGE)
    record.add("image encoder", image / "model.safetensors")
    link_or_copy(image / "model.safetensors", folder / _IMAGE / "model.safetensors")
    return Encoders(faces=_FACES, image=_IMAGE)


def _pack(faces: Path) -> Path:
    packs = sorted({file.parent for file in (*faces.glob("*.onnx"), *faces.glob("models/*/*.onnx"))})
    if len(packs) != 1:
        found = f"{len(packs)} packs" if packs else "no .onnx files"
        raise PackageError(f"{faces} has {found}; give the folder of one pack, such as models/antelopev2")
    return packs[0]
