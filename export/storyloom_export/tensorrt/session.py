"""Engines on torch tensors: a profile by the inputs' shapes, buffers in place, work on torch's stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from storyloom_export.memory import DeviceMemory
from storyloom_export.session import TensorSession, Wanted

_Ranges = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Input -> least and largest shape."""


class EngineSession(TensorSession):
    """A component as a TensorRT engine.

    There is one execution context for each combination of input shapes, so that a CUDA graph that was captured of one
    is not touched by calls of other shapes. All share one piece of activation memory, since calls follow each other on
    one stream.

    Args:
        trt: TensorRT's package.
        engine: deserialised.
        memory: of the GPU.
        what: the engine's file, for errors.
    """

    def __init__(self, trt: Any, engine: Any, memory: DeviceMemory, what: str) -> None:
        super().__init__(memory)
        self._trt = trt
        self._engine = engine
        self._what = what
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._profiles = [self._ranges(number) for number in range(engine.num_optimization_profiles)]
        self._contexts: dict[tuple[tuple[str, tuple[int, ...]], ...], Any] = {}
        self._activations = memory.empty((max(int(engine.device_memory_size_v2), 1),), torch.uint8)

    @property
    def contexts(self) -> int:
        """Execution contexts so far."""
        return len(self._contexts)

    def run(self, inputs: Mapping[str, Tensor], outputs: Wanted) -> list[Tensor]:
        """Puts a run of the engine on torch's stream.

        Args:
            inputs: by name, on the session's device.
            outputs: by name, shape and dtype of each.

        Returns:
            New tensors in the order of ``outputs``.

        Raises:
            ValueError: no profile of the engine takes inputs of these shapes.
            MemoryError: memory ran out; fewer rows may pass.
        """
        given = {name: inputs[name].contiguous() for name in self._inputs}
        context = self._context(given)
        made = self._new(outputs)
        for name, tensor in (*given.items(), *made.items()):
            context.set_tensor_address(name, tensor.data_ptr())
        for name, tensor in made.items():
            found = tuple(context.get_tensor_shape(name))
            if found != tuple(tensor.shape):
                raise ValueError(f"{self._what} makes {name} as {list(found)}, not {list(tensor.shape)}")
        if not context.execute_async_v3(self._memory.stream()):
            raise RuntimeError(f"TensorRT could not run {self._what}; its log says why")
        return list(made.values())

    def _context(self, given: Mapping[str, Tensor]) -> Any:
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in given.items())
        if shapes not in self._contexts:
            self._contexts[shapes] = self._new_context(dict(shapes))
        return self._contexts[shapes]

    def _new_context(self, shapes: Mapping[str, Sequence[int]]) -> Any:
        profile = self._profile_of(shapes)
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise MemoryError(f"TensorRT has no memory for a context of {self._what}")
        context.set_device_memory(self._activations.data_ptr(), self._activations.numel())
        if not context.set_optimization_profile_async(profile, self._memory.stream()):
            raise RuntimeError(f"TensorRT cannot set profile {profile} of {self._what}; its log says why")
        self._memory.wait()
        for name, shape in shapes.items():
            if not context.set_input_shape(name, tuple(shape)):
                raise RuntimeError(f"TensorRT refuses {name} as {list(shape)} in {self._what}; its log says why")
        return context

    def _profile_of(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """The first profile whose ranges hold all shapes."""
        for number, ranges in enumerate(self._profiles):
            if all(_within(shapes[name], *ranges[name]) for name in ranges):
                return number
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        largest = ", ".join(f"{name} {list(most)}" for name, (_, most) in self._profiles[-1].items())
        raise ValueError(
            f"{self._what} has no profile for {asked}; its largest takes {largest}; build engines with other --buckets"
        )

    def _ranges(self, profile: int) -> _Ranges:
        found = {}
        for name in self._inputs:
            least, _, most = self._engine.get_tensor_profile_shape(name, profile)
            found[name] = (tuple(least), tuple(most))
        return found


def _within(shape: Sequence[int], least: Sequence[int], most: Sequence[int]) -> bool:
    return len(shape) == len(least) and all(
        low <= size <= high for size, low, high in zip(shape, least, most, strict=True)
    )
