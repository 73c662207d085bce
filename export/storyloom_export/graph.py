"""From a torch module to an ONNX graph with our functions in it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir

from storyloom_export.components import Exportable
from storyloom_export.functions import DOMAIN, OPSET, VERSION, function_protos

_FOLDED_BYTES = 1024


def build_graph(part: Exportable) -> ir.Model:
    """Exports a module. Its weights stay where they are, on the meta device too, until the graph is saved.

    Returns:
        The graph; its initializers have the names of the component's parameters.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            part.module.eval(),
            (),
            kwargs=part.inputs,
            dynamo=True,
            dynamic_shapes={name: part.free.get(name, {}) for name in part.inputs},
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    _simplify(model)
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(part.prefix):
            value.name = name.removeprefix(part.prefix)
    _add_functions(model)
    return model


def _simplify(model: ir.Model) -> None:
    """Folds constants and drops what is left over. Weights keep names and shapes: adapters and refits find them."""
    fold_constants_ir(
        model,
        onnx_shape_inference=True,
        input_size_limit=_FOLDED_BYTES,
        output_size_limit=_FOLDED_BYTES,
        should_fold=lambda node: False if _takes_weight(node) else None,
    )
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.TopologicalSortPass(),
        # The exporter notes its call stack, with paths of this machine, at every node.
        common.ClearMetadataAndDocStringPass(),
    )(model)


def _takes_weight(node: ir.Node) -> bool:
    return any(value is not None and value.is_initializer() for value in node.inputs)


def _add_functions(model: ir.Model) -> None:
    """Gives every op of ours that the graph uses its body."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    protos = function_protos()
    for name in sorted(used):
        function = ir.from_proto(protos[name])
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = VERSION


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks about its own progress and about packages we do not use out of the output."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
