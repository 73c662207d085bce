"""Weights of the networks that look at pictures here, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def read_weights(network: Network, file: Path, name: str, trainer: str) -> Network:
    """Fills a network.

    Args:
        network: of the build that the file is of.
        file: what ``write_weights`` wrote.
        name, trainer: what it is called, and the module that makes it, for the error.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; train the {name}: python -m {trainer}")
    network.load_state_dict(load_file(file))
    return network


def write_weights(network: nn.Module, file: Path) -> None:
    """Writes all that a network has learnt."""
    state = network.state_dict().items()
    small = {name: value.half() if value.is_floating_point() else value for name, value in state}
    save_file({name: value.contiguous() for name, value in small.items()}, file)
