"""The two halves of a published adapter's file: what makes tokens, and what the UNet's layers do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from storyloom_model.identity.published.layers import listed
from storyloom_model.package import PackageError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def split(name: str, weights: Mapping[str, Tensor], *prefixes: str) -> list[dict[str, Tensor]]:
    """The weights below each prefix, without it.

    Raises:
        PackageError: there are none below one of them, or others beside them.
    """
    others = sorted(key for key in weights if not key.startswith(prefixes))
    if others:
        raise PackageError(f"adapter {name} has weights that its form does not know: {listed(others)}")
    found = [
        {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        for prefix in prefixes
    ]
    missing = [prefix for prefix, half in zip(prefixes, found, strict=True) if not half]
    if missing:
        raise PackageError(f"adapter {name} has no weights below {', '.join(missing)}; take the complete file")
    return found


def loaded(name: str, build: Callable[[Mapping[str, Tensor]], AnyModule], weights: Mapping[str, Tensor]) -> AnyModule:
    """The module that ``build`` makes for weights, with just these weights in it and none to train.

    Raises:
        PackageError: there are other weights than the module has.
    """
    try:
        with torch.device("meta"):
            module = build(weights)
        module.load_state_dict(weights, strict=True, assign=True)
    except KeyError as error:
        raise PackageError(f"adapter {name} lacks the weight {error.args[0]}; take the complete file") from error
    except (RuntimeError, ValueError) as error:
        raise PackageError(f"adapter {name} does not have the weights of its form: {error}") from error
    return module.eval().requires_grad_(False)
