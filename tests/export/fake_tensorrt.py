"""A module tensorrt whose engines are ONNX files that ONNX Runtime runs on the CPU, at the addresses it is given.

It has the names of TensorRT's bindings, against which ``test_export_tensorrt`` holds them where those can be imported,
and refuses what TensorRT refuses: shapes outside of the profile, addresses that were not set, a damaged engine.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime

from storyloom_export.gpu import Gpu
from storyloom_export.tensorrt.platform import Platform
from tests.export.fake_onnxruntime import PretendedGpu

H200 = Gpu("NVIDIA H200", 90)
Shape = tuple[int, ...]


class FakeTensorRt:
    """``refuses``: what the parser says of every graph, if anything."""

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(REFIT="refit")
    DataType = SimpleNamespace(FLOAT=np.float32, HALF=np.float16)

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            pass

    def __init__(self, version: str = "11.4.0.106", refuses: str = "") -> None:
        self.__version__ = version
        self.refuses = refuses
        self.built = 0
        self.parsed: list[onnx.ModelProto] = []
        self.timings: list[bytes] = []
        self.contexts: list[Context] = []
        self.registered: list[tuple[int, int]] = []

    def register(self, architecture: int, max_positions: int) -> list[str]:
        self.registered.append((architecture, max_positions))
        return []

    def Builder(self, logger: Any) -> Builder:  # noqa: N802
        return Builder(self)

    def OnnxParser(self, network: Any, logger: Any) -> Parser:  # noqa: N802
        return Parser(self, network)

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:  # noqa: N802
        return Refitter(engine)

    def Weights(self, dtype: Any, pointer: int, count: int) -> Any:  # noqa: N802
        """A copy: the fake's engine is opened when it is refitted."""
        size = count * np.dtype(dtype).itemsize
        return np.frombuffer(ctypes.string_at(pointer, size), dtype)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> ParserRefitter:  # noqa: N802
        return ParserRefitter(refitter)


class Network:
    """What was parsed."""

    path = ""


class Parser:
    def __init__(self, trt: FakeTensorRt, network: Network) -> None:
        self._trt, self._network = trt, network
        self.num_errors = 1 if trt.refuses else 0

    def parse(self, content: bytes, path: str) -> bool:
        self._trt.parsed.append(onnx.ModelProto.FromString(content))
        self._network.path = path
        return not self._trt.refuses

    def get_error(self, number: int) -> str:
        return self._trt.refuses


class Config:
    def __init__(self) -> None:
        self.profiles: list[dict[str, list[Shape]]] = []
        self.flags: list[str] = []
        self._cache = b""

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(serialize=lambda: content + b"timed ")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> None:
        self.get_timing_cache = lambda: cache

    def add_optimization_profile(self, profile: Any) -> None:
        self.profiles.append(profile.shapes)


class Builder:
    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt

    def create_network(self, flags: int) -> Network:
        assert flags == 2  # Strongly typed.
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, list[Shape]] = {}

        def set_shape(name: str, least: Shape, best: Shape, most: Shape) -> None:
            assert all(low <= good <= high for low, good, high in zip(least, best, most, strict=True)), name
            shapes[name] = [least, best, most]

        return SimpleNamespace(shapes=shapes, set_shape=set_shape)

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        assert config.flags == ["refit"]
        self._trt.built += 1
        self._trt.timings.append(config.get_timing_cache().serialize())
        return json.dumps({"path": network.path, "profiles": config.profiles, "padding": "x" * 200}).encode()


class Runtime:
    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
        try:
            return Engine(self._trt, **json.loads(content))
        except ValueError:
            return None


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, trt: FakeTensorRt, path: str, profiles: list[dict[str, list[Shape]]], padding: str) -> None:
        self._trt, self._profiles = trt, profiles
        self.open(path)

    def open(self, path: str, weights: dict[str, Any] | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        if weights:
            initializers = onnx.load(path, load_external_data=False).graph.initializer
            shapes = {one.name: list(one.dims) for one in initializers}
            kept = [onnxruntime.OrtValue.ortvalue_from_numpy(weights[name].reshape(shapes[name])) for name in weights]
            options.add_external_initializers(list(weights), kept)
            self._kept = kept
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = {one.name: one for one in self.session.get_outputs()}
        self._names = [*self.inputs, *self.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def get_tensor_name(self, number: int) -> str:
        return self._names[number]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[Shape]:
        return self._profiles[profile][name]

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        self._trt.contexts.append(Context(self, self._profiles))
        return self._trt.contexts[-1]


class Context:
    """Runs its engine; ``profile`` and ``runs`` are for the tests."""

    def __init__(self, engine: Engine, profiles: list[dict[str, list[Shape]]]) -> None:
        self._engine, self._profiles = engine, profiles
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self.profile = -1
        self.memory = 0
        self.runs = 0

    def set_device_memory(self, pointer: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2
        self.memory = pointer

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        least, _, most = self._profiles[self.profile][name]
        self._shapes[name] = shape
        return all(low <= size <= high for size, low, high in zip(shape, least, most, strict=True))

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """By the names of the graph's sizes, where they are plain ones."""
        sizes = {
            axis: size
            for one, shape in self._shapes.items()
            for axis, size in zip(self._engine.inputs[one].shape, shape, strict=True)
            if isinstance(axis, str)
        }
        return [axis if isinstance(axis, int) else _size(axis, sizes) for axis in self._engine.outputs[name].shape]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        session = self._engine.session
        if not self.memory or set(self._addresses) != {*self._engine.inputs, *self._engine.outputs}:
            return False
        binding = session.io_binding()
        for name, one in self._engine.inputs.items():
            binding.bind_input(name, "cpu", 0, _DTYPES[one.type], list(self._shapes[name]), self._addresses[name])
        for name in self._engine.outputs:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        for name, made in zip(self._engine.outputs, binding.copy_outputs_to_cpu(), strict=True):
            ctypes.memmove(self._addresses[name], np.ascontiguousarray(made).ctypes.data, made.nbytes)
        self.runs += 1
        return True


class Refitter:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.path = ""
        self._weights: dict[str, Any] = {}

    def set_named_weights(self, name: str, weights: Any) -> bool:
        self._weights[name] = weights
        return True

    def refit_cuda_engine(self) -> bool:
        self.engine.open(self.path, self._weights)
        return True

    def get_missing_weights(self) -> list[str]:
        return []


class ParserRefitter:
    num_errors = 1

    def __init__(self, refitter: Refitter) -> None:
        self._refitter = refitter

    def refit_from_bytes(self, content: bytes, path: str) -> bool:
        """Checks that the graph has the engine's inputs."""
        inputs = {one.name for one in onnx.ModelProto.FromString(content).graph.input}
        self._refitter.path = path
        return inputs == set(self._refitter.engine.inputs)

    def get_error(self, number: int) -> str:
        return "other inputs"


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def _size(expression: str, sizes: dict[str, int]) -> int:
    """A size such as "2*latent_height_by_2" or "8*latent_height"."""
    if expression in sizes:
        return sizes[expression]
    factor, _, name = expression.rpartition("*")
    return int(factor) * sizes[name]


def pretended(version: str = "11.4.0.106", gpu: Gpu = H200, refuses: str = "") -> tuple[Platform, FakeTensorRt]:
    """A platform with the fake and the CPU's memory."""
    trt = FakeTensorRt(version, refuses)
    return Platform(trt, gpu, PretendedGpu(), trt.register), trt
