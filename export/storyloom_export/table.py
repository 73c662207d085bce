"""Which components an export has: for each a row that says where it comes from and how it is made ready.

A component more is a row more. One whose module runs in torch as it is (``plain``) is also verified with no more said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionModelWithProjection

from storyloom_export import components
from storyloom_export.components import Exportable
from storyloom_model.components import load_components
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import ModelPackage

IMAGE_ENCODER_FOLDER = "image_encoder"
"""Of a package that has one: a CLIPVisionModelWithProjection in transformers' layout."""


@dataclass(frozen=True)
class Row:
    """A component.

    Attributes:
        name: of the component, hence of its files.
        module: key of what ``load_modules`` returns; a package without it has no such component.
        make: the module and the package -> what is exported. May change the module.
        plain: whether it leaves the module as it was.
    """

    name: str
    module: str
    make: Callable[[Any, ModelPackage], Exportable]
    plain: bool = False


def _unet(model: Any, package: ModelPackage) -> Exportable:
    attention = package.manifest.attention
    tokens = package.load_tokenizer().model_max_length
    return components.unet(model, ForegroundRule(attention.threshold, attention.value), tokens)


# The VAE's encoder before its decoder, as both prepare the same module; the UNet last, as adapters follow it.
ROWS = (
    Row("text_encoder", "text_encoder", lambda model, _: components.text_encoder(model), plain=True),
    Row("image_encoder", "image_encoder", lambda model, _: components.image_encoder(model), plain=True),
    Row("vae_encoder", "vae", lambda model, _: components.vae_encoder(model)),
    Row("vae_decoder", "vae", lambda model, _: components.vae_decoder(model)),
    Row("unet", "unet", _unet),
)


def load_modules(package: ModelPackage, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The modules of a package by the names that rows know them by, on the CPU, in evaluation mode."""
    loaded = load_components(package, dtype=dtype)
    modules = {"text_encoder": loaded.text_encoder, "vae": loaded.vae, "unet": loaded.unet}
    folder = package.folder / IMAGE_ENCODER_FOLDER
    if (folder / "config.json").is_file():
        kind: Any = CLIPVisionModelWithProjection
        encoder = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
        modules["image_encoder"] = encoder.eval().requires_grad_(False)
    return modules


def rows_of(modules: Mapping[str, Any]) -> Iterator[tuple[Row, Any]]:
    """The rows that a package has, each with its module."""
    for row in ROWS:
        if row.module in modules:
            yield row, modules[row.module]
