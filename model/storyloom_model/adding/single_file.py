"""Single files of whole models, in the form of the original Stable Diffusion code, turned into diffusers folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
from torch import Tensor
from transformers import CLIPTextModel

from storyloom_model.adding.components import take_small_files
from storyloom_model.adding.sources import fetched_configuration
from storyloom_model.identity.published.files import read_weights
from storyloom_model.package import COMPONENTS, PackageError

_CONFIGURATION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SDXL_KEY = "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight"
_UNET_KEY = "model.diffusion_model.input_blocks.0.0.weight"


def convert_single_file(file: Path, configuration: Path | None, folder: Path, *, allow_pickle: bool) -> None:
    """Writes the components of a file as a diffusers folder. diffusers does the conversion.

    Args:
        file: .safetensors, or with ``allow_pickle`` a torch file.
        configuration: a diffusers folder of the same base model; of its files all but the weights are used. None: it is
            fetched from a hub.
        folder: to write to.

    Raises:
        PackageError: the file is no whole model, or not of the configuration.
    """
    weights = {
        key.removeprefix("state_dict."): value for key, value in read_weights(file, allow_pickle=allow_pickle).items()
    }
    if _SDXL_KEY in weights:
        raise PackageError(
            f"{file} is a model in the form of SDXL, whose single files are not read yet; take its diffusers folder"
        )
    if _UNET_KEY not in weights:
        raise PackageError(
            f"{file} is no whole model: it lacks {_UNET_KEY}. Adapters and LoRA are added with --adapter"
        )
    configuration = configuration or fetched_configuration(_CONFIGURATION)
    missing = [part for part in COMPONENTS if not (configuration / part).is_dir()]
    if missing:
        raise PackageError(f"{configuration} lacks {', '.join(missing)}; --config needs a complete diffusers folder")
    try:
        _convert(weights, configuration, folder)
    except (ValueError, KeyError, OSError, RuntimeError, NotImplementedError, SingleFileComponentError) as error:
        raise PackageError(f"{file} does not fit the configuration in {configuration}: {error}") from error
    for part in COMPONENTS:
        take_small_files(configuration / part, folder / part)


def _convert(weights: Mapping[str, Tensor], configuration: Path, folder: Path) -> None:
    modules: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for part, kind in modules.items():
        # The converters take what they use out of the dictionary.
        module = kind.from_single_file(
            dict(weights), config=str(configuration), subfolder=part, local_files_only=True
        )  # fmt: skip
        module.save_pretrained(folder / part, safe_serialization=True)
    text_encoder: Any = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, dict(weights), config=str(configuration), subfolder="text_encoder", local_files_only=True
    )
    text_encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
