"""Runs UNet calls as the options say: compiled, captured, or as they are."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

import torch

from storyloom_model.batch import Tensors, UNetCall
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from storyloom_model.memory import is_out_of_memory

log = logging.getLogger("storyloom.model")


class Runner:
    """How the UNets of a model are called.

    Args:
        calls: by adapter.
        options: checked for the UNets' device.
    """

    def __init__(self, calls: Mapping[str | None, UNetCall], options: ExecutionOptions) -> None:
        self._plain = dict(calls)
        compiler: Any = torch.compile
        self._compiled: dict[str | None, UNetCall] = (
            {name: compiler(call, dynamic=False) for name, call in self._plain.items()} if options.compile else {}
        )
        self._options = options
        self.graphs = GraphCache(options.max_graphs) if options.cuda_graphs else None

    @property
    def compiled(self) -> bool:
        """Whether calls are compiled: wanted, and not given up."""
        return bool(self._compiled)

    def call(self, adapter: str | None, inputs: Tensors) -> Tensors:
        """One UNet call with the weights of an adapter."""
        if self.graphs is None or len(inputs["latents"]) not in self._options.buckets:
            return self._call(adapter, inputs)
        name: Hashable = (adapter, self.compiled)
        return self.graphs.run(name, partial(self._call, adapter), inputs)

    def release(self) -> None:
        """Gives back device memory that can be taken again later: graphs, and what the allocator keeps."""
        if self.graphs is not None:
            self.graphs.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _call(self, adapter: str | None, inputs: Tensors) -> Tensors:
        if self._compiled:
            try:
                return self._compiled[adapter](inputs)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                made = self._plain[adapter](inputs)  # What is wrong with the call itself is raised here.
                log.warning("torch.compile does not work here, UNet calls run without: %s", error)
                self._compiled = {}
                return made
        return self._plain[adapter](inputs)
