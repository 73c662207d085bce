"""ONNX Runtime's execution providers: which there are, what each needs and takes, and what to do where one is missing.

``PROVIDERS`` is the table; the rest turns a row of it into what a session is opened with.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storyloom_export.artefact import ArtefactError, Dtype, Quantization
from storyloom_export.gpu import tensorrt_version
from storyloom_export.memory import DeviceMemory


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: ONNX Runtime's name of it.
        kind: of the devices it runs on.
        install: what to do where it is missing.
        behind: providers for the nodes that it does not take.
        module: of a package that brings it as a library of its own; "" where ONNX Runtime's package has it.
        fixed: options that it always gets.
        by_dtype: options for exports of a number type.
        cache: the option that names the folder of what it has compiled; "" if it compiles nothing that lasts.
        profile: the options for the least, best and largest shapes, where engines are built for a range of them.
    """

    name: str
    kind: str
    install: str
    behind: tuple[str, ...] = ()
    module: str = ""
    fixed: Mapping[str, str] = field(default_factory=dict)
    by_dtype: Mapping[Dtype, Mapping[str, str]] = field(default_factory=dict)
    cache: str = ""
    profile: tuple[str, str, str] | None = None


# No provider gets its option for CUDA graphs. ONNX Runtime refuses to capture graphs with control flow (the loop over
# rows of CrossFrameAttention) or with nodes of other providers; the backend tensorrt captures its engines.
PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "cpu", "install onnxruntime"),
    "cuda": Provider(
        "CUDAExecutionProvider",
        "cuda",
        "install onnxruntime-gpu in the place of onnxruntime (pip uninstall onnxruntime; pip install "
        "'onnxruntime-gpu[cuda,cudnn]'), for the CUDA version of the driver, or use --device cpu",
        behind=("CPUExecutionProvider",),
        # The same algorithms in every process: without this a picture could depend on what was measured at the start.
        fixed={"cudnn_conv_algo_search": "HEURISTIC"},
    ),
    "tensorrt": Provider(
        "TensorrtExecutionProvider",
        "cuda",
        "install onnxruntime-gpu in the place of onnxruntime, and TensorRT's libraries of the version that it was "
        "built with where the loader finds them (pip install tensorrt-cu12-libs --extra-index-url "
        "https://pypi.nvidia.com; LD_LIBRARY_PATH), or use --backend onnxruntime",
        behind=("CUDAExecutionProvider", "CPUExecutionProvider"),
        fixed={"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        by_dtype={"float16": {"trt_fp16_enable": "1"}, "bfloat16": {"trt_bf16_enable": "1"}},
        cache="trt_engine_cache_path",
        profile=("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"),
    ),
    "tensorrt-rtx": Provider(
        "NvTensorRTRTXExecutionProvider",
        "cuda",
        "install onnxruntime-ep-nv-tensorrt-rtx-cu13 beside onnxruntime 1.24 or newer (not onnxruntime-gpu), on a "
        "machine with an RTX GPU of compute capability 8.0, 8.6, 8.9 or 12.0, or use --backend onnxruntime",
        behind=("CPUExecutionProvider",),
        module="onnxruntime_ep_nv_tensorrt_rtx",
        cache="nv_runtime_cache_path",
        profile=("nv_profile_min_shapes", "nv_profile_opt_shapes", "nv_profile_max_shapes"),
    ),
}
"""By our names."""

Shapes = Mapping[str, Sequence[int]]
"""Input -> its shape."""


@dataclass(frozen=True)
class Choice:
    """A provider with its options, all text, and ONNX Runtime's own ``settings``, for one session."""

    provider: Provider
    options: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def providers(self) -> list[Any]:
        """As ``InferenceSession`` takes them."""
        own: Any = (self.provider.name, dict(self.options)) if self.options else self.provider.name
        return [own, *self.provider.behind]


CPU = Choice(PROVIDERS["cpu"])
# ONNX Runtime 1.31 fuses fp8 pairs into products that only int8 has, and then refuses the graph.
CPU_FP8 = Choice(PROVIDERS["cpu"], settings={"session.disable_quant_qdq": "1"})


