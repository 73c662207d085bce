"""The backend ``onnxruntime``: the engine of ``storyloom_model`` with sessions where its modules stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from storyloom_export.artefact import Artefact, default_folder
from storyloom_export.modules import OnnxTextEncoder, OnnxUNet, OnnxVae
from storyloom_model.attention import TextKeysValues
from storyloom_model.batch import UNetCall
from storyloom_model.components import Components
from storyloom_model.denoiser import DEFAULT_OPTIONS, Denoiser
from storyloom_model.execution import ExecutionOptions
from storyloom_model.identity.adapter import IdentityAdapter
from storyloom_model.low_rank import Changes
from storyloom_model.package import ModelPackage
from storyloom_model.variants import Variant


class OnnxDenoiser(Denoiser):
    """A loaded export of a model package: does all that ``Denoiser`` does. ``components`` are of ``load_sessions``."""

    runtime = "onnxruntime"

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
            options: ``dtype`` must be the export's. ``cuda_graphs`` and ``channels_last`` are for torch alone, and
                have no effect.
            one_call: see ``Denoiser``.

        Raises:
            PackageError: the folder is not a usable package.
            ArtefactError: the package has no export, or not a usable one.
            ValueError: the export has another dtype, or the options ask for ``compile``.
        """
        if options.compile:
            raise ValueError("compile is for the backend torch; ONNX Runtime optimises its graphs itself; set it off")
        package = ModelPackage.load(folder)
        artefact = Artefact.load(default_folder(folder), package)
        if options.dtype != artefact.record.dtype:
            raise ValueError(
                f"the export of {folder} is {artefact.record.dtype}, not {options.dtype}; choose that dtype, or export "
                f"it anew with: storyloom-export onnx {folder} --dtype {options.dtype}"
            )
        components = load_sessions(package, artefact, torch.device(device))
        return cls(package, components, replace(options, cuda_graphs=False, channels_last=False), one_call=one_call)

    def _prepare(self, components: Components, options: ExecutionOptions) -> None:
        """Nothing: attention is in the graphs."""

    def _with_adapter(self, package: ModelPackage, name: str) -> OnnxUNet:
        unet: OnnxUNet = self._unet
        return unet.with_adapter(name)

    def _call_of(self, unet: OnnxUNet) -> UNetCall:
        return unet

    def _text_keys_values(self, variant: Variant, text: Tensor) -> TextKeysValues:
        """None: the graphs make them of the text."""
        return ()

    def _load_identity_adapters(self, package: ModelPackage) -> dict[str, IdentityAdapter]:
        """None: the graphs have no identity streams. Jobs that want them are refused."""
        return {}

    def _load_loras(self, package: ModelPackage) -> dict[str, Changes]:
        """None: the weights are in the graphs. Jobs that want them are refused."""
        return {}


def load_sessions(package: ModelPackage, artefact: Artefact, device: torch.device) -> Components:
    """Sessions for every component, and the package's own tokenizer and noise schedule.

    Raises:
        ArtefactError: ONNX Runtime cannot load a component.
    """
    schedulers: Any = DDIMScheduler
    return Components(
        unet=OnnxUNet(artefact, device),
        vae=OnnxVae(artefact, package.folder, device),
        text_encoder=OnnxTextEncoder(artefact, device),
        tokenizer=package.load_tokenizer(),
        scheduler=schedulers.from_pretrained(package.folder / "scheduler", local_files_only=True),
    )
