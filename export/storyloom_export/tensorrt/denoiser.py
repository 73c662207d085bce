"""The backend ``tensorrt``: the engine of ``storyloom_model`` with TensorRT engines where its modules stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import torch
from torch import Tensor

from storyloom_export.artefact import Artefact, ArtefactError, base_of
from storyloom_export.denoiser import ExportedDenoiser
from storyloom_export.session import OpenSession
from storyloom_export.tensorrt.builder import for_tensorrt, key_of
from storyloom_export.tensorrt.platform import Platform
from storyloom_export.tensorrt.session import EngineSession
from storyloom_export.tensorrt.store import find_engine, rebuild_hint
from storyloom_model.package import ModelPackage

_TYPES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}
"""TensorRT's names of the number types that weights have."""


class TensorRtDenoiser(ExportedDenoiser):
    """A loaded package whose modules are engines that ``storyloom-export tensorrt`` has built on such a machine."""

    runtime = "tensorrt"
    captures = True

    @classmethod
    def sessions(cls, package: ModelPackage, artefact: Artefact, device: torch.device) -> OpenSession:
        return engine_sessions(package, artefact, Platform.here(device))


def engine_sessions(package: ModelPackage, artefact: Artefact, platform: Platform) -> OpenSession:
    """How components are opened as engines. A component "unet.ADAPTER" is the UNet's engine with that one's weights, as
    is the UNet with low-rank changes.
    """

    def open_session(component: str, weights: Mapping[str, Tensor] | None = None) -> EngineSession:
        base = base_of(component)
        file, _ = find_engine(package.folder, key_of(artefact, base, platform))
        logger = platform.library.Logger(platform.library.Logger.WARNING)
        engine = platform.library.Runtime(logger).deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise ArtefactError(
                f"TensorRT {platform.version} cannot read {file}, though it is as it was built; its log says why; "
                f"{rebuild_hint(package.folder)}"
            )
        if component != base or weights:
            refit(platform.library, engine, artefact, component, rebuild_hint(package.folder), weights or {})
        return EngineSession(platform.library, engine, platform.memory, str(file))

    return open_session


def refit(trt: Any, engine: Any, artefact: Artefact, component: str, hint: str, weights: Mapping[str, Tensor]) -> None:
    """Puts the weights of another component of the same graph, such as "unet.amsa", into an engine.

    Args:
        trt: TensorRT's package.
        engine: deserialised; changed in place.
        artefact: the export.
        component: whose weights.
        hint: the end of an error.
        weights: that take the place of those of the same names.

    Raises:
        ArtefactError: the graph's weights do not fit the engine.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    refitter = trt.Refitter(engine, logger)
    path = artefact.component(component)
    model = for_tensorrt(onnx.load(path, load_external_data=False))
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_bytes(model.SerializeToString(), str(path)):
        errors = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise ArtefactError(f"the weights of {path} do not fit the engine: {errors}; {hint}")
    kept = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}  # Until they are in.
    for name, weight in kept.items():
        dtype = getattr(trt.DataType, _TYPES[weight.dtype])
        if not refitter.set_named_weights(name, trt.Weights(dtype, weight.data_ptr(), weight.numel())):
            raise ArtefactError(f"the engine of {path} takes no other weights for {name}; {hint}")
    if not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()[:5])
        raise ArtefactError(f"the engine lacks weights that {path} does not give: {missing}; {hint}")
