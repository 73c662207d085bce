"""The engine of ``storyloom_model`` with sessions of an export where its modules stand; on ONNX Runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import onnxruntime
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from storyloom_export.artefact import Artefact, base_of, default_folder
from storyloom_export.gpu import Gpu
from storyloom_export.memory import DeviceMemory
from storyloom_export.modules import ExportedTextEncoder, ExportedUNet, ExportedVae
from storyloom_export.providers import PROVIDERS, Shapes, choose, compiler_version
from storyloom_export.session import OpenSession, Session
from storyloom_export.sizes import profiles_of, shapes_of
from storyloom_model.attention import TextKeysValues
from storyloom_model.batch import UNetCall
from storyloom_model.components import Components
from storyloom_model.denoiser import DEFAULT_OPTIONS, Denoiser
from storyloom_model.execution import ROW_BUCKETS, ExecutionOptions
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.low_rank import Changes
from storyloom_model.methods.names import DEFAULT_METHOD
from storyloom_model.package import ModelPackage
from storyloom_model.variants import Variant

CACHE_FOLDER = "onnxruntime"
"""In a package: what execution providers compile, a folder for each thing that it depends on."""


class ExportedDenoiser(Denoiser):
    """A model package whose modules are sessions of its export: does all that ``Denoiser`` does."""

    methods: ClassVar[tuple[str, ...]] = (DEFAULT_METHOD,)
    takes_freeu: ClassVar[bool] = False
    captures: ClassVar[bool] = False
    """Whether calls of its sessions may be captured as CUDA graphs."""
    changes_weights: ClassVar[bool] = True
    """Whether its sessions take other weights than the graphs have, as LoRA and some identity adapters want."""

    @classmethod
    def sessions(cls, package: ModelPackage, artefact: Artefact, device: torch.device) -> OpenSession:
        """How components are opened on a device.

        Raises:
            ArtefactError: what runs them is not here.
        """
        raise NotImplementedError

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        options: ExecutionOptions = DEFAULT_OPTIONS,
        *,
        one_call: bool | None = None,
    ) -> Self:
        """Loads the export in ``folder/onnx``.

        Args:
            folder: of the package.
            device: "cpu" or "cuda:N".
            options: ``dtype`` must be the export's. ``channels_last`` is for torch alone, and has no effect.
            one_call: see ``Denoiser``.

        Raises:
            PackageError: the folder is not a usable package.
            ArtefactError: the package has no export, or not a usable one; or what runs it is not here.
            ValueError: the export has another dtype, or the options ask for ``compile``.
        """
        package, artefact = load_artefact(folder, options)
        components = components_of(package, artefact, cls.sessions(package, artefact, torch.device(device)))
        kept = replace(options, cuda_graphs=options.cuda_graphs and cls.captures, channels_last=False)
        return cls(package, components, kept, one_call=one_call)

    def _prepare(self, components: Components, options: ExecutionOptions) -> None:
        """Nothing: attention is in the graphs."""

    def _with_adapter(self, package: ModelPackage, name: str) -> ExportedUNet:
        unet: ExportedUNet = self._unet
        return unet.with_adapter(name)

    def _with_weights(self, unet: ExportedUNet, weights: Mapping[str, Tensor], name: str) -> ExportedUNet:
        return unet.with_weights(weights)

    def _call_of(self, unet: ExportedUNet) -> UNetCall:
        return unet

    def _text_keys_values(self, variant: Variant, text: Tensor) -> TextKeysValues:
        """None: the graphs make them of the text."""
        return ()

    def _load_identity_adapters(self, package: ModelPackage) -> dict[str, IdentityAdapter]:
        """Those that the backend can run; jobs that want another are refused.

        The graphs take parts for characters of their own: adapters that tell them apart are left out.
        """
        loaded = super()._load_identity_adapters(package)
        fitting = {name: one for name, one in loaded.items() if not one.maker.by_parts}
        return {name: one for name, one in fitting.items() if self.changes_weights or not one.low_rank}

    def _load_loras(self, package: ModelPackage) -> dict[str, Changes]:
        """All or none, in which case jobs that want one are refused."""
        return super()._load_loras(package) if self.changes_weights else {}


class OnnxDenoiser(ExportedDenoiser):
    """The backend ``onnxruntime``: on the CPU, or on a GPU by the CUDA provider."""

    runtime = "onnxruntime"
    provider: ClassVar[str | None] = None
    """Key of ``PROVIDERS``; None: the one that is named like the kind of device."""

    @classmethod
    def sessions(cls, package: ModelPackage, artefact: Artefact, device: torch.device) -> OpenSession:
        return onnx_sessions(package, artefact, DeviceMemory(device), cls.provider or device.type)


class OnnxTensorRtDenoiser(OnnxDenoiser):
    """The backend ``onnxruntime-tensorrt``: ONNX Runtime's TensorRT provider, which builds engines at its start."""

    runtime = "onnxruntime-tensorrt"
    changes_weights = False  # The engines that it keeps would go for those of other weights.
    provider = "tensorrt"


