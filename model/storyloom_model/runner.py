"""Runs UNet calls as the options say: compiled, captured, or as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from storyloom_model.batch import Tensors, UNetCall
from storyloom_model.execution import ExecutionOptions
from storyloom_model.graphs import GraphCache
from storyloom_model.memory import is_out_of_memory
from storyloom_model.variants import Variant

log = logging.getLogger("storyloom.model")


class Runner:
    """How the UNets of a model are called.

    Args:
        plain: the call of a variant's UNet as it is.
        options: checked for the UNets' device.
    """

    def __init__(self, plain: Callable[[Variant], UNetCall], options: ExecutionOptions) -> None:
        self._plain = plain
        self.compiled = options.compile
        """Whether calls are compiled: wanted, and not given up."""
        self._compiled: dict[Variant, UNetCall] = {}
        self._options = options
        self.graphs = GraphCache(options.max_graphs) if options.cuda_graphs else None

    def call(self, variant: Variant, inputs: Tensors) -> Tensors:
        """One UNet call with the weights of a variant."""
        plain = self._plain(variant)
        if self.graphs is None or len(inputs["latents"]) not in self._options.buckets:
            return self._call(variant, plain, inputs)
        return self.graphs.run((variant, self.compiled), partial(self._call, variant, plain), inputs)

    def forget(self, variant: Variant) -> None:
        """Lets go of the weights of a variant, which may come back at another place in memory."""
        self._compiled.pop(variant, None)
        if self.graphs is not None:
            self.graphs.drop(lambda name: name[0] == variant)

    def release(self) -> None:
        """Gives back device memory that can be taken again later: graphs, and what the allocator keeps."""
        if self.graphs is not None:
            self.graphs.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _call(self, variant: Variant, plain: UNetCall, inputs: Tensors) -> Tensors:
        if not self.compiled:
            return plain(inputs)
        if variant not in self._compiled:
            compiler: Any = torch.compile
            self._compiled[variant] = compiler(plain, dynamic=False)
        try:
            return self._compiled[variant](inputs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            made = plain(inputs)  # What is wrong with the call itself is raised here.
            log.warning("torch.compile does not work here, UNet calls run without: %s", error)
            self.compiled = False
            self._compiled.clear()
            return made
