"""``storyloom-export verify``: every exported component against torch float32 on the same inputs, and a whole story."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyloom_export.artefact import Artefact, Dtype, ExportRecord, Quantization
from storyloom_export.compare import Difference, difference, psnr
from storyloom_export.denoiser import ExportedDenoiser, OnnxDenoiser, components_of
from storyloom_export.sample import make, sample_job
from storyloom_export.session import OpenSession
from storyloom_export.table import load_modules, rows_of
from storyloom_kernels import GroupLayout
from storyloom_model.attention import install_story_attention, text_keys_values
from storyloom_model.batch import unet_pass
from storyloom_model.components import load_components
from storyloom_model.denoiser import Denoiser
from storyloom_model.encoder import TextEmbeddings, TextEncoder
from storyloom_model.execution import ExecutionOptions
from storyloom_model.maps import ForegroundRule
from storyloom_model.package import ModelPackage

Pictures = NDArray[np.uint8]
AttributeReader = Callable[[Pictures], Sequence[dict[str, str]]]
"""Pictures [n, h, w, 3] -> what is read from each: attribute -> value."""


@dataclass(frozen=True)
class Tolerance:
    """What an export may be off by: relative to the largest value of an output, and of whole pictures, in dB."""

    error: float
    psnr: float


TOLERANCES: dict[Dtype, Tolerance] = {
    "float32": Tolerance(1e-4, 40.0),
    "float16": Tolerance(2e-2, 25.0),
    "bfloat16": Tolerance(1e-1, 15.0),
}
QUANTIZED_TOLERANCES: dict[Quantization, Tolerance] = {"int8": Tolerance(2e-1, 25.0), "fp8": Tolerance(2e-1, 25.0)}
"""Of exports whose UNet is quantised, whatever their dtype: other pictures of the same story."""

_TEXTS = ("a girl with red hair in a park", "an old man at a lake", "a girl and an old man", "a garden", "")


@dataclass
class Report:
    """What was found. ``failures`` says, for each figure over its tolerance, which and by how much."""

    tolerance: Tolerance
    differences: list[Difference] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    agreement: float | None = None

    @property
    def failures(self) -> list[str]:
        over = [
            f"{found.name}: off by {found.largest:.2e}, which is {found.largest / (found.scale or 1):.1e} of its "
            f"largest value; {self.tolerance.error:.0e} is allowed"
            for found in self.differences
            if not found.largest <= self.tolerance.error * (found.scale or 1)
        ]
        over += [
            f"picture {frame}: PSNR {value:.1f} dB; {self.tolerance.psnr:.0f} dB is the least"
            for frame, value in enumerate(self.psnr)
            if not value >= self.tolerance.psnr
        ]
        return over


def verify(
    package: ModelPackage,
    artefact: Artefact,
    *,
    backend: type[ExportedDenoiser] = OnnxDenoiser,
    device: str = "cpu",
    steps: int = 4,
    reader: AttributeReader | None = None,
    tolerance: Tolerance | None = None,
) -> Report:
    """Compares an export with its package in torch float32 on the CPU.

    Args:
        package: the package that was exported.
        artefact: the export.
        backend: what runs the export.
        device: where the export runs.
        steps: of the story that is made with both.
        reader: reads attributes from pictures; agreement is how many it reads alike from both stories.
        tolerance: None: ``tolerance_of`` the export.

    Raises:
        ArtefactError: the backend cannot run the export.
    """
    report = Report(tolerance or tolerance_of(artefact.record))
    open_session = backend.sessions(package, artefact, torch.device(device))
    report.differences += [*_plain(package, artefact, open_session), *_components(package, artefact, open_session)]
    exported = backend(
        package, components_of(package, artefact, open_session), ExecutionOptions(dtype=artefact.record.dtype)
    )  # fmt: skip
    wanted = sample_job(package, steps)
    ours, reference = make(exported, wanted), make(Denoiser.load(package.folder), wanted)
    report.psnr = [psnr(mine, theirs) for mine, theirs in zip(ours, reference, strict=True)]
    if reader is not None:
        pairs = list(zip(reader(ours), reader(reference), strict=True))
        alike = [mine[name] == theirs[name] for mine, theirs in pairs for name in theirs]
        report.agreement = sum(alike) / len(alike)
    return report


def tolerance_of(record: ExportRecord) -> Tolerance:
    """What an export may be off by if nothing else is said."""
    return QUANTIZED_TOLERANCES.get(record.quantization) or TOLERANCES[record.dtype]


def load_reader(name: str) -> AttributeReader:
    """An attribute reader by its name, module:function.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has no such function.
    """
    module, _, function = name.partition(":")
    return cast(AttributeReader, getattr(importlib.import_module(module), function))


@torch.inference_mode()
def _plain(package: ModelPackage, artefact: Artefact, open_session: OpenSession) -> Iterator[Difference]:
    """Components whose modules run in torch as they are exported: example inputs through both."""
    for row, module in rows_of(load_modules(package)):
        if not row.plain or row.name not in artefact.record.components:
            continue
        session, part = open_session(row.name), row.make(module, package)
        made = part.module(**part.inputs)
        references = dict(zip(part.outputs, (made,) if isinstance(made, Tensor) else made, strict=True))
        dtype = artefact.record.components[row.name].dtype
        inputs = {
            name: value.to(session.device, dtype if value.is_floating_point() else value.dtype)
            for name, value in part.inputs.items()
        }
        found = session.run(inputs, {name: (value.shape, dtype) for name, value in references.items()})
        for (name, reference), ours in zip(references.items(), found, strict=True):
            yield difference(f"{row.name} {name}", ours.cpu(), reference)


@torch.inference_mode()
def _components(package: ModelPackage, artefact: Artefact, open_session: OpenSession) -> Iterator[Difference]:
    loaded = load_components(package)
    sessions = components_of(package, artefact, open_session)
    dtype, device = sessions.unet.dtype, sessions.unet.device
    draw = torch.Generator().manual_seed(0)
    width, height = package.manifest.sizes[0]
    factor = 2 ** (len(loaded.vae.config.block_out_channels) - 1)
    config = loaded.unet.config

    picture = torch.rand(2, loaded.vae.config.in_channels, height, width, generator=draw) * 2 - 1
    distribution = loaded.vae.encode(picture, return_dict=False)[0]
    encoder = open_session("vae_encoder")
    made = dict.fromkeys(("mean", "logvar"), (distribution.mean.shape, sessions.vae.dtype))
    for name, values in zip(made, encoder.run({"picture": picture.to(device, sessions.vae.dtype)}, made), strict=True):
        yield difference(f"vae_encoder {name}", values.cpu(), getattr(distribution, name))
    latents = torch.randn(2, config.in_channels, height // factor, width // factor, generator=draw)
    pictures = sessions.vae.decode(latents.to(device, sessions.vae.dtype))[0]
    yield difference("vae_decoder picture", pictures.cpu(), loaded.vae.decode(latents, return_dict=False)[0])

    second = None if loaded.text_encoder_2 is None else (loaded.tokenizer_2, loaded.text_encoder_2)
    text = TextEncoder(loaded.tokenizer, loaded.text_encoder, second).embed(_TEXTS)
    install_story_attention(loaded.unet)
    widths: list[int] = []
    inputs = _unet_inputs(config.in_channels, (height // factor, width // factor), text)
    for layer, (keys, values) in enumerate(text_keys_values(loaded.unet, text.hidden)):
        inputs |= {f"key.{layer}": keys, f"value.{layer}": values}
        widths.append(keys.shape[2])
    cases = {"unet": inputs}
    if package.manifest.identity_adapters:
        cases["unet with identities"] = inputs | _streams(widths)
    rule = ForegroundRule(package.manifest.attention.threshold, package.manifest.attention.value)
    kept = ("times", "attention.previous_maps", "added.time_ids", "identity.scale")
    for case, given in cases.items():
        reference = unet_pass(loaded.unet, rule, given)
        own = {
            name: value.to(device, dtype if value.is_floating_point() and name not in kept else value.dtype)
            for name, value in given.items()
        }
        found = sessions.unet(own)
        for name, values in reference.items():
            yield difference(f"{case} {name}", found[name].cpu(), values)


def _unet_inputs(channels: int, size: tuple[int, int], text: TextEmbeddings) -> dict[str, Tensor]:
    """What ``collate`` makes of two groups, of three frames and two, and two characters, one of whom a row lacks."""
    draw = torch.Generator().manual_seed(1)
    layout = GroupLayout((3, 2))
    token_mask = torch.zeros(layout.rows, 2, text.hidden.shape[1], dtype=torch.bool)
    token_mask[:, 0, 2:6] = True
    token_mask[1:, 1, 8:11] = True
    inputs = {
        "latents": torch.randn(layout.rows, channels, *size, generator=draw),
        "times": torch.tensor([900.0, 900.0, 500.0, 500.0, 20.0]),
        "text": text.hidden,
        "attention.bounds": layout.bounds(text.hidden.device),
        "attention.token_mask": token_mask,
        "attention.source_of_row": torch.arange(layout.rows),
        "attention.on": torch.ones(layout.rows, 1, dtype=torch.bool),
        "attention.previous_maps": torch.rand(layout.rows, 2, *size, generator=draw),
    }
    if text.pooled is not None:
        pixels = [8.0 * side for side in size]
        times = torch.tensor([*pixels, 0, 0, *pixels]).expand(layout.rows, -1)
        inputs |= {"added.text_embeds": text.pooled, "added.time_ids": times}
    return inputs


def _streams(widths: Sequence[int]) -> dict[str, Tensor]:
    """Identities of these rows, as ``collate`` has them: of both characters, of one or the other, of all, of nobody."""
    draw = torch.Generator().manual_seed(2)
    ends = [[2, 5], [4, 4], [0, 4], [5, 5], [0, 0]]
    streams = {
        "identity.ends": torch.tensor(ends, dtype=torch.int32),
        "identity.scale": torch.tensor([[1.0, 0.5], [1.0, 0.0], [0.0, 1.5], [0.8, 0.0], [0.0, 0.0]]),
        "identity.owner": torch.tensor([[0, 1], [0, -1], [0, 1], [-1, -1], [-1, -1]]),
    }
    for layer, width in enumerate(widths):
        for part in ("key", "value"):
            streams[f"identity.{part}.{layer}"] = 0.5 * torch.randn(len(ends), 5, width, generator=draw)
    return streams