class OnnxTensorRtRtxDenoiser(OnnxDenoiser):
    """The backend ``onnxruntime-tensorrt-rtx``: NVIDIA's provider for RTX GPUs."""

    runtime = "onnxruntime-tensorrt-rtx"
    changes_weights = False
    provider = "tensorrt-rtx"


def load_artefact(folder: Path, options: ExecutionOptions) -> tuple[ModelPackage, Artefact]:
    """A package and its export, checked against the options.

    Raises:
        PackageError: the folder is not a usable package.
        ArtefactError: the package has no export, or not a usable one.
        ValueError: the export has another dtype, or the options ask for ``compile``.
    """
    if options.compile:
        raise ValueError(
            "compile is for the backend torch; exported graphs are optimised by their runtimes; set it off"
        )
    package = ModelPackage.load(folder)
    artefact = Artefact.load(default_folder(folder), package)
    if options.dtype != artefact.record.dtype:
        raise ValueError(
            f"the export of {folder} is {artefact.record.dtype}, not {options.dtype}; choose that dtype, or export "
            f"it anew with: storyloom-export onnx {folder} --dtype {options.dtype}"
        )
    return package, artefact


def onnx_sessions(
    package: ModelPackage, artefact: Artefact, memory: DeviceMemory, provider: str = "cpu", runtime: Any = onnxruntime
) -> OpenSession:
    """How components are opened in ONNX Runtime.

    Args:
        package: the package.
        artefact: its export.
        memory: where to run.
        provider: a key of ``PROVIDERS``.
        runtime: the module onnxruntime, or what stands for it.
    """

    def open_session(component: str, weights: Mapping[str, Tensor] | None = None) -> Session:
        cache, ranges = None, None
        if provider in PROVIDERS and PROVIDERS[provider].profile is not None:
            # Ranges must be given for every input of every part that the provider takes. A UNet is taken in parts, as
            # Otsu's rule has float64: there the provider widens its ranges as it meets shapes.
            if base_of(component) != "unet":
                ranges = _ranges(package, artefact, component)
            cache = package.folder / CACHE_FOLDER / _cache_key(artefact, component, provider, memory, ranges, runtime)
        choice = choose(provider, memory, artefact.record.dtype, cache, ranges, artefact.record.quantization)
        return Session(artefact.component(component), memory, choice, runtime, weights)

    return open_session


def components_of(package: ModelPackage, artefact: Artefact, open_session: OpenSession) -> Components:
    """Sessions where a package's modules stand, and its own tokenizer and noise schedule."""
    schedulers: Any = DDIMScheduler
    paired = "text_encoder_2" in artefact.record.components
    return Components(
        unet=ExportedUNet(artefact, package.folder, open_session),
        vae=ExportedVae(artefact, package.folder, open_session),
        text_encoder=ExportedTextEncoder(artefact, "text_encoder", open_session),
        tokenizer=package.load_tokenizer(),
        scheduler=schedulers.from_pretrained(package.folder / "scheduler", local_files_only=True),
        text_encoder_2=ExportedTextEncoder(artefact, "text_encoder_2", open_session) if paired else None,
        tokenizer_2=package.load_tokenizer("tokenizer_2") if paired else None,
    )


def _ranges(package: ModelPackage, artefact: Artefact, component: str) -> tuple[Shapes, Shapes, Shapes]:
    """The least, best and largest shapes of a component with one profile."""
    (profile,) = profiles_of(package, artefact.record, component, ROW_BUCKETS[:-1])
    record = artefact.record.components[component]
    return shapes_of(record, profile.least), shapes_of(record, profile.best), shapes_of(record, profile.most)


def _cache_key(
    artefact: Artefact,
    component: str,
    provider: str,
    memory: DeviceMemory,
    ranges: tuple[Shapes, Shapes, Shapes] | None,
    runtime: Any,
) -> str:
    """All that what a provider compiles depends on, such as "tensorrt-unet-0f3a91c2"."""
    parts = (
        artefact.record.package_hash, artefact.record.dtype, artefact.record.quantization, Gpu.of(memory).key,
        compiler_version(PROVIDERS[provider]), runtime.__version__, str(ranges),
    )  # fmt: skip
    return f"{provider}-{component}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}"
