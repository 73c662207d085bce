"""The backends that run exports, by the names that the server and ``storyloom-export verify`` know them by."""

from __future__ import annotations

from storyloom_export.denoiser import ExportedDenoiser, OnnxDenoiser, OnnxTensorRtDenoiser, OnnxTensorRtRtxDenoiser
from storyloom_export.tensorrt.denoiser import TensorRtDenoiser

BACKENDS: dict[str, type[ExportedDenoiser]] = {
    denoiser.runtime: denoiser
    for denoiser in (OnnxDenoiser, OnnxTensorRtDenoiser, OnnxTensorRtRtxDenoiser, TensorRtDenoiser)
}
