"""CUDA graphs of calls from tensors to tensors: capture, replay, and how many are kept."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

log = logging.getLogger("storyloom.model")

Tensors: TypeAlias = Mapping[str, Tensor]
Call: TypeAlias = Callable[[Tensors], Tensors]
Capture: TypeAlias = Callable[[Call, Tensors], Call]

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled and algorithms chosen in them, which no capture may contain."""


def capture_cuda_graph(call: Call, inputs: Tensors) -> Call:
    """Captures a call on the current CUDA device.

    Args:
        call: does the same launches for all inputs of the same shapes, and reads nothing on the host.
        inputs: of those shapes.

    Returns:
        A replay: it takes inputs of the same names, shapes and dtypes, and returns tensors of the caller's own.
    """
    static = {name: value.clone() for name, value in inputs.items()}
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            call(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call(static)

    def replay(inputs: Tensors) -> Tensors:
        for name, value in inputs.items():
            static[name].copy_(value)
        graph.replay()
        return {name: value.clone() for name, value in outputs.items()}

    return replay


class GraphCache:
    """Graphs by call and by the shapes of its inputs; the one unused for longest goes first.

    A call that cannot be captured runs as it is, then and always; that is logged once and counted.

    Args:
        limit: the most graphs to keep.
        capture: makes a replay of a call.
    """

    def __init__(self, limit: int, capture: Capture = capture_cuda_graph) -> None:
        self._limit = limit
        self._capture = capture
        self._graphs: OrderedDict[tuple[Hashable, Hashable], Call] = OrderedDict()
        self._refused: set[Hashable] = set()
        self.captured = 0
        """Captures that worked, so far."""

    @property
    def refused(self) -> int:
        """Kinds of calls that could not be captured."""
        return len(self._refused)

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, name: Hashable, call: Call, inputs: Tensors) -> Tensors:
        """Runs a call through its graph, which is captured if it is not there.

        Args:
            name: of the call; the same name must always mean the same call.
            call: what to capture, or to run as it is.
            inputs: for this run.
        """
        shapes = tuple((part, value.shape, value.dtype) for part, value in sorted(inputs.items()))
        key = (name, shapes)
        if key in self._refused:
            return call(inputs)
        if key not in self._graphs:
            # Makes room first: the new graph may need the memory of the old.
            while len(self._graphs) >= self._limit:
                self._graphs.popitem(last=False)
            try:
                self._graphs[key] = self._capture(call, inputs)
            except Exception as error:  # noqa: BLE001 - whatever went wrong, the call itself may still run
                if not self._refused:
                    log.warning("a UNet call cannot be captured as a CUDA graph and runs without: %s", error)
                self._refused.add(key)
                return call(inputs)
            self.captured += 1
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs)

    def drop(self, gone: Callable[[Any], bool]) -> None:
        """Drops the graphs of some calls, told by their names: what they would compute is no longer there."""
        for key in [key for key in self._graphs if gone(key[0])]:
            del self._graphs[key]

    def clear(self) -> None:
        """Drops every graph and the memory that it holds; they are captured again when needed."""
        self._graphs.clear()
