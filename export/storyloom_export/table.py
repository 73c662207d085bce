"""Which components an export has: for each a row that says where it comes from and how it is made ready.

A component more is a row more. One whose module runs in torch as it is (``plain``) is also verified with no more said.
Face packs and segmenters are ONNX files already, so that they are no components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from storyloom_export import components
from storyloom_export.components import Exportable
from storyloom_export.resamplers import has_resampler, resampler
from storyloom_model.components import load_components
from storyloom_model.identity.encoders.errors import EncodersError
from storyloom_model.identity.encoders.image import load_image_network
from storyloom_model.identity.loading import load_identity_adapter
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import ModelPackage, PackageError, components_in

RESAMPLER = "resampler."
"""What the names of identity adapters' resamplers begin with; those of the adapters follow."""


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


def _text_encoder(model: Any, package: ModelPackage) -> Exportable:
    return components.text_encoder(model, penultimate="text_encoder_2" in components_in(package.folder))


def _unet(model: Any, package: ModelPackage) -> Exportable:
    attention = package.manifest.attention
    tokens = package.load_tokenizer().model_max_length
    rule = ForegroundRule(attention.threshold, attention.value)
    return components.unet(model, rule, tokens, identities=bool(package.manifest.identity_adapters))


# The VAE's encoder before its decoder, as both prepare the same module; the UNet last, as adapters follow it.
ROWS = (
    Row("text_encoder", "text_encoder", _text_encoder, plain=True),
    Row("text_encoder_2", "text_encoder_2", lambda model, _: components.second_text_encoder(model), plain=True),
    Row("image_encoder", "image_encoder", lambda model, _: components.image_encoder(model), plain=True),
    Row("vae_encoder", "vae", lambda model, _: components.vae_encoder(model)),
    Row("vae_decoder", "vae", lambda model, _: components.vae_decoder(model)),
    Row("unet", "unet", _unet),
)


def load_modules(package: ModelPackage, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The modules of a package by the names that rows know them by, on the CPU, in evaluation mode.

    Raises:
        PackageError: an encoder or an identity adapter of the package is not usable.
    """
    loaded = load_components(package, dtype=dtype)
    modules = {"text_encoder": loaded.text_encoder, "vae": loaded.vae, "unet": loaded.unet}
    if loaded.text_encoder_2 is not None:
        modules["text_encoder_2"] = loaded.text_encoder_2
    if package.manifest.encoders is not None:
        try:
            encoder: Any = load_image_network(package.folder / package.manifest.encoders.image)[0]
        except EncodersError as error:
            raise PackageError(str(error)) from error
        modules["image_encoder"] = encoder.to(dtype).eval().requires_grad_(False)
    for name, one in package.manifest.identity_adapters.items():
        adapter = load_identity_adapter(package.folder / one.file, name, one.method, loaded.unet)
        modules[RESAMPLER + name] = adapter.maker
    return modules


def rows_of(modules: Mapping[str, Any]) -> Iterator[tuple[Row, Any]]:
    """The rows that a package has, each with its module."""
    for name, maker in modules.items():
        if name.startswith(RESAMPLER) and has_resampler(maker):
            yield Row(name, name, lambda model, _: resampler(model), plain=True), maker
    for row in ROWS:
        if row.module in modules:
            yield row, modules[row.module]
