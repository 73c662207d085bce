"""The backend ``onnxruntime``: the engine of ``storyloom_model`` with sessions where its modules stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler

from storyloom_export.artefact import Artefact, default_folder
from storyloom_export.modules import OnnxTextEncoder, OnnxUNet, OnnxVae
from storyloom_model.components import Components
from storyloom_model.denoiser import Denoiser
from storyloom_model.package import ModelPackage


class OnnxDenoiser(Denoiser):
    """A loaded export of a model package: encode, step, decode and preview as ``Denoiser`` does them."""

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        one_call: bool | None = None,
    ) -> Self:
        """Loads the export in ``folder/onnx``.

        Args:
            folder: of the package.
            device: "cpu" or "cuda:N".
            dtype: of the export; None takes whichever it is.
            one_call: see ``Denoiser``.

        Raises:
            PackageError: the folder is not a usable package.
            ArtefactError: the package has no export, or not a usable one.
            ValueError: the export has another dtype.
        """
        package = ModelPackage.load(folder)
        artefact = Artefact.load(default_folder(folder), package)
        if dtype is not None and str(dtype) != f"torch.{artefact.record.dtype}":
            raise ValueError(f"the export of {folder} is {artefact.record.dtype}, not {dtype}; export it anew")
        return cls(package, load_sessions(package, artefact, torch.device(device)), one_call=one_call)


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