def choose(
    name: str,
    memory: DeviceMemory,
    dtype: Dtype,
    cache: Path | None = None,
    ranges: tuple[Shapes, Shapes, Shapes] | None = None,
    quantization: Quantization = "none",
) -> Choice:
    """A provider's options for a component.

    Args:
        name: a key of ``PROVIDERS``.
        memory: where to run.
        dtype: of the export.
        cache: where the provider may keep what it compiles; made if need be. One folder for each GPU, version, package
            and range of shapes, since providers do not tell these apart themselves.
        ranges: least, best and largest shapes of the inputs.
        quantization: of the export.

    Raises:
        ArtefactError: there is no such provider, or it does not run on the device.
    """
    provider = PROVIDERS.get(name)
    if provider is None or memory.kind != provider.kind:
        wanted = name if provider is None else provider.name
        kind = "cpu or cuda:0" if provider is None else f"{provider.kind}{':0' * (provider.kind != 'cpu')}"
        raise ArtefactError(f"ONNX Runtime's {wanted} does not run here on {memory.kind}; use --device {kind}")
    if provider.kind == "cpu":
        return CPU_FP8 if quantization == "fp8" else CPU
    options = {"device_id": str(memory.index), **provider.fixed, **provider.by_dtype.get(dtype, {})}
    if provider.cache and cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        options[provider.cache] = str(cache)
        if "trt_timing_cache_enable" in options:
            options["trt_timing_cache_path"] = str(cache)
    if provider.profile is not None and ranges is not None:
        options |= {option: shapes_text(shapes) for option, shapes in zip(provider.profile, ranges, strict=True)}
    return Choice(provider, options)


def compiler_version(provider: Provider) -> str:
    """The version of what compiles for a provider: of its own package, or of TensorRT's library."""
    if not provider.module:
        return tensorrt_version() or "none"
    try:
        return str(importlib.import_module(provider.module).__version__)
    except ImportError:
        return "none"


def shapes_text(shapes: Shapes) -> str:
    """Shapes as the providers of TensorRT read them: "sample:2x4x16x16,timestep:2"."""
    return ",".join(f"{name}:{'x'.join(str(size) for size in shape)}" for name, shape in shapes.items())


def make_available(choice: Choice, runtime: Any) -> list[Any]:
    """Makes sure that ONNX Runtime has the provider, and registers it if it is a library of its own.

    Returns:
        For such a library the devices that it runs on; otherwise nothing.

    Raises:
        ArtefactError: the provider is missing, or has no device; the message says how to get it.
    """
    provider = choice.provider
    if not provider.module:
        available = runtime.get_available_providers()
        if provider.name not in available:
            raise ArtefactError(
                f"the installed onnxruntime has no {provider.name}, only {', '.join(available)}; {provider.install}"
            )
        return []
    if not any(device.ep_name == provider.name for device in runtime.get_ep_devices()):
        _register(provider, runtime)
    index = choice.options.get("device_id", "0")
    devices = [device for device in runtime.get_ep_devices() if device.ep_name == provider.name]
    chosen = [device for place, device in enumerate(devices) if str(place) == index]
    if not chosen:
        raise ArtefactError(
            f"{provider.name} finds {len(devices)} devices on this machine and number {index} was asked for; "
            f"{provider.install}"
        )
    return chosen


def check_given(choice: Choice, session: Any) -> None:
    """Makes sure that a session has the provider: ONNX Runtime goes on without one whose libraries do not load.

    Raises:
        ArtefactError: it went on without.
    """
    given = session.get_providers()
    if choice.provider.name not in given:
        raise ArtefactError(
            f"ONNX Runtime could not start {choice.provider.name} and would run on {', '.join(given)} (its log says "
            f"which library it did not find); {choice.provider.install}"
        )


def _register(provider: Provider, runtime: Any) -> None:
    try:
        library = importlib.import_module(provider.module).get_library_path()
        runtime.register_execution_provider_library(provider.name, library)
    except Exception as error:  # ImportError, FileNotFoundError, and ONNX Runtime's own, which have no base class.
        raise ArtefactError(f"{provider.name} cannot be loaded ({error}); {provider.install}") from error
