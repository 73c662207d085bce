"""The UNet that a graph was made of, with the weights as they lie on disk."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import UNet2DConditionModel
from onnx import numpy_helper
from torch import Tensor

from storyloom_export.artefact import DTYPES


def stored_unet(config: Path, file: Path) -> Any:
    """A UNet2DConditionModel with the weights of its graph, which are read when they are used.

    Args:
        config: folder of the package with the UNet's config.json.
        file: the graph.
    """
    unets: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet = unets.from_config(unets.load_config(config, local_files_only=True))
    unet.load_state_dict(stored_weights(file, unet.state_dict()), assign=True)
    return unet.eval().requires_grad_(False)


def stored_weights(file: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Weights of a graph by their names, mapped into memory: nothing large is read yet."""

    @cache
    def mapped(name: str) -> Any:
        # Copy on write: torch wants memory that it may write to, and the file is to stay as it is.
        return np.memmap(file.parent / name, np.uint8, "c")

    tensors = {tensor.name: tensor for tensor in onnx.load(file, load_external_data=False).graph.initializer}
    weights = {}
    for name in names:
        tensor = tensors[name]
        dtype = DTYPES[onnx.TensorProto.DataType.Name(tensor.data_type)]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            begin = int(place.get("offset", 0))
            data = mapped(place["location"])[begin : begin + int(place["length"])]
            weights[name] = torch.from_numpy(data).view(dtype).reshape(tuple(tensor.dims))
        else:
            weights[name] = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float32)).to(dtype)
    return weights
