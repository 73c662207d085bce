"""The ops that TensorRT's ONNX parser takes, from its own list, and what of a graph is not among them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

import onnx

from storyloom_export.functions import DOMAIN

PLUGINS = frozenset({"Bank", "CrossFrameAttention", "CrossAttentionWithMaps", "IdentityAttention", "ForegroundOtsu"})
"""Ops of ours that a plugin runs. The others run as their bodies, which the parser puts in their place."""


@cache
def supported() -> dict[str, tuple[str, ...]]:
    """Op -> the types that the parser takes it with. ``operators.json`` names the source."""
    content = json.loads(files(__package__).joinpath("operators.json").read_text(encoding="utf-8"))
    return {name: tuple(types) for name, types in content["types"].items()}


def unsupported(model: onnx.ModelProto) -> set[str]:
    """The ops of a graph that TensorRT would see and has neither a parser nor a plugin of ours for."""
    known = supported()
    return {
        f"{domain}::{name}" if domain else name
        for domain, name in _seen(model)
        if (domain or name not in known) and not (domain == DOMAIN and name in PLUGINS)
    }


def _seen(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Ops of the graph, with those of function bodies in the place of functions that have no plugin."""
    bodies = {(function.domain, function.name): function for function in model.functions}
    for node in _nodes(model.graph.node):
        key = (node.domain, node.op_type)
        if key in bodies and node.op_type not in PLUGINS:
            yield from ((inner.domain, inner.op_type) for inner in _nodes(bodies[key].node))
        else:
            yield key


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """Nodes and those of their subgraphs."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g.node)
