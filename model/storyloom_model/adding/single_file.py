"""Single files of whole models, in the form of the original Stable Diffusion code, turned into diffusers folders."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from storyloom_model.adding.sources import fetched_configuration
from storyloom_model.identity.published.files import read_weights
from storyloom_model.package import PackageError

_CONFIGURATION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SDXL_KEY = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
_UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def convert_single_file(file: Path, configuration: Path | None, folder: Path, *, allow_pickle: bool) -> None:
    """Writes the components of a file as a diffusers folder.

    Args:
        file: .safetensors, or with ``allow_pickle`` a torch file.
        configuration: a diffusers folder of the same base model; of its files all but the weights are used. None: it is
            fetched from a hub.
        folder: to write to.

    Raises:
        PackageError: the file is no whole model, or not of the configuration.
    """
    with TemporaryDirectory(dir=folder.parent) as scratch:
        safe = file
        if file.suffix != ".safetensors":
            safe = Path(scratch) / "model.safetensors"
            weights = read_weights(file, allow_pickle=allow_pickle)
            save_file({key.removeprefix("state_dict."): value.contiguous() for key, value in weights.items()}, safe)
        _check_whole(file, safe)
        _convert(safe, configuration or fetched_configuration(_CONFIGURATION), folder)


def _check_whole(file: Path, safe: Path) -> None:
    try:
        with safe_open(safe, "pt") as content:
            names = set(content.keys())
    except (OSError, SafetensorError) as error:
        raise PackageError(f"{file} is cut off or damaged ({error}); download it again") from error
    if _SDXL_KEY in names:
        raise PackageError(f"{file} is a model in the form of SDXL, which cannot be served yet; take one of SD 1.5")
    if _UNET_KEY not in names:
        raise PackageError(
            f"{file} is no whole model: it lacks {_UNET_KEY}. Adapters and LoRA are added with --adapter"
        )


def _convert(safe: Path, configuration: Path, folder: Path) -> None:
    pipelines: Any = StableDiffusionPipeline
    try:
        pipeline = pipelines.from_single_file(
            str(safe),
            config=str(configuration),
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
        )
    except (ValueError, KeyError, OSError, RuntimeError, SingleFileComponentError) as error:
        raise PackageError(f"{safe.name} does not fit the configuration in {configuration}: {error}") from error
    pipeline.save_pretrained(folder, safe_serialization=True)
