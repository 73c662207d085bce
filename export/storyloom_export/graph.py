"""From a torch module to an ONNX graph with our functions in it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from torch import Tensor, nn

from storyloom_export.components import Exportable
from storyloom_export.functions import BFLOAT16_OPSET, DOMAIN, OPSET, VERSION, function_protos
from storyloom_export.weights import WeightSource, stream_weights

_FOLDED_BYTES = 1024


def build_graph(part: Exportable, weights: WeightSource | None = None, opset: int | None = None) -> ir.Model:
    """Exports a module.

    Args:
        part: the module and its examples.
        weights: where the weights of a module on the meta device come from, one by one, when the graph is written.
        opset: at least; None: what the module needs.

    Returns:
        The graph; its initializers have the names of the component's parameters.
    """
    opset = max(opset or 0, opset_of(part))
    prefix = f"module.{part.prefix}"
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Ordered(part).eval(),
            tuple(part.inputs.values()),
            dynamo=True,
            dynamic_shapes=(tuple(part.free.get(name, {}) for name in part.inputs),),
            input_names=list(part.inputs),
            output_names=list(part.outputs),
            opset_version=opset,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model
    _name_sizes(model, _symbols(program.exported_program, part))
    if weights is not None:
        stream_weights(model, prefix, weights)
    _simplify(model)
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(prefix):
            value.name = name.removeprefix(prefix)
    _add_functions(model, opset)
    return model


def opset_of(part: Exportable) -> int:
    """18, or for bfloat16 the first opset whose convolutions take it."""
    dtypes = {weight.dtype for weight in part.module.parameters()}
    return BFLOAT16_OPSET if torch.bfloat16 in dtypes else OPSET


class _Ordered(nn.Module):
    """A component whose inputs come one after the other: torch.export takes no free sizes of inputs of any name."""

    def __init__(self, part: Exportable) -> None:
        super().__init__()
        self.module = part.module
        self._names = tuple(part.inputs)

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(**dict(zip(self._names, inputs, strict=True)))


def _symbols(program: Any, part: Exportable) -> dict[str, str]:
    """The exporter's own symbols, such as "s25", to the names that we gave these sizes."""
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, str] = {}
    for given, wanted in zip(program.graph_signature.user_inputs, part.inputs, strict=True):
        for axis, size in part.free.get(wanted, {}).items():
            expression = placeholders[given].meta["val"].shape[axis].node.expr
            name = str(size.__name__).rpartition("*")[2]
            found |= {str(symbol): name for symbol in expression.free_symbols}
    return found


def _name_sizes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Gives every free size in the graph its name, so that all shapes follow from those of the inputs."""
    known = re.compile("|".join(rf"\b{symbol}\b" for symbol in names) or "$^")
    graph = model.graph
    made = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.inputs, *graph.outputs, *made):
        if value.shape is not None:
            value.shape = ir.Shape(
                [
                    size if isinstance(size, int) else ir.SymbolicDim(known.sub(lambda m: names[m[0]], str(size)))
                    for size in value.shape
                ]
            )


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


def _add_functions(model: ir.Model, opset: int) -> None:
    """Gives every op of ours that the graph uses its body."""
    used = {node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}
    protos = function_protos()
    for name in sorted(used):
        function = ir.from_proto(protos[name])
        function.opset_imports[""] = opset
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
